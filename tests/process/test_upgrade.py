"""SIGUSR2: a new arbiter on the same sockets, in the same shared memory; or no new one at all."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fluxor_fast.arbiter.shared import SharedMemory
from tests.process.test_reload import APP, EXACT, LIMIT, PATIENT
from tests.support.server import LiveServer, ended, eventually, get, tells
from tests.support.steady import Steady


@contextmanager
def serving(app: str, *flags: str, **how: object) -> Iterator[LiveServer]:
    """As ``LiveServer``, and the arbiters that follow are stopped too."""
    with LiveServer(app, "--graceful-timeout=4", *PATIENT, *flags, **how) as server:  # type: ignore[arg-type]
        try:
            yield server
        finally:
            for pid in successors(server):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            if server.process.poll() is None:
                server.process.terminate()
            for pid in successors(server):
                eventually(lambda pid=pid: ended(pid), f"{pid} has left\n{server.log}")


def successors(server: LiveServer) -> list[int]:
    return [int(pid) for pid in re.findall(r"upgrade: arbiter (\d+) is starting", server.log)]


def upgraded(server: LiveServer, pid: int, times: int = 1) -> int:
    """Have arbiter ``pid`` upgraded; return the new one's pid when the old one has left."""
    os.kill(pid, signal.SIGUSR2)
    tells(server, "is ready; this one leaves", times)
    if pid == server.process.pid:
        assert server.process.wait(10) == 0  # else it would stay as a zombie
    tells(server, f"upgrade: arbiter {pid} has left", 1)
    return successors(server)[-1]


def test_the_new_arbiter_takes_over_the_limit_is_exact_and_nobody_notices(tmp_path: Path) -> None:
    """Twice in a row, with more clients than the limit all the time, and totals that go on."""
    file = tmp_path / "inside"
    file.write_bytes(struct.pack("qq", 0, 0))
    flags = ("--workers=2", *EXACT)
    with serving("inside:app", *flags, env={"INSIDE_FILE": str(file)}) as server:
        first = server.process.pid
        port = server.port
        with Steady(port, 20, refusals=True) as clients, Steady(port, 2, "/who") as exempt:
            eventually(lambda: clients.answered > 100, "busy")
            second = upgraded(server, first)
            assert get(port, "/who").json["arbiter"] == second
            third = upgraded(server, second, 2)
        assert len({first, second, third}) == 3
        assert {get(port, "/who").json["arbiter"] for _ in range(8)} == {third}
        figures = eventually(
            lambda: (f := get(port, "/figures").json)["ccu"] == 0 and f, "all permits are back"
        )
        assert figures["workers"] == 2

        def counted() -> bool:
            answered: int = clients.statuses[200] + exempt.answered
            return get(port, "/figures").json["completed"] >= answered

        # a coroutine's answer is counted when its worker's turn ends
        eventually(counted, "every answer is counted")
        inside, most = struct.unpack("qq", file.read_bytes())
        assert (inside, most) == (0, LIMIT)
        assert clients.failures == exempt.failures == []


def test_a_new_arbiter_that_does_not_start_changes_nothing(tmp_path: Path) -> None:
    """Neither one with a broken application, nor one told to stop before it is ready."""
    (tmp_path / "site_app.py").write_text(APP.format(version=1))
    flags = ("--workers=1", "--queue-target=0")
    env = {"PYTHONDONTWRITEBYTECODE": "1"}
    with serving("site_app:app", *flags, cwd=tmp_path, env=env) as server:
        old = server.workers
        with Steady(server.port, 4) as clients:
            (tmp_path / "site_app.py").write_text("raise RuntimeError('broken on purpose')")
            server.signal(signal.SIGUSR2)
            tells(server, "left with code 4; this one goes on", 1)
            (tmp_path / "site_app.py").write_text("import time; time.sleep(60)")
            server.signal(signal.SIGUSR2)
            tells(server, "is starting", 2)
            back_out = successors(server)[-1]
            eventually(lambda: worker_of(back_out), "it has a worker")
            server.signal(signal.SIGUSR2)
            tells(server, f"no upgrade: arbiter {back_out} is starting already", 1)
            os.kill(back_out, signal.SIGTERM)
            tells(server, f"upgrade: arbiter {back_out} left with code", 1)
            assert server.workers == old
            assert get(server.port, "/").json["version"] == 1
        assert clients.failures == []


def worker_of(arbiter: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{arbiter}/task/{arbiter}/children").read_text()
    return ""


def test_a_unix_socket_goes_over_and_what_cannot_change_is_told(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    (tmp_path / "site.yaml").write_text(f"server: {{uds: {path}}}\n")
    flags = (f"--config={tmp_path / 'site.yaml'}", "--workers=1")
    with serving("held:app", *flags, wait=False) as server:
        tells(server, "serves held:app", seconds=20)
        first = server.process.pid
        (tmp_path / "site.yaml").write_text(f"server: {{uds: {tmp_path / 'other'}}}\n")
        with Steady(str(path), 4, fresh=True) as clients:
            second = upgraded(server, first)
        assert clients.failures == []
        tells(server, "server.uds cannot change while the instance serves: as before")
        assert path.exists()
        os.kill(second, signal.SIGTERM)
        eventually(lambda: ended(second), "stopped")
        assert not path.exists()


def test_an_old_arbiter_that_is_killed_leaves_its_indexes_to_the_new_one() -> None:
    with serving("held:app", "--workers=2", "--graceful-timeout=30") as server:
        first = server.process.pid
        with Steady(server.port, 4, "/hold?0.3", refusals=True):
            eventually(lambda: get(server.port, "/figures").json["ccu"] == 4, "held")
            os.kill(first, signal.SIGUSR2)
            tells(server, "is ready; this one leaves")
            os.kill(first, signal.SIGKILL)
            server.process.wait(5)
        tells(server, f"upgrade: arbiter {first} has left", 1)
        figures = eventually(
            lambda: (f := get(server.port, "/figures").json)["ccu"] == 0 and f, "permits are back"
        )
        assert figures["workers"] == 2
        second = successors(server)[-1]
        upgraded(server, second, 2)  # there is room for one more pair


def test_a_memory_with_another_layout_is_refused() -> None:
    memory = SharedMemory(8)
    memory._words[1] = 99
    read, write = os.pipe()
    message = (
        f'{{"pid": {os.getpid()}, "memory": {memory.fd}, "listeners": [],'
        f' "report": {write}, "settings": "{{}}"}}'
    )
    done = subprocess.run(
        [sys.executable, "-m", "fluxor_fast", "serve", "held:app"],
        env={**os.environ, "_FLUXOR_UPGRADE": message},
        pass_fds=(memory.fd, write),
        capture_output=True,
        text=True,
        check=False,
    )
    os.close(read)
    os.close(write)
    assert done.returncode == 3
    assert "cannot be taken over, so the limit would not hold" in done.stderr
    assert "its layout is version 99" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_pid_file_goes_over_locked_all_the_time(tmp_path: Path) -> None:
    path, bad = tmp_path / "pid", tmp_path / "bad"

    def refused(pid: int) -> None:
        with LiveServer("held:app", f"--pid-file={path}", wait=False) as other:
            assert other.wait() == 5
        assert other.log == f"fluxor-fast: pid file {path}: another instance runs (pid {pid})\n"

    flags = ("--workers=1", f"--pid-file={path}")
    with serving("sick:app", *flags, env={"SICK_BAD": str(bad)}) as server:
        first = server.process.pid
        bad.touch()
        server.signal(signal.SIGUSR2)
        tells(server, "left with code 3; this one goes on", 1)
        refused(first)
        bad.unlink()
        second = upgraded(server, first)
        assert path.read_text() == f"{second}\n"
        refused(second)
        os.kill(second, signal.SIGTERM)
        eventually(lambda: ended(second), "stopped")
        assert not path.exists()
