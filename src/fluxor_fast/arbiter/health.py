"""When a worker is to be ended: its event loop is silent, or it does not get ready. Pure.

Rules:

1. A worker lives by what its own event loop wrote, never by what a thread says for it.
2. Only time in which the arbiter itself looked counts. After all processes stood still together
   (SIGSTOP, a frozen container, a suspended machine) nobody is blamed for it.
3. A start has a time limit of its own: a slow import is no silent loop.
4. Before it is ended a worker is asked for its stacks. It gets a second for that; whoever shows
   life in it is spared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from fluxor_fast.arbiter.shared import State

__all__ = ["Verdict", "Watch"]

LONGEST_STEP = 1.0  # seconds between two looks that count at most (rule 2)…
ROOM = 0.75  # …and fewer where that would not leave these: a heartbeat is up to 0.5 s old
DUMP_SECONDS = 1.0  # for the stacks (rule 4); written within a millisecond unless it is stopped


class Verdict(Enum):
    """What to do with a worker."""

    WELL = auto()
    ASK = auto()
    """Ask it for its stacks."""
    WAIT = auto()
    """The stacks are on their way."""
    END = auto()


@dataclass(slots=True)
class Watch:
    """Watches one worker.

    :param started: when it was forked; seconds of a monotonic clock.
    :param heartbeat_timeout: seconds a loop may be silent.
    :param boot_timeout: seconds until it must be ready.
    """

    started: float
    heartbeat_timeout: float
    boot_timeout: float
    reason: str = field(default="", init=False)
    """What it is ended for."""
    _looked: float = field(init=False)
    _beat: int = field(default=0, init=False)
    _silent: float = field(default=0.0, init=False)
    _booting: float = field(default=0.0, init=False)
    _asked: float = field(default=0.0, init=False)
    _dumped: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._looked = self.started

    def look(self, now: float, state: int, beat: int, dumped: int) -> Verdict:
        """Return what to do.

        :param state: of the worker, a ``State``.
        :param beat: its heartbeat; only whether it changes matters.
        :param dumped: bytes of stacks that it has written so far.
        """
        step = min(now - self._looked, LONGEST_STEP, self.heartbeat_timeout - ROOM)
        self._looked = now
        self._silent = 0.0 if beat != self._beat else self._silent + step
        self._beat = beat
        if state in (State.READY, State.DRAINING):
            late = self._silent > self.heartbeat_timeout
            reason = f"had a silent event loop for {self._silent:.1f} s"
        else:
            self._booting += step
            late = self._booting > self.boot_timeout
            reason = f"was not ready after {self._booting:.1f} s"
        if not late:
            self.reason = ""
            return Verdict.WELL
        if not self.reason:
            self._asked, self._dumped = now, 0
            self.reason = reason
            return Verdict.ASK
        self.reason = reason
        complete = 0 < dumped == self._dumped
        self._dumped = dumped
        return Verdict.END if complete or now - self._asked >= DUMP_SECONDS else Verdict.WAIT
