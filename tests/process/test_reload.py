"""Reload, scaling, drain: workers come and go one at a time, and no client notices."""

from __future__ import annotations

import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.seeds import seeded
from tests.support.server import Client, LiveServer, ended, eventually, get, tells
from tests.support.steady import Steady

APP = """
from fluxor_fast import App

app = App()


@app.get("/")
def home(request):
    return {{"version": {version}, "max_ccu": request.app.settings.server.max_ccu}}
"""
LIMIT = 12
EXACT = (f"--max-ccu={LIMIT}", "--utilization=100", f"--slots={LIMIT}", "--max-connections=500",
         "--refusal-pause=0", "--queue-target=0")  # fmt: skip


# nobody is refused because the machine stood still
PATIENT = ("--queue-target=0", "--queue-deadline=60")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "site_app.py").write_text(APP.format(version=1))
    (tmp_path / "site.yaml").write_text("server: {max_ccu: 100}\n")
    return tmp_path


@contextmanager
def serving(folder: Path, *flags: str) -> Iterator[LiveServer]:
    flags = ("--config=site.yaml", "--graceful-timeout=4", *PATIENT, *flags)
    # else a version of the same second and size would be taken from its compiled form
    env = {"PYTHONDONTWRITEBYTECODE": "1"}
    with LiveServer("site_app:app", *flags, cwd=folder, env=env) as server:
        yield server


def test_a_reload_takes_the_new_application_and_settings_and_no_request_fails(
    folder: Path,
) -> None:
    with serving(folder, "--workers=2") as server:
        old = server.workers
        with Steady(server.port, 6, pause=0.002) as clients:
            (folder / "site_app.py").write_text(APP.format(version=2))
            (folder / "site.yaml").write_text("server: {max_ccu: 200}\n")
            server.signal(signal.SIGHUP)
            tells(server, "reload: done, 2 workers serve", 1)
            for _ in range(10):
                assert get(server.port, "/").json == {"version": 2, "max_ccu": 200}
            eventually(lambda: not set(old) & set(server.workers), "the old ones have left")
            assert len(server.workers) == 2
        assert clients.failures == []
        assert clients.answered > 100


def test_a_version_that_does_not_boot_is_told_and_the_old_one_serves_on(folder: Path) -> None:
    with serving(folder, "--workers=2") as server:
        old = server.workers
        (folder / "site_app.py").write_text("raise RuntimeError('broken on purpose')")
        server.signal(signal.SIGHUP)
        tells(server, "reload: stopped; 2 workers stay as they are, 0 new ones were ready", 1)
        tells(server, "broken on purpose", 1)
        assert server.workers == old
        assert {get(server.port, "/").json["version"] for _ in range(10)} == {1}
        (folder / "site_app.py").write_text(APP.format(version=3))
        server.signal(signal.SIGHUP)
        tells(server, "reload: done", 1)
        assert {get(server.port, "/").json["version"] for _ in range(10)} == {3}


def test_settings_that_cannot_be_used_are_one_line_and_the_old_ones_stay(folder: Path) -> None:
    with serving(folder, "--workers=1") as server:
        old = server.workers
        (folder / "site.yaml").write_text("server: {max_ccu: many, slots: -1}\n")
        server.signal(signal.SIGHUP)
        tells(server, "settings and workers stay as they are", 1)
        (line,) = [line for line in server.lines if "stay as they are" in line]
        assert "max_ccu" in line
        assert "slots" in line
        assert server.workers == old
        (folder / "site.yaml").write_text("server: {max_ccu: 300, host: 0.0.0.0}\n")
        server.signal(signal.SIGHUP)
        tells(server, "reload: done", 1)
        tells(server, "server.host cannot change while the instance serves: as before")
        assert get(server.port, "/").json["max_ccu"] == 300


def test_an_idle_connection_is_answered_once_more_by_the_worker_that_drains(folder: Path) -> None:
    with serving(folder, "--workers=1") as server, Client(server.port) as idle:
        assert idle.request("/").json["version"] == 1
        (folder / "site_app.py").write_text(APP.format(version=2))
        server.signal(signal.SIGHUP)
        tells(server, "reload: done", 1)
        assert get(server.port, "/").json["version"] == 2
        answer = idle.request("/")
        assert answer.json["version"] == 1
        assert answer.headers["connection"] == "close"
        assert idle.socket.recv(1) == b""


def test_the_graceful_timeout_ends_idle_connections_of_a_worker_that_drains(folder: Path) -> None:
    with serving(folder, "--workers=1", "--graceful-timeout=0.6") as server:
        old = server.workers
        with Client(server.port) as idle:
            idle.request("/")
            server.signal(signal.SIGHUP)
            tells(server, "reload: done", 1)
            assert idle.socket.recv(1) == b""
        eventually(lambda: old[0] not in server.workers, "left")
        assert "SIGKILL" not in server.log


def test_reloads_faster_than_workers_drain_wait_for_a_free_index(folder: Path) -> None:
    """Eight indexes, and nine generations whose idle connections keep them."""
    with serving(folder, "--workers=2", "--graceful-timeout=0.8") as server, ExitStack() as stack:
        for generation in range(1, 5):
            for _ in range(8):
                stack.enter_context(Client(server.port)).request("/")
            server.signal(signal.SIGHUP)
            tells(server, "reload: done", generation)
        assert get(server.port, "/").status == 200
        assert "SIGKILL" not in server.log
        eventually(lambda: len(server.workers) == 2, "the others have left")


def test_a_reload_takes_other_certificates_and_refuses_to_end_tls(folder: Path) -> None:
    authority = Authority(folder)
    pairs = [authority.issue(name, "localhost") for name in ("one", "two")]
    config = folder / "site.yaml"
    texts = [f"tls: {{certificate: {pair[0]}, key: {pair[1]}}}\n" for pair in pairs]
    config.write_text(texts[0])
    context = authority.client()

    def serial(port: int) -> object:
        with (
            socket.create_connection(("127.0.0.1", port), 5) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as tls,
        ):
            shown = tls.getpeercert()
            assert shown is not None
            return shown["serialNumber"]

    with serving(folder, "--workers=1") as server:
        first = serial(server.port)
        config.write_text(texts[1])
        server.signal(signal.SIGHUP)
        tells(server, "reload: done", 1)
        second = serial(server.port)
        assert first != second
        config.write_text("server: {max_ccu: 100}\n")
        server.signal(signal.SIGHUP)
        tells(
            server, "TLS begins or ends with a stop and a start only; settings and workers stay", 1
        )
        assert serial(server.port) == second


# more workers, and less


def test_ttin_and_ttou_change_the_number_of_workers_and_lose_no_connection(folder: Path) -> None:
    less, more = signal.SIGTTOU, signal.SIGTTIN
    steps = [(less, 1), (more, 2), (more, 3), (more, 4), (less, 3)]
    with serving(folder, "--workers=2") as server:
        with Steady(server.port, 4, fresh=True) as clients, Steady(server.port, 4) as kept:
            for at, (number, workers) in enumerate(steps):
                server.signal(number)
                tells(server, "scaling: done", at + 1)
                eventually(lambda w=workers: len(server.workers) == w, f"{workers} workers")
        assert clients.failures == kept.failures == []
        assert clients.answered > 100


def test_the_number_of_workers_is_bounded(folder: Path) -> None:
    with serving(folder, "--workers=1") as server:
        server.signal(signal.SIGTTOU)
        tells(server, "0 workers are not to be had, 1 to 2 are", 1)
        for _ in range(2):
            server.signal(signal.SIGTTIN)
            tells(server, "scaling: done", 1)
        tells(server, "3 workers are not to be had", 1)
        assert len(server.workers) == 2


@pytest.mark.parametrize("listener", ["reuseport", "shared"])
def test_the_limit_is_exact_while_workers_come_and_go(listener: str, tmp_path: Path) -> None:
    """More clients than the limit all the time, and a schedule of reloads and scalings."""
    random = seeded(f"reloads and scalings, {listener}")
    file = tmp_path / "inside"
    file.write_bytes(struct.pack("qq", 0, 0))
    flags = ("--workers=2", "--graceful-timeout=2", f"--listener={listener}", *EXACT)
    with (
        LiveServer("inside:app", *flags, env={"INSIDE_FILE": str(file)}) as server,
        Steady(server.port, 30, refusals=True) as clients,
    ):
        until = time.monotonic() + 1.2
        while time.monotonic() < until:
            server.signal(random.choice([signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU]))
            time.sleep(random.uniform(0.05, 0.3))
    inside, most = struct.unpack("qq", file.read_bytes())
    assert (inside, most) == (0, LIMIT)
    assert [f for f in clients.failures if "Refused" not in f and "connecting" not in f] == []
    assert clients.statuses[503] > 0


# drain


def test_at_a_stop_readiness_goes_first_and_all_is_served_for_the_delay(tmp_path: Path) -> None:
    file = tmp_path / "inside"
    file.write_bytes(struct.pack("qq", 0, 0))
    env = {"INSIDE_FILE": str(file)}
    with LiveServer("inside:app", "--workers=2", "--drain-delay=2", env=env) as server:
        assert get(server.port, "/ready").status == 200
        begun = time.monotonic()
        server.signal(signal.SIGTERM)
        eventually(lambda: get(server.port, "/ready").status == 503, "not ready any more")
        assert get(server.port, "/").status == 200
        assert "connection" not in get(server.port, "/").headers
        assert server.wait() == 0
        assert time.monotonic() - begun >= 2
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", server.port))


def test_clients_that_are_busy_meet_no_closed_connection_at_a_stop(folder: Path) -> None:
    with serving(folder, "--workers=2") as server:
        clients = Steady(server.port, 8, pause=0.05, once=True)
        with clients:
            eventually(lambda: clients.answered > 50, "busy")
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
        assert clients.failures == []
        assert clients.closes == 8


def test_logs_are_opened_anew_without_anything_else_happening(folder: Path) -> None:
    with serving(folder, "--workers=2") as server:
        old = server.workers
        server.signal(signal.SIGUSR1)
        tells(server, "SIGUSR1: opening the log files anew", 1)
        assert get(server.port, "/").status == 200
        assert server.workers == old
        server.signal(signal.SIGWINCH)  # a terminal's window has changed
        assert get(server.port, "/").status == 200
        assert not any(ended(pid) for pid in old)
