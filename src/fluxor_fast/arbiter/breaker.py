"""How soon a worker that died is replaced, and when its seat counts as crash-looping. Pure.

Rules:

1. Who lived a while after it was ready is replaced at once: something hit it, and it may never
   happen again. Time spent on starting is no life: an application that needs 5 s to fail fails.
2. The first early death is forgiven; each further one in a row doubles the delay.
3. After ``OPENS_AFTER`` early deaths in a row the seat *crash-loops*: it is tried once in
   ``RETRY_SECONDS``, and said once. It closes again when a worker of it lives.
   Its listener is set aside meanwhile, or its share of the connections would hang.
4. A seat is nobody else's affair: others serve on, and the instance does not end, even if all
   its seats crash-loop. What made them die (a full disk, a database, a poisoned request) may pass,
   a retry every ten seconds costs little, connections are refused at once, and whoever supervises
   the instance sees the word.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

__all__ = ["RETRY_SECONDS", "Backoff", "Breaker"]

OPENS_AFTER: Final = 6
"""Early deaths in a row: with the delays before them that is after about 2 s and six starts."""
RETRY_SECONDS: Final = 10.0
"""Between two tries of what is not likely to go well."""


@dataclass(slots=True)
class Backoff:
    """How long to wait before a worker is replaced.

    A worker that lived at least ``healthy`` seconds is replaced at once. The first early death
    is forgiven; each further one in a row doubles the delay, from ``first`` to ``longest``.
    """

    healthy: float = 1.0
    first: float = 0.1
    longest: float = RETRY_SECONDS
    early: int = field(default=0, init=False)
    """Early deaths in a row."""

    def after(self, lived: float) -> float:
        """Return the delay in seconds after a worker that lived ``lived`` seconds."""
        if lived >= self.healthy:
            self.early = 0
            return 0.0
        self.early += 1
        if self.early == 1:
            return 0.0
        return min(self.first * 2.0 ** min(self.early - 2, 30), self.longest)


class Breaker:
    """The seats of one instance: which of them crash-loop."""

    def __init__(self) -> None:
        self._seats: defaultdict[int, Backoff] = defaultdict(Backoff)
        self.looping: set[int] = set()
        """Seats that crash-loop."""

    def died(self, seat: int, lived: float) -> tuple[float, bool]:
        """Return the delay until the seat is filled again, and whether it begins to crash-loop.

        :param lived: seconds since its worker was ready; 0 if it never was.
        """
        backoff = self._seats[seat]
        delay = backoff.after(lived)
        if backoff.early < OPENS_AFTER:
            self.looping.discard(seat)
            return delay, False
        begins = seat not in self.looping
        self.looping.add(seat)
        return RETRY_SECONDS, begins

    def lives(self, seat: int, lived: float) -> bool:
        """Return whether the seat has stopped crash-looping, as its worker has lived so long."""
        if seat not in self.looping or lived < self._seats[seat].healthy:
            return False
        self.looping.discard(seat)
        del self._seats[seat]
        return True

    def forget(self, seat: int) -> None:
        """Take note that the seat is no more."""
        self.looping.discard(seat)
        self._seats.pop(seat, None)

    def word(self, serving: int) -> str:
        """Return the state of the instance in a word, for logs and status.

        :param serving: workers that are ready.
        """
        if not self.looping:
            return "ok"
        return "degraded" if serving else "crash-loop"
