"""Starting, stopping and replacing real processes."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.support.server import Client, LiveServer, eventually, get, tells


def failed(app: str, *flags: str, **env: str) -> tuple[int, str]:
    """Start a server that cannot start; return its exit code and what it said."""
    server = LiveServer(app, *flags, env=env, wait=False)
    with server:
        code = server.wait(30)
    return code, server.log


@pytest.mark.parametrize(
    ("app", "code", "words"),
    [
        ("nowhere:app", 4, "No module named 'nowhere'"),
        ("held:nothing", 4, "held has no 'nothing'"),
        ("broken:no_app", 4, "no_app is a dict, not an App, nor"),
        ("held", 4, "module:attribute"),
        ("unimportable:app", 4, "this module is broken on purpose"),
        ("broken:boots_badly", 3, "the frobnicator is not configured: set FROB=1"),
        ("broken:hook_fails", 3, "KeyError: 'frob'"),
    ],
)
def test_what_cannot_start_says_so_once_and_halts(app: str, code: int, words: str) -> None:
    left_with, log = failed(app, "--workers=3")
    assert left_with == code
    assert log.count(words) == 1
    assert "Traceback" not in log


def test_an_occupied_port_is_one_line_and_exit_code_5() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, log = failed("held:app", f"--port={port}")
    assert code == 5
    assert log == (
        f"fluxor-fast: cannot listen on 127.0.0.1:{port}: the port is in use by another process\n"
    )


def test_a_second_instance_on_the_same_port_is_refused() -> None:
    with LiveServer("held:app", "--workers=1") as first:
        code, log = failed("held:app", f"--port={first.port}")
        assert code == 5
        assert "in use" in log
        assert get(first.port, "/").status == 200


def test_bad_settings_are_all_told_and_exit_code_2() -> None:
    code, log = failed("held:app", "--max-ccu=many", "--utilization=0", FLUXOR_SLOTS="-1")
    assert code == 2
    assert len(log.splitlines()) == 3
    for words in ("--max-ccu", "many", "--utilization", "FLUXOR_SLOTS", "-1"):
        assert words in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_answers_what_is_in_the_system(number: signal.Signals, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with LiveServer("held:app", "--workers=2", env={"HELD_GATE": str(gate)}) as server:
        held = [Client(server.port) for _ in range(8)]
        for client in held:
            client.send("/hold")
        idle = [Client(server.port) for _ in range(4)]
        for client in idle:
            assert client.request("/").status == 200
        eventually(lambda: get(server.port, "/figures").json["ccu"] == 8, "held")

        server.signal(number)
        for client in idle:  # idle connections are closed
            assert client.socket.recv(1) == b""
        with pytest.raises(OSError):  # no new connection gets in
            eventually(lambda: Client(server.port).request("/who") and False, "refused", 5)
        gate.touch()
        for client in held:
            answer = client.read()
            assert answer.status == 200
            assert answer.headers["connection"] == "close"
            assert client.socket.recv(1) == b""
        assert server.wait() == 0
        for client in held + idle:
            client.close()


def test_workers_that_outlast_the_graceful_timeout_are_ended(tmp_path: Path) -> None:
    env = {"HELD_GATE": str(tmp_path / "gate")}
    flags = ("--workers=1", "--graceful-timeout=0.5")
    with LiveServer("held:app", *flags, env=env) as server, Client(server.port) as client:
        client.send("/spin")  # blocks the loop: the worker cannot even see SIGTERM
        eventually(lambda: b"State:\tS" in status_of(server.workers[0]), "spinning")
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait() == 1
        assert 0.5 < time.monotonic() - started < 8
        assert "SIGKILL" in server.log


def status_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/status").read_bytes()


def test_a_second_sigint_ends_at_once(tmp_path: Path) -> None:
    env = {"HELD_GATE": str(tmp_path / "gate")}
    flags = ("--workers=2",)
    with LiveServer("held:app", *flags, env=env) as server, Client(server.port) as client:
        client.send("/hold")
        eventually(lambda: get(server.port, "/figures").json["ccu"] == 1, "held")
        workers = server.workers
        server.signal(signal.SIGINT)
        tells(server, "SIGINT")
        started = time.monotonic()
        server.signal(signal.SIGINT)
        server.wait()
        assert time.monotonic() - started < 3
    for pid in workers:
        assert not Path(f"/proc/{pid}").exists()


def test_connections_of_other_workers_do_not_notice_a_sigkill() -> None:
    with LiveServer("held:app", "--workers=2") as server:
        clients: dict[int, list[Client]] = {pid: [] for pid in server.workers}
        for _ in range(40):
            client = Client(server.port)
            clients[client.request("/who").json["pid"]].append(client)
        victim, survivor = server.workers
        os.kill(victim, signal.SIGKILL)
        for client in clients[survivor]:
            assert client.request("/who").json == {"pid": survivor}
        for client in clients[victim]:
            with pytest.raises(OSError):
                client.request("/who")
        eventually(lambda: get(server.port, "/figures").json["workers"] == 2, "a new worker")
        # what lands in the dead worker's queue is answered by its successor
        assert {get(server.port, "/who").status for _ in range(20)} == {200}
        for client in clients[victim] + clients[survivor]:
            client.close()


def test_workers_leave_when_the_arbiter_is_killed() -> None:
    with LiveServer("held:app", "--workers=2") as server:
        workers = server.workers
        server.process.kill()
        server.process.wait(5)
        eventually(
            lambda: not any(Path(f"/proc/{pid}/fd").exists() and alive(pid) for pid in workers),
            "workers left",
        )


def alive(pid: int) -> bool:
    try:
        return b"State:\tZ" not in status_of(pid)
    except OSError:
        return False


def test_a_failing_handler_is_a_500_that_tells_nothing() -> None:
    with LiveServer("held:app", "--workers=1") as server:
        answer = get(server.port, "/fail")
        assert answer.status == 500
        assert set(answer.json) == {"error", "message", "code"}
        assert b"secret" not in answer.body
        eventually(lambda: answer.headers["x-request-id"] in server.log, "logged with its id")
        tells(server, "a secret that is not for clients")


def test_blocking_handlers_run() -> None:
    with LiveServer("held:app", "--workers=1") as server:
        assert get(server.port, "/blocking").json == {"pid": server.workers[0]}


def test_metrics_survive_the_death_of_a_worker() -> None:
    with LiveServer("held:app", "--workers=2") as server:
        for _ in range(50):
            assert get(server.port, "/").status == 200
        before = get(server.port, "/figures").json["responses"]["2xx"]
        assert before >= 50
        for pid in server.workers:
            os.kill(pid, signal.SIGKILL)
            eventually(lambda p=pid: p not in server.workers, "reaped")
            assert get(server.port, "/figures").json["responses"]["2xx"] >= before


def test_the_access_log_has_a_line_for_each_request_whatever_its_end() -> None:
    with LiveServer("held:app", "--workers=1", "--access-log") as server:
        for path in ("/", "/hold?0.01", "/blocking", "/teapot", "/fail"):
            get(server.port, path)
        for line in ("GET / 200 ", "GET /hold 200 ", "GET /blocking 200 ", "GET /teapot 418 ",
                     "GET /fail 500 "):  # fmt: skip
            tells(server, line, 1)
