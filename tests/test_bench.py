from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import eventually

BENCH = Path(__file__).resolve().parent.parent / "bench"
sys.path.insert(0, str(BENCH))

import client  # noqa: E402
import closedloop  # noqa: E402
import harness  # noqa: E402
import openloop  # noqa: E402
import overload  # noqa: E402
import overload_report  # noqa: E402


def report(**changes: Any) -> str:
    figures: dict[str, Any] = {
        "requests": 1000,
        "duration_us": 2_000_000,
        "p50_us": 500,
        "p95_us": 900,
        "p99_us": 1500,
        "max_us": 2000,
        "errors": {"connect": 0, "read": 0, "write": 0, "status": 0, "timeout": 0},
    }
    return "Running 2s test\nREPORT " + json.dumps(figures | changes) + "\n"


def test_wrk_report_is_read_in_milliseconds_and_seconds():
    load = harness._read_report(report(), 0.5)
    assert (load.rps, load.p50, load.p99, load.generator_cpu) == (500.0, 0.5, 1.5, 0.5)


@pytest.mark.parametrize("kind", ["connect", "read", "write", "status", "timeout"])
def test_any_error_fails_the_round(kind):
    errors = {"connect": 0, "read": 0, "write": 0, "status": 0, "timeout": 0, kind: 1}
    with pytest.raises(harness.Failed, match=kind):
        harness._read_report(report(errors=errors), 0.5)


def test_a_round_without_answers_fails():
    with pytest.raises(harness.Failed, match="no answer"):
        harness._read_report(report(requests=0), 0.5)
    with pytest.raises(harness.Failed, match="reported nothing"):
        harness._read_report("unable to connect", 0.5)


def test_tree_cpu_and_memory_of_real_processes():
    # a child that has a child, both of which work and wait
    code = (
        "import os, sys, time\n"
        "os.fork()\n"
        "until = time.process_time() + 0.1\n"
        "while time.process_time() < until: pass\n"
        "sys.stdout.write('x'); sys.stdout.flush(); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"xx"
        tree = harness.process_tree(process.pid)
        assert tree[0] == process.pid
        assert len(tree) == 2
        assert sum(harness.cpu_seconds(process.pid).values()) >= 0.18
        memory = harness.memory_of([*tree, 2**22 + 1])  # the last one does not exist
        assert memory.processes == 2
        assert memory.rss > 2_000_000
        assert memory.pss is None or 0 < memory.pss <= memory.rss
    finally:
        process.communicate(timeout=10)


def test_generator_bound_looks_at_its_core_too():
    def round_of(generator: float, core: float) -> harness.Round:
        load = harness.Load(1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, generator)
        return harness.Round(load, 1.0, 0.5, harness.Memory(1, 1, 1), (0.9, core))

    assert harness.generator_bound([round_of(0.97, 0.98)])
    assert harness.generator_bound([round_of(0.50, 0.99)])
    assert not harness.generator_bound([round_of(0.50, 0.60)])
    assert harness.strangers([round_of(0.5, 0.6)]) == pytest.approx(0.4)


def test_servers_that_are_measured_in_slices_run_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each "server" and its "wrk" are processes that sleep, and are to be seen stopped."""
    sleeping = "import time\nwhile True: time.sleep(0.01)"
    met = threading.Barrier(3)
    seen: list[str] = []

    def state(process: subprocess.Popen[bytes]) -> str:
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def measured(server: Any, path: str, *, running: Any, cpu: dict[Any, float]) -> Any:
        running(wrks[server.name].pid)
        met.wait(10)
        until = time.monotonic() + 20
        while not {"a", "b", "c"} <= {*seen} and time.monotonic() < until:
            going = {
                name for name in servers
                if "T" not in (state(processes[name]), state(wrks[name]))
            }  # fmt: skip
            if len(going) < 3:
                seen.append("".join(sorted(going)) or "-")
            time.sleep(0.003)
        load = harness.Load(1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, generator_cpu=9.0)
        return harness.Round(load, cpu[server.name], 0.3, harness.Memory(1, 1, 1), (0.9, 0.5))

    monkeypatch.setattr(harness, "measured", measured)
    processes = {name: subprocess.Popen([sys.executable, "-c", sleeping]) for name in "abc"}
    wrks = {name: subprocess.Popen([sys.executable, "-c", sleeping]) for name in "abc"}
    servers: Any = {
        name: type("", (), {"name": name, "tree": [process.pid]})
        for name, process in processes.items()
    }
    try:
        done = harness.measured_in_slices(servers, "/", cpu={"a": 10.0, "b": 15.0, "c": 8.0})
        assert "T" not in {state(one) for one in [*processes.values(), *wrks.values()]}
    finally:
        for one in [*processes.values(), *wrks.values()]:
            one.kill()
            one.wait()
    assert {"a", "b", "c"} <= {*seen}
    assert [done[name].cpu_us for name in "abc"] == [10.0, 15.0, 8.0]
    assert all(one.load.generator_cpu < 9 for one in done.values())  # as the kernel counted
    assert harness.strangers([done["a"]]) == pytest.approx(0)  # the others are none
    assert harness.times_as_fast([done["a"]], [done["b"]], slices=True) == [1.5]
    assert harness.times_as_fast([done["a"]], [done["b"]], slices=False) == [1.0]


def test_a_server_that_ends_at_once_is_a_failure_with_its_words():
    command = [sys.executable, "-c", "import sys; sys.exit('no such luck')"]
    with (
        pytest.raises(harness.Failed, match="no such luck"),
        harness.Server("unlucky", command, harness.free_port()),
    ):
        pass


def test_every_process_of_a_server_is_stopped_even_if_it_will_not():
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "if os.fork() == 0: signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code]
    started = time.monotonic()

    def two(port: int) -> bool:
        return len(harness.process_tree(server.pid)) == 2

    server = harness.Server("stubborn", command, harness.free_port(), ready=two)
    with server:
        tree = server.tree
    assert time.monotonic() - started < 10
    for pid in tree:
        until = time.monotonic() + 5
        while Path(f"/proc/{pid}").exists() and _state(pid) != "Z":
            assert time.monotonic() < until, f"{pid} still runs"
            time.sleep(0.01)


def test_children_of_a_server_that_died_are_stopped_too():
    code = (
        "import os, signal, time\n"
        "if os.fork() == 0: signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "time.sleep(60)\n"
    )

    def two(port: int) -> bool:
        return len(harness.process_tree(server.pid)) == 2

    server = harness.Server("shot", [sys.executable, "-c", code], harness.free_port(), ready=two)
    with server:
        child = server.tree[1]
        os.kill(server.pid, signal.SIGKILL)
        while server.alive:
            time.sleep(0.01)
    until = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and _state(child) != "Z":
        assert time.monotonic() < until, f"{child} still runs"
        time.sleep(0.01)


def _state(pid: int) -> str:
    try:
        return harness._stat(pid)[0].decode()
    except OSError:
        return "Z"


def test_pinning_is_undone():
    before = os.sched_getaffinity(0)
    with harness.pinned({min(before)}):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


class Peer:
    """A server in a thread that answers as it is told: bytes, or None for silence."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = itertools.chain(answers, itertools.repeat(answers[-1]))
        self.accepted = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.accepted += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while connection.recv(4096):
                answer = next(self.answers)
                if answer is not None:
                    connection.sendall(answer)
                    if b"close" in answer:
                        return

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
BUSY_CLOSE = BUSY.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")


def open_loop(port: int, *, rate: float = 200, **options: Any) -> openloop.Generator:
    head = client.request("127.0.0.1", port, "/")
    due = openloop.schedule([openloop.Step(rate, 0.5)], None)
    generator = openloop.Generator(
        "127.0.0.1", port, head, due, **({"pool": 4, "most": 200} | options)
    )
    generator.run(1.0)
    return generator


def test_open_loop_keeps_its_schedule_and_its_connections():
    with Peer(GOOD) as peer:
        generator = open_loop(peer.port)
        found = openloop.summarise(generator.record, 0.5, 1.0, 0.25)
    assert found["offered"] == found["ok"] == 100
    assert [entry["ok"] for entry in found["timeline"]] == [50, 50]
    eventually(lambda: peer.accepted == generator.connects, "all are accepted")
    assert generator.connects < 50
    later = openloop.summarise(generator.record, 0.5, 1.0, 0.25, since=0.25)
    assert (later["offered"], later["offered_rps"], len(later["timeline"])) == (50, 200.0, 1)


def test_open_loop_replaces_connections_closed_with_a_refusal():
    with Peer(BUSY_CLOSE) as peer:
        generator = open_loop(peer.port)
    assert generator.record.status == [503] * 100
    assert generator.connects >= 100


def test_open_loop_opens_more_when_all_are_busy_and_users_give_up():
    with Peer(None) as peer:
        generator = open_loop(peer.port, most=10, give_up=0.2)
    found = openloop.summarise(generator.record, 0.5, 1.0, 0.5)
    assert found["unanswered"] == 100
    assert generator.peak == 10
    assert generator.connects > 10  # those that gave up made room


def test_probe_is_counted_apart_and_opens_a_connection_each_time():
    with Peer(GOOD) as peer:
        head = client.request("127.0.0.1", peer.port, "/health")
        due = openloop.schedule([openloop.Step(20, 0.5)], None)
        generator = open_loop(peer.port, rate=0, pool=0, probe=openloop.Probe(head), probes=due)
    found = openloop.summarise_probes(generator.probes, 1.0)
    assert (found["asked"], found["failed"]) == (10, 0)
    eventually(lambda: peer.accepted == 10, "all are accepted")
    assert generator.record.due == []


def test_closed_loop_tells_refusals_from_answers():
    with Peer(GOOD, BUSY, GOOD, BUSY_CLOSE, GOOD) as peer:
        load = closedloop.Users("127.0.0.1", peer.port, client.request("h", 1, "/"), 1)
        load.run(0.0, 1.0)
    found = load.report()
    assert len(load.refused) == 2
    assert len(load.accepted) > 2
    assert found["connections_opened"] == 2
    assert found["users_never_served"] == 0


def test_recovery_counts_from_the_end_of_the_step_and_must_last():
    def bins(*shares: float) -> list[dict[str, int]]:
        names = dict.fromkeys(openloop.OUTCOMES, 0)
        return [names | {"ok": round(100 * s), "shed": 100 - round(100 * s)} for s in shares]

    assert overload_report.recovery(bins(1, 0.3, 1, 1), 0.5, 1.0) == 0.0
    assert overload_report.recovery(bins(1, 0.3, 0.5, 1, 0.9, 1), 0.5, 1.0) == 1.5
    assert overload_report.recovery(bins(1, 0.3, 0.5), 0.5, 1.0) is None


def test_overload_rows_replace_those_of_the_same_part(tmp_path: Path):
    def row(server: str, kind: str, figure: int) -> dict[str, Any]:
        return {"server": server, "route": "cpu", "kind": kind, "figure": figure}

    target = tmp_path / "overload.json"
    overload.merge(target, [row("a", "open", 1), row("a", "step", 2), row("b", "open", 3)], {})
    overload.merge(target, [row("a", "open", 4)], {"command": "again"})
    found = json.loads(target.read_text())
    assert [entry["figure"] for entry in found["rows"]] == [2, 3, 4]
    assert found["command"] == "again"


@pytest.mark.parametrize("name", overload.CONTESTANTS)
def test_a_failed_and_a_left_out_row_are_shown(name):
    rows = [
        {"server": name, "route": "cpu", "kind": "open", "factor": 2.0, "failed": "it died"},
        {"server": name, "route": "cpu", "kind": "step", "skipped": "too much"},
    ]
    text = overload_report.markdown(rows, {name: "title"})
    assert "**failed**: it died" in text
    assert "too much" in text


def test_each_variation_of_the_server_can_be_made() -> None:
    """What they replace is still there: `bench/variations.py` compares the server with itself."""
    servers = Path(harness.__file__).parent / "servers"
    code = "import varied_app as v; [make() for _, make in v.VARIATIONS.values()]"
    subprocess.run([sys.executable, "-c", code], cwd=servers, check=True, timeout=30)
