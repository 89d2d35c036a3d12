"""What a worker holds of bodies that are not whole: bounded, at the cost of the slowest.

A body is held until it is whole, and thousands that come just fast enough to be waited for would
fill the memory with what nobody will ever handle. So there is a bound for all of them together,
looked at by the sweep. Rules:

1. Above the bound the least rate rises, for one sweep, so far that those below it hold what is too
   much. They are then ended like any that is too slow: who sends at an honest speed is the last.
2. A body younger than ``GRACE`` seconds counts, but is not judged yet. So what is held may exceed
   the bound by what comes within these.
3. Not counted are bodies that their handlers read as they come, which are bounded each, and whole
   ones, whose requests hold permits.
"""

from __future__ import annotations

__all__ = ["Bodies"]


class Bodies:
    """The unfinished bodies of a worker.

    :param most: bytes of all together; 0: any.
    """

    __slots__ = ("_most", "_seen", "_total", "least")

    def __init__(self, most: int = 0) -> None:
        self._most = most
        self._total = 0
        self._seen: list[tuple[float, int]] = []  # rate and bytes of those that can be judged
        self.least = 0
        """Bytes a second that a body must come at, on average since it began; mostly 0."""

    def note(self, received: int, age: int, *, judged: bool) -> None:
        """Count a body that is not whole: its bytes, and the seconds since it began."""
        self._total += received
        if judged:
            self._seen.append((received / age, received))

    def settle(self) -> None:
        """Decide what the least rate is until the next time; all have been noted."""
        excess = self._total - self._most
        self.least = 0
        if self._most and excess > 0:
            for rate, received in sorted(self._seen):
                self.least = int(rate) + 1
                excess -= received
                if excess <= 0:
                    break
        self._total = 0
        self._seen.clear()
