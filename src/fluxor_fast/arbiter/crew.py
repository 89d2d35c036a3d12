"""The worker processes of one arbiter: how one is started, told something, told to leave.

1. A worker has a seat, for as long as it serves, and an index in the shared memory for as long as
   it lives. A seat has one worker, or two while one is replaced (see ``roll``).
2. A process is signalled only while it has not been reaped, so its pid is still its own.
3. Who is to leave while the instance goes on is told so once, and ended when its time is up.
4. What a worker is measured by (``health``, ``recycle``) is its own version's.
5. A seat that crash-loops keeps an index too, so that who reads the memory sees it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from random import Random
from typing import NamedTuple

from fluxor_fast.arbiter.forking import REOPEN, RETIRE, fork_with
from fluxor_fast.arbiter.health import Watch
from fluxor_fast.arbiter.pinning import core_of, cores_in_order, pin
from fluxor_fast.arbiter.recycle import Life, RecycleLimits
from fluxor_fast.arbiter.roll import Listeners
from fluxor_fast.arbiter.shared import SharedMemory, State, Word
from fluxor_fast.arbiter.stacks import Stacks
from fluxor_fast.config import Settings

__all__ = ["MARGIN", "Crew", "Version", "Worker", "WorkerMain"]

log = logging.getLogger("fluxor_fast.arbiter")

WorkerMain = Callable[[Settings, SharedMemory, int, Sequence[socket.socket], int], int]
"""Runs a worker in the child: settings, memory, index, listeners, lifeline → exit code."""

MARGIN = 2.0  # seconds a worker gets beyond the graceful timeout to leave by itself


class Version(NamedTuple):
    """What a worker is started with."""

    settings: Settings
    worker_main: WorkerMain
    refresh: Callable[[], object] = lambda: None
    """Called about once a second: what workers inherit is to be as new as what they have."""


@dataclass(slots=True)
class Worker:
    """One worker process."""

    pid: int
    seat: int
    listeners: Listeners
    watch: Watch
    life: Life
    stacks: Stacks
    ready: float | None = None
    """Since when it has been ready."""
    killed: str = ""
    """Why the arbiter ended it."""
    leaving: bool = False
    """It has been told to leave while the instance goes on."""
    kill_at: float = inf

    def lived(self, now: float) -> float:
        """Return for how many seconds it has been ready, or was."""
        return 0.0 if self.ready is None else now - self.ready


class Crew:
    """The workers, by index.

    :param listeners: all there are; more may be added.
    :param random: draws how many requests each worker may answer.
    """

    def __init__(
        self, memory: SharedMemory, listeners: list[socket.socket], random: Random
    ) -> None:
        self.workers: dict[int, Worker] = {}
        self.apart: list[Callable[[], None]] = []
        """Called in a new worker: closes what is the arbiter's alone."""
        self._random = random
        self._failing: dict[int, int] = {}  # seat → index
        self._memory = memory
        self._listeners = listeners
        self.lifeline = os.pipe()
        """Its writing end is the arbiter's alone: workers see the end of it."""

    def region(self, index: int) -> memoryview[int]:
        """Return the words of a worker."""
        return self._memory.region(index)

    def state(self, index: int) -> int:
        """Return what the worker says it is doing (``shared.State``)."""
        return self._memory.region(index)[Word.STATE]

    def serving(self) -> int:
        """Return how many workers are ready and not to leave."""
        return sum(one.ready is not None and not one.leaving for one in self.workers.values())

    def listens(self, index: int) -> bool:
        """Return whether the worker has its signal handlers."""
        return self.state(index) in (State.READY, State.DRAINING)

    def occupied(self) -> dict[int, Listeners]:
        """Return the seats that have a worker which is not to leave, and its listeners."""
        return {one.seat: one.listeners for one in self.workers.values() if not one.leaving}

    def spawn(self, seat: int, listeners: Listeners, version: Version) -> int | None:
        """Start a worker; return its index, or None if there is none free.

        :raises OSError: if there can be no further process now.
        """
        self.unmark(seat)
        index = self._memory.claim(os.getpid())
        if index is None:
            return None
        server, started, stacks = version.settings.server, time.monotonic(), Stacks()

        def child() -> int:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the arbiter's
            stacks.register()
            os.close(self.lifeline[1])
            for close in (*self.apart, *(one.stacks.close for one in self.workers.values())):
                close()
            if server.pin:
                core = core_of(seat, cores_in_order(os.sched_getaffinity(0)))
                if why := pin(core):
                    log.warning("worker %d cannot be pinned to core %d: %s", index, core, why)
            for at, listener in enumerate(self._listeners):
                if at not in listeners:
                    listener.close()
            own = [self._listeners[at] for at in listeners]
            return version.worker_main(version.settings, self._memory, index, own, self.lifeline[0])

        try:
            pid = fork_with(child)
        except OSError:
            stacks.close()
            self._memory.fold(index)
            raise
        limits = RecycleLimits(
            server.max_requests,
            server.max_requests_jitter,
            server.max_worker_age,
            server.max_worker_memory,
        )
        self.workers[index] = Worker(
            pid,
            seat,
            listeners,
            Watch(started, server.heartbeat_timeout, server.boot_timeout),
            Life.begin(limits, started, self._random),
            stacks,
        )
        return index

    def bury(self, index: int) -> str:
        """Free what the worker held; it has been reaped. Return the stacks it wrote of a fault."""
        stacks = self.workers.pop(index).stacks
        text = stacks.read()
        stacks.close()
        self._memory.fold(index)
        return text

    def mark_failing(self, seat: int) -> None:
        """Show in the memory, if there is room, that a seat crash-loops."""
        index = self._memory.claim(os.getpid())
        if index is not None:
            self._memory.region(index)[Word.STATE] = State.FAILING
            self._failing[seat] = index

    def unmark(self, seat: int) -> None:
        """Take that back, if it was so."""
        if (index := self._failing.pop(seat, None)) is not None:
            self._memory.fold(index)

    def signal(self, index: int, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.workers[index].pid, number)

    def retire(self, index: int, seconds: float) -> None:
        """Have a worker drain, while the instance goes on, for ``seconds`` at most."""
        worker = self.workers[index]
        if not worker.leaving:
            worker.leaving = True
            worker.kill_at = time.monotonic() + seconds + MARGIN
            # one that does not serve yet has nothing to drain
            self.signal(index, RETIRE if self.listens(index) else signal.SIGTERM)

    def stop(self, kill_at: float, *, gently: bool) -> None:
        """Have all workers drain until ``kill_at`` at most.

        :param gently: others serve, so idle connections are kept until their next answer.
        """
        for seat in list(self._failing):
            self.unmark(seat)
        for index, worker in self.workers.items():
            worker.kill_at = min(worker.kill_at, kill_at)
            self.signal(index, RETIRE if gently and self.listens(index) else signal.SIGTERM)

    def reopen_logs(self) -> None:
        """Have all workers open their log files anew."""
        for index in self.workers:
            if self.listens(index):
                self.signal(index, REOPEN)

    def end_overdue(self, now: float) -> None:
        """End the workers whose time is up."""
        for index, worker in self.workers.items():
            if now >= worker.kill_at:
                log.warning("worker %d (pid %d) outlasted its time: SIGKILL", index, worker.pid)
                worker.killed = worker.killed or "outlasted its time and was ended"
                self.signal(index, signal.SIGKILL)
                worker.kill_at = now + 1.0
