"""Saying no: the 503, how long to stay away, and what happens to who comes back at once.

Rules:

1. A refusal is ready made but for the date and the request id.
2. ``Retry-After`` follows from the time in which the queue drains at its present rate, at least a
   second (the field knows no less), with jitter up to twice that, so that the refused do not
   come back together.
3. A refusal costs about as much as an answer. A client that retries at once would turn refusals
   into the load; so its connection is left unread for a while (what it sends waits in the kernel,
   and TCP slows it down). The pause begins short, doubles with each retry that was there as soon
   as the pause ended, and is never longer than ``Retry-After`` said. Who waited starts anew, and
   so does who was served meanwhile: a proxy's connection carries the requests of many.
4. A request that was there as soon as the pause ended is *early*. It is taken only if it can be
   run at once (see ``batch``): a few users' connections, kept busy, then have their answers in
   time, where otherwise all would have them late.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Final, Protocol

from fluxor_fast.http.response import Response

__all__ = ["Pacer", "Refusals"]

_MESSAGES: Final = {
    "capacity": "the server is at capacity",
    "queue_full": "the server's queue is full",
    "deadline": "the request would wait, or has waited, longer than its deadline",
    "codel": "the server's queue stands too long",
    "draining": "the server is going away",
    "connections": "the server has as many connections as it takes",
    "route": "this route is at its own limit",
    "client": "this client has as many connections as one may have",
}
LONGEST: Final = 30
"""Largest ``Retry-After`` in seconds."""
FIRST: Final = 0.01
"""The shortest pause of a refused connection, in seconds."""
AT_ONCE: Final = 0.01
"""A request that arrives so soon after the pause has ended was waiting for it, in seconds."""


class _Refusal:
    """A 503 for one reason and one ``Retry-After``."""

    __slots__ = ("after", "before", "response")

    def __init__(self, reason: str, retry_after: int) -> None:
        self.response = Response.json(
            {
                "error": "capacity_exceeded",
                "message": _MESSAGES[reason] + ", try again later",
                "code": "BACKPRESSURE",
                "reason": reason,
            },
            503,
            {"Retry-After": str(retry_after)},
        )
        before, after = self.response.encode(b"\0", b"").split(b"\0")
        self.before, self.after = before, after

    def encode(self, block: bytes, rid: bytes) -> bytes:
        """Return the bytes for a connection that is kept."""
        return self.before + block + rid + self.after


class Refusals:
    """The ready-made 503s.

    :param jitter: a source of numbers from 0 to 1, seeded in tests.
    """

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self._jitter = jitter
        self._made: dict[tuple[str, int], _Refusal] = {}
        self.seconds = 1  # in which the queue drains, as last noted

    def note_drain(self, seconds: float) -> None:
        """Note in how many seconds what waits now will have drained."""
        self.seconds = min(max(int(seconds) + 1, 1), LONGEST // 2)

    def get(self, reason: str) -> _Refusal:
        """Return the refusal for ``reason``, with a ``Retry-After`` for now."""
        key = (reason, self.seconds + int(self._jitter() * (self.seconds + 1)))
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = _Refusal(*key)
        return made


class Paced(Protocol):
    """A connection that can be left unread."""

    pause: float
    """Length of its last pause in seconds; 0 before the first."""
    resumed: float
    """When that ended, in monotonic seconds."""

    def leave_unread(self) -> bool:
        """Stop reading; False if that cannot be now."""

    def read_again(self) -> None:
        """Go on reading."""


class Pacer:
    """Leaves refused connections unread for a while.

    Pauses have few lengths, one queue for each: within a queue they end in order.

    :param longest: seconds; 0 paces nobody.
    """

    def __init__(self, longest: float) -> None:
        self.longest = longest
        self.waiting = 0  # connections that are left unread
        self._released = -inf  # when one was last read again
        self._queues: dict[float, deque[tuple[float, Paced]]] = {}

    def refused(self, connection: Paced, arrived: float, now: float) -> None:
        """Leave ``connection`` unread: its request, which ``arrived`` then, is refused ``now``."""
        if not self.longest:
            return
        if self.early(connection, arrived):
            pause = min(connection.pause * 2, self.longest)
        else:
            pause = min(FIRST, self.longest)
        if connection.leave_unread():
            connection.pause = pause
            self.waiting += 1
            self._queues.setdefault(pause, deque()).append((now + pause, connection))

    def recent(self, now: float) -> bool:
        """Return whether anyone can be ``early``: this is asked for each batch, that is rare."""
        return now - self._released < AT_ONCE

    @staticmethod
    def early(connection: Paced, arrived: float) -> bool:
        """Return whether a request on ``connection`` was there as soon as the pause ended."""
        return connection.pause > 0 and arrived - connection.resumed < AT_ONCE

    def release(self, now: float) -> None:
        """Go on reading those whose pause is over."""
        for queue in self._queues.values():
            while queue and queue[0][0] <= now:
                connection = queue.popleft()[1]
                self.waiting -= 1
                connection.resumed = self._released = now
                connection.read_again()
