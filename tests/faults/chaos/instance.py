"""A server under fault injection, looked at from outside: its shared memory, and /proc."""

from __future__ import annotations

import os
import struct
import time
from contextlib import suppress
from pathlib import Path

from fluxor_fast.arbiter.shared import SHED_REASONS, SharedMemory, State, Word
from tests.support.apps.chaotic import ROWS
from tests.support.server import LiveServer

# The wall clock of all processes of the instance, plus what is in a file: steps at will. And
# memory is looked at in young workers too, as none grows old here.
CLOCK = """
import mmap, os, struct, time
_file = os.environ.get("CHAOS_CLOCK")
if _file:
    with open(_file, "r+b") as _opened:
        _step = mmap.mmap(_opened.fileno(), 8)
    _time = time.time
    time.time = lambda: _time() + struct.unpack("d", _step[:8])[0]
    from fluxor_fast.arbiter import recycle
    recycle.MEMORY_REST = 2.0
"""


class Files:
    """What the instance and its tormentor share."""

    def __init__(self, folder: Path) -> None:
        self.log, self.target = folder / "log", folder / "log.real"
        self._clock, self._inside = folder / "clock", folder / "inside"
        self._clock.write_bytes(bytes(8))
        self._inside.write_bytes(bytes(8 * (1 + 2 * ROWS)))
        (folder / "sitecustomize.py").write_text(CLOCK)
        self.target.touch()
        self.log.symlink_to(self.target)
        self.env = {
            "PYTHONPATH": str(folder),
            "CHAOS_CLOCK": str(self._clock),
            "CHAOS_FILE": str(self._inside),
        }

    def step_clock(self, seconds: float) -> None:
        """Put the instance's wall clock off by so many seconds."""
        with self._clock.open("r+b") as file:
            file.write(struct.pack("d", seconds))

    def point_log(self, target: Path) -> None:
        """Have the log's name lead to ``target``; it is opened at the next USR1."""
        link = self.log.with_suffix(".new")
        link.symlink_to(target)
        link.rename(self.log)

    @property
    def most(self) -> int:
        """The most handlers that ran at once since ``reset``."""
        most: int = struct.unpack("Q", self._inside.read_bytes()[:8])[0]
        return most

    def reset(self) -> None:
        with self._inside.open("r+b") as file:
            file.write(bytes(8))


def shared_memory(pid: int) -> SharedMemory:
    """Return the shared memory of the arbiter ``pid``, mapped here too."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if str(entry.readlink()).startswith("/memfd:fluxor-fast"):
            return SharedMemory.adopt(os.open(entry, os.O_RDWR | os.O_CLOEXEC))
    raise AssertionError(f"{pid} has no shared memory")


class Instance:
    """The figures of a running server."""

    def __init__(self, server: LiveServer) -> None:
        self.server = server
        self.memory = shared_memory(self.arbiter)
        self.since: dict[int, float] = {}
        """Pid of each ready worker → when it was first seen so."""

    @property
    def arbiter(self) -> int:
        """The pid of the arbiter that serves."""
        return self.server.arbiter

    def close(self) -> None:
        os.close(self.memory.fd)

    def ready(self) -> dict[int, int]:
        """Return pid → index of the workers that are ready."""
        found = {}
        now = time.monotonic()
        for index in range(self.memory.workers):
            region = self.memory.region(index)
            if region[Word.STATE] == State.READY and region[Word.PID]:
                found[region[Word.PID]] = index
                self.since.setdefault(region[Word.PID], now)
        return found

    def mature(self, seconds: float) -> list[int]:
        """Return the workers that have been ready for so long: their deaths are not early ones."""
        now = time.monotonic()
        return sorted(pid for pid in self.ready() if now - self.since[pid] >= seconds)

    def held(self) -> dict[str, int]:
        """Return the sums of the gauges that are 0 at rest."""
        memory = self.memory
        rows = {"permits": memory.permits, "slots": memory.slots, "claims": memory.claims}
        return {name: sum(row) for name, row in rows.items()}

    def imbalance(self) -> str:
        """Return how the totals do not add up at rest; empty: they do."""
        totals = self.memory.totals()
        shed = sum(totals[Word.SHED : Word.SHED + len(SHED_REASONS)])
        offered, accepted = totals[Word.OFFERED], totals[Word.ACCEPTED]
        ended = totals[Word.COMPLETED] + totals[Word.ABORTED] + totals[Word.LOST]
        wrong = []
        if offered != accepted + shed:
            wrong.append(f"offered {offered} != accepted {accepted} + shed {shed}")
        if accepted != ended + self.held()["permits"]:
            wrong.append(f"accepted {accepted} != completed + aborted + lost {ended} + in flight")
        return "; ".join(wrong)

    @property
    def lost(self) -> int:
        return self.memory.totals()[Word.LOST]

    def holdings(self) -> dict[str, int]:
        """Return what is to be flat: descriptors, threads and RSS (KiB), connections left out."""
        pids = self.ready()
        return {
            "arbiter descriptors": descriptors(self.arbiter),
            "arbiter threads": status(self.arbiter, "Threads"),
            "arbiter rss": status(self.arbiter, "VmRSS"),
            "worker descriptors": max(
                apart(pid) - self.memory.connections[index] for pid, index in pids.items()
            ),
            "worker threads": max(status(pid, "Threads") for pid in pids),
            "worker rss": max(status(pid, "VmRSS") for pid in pids),
        }


def descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def apart(pid: int) -> int:
    """Return how many descriptors a process has; a listener counts once, which has several."""
    targets = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            targets.append(str(entry.readlink()))
    sockets = {target for target in targets if target.startswith("socket:")}
    return len(sockets) + sum(not target.startswith("socket:") for target in targets)


def status(pid: int, name: str) -> int:
    """Return a number of /proc/PID/status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise AssertionError(f"{pid} has no {name}")
