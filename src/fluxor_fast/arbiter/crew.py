"""The worker processes of one arbiter: how one is started, told something, told to leave.

1. A worker has a seat, for as long as it serves, and an index in the shared memory for as long as
   it lives. A seat has one worker, or two while one is replaced (see ``roll``).
2. A process is signalled only while it has not been reaped, so its pid is still its own.
3. Who is to leave while the instance goes on is told so once, and ended when its time is up.
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
from typing import NamedTuple

from fluxor_fast.arbiter.forking import REOPEN, RETIRE, fork_with
from fluxor_fast.arbiter.roll import Listeners
from fluxor_fast.arbiter.shared import SharedMemory, State, Word
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
    started: float
    killed: str = ""
    """Why the arbiter ended it."""
    leaving: bool = False
    """It has been told to leave while the instance goes on."""
    kill_at: float = inf


class Crew:
    """The workers, by index.

    :param listeners: all there are; more may be added.
    """

    def __init__(self, memory: SharedMemory, listeners: list[socket.socket]) -> None:
        self.workers: dict[int, Worker] = {}
        self._memory = memory
        self._listeners = listeners
        self.lifeline = os.pipe()
        """Its writing end is the arbiter's alone: workers see the end of it."""

    def state(self, index: int) -> int:
        """Return what the worker says it is doing (``shared.State``)."""
        return self._memory.region(index)[Word.STATE]

    def listens(self, index: int) -> bool:
        """Return whether the worker has its signal handlers."""
        return self.state(index) in (State.READY, State.DRAINING)

    def occupied(self) -> dict[int, Listeners]:
        """Return the seats that have a worker which is not to leave, and its listeners."""
        return {one.seat: one.listeners for one in self.workers.values() if not one.leaving}

    def spawn(self, seat: int, listeners: Listeners, version: Version) -> int | None:
        """Start a worker; return its index, or None if there is none free."""
        index = self._memory.claim(os.getpid())
        if index is None:
            return None
        started = time.monotonic()

        def child() -> int:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the arbiter's
            os.close(self.lifeline[1])
            for at, listener in enumerate(self._listeners):
                if at not in listeners:
                    listener.close()
            own = [self._listeners[at] for at in listeners]
            return version.worker_main(version.settings, self._memory, index, own, self.lifeline[0])

        self.workers[index] = Worker(fork_with(child), seat, listeners, started)
        return index

    def bury(self, index: int) -> None:
        """Free what the worker held; it has been reaped."""
        del self.workers[index]
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
                self.signal(index, signal.SIGKILL)
                worker.kill_at = now + 1.0
