"""Workers that hang, crash, grow and are left alone, in real processes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.test_reload import EXACT, LIMIT
from tests.support.server import APPS, Client, LiveServer, eventually, get, tells
from tests.support.steady import Steady


def pids_of(server: LiveServer) -> dict[int, Client]:
    """Return one connection to each worker, by its pid."""
    found: dict[int, Client] = {}
    for _ in range(200):
        client = Client(server.port)
        pid = client.request("/who").json["pid"]
        if pid in found:
            client.close()
        else:
            found[pid] = client
        if len(found) == len(server.workers):
            return found
    raise AssertionError("not every worker got a connection")


def p99(client: Client, seconds: float) -> float:
    """Return the 99th percentile of the latency of one connection, in seconds."""
    took = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        started = time.perf_counter()
        assert client.request("/who").status == 200
        took.append(time.perf_counter() - started)
        time.sleep(0.002)
    return sorted(took)[len(took) * 99 // 100]


@pytest.mark.parametrize("path", ["/spin_in_python", "/spin_in_c"])
def test_a_blocked_loop_is_found_told_and_replaced_and_the_other_worker_does_not_notice(
    path: str,
) -> None:
    with LiveServer("sick:app", "--workers=2", "--heartbeat-timeout=1") as server:
        clients = pids_of(server)
        (victim, blocked), (_, other) = clients.items()
        before = p99(other, 0.7)
        started = time.monotonic()
        blocked.send(path)
        during = p99(other, 1.2)
        eventually(lambda: victim not in server.workers and len(server.workers) == 2, "replaced", 5)
        took = time.monotonic() - started
        tells(server, f"(pid {victim}) had a silent event loop")
        assert re.search(
            rf"worker \d \(pid {victim}\) had a silent event loop for 1\.\d s", server.log
        )
        tells(server, f"in {path[1:]}")  # where it hung
        assert 1.0 < took < 4.0
        # the machine is shared with other tests: what a blocked loop would cost is a second
        assert during < max(10 * before, 0.1), (before, during)
        eventually(lambda: get(server.port, "/who").status == 200, "serving")
        for client in clients.values():
            client.close()


def test_a_frozen_machine_is_no_silent_loop() -> None:
    with LiveServer("sick:app", "--workers=2", "--heartbeat-timeout=1") as server:
        workers = server.workers
        pids = [server.process.pid, *workers]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(1.7)  # longer than the timeout: this is what is tested
        for pid in reversed(pids):  # else the arbiter would look at workers that stand still
            os.kill(pid, signal.SIGCONT)
        assert {get(server.port, "/who").status for _ in range(10)} == {200}
        time.sleep(0.5)  # several looks of the arbiter's
        assert server.workers == workers, server.log
        assert "silent" not in server.log


def test_a_stopped_worker_is_replaced_though_it_gives_no_stacks() -> None:
    with LiveServer("sick:app", "--workers=1", "--heartbeat-timeout=1") as server:
        victim = server.workers[0]
        os.kill(victim, signal.SIGSTOP)
        eventually(lambda: server.workers not in ([victim], []), "replaced", 6)
        assert get(server.port, "/who").status == 200


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("/crash", "crashed: SIGSEGV"),
        ("/exit?0", "left by itself (code 0)"),
    ],
)
def test_ends_are_told_apart(target: str, words: str) -> None:
    with LiveServer("sick:app", "--workers=1") as server:
        victim = server.workers[0]
        with Client(server.port) as client, pytest.raises(OSError):
            client.request(target)
        tells(server, f"worker 0 (pid {victim}) {words}")
        if target == "/crash":
            tells(server, "in crash")
        eventually(lambda: get(server.port, "/who").status == 200, "serving")


def test_a_real_time_signal_ends_a_worker_and_not_the_arbiter() -> None:
    with LiveServer("sick:app", "--workers=1") as server:
        os.kill(server.workers[0], signal.SIGRTMIN + 5)
        number = signal.SIGRTMIN + 5
        tells(server, f"was ended by signal {number}")
        eventually(lambda: get(server.port, "/who").status == 200, "serving")


@pytest.fixture
def impatient(tmp_path: Path) -> dict[str, str]:
    """Variables for a server that tries a crash-looping worker again after a second."""
    (tmp_path / "sitecustomize.py").write_text(
        "from fluxor_fast.arbiter import breaker\nbreaker.RETRY_SECONDS = 1.0\n"
    )
    return {"PYTHONPATH": str(tmp_path), "SICK_BAD": str(tmp_path / "bad")}


def test_a_crash_looping_worker_takes_no_connections_and_comes_back(
    impatient: dict[str, str],
) -> None:
    bad = Path(impatient["SICK_BAD"])
    with LiveServer("sick:app", "--workers=2", env=impatient) as server:
        bad.touch()
        survivor, victim = server.workers
        os.kill(victim, signal.SIGKILL)
        loops = "crash-loops: tried every 1 s from now on; degraded: 1 of 2 workers serve"
        tells(server, loops, seconds=30)
        tells(server, "could not start (code 3)")
        # a listener that nobody accepts from has no share of them
        assert {get(server.port, "/who").json["pid"] for _ in range(30)} == {survivor}
        bad.unlink()
        tells(server, "lives again; ok: 2 of 2 workers serve")
        (other,) = {*server.workers} - {survivor}
        eventually(lambda: get(server.port, "/who").json["pid"] == other, "its share again")


def test_an_instance_whose_workers_all_crash_loop_refuses_and_goes_on_trying(
    impatient: dict[str, str],
) -> None:
    bad = Path(impatient["SICK_BAD"])
    with LiveServer("sick:app", "--workers=1", env=impatient) as server:
        bad.touch()
        os.kill(server.workers[0], signal.SIGKILL)
        tells(server, "; crash-loop: 0 of 1 workers serve", seconds=30)
        with pytest.raises(ConnectionRefusedError):
            get(server.port, "/who")
        assert server.process.poll() is None
        bad.unlink()
        tells(server, "lives again")
        assert get(server.port, "/who").status == 200


def crash_looping(server: LiveServer, bad: Path) -> int:
    """Have one of two workers crash-loop; return the pid of the other."""
    survivor, victim = server.workers
    bad.touch()
    os.kill(victim, signal.SIGKILL)
    tells(server, "degraded: 1 of 2 workers serve", seconds=30)
    return survivor


def test_a_reload_fills_a_crash_looping_seat_at_once(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    flags = ("--workers=2", "--graceful-timeout=1")
    with LiveServer("sick:app", *flags, env={"SICK_BAD": str(bad)}) as server:
        survivor = crash_looping(server, bad)
        server.signal(signal.SIGHUP)  # to what is as bad: the survivor stays
        tells(server, "reload: stopped; 1 workers stay as they are")
        assert {get(server.port, "/who").json["pid"] for _ in range(10)} == {survivor}
        bad.unlink()
        server.signal(signal.SIGHUP)
        tells(server, "reload: done, 2 workers serve")
        tells(server, "lives again; ok: 2 of 2 workers serve")
        eventually(lambda: survivor not in server.workers, "the old one has left")
        found = pids_of(server)
        for client in found.values():
            client.close()


def test_a_crash_looping_seat_can_be_taken_away_and_its_listener_is_anothers(
    tmp_path: Path,
) -> None:
    bad = tmp_path / "bad"
    flags = ("--workers=2", "--graceful-timeout=1")
    with LiveServer("sick:app", *flags, env={"SICK_BAD": str(bad)}) as server:
        survivor = crash_looping(server, bad)
        bad.unlink()
        server.signal(signal.SIGTTOU)
        tells(server, "scaling: done, 1 workers serve")
        pids = {get(server.port, "/who").json["pid"] for _ in range(30)}  # of both listeners
        assert len(pids) == 1
        assert pids.isdisjoint({survivor})


@pytest.fixture
def recycled() -> Iterator[LiveServer]:
    flags = ("--workers=2", "--max-requests=20", "--max-requests-jitter=10")
    with LiveServer("sick:app", *flags) as server:
        yield server


def test_a_worker_is_recycled_by_requests_and_no_request_fails(recycled: LiveServer) -> None:
    before = set(recycled.workers)
    seen: set[int] = set()
    until = time.monotonic() + 20
    while time.monotonic() < until and not (len(seen) >= 4 and before.isdisjoint(recycled.workers)):
        answer = get(recycled.port, "/who")  # one that waits in the queue is the successor's
        assert answer.status == 200
        seen.add(answer.json["pid"])
        assert len(recycled.workers) >= 1
        time.sleep(0.005)
    assert before.isdisjoint(recycled.workers)
    words = r"worker \d \(pid \d+\) is recycled: \d+ requests, at most (2\d|30)\n"
    eventually(lambda: re.search(words, recycled.log), "told")
    assert "WARNING" not in recycled.log


def test_a_worker_is_recycled_by_age() -> None:
    with LiveServer("sick:app", "--workers=1", "--max-worker-age=1") as server:
        first = server.workers
        eventually(lambda: server.workers not in (first, []), "recycled", 8)
        tells(server, "s old, at most 1")


def test_a_successor_that_does_not_get_ready_leaves_the_worker_that_was_to_be_recycled(
    impatient: dict[str, str],
) -> None:
    bad = Path(impatient["SICK_BAD"])
    flags = ("--workers=1", "--max-worker-age=2")
    with LiveServer("sick:app", *flags, env=impatient) as server:
        first = server.workers
        bad.touch()
        eventually(lambda: server.log.count("recycling: stopped; 1 workers stay") >= 2, "told")
        assert get(server.port, "/who").json["pid"] == first[0]
        bad.unlink()
        eventually(lambda: get(server.port, "/who").json["pid"] != first[0], "recycled")
        assert "crash-loops" not in server.log


def test_the_limit_is_exact_while_workers_are_recycled_and_no_request_fails(
    tmp_path: Path,
) -> None:
    file = tmp_path / "inside"
    file.write_bytes(struct.pack("qq", 0, 0))
    flags = ("--workers=2", "--max-requests=100", "--max-requests-jitter=50", *EXACT)
    env = {"INSIDE_FILE": str(file)}
    with LiveServer("inside:app", *flags, env=env) as server:
        with Steady(server.port, 20, refusals=True) as clients:
            eventually(lambda: server.log.count("recycling: done") >= 3, "recycled", 20)
        eventually(lambda: get(server.port, "/figures").json["ccu"] == 0, "all permits are back")
        assert struct.unpack("qq", file.read_bytes()) == (0, LIMIT)
        assert clients.failures == []


def test_a_stop_right_after_a_fork_is_not_lost_in_the_child() -> None:
    with LiveServer("sick:app", "--workers=1") as server:
        victim = server.workers[0]
        os.kill(victim, signal.SIGKILL)
        until = time.monotonic() + 5
        while server.workers in ([victim], []) and time.monotonic() < until:
            pass  # the signal is to come within a millisecond of the fork
        server.signal(signal.SIGTERM)
        assert server.wait(5) == 0
        assert server.log.count("SIGTERM: stopping") == 1


def test_workers_are_pinned_to_cores_that_are_allowed() -> None:
    cores = sorted(os.sched_getaffinity(0))
    with LiveServer("sick:app", f"--workers={len(cores) + 1}", "--pin") as server:
        found = [sorted(os.sched_getaffinity(pid)) for pid in server.workers]
    assert sorted(one for each in found for one in each) == sorted([*cores, cores[0]])


# an arbiter that is killed


def free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def gone(pid: int) -> bool:
    try:
        return b"State:\tZ" in Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return True


def test_a_killed_arbiter_leaves_a_free_port_and_held_requests_are_answered(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    flags = ("--workers=2", "--graceful-timeout=5")
    with LiveServer("held:app", *flags, env={"HELD_GATE": str(gate)}) as server:
        workers = server.workers
        held = [Client(server.port) for _ in range(6)]
        for client in held:
            client.send("/hold")
        eventually(lambda: get(server.port, "/figures").json["ccu"] == 6, "held")
        server.process.kill()
        server.process.wait(5)
        eventually(lambda: free(server.port), "free, though requests are held", 3)
        gate.touch()
        for client in held:
            assert client.read().status == 200
            client.close()
        eventually(lambda: all(map(gone, workers)), "gone")


def test_an_orphan_with_a_blocked_loop_does_not_keep_the_port() -> None:
    flags = ("--workers=1", "--graceful-timeout=0.5")
    with LiveServer("held:app", *flags) as server, Client(server.port) as client:
        (worker,) = server.workers
        client.send("/spin")
        time.sleep(0.1)
        server.process.kill()
        server.process.wait(5)
        eventually(lambda: gone(worker), "ended by its timer", 6)
        assert free(server.port)


def test_one_instance_for_a_pid_file_and_a_killed_one_is_succeeded(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with LiveServer("held:app", "--workers=1", f"--pid-file={path}") as first:
        assert int(path.read_text()) == first.process.pid
        second = LiveServer("held:app", f"--pid-file={path}", wait=False)
        with second:
            assert second.wait() == 5
        assert second.log == (
            f"fluxor-fast: pid file {path}: another instance runs (pid {first.process.pid})\n"
        )
        with Client(first.port) as client:  # an orphan with work does not keep the file
            client.send("/hold?2")
            eventually(lambda: get(first.port, "/figures").json["ccu"] == 1, "held")
            first.process.kill()
            first.process.wait(5)
            with LiveServer("held:app", "--workers=1", f"--pid-file={path}") as third:
                assert int(path.read_text()) == third.process.pid
            assert not path.exists()


# process 1 of a container


def namespaces() -> str:
    """Return why there can be no process 1 of our own here; empty: there can."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return "there is no unshare(1)"
    command = [unshare, "--pid", "--fork", "--mount-proc", "true"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else ""


def test_process_1_reaps_orphans_answers_signals_and_leaves_nobody_behind() -> None:
    if why := namespaces():
        pytest.skip(f"no process 1 here: {why}")
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc",
         sys.executable, "-m", "fluxor_fast", "serve", "sick:app", "--port=0", "--workers=1"],
        cwd=APPS, stderr=subprocess.PIPE,
    )  # fmt: skip
    lines: list[str] = []
    assert process.stderr is not None
    stderr = process.stderr
    reader = threading.Thread(target=lambda: lines.extend(line.decode() for line in stderr))
    reader.start()
    try:
        found = eventually(lambda: re.search(r"on http://[^ ]*:(\d+)\n", "".join(lines)), "up", 30)
        port = int(found[1])
        (server,) = children(process.pid)
        (worker,) = children(server)
        for _ in range(3):
            assert get(port, "/orphan").status == 200
        eventually(lambda: len(children(server)) == 4, "orphans are its children", 5)
        eventually(lambda: children(server) == [worker], "orphans are reaped", 5)
        os.kill(worker, signal.SIGKILL)  # a worker is not taken for an orphan
        eventually(lambda: "SIGKILL from outside; replaced at once" in "".join(lines), "told")
        eventually(lambda: get(port, "/who").status == 200, "serving")
        os.kill(server, signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait(5)
        reader.join(5)
        stderr.close()


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
