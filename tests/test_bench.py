from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench"
sys.path.insert(0, str(BENCH))

import harness  # noqa: E402


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
