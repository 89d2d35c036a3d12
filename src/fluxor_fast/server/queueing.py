"""Requests that are admitted and wait: in what order they leave, and which are let go.

Rules:

1. First in, first out, while the queue keeps up.
2. Each request has a deadline; one that cannot be met any more is refused, not served late.
3. A *standing* queue is overload, a burst is not. The queue stands when its oldest request has
   waited longer than ``target`` for a whole ``interval``, and until it did not for as long: a
   queue kept short by refusals is empty now and then while the overload goes on.
   (CoDel: K. Nichols, V. Jacobson, "Controlling Queue Delay", ACM Queue 10(5), 2012; for
   requests: B. Maurer, "Fail at Scale", ACM Queue 13(8), 2015, section "Controlled delay".)
4. While it stands, what waited longer than twice the target is refused, and the newest goes
   first: its client is the likeliest to be still there, and its answer the soonest in time.
   Serving the oldest first would have every request wait as long as it may.
5. Who would wait longer than its deadline at the rate at which the queue drains is refused on
   arrival (by the caller, who asks for ``wait``). While nothing leaves, no rate is known.
6. A request whose client went away keeps its place as a dead entry, skipped when its turn
   comes; too many of them are swept out.

Pure: time is handed in, and what to do with a refused request is the caller's business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from math import inf

from fluxor_fast.http.request import Request

__all__ = ["WaitingQueue"]


class WaitingQueue:
    """Admitted requests in want of the processor, or of a slot.

    :param deadline: seconds a request may wait, unless it brings a shorter time of its own.
    :param target: seconds the oldest may wait without the queue being said to stand; 0 never
        says so, and the queue is first in, first out with deadlines.
    :param interval: seconds for which the oldest must have waited longer than ``target``.
    """

    __slots__ = ("_above", "_count", "_early", "_last", "_since", "deadline", "gone", "interval",
                 "rate", "requests", "standing", "target")  # fmt: skip

    def __init__(self, deadline: float, target: float, interval: float) -> None:
        self.deadline = deadline
        self.target = target
        self.interval = interval
        self.requests: deque[Request] = deque()  # by time of arrival; popped by the caller
        self.gone = 0  # dead entries among them
        self.standing = False
        self._above = inf  # since when the oldest has waited too long
        self._last = -inf  # when it last had
        self._early: list[tuple[float, int, Request]] = []  # those with a deadline of their own
        self.rate = 0.0  # requests that leave in a second while others wait; 0: not known
        self._since = inf  # when the window began in which that is measured
        self._count = 0  # how many have left in it

    def __len__(self) -> int:
        """Requests that really wait."""
        return len(self.requests) - self.gone

    def take(self, count: int) -> list[Request]:
        """Take out the next so many, of those who really wait; the newest while it stands."""
        requests = self.requests
        if count == len(requests):  # all of them, and nobody is gone
            taken = list(reversed(requests) if self.standing else requests)
            requests.clear()
            for request in taken:
                request.queued = False
            return taken
        take = requests.pop if self.standing else requests.popleft
        taken = []
        while len(taken) < count:
            request = take()
            if request.queued:
                request.queued = False
                taken.append(request)
            else:
                self.gone -= 1
        return taken

    def put_back(self, taken: list[Request]) -> None:
        """Have those wait on, before all others, who were taken out last."""
        for request in taken:
            request.queued = True
        if self.standing:
            self.requests.extend(reversed(taken))
        else:
            self.requests.extendleft(reversed(taken))

    def hasten(self, request: Request, deadline: float) -> None:
        """Note that ``request``, which is in the queue, must have left by ``deadline``."""
        heappush(self._early, (deadline, id(request), request))
        if len(self._early) > 2 * len(self.requests):
            self._forget()

    def dropped(self) -> None:
        """Note that one of the requests is now a dead entry (``queued`` is false)."""
        self.gone += 1
        if self.gone > 64 and self.gone * 2 > len(self.requests):
            self.requests = deque(request for request in self.requests if request.queued)
            self._forget()
            self.gone = 0

    def clear(self) -> None:
        """Take everybody out; who still waited has been told by the caller."""
        self.requests.clear()
        self.gone = 0
        self._early.clear()

    def _forget(self) -> None:
        """Keep of those with a deadline of their own only who still waits."""
        self._early = [entry for entry in self._early if entry[2].queued]
        heapify(self._early)

    @property
    def wait(self) -> float:
        """Seconds that a request would wait that came now; 0 while the rate is not known."""
        return len(self) / self.rate if self.rate else 0.0

    def served(self, count: int, now: float) -> None:
        """Note that ``count`` requests have left to be run; called once a turn, after them."""
        if not self.requests:
            if self._early:
                self._early.clear()  # all of them have left: nobody is kept, nor its body
            self.rate = 0.0  # how slow it was says nothing of how long the next one would wait
            self._since = inf
            if not self.standing:
                self._above = inf
        elif self._since == inf:
            self._since = now
            self._count = 0
        else:
            self._count += count
            elapsed = now - self._since
            # a window ends when some have left: slow handlers that end in bursts are measured
            # from burst to burst
            if count and elapsed >= self.interval:
                rate = self._count / elapsed
                self.rate = (self.rate + rate) / 2 if self.rate else rate
                self._since = now
                self._count = 0

    def overdue(self, now: float) -> Iterator[tuple[Request, str]]:
        """Take out what is to be refused at ``now``, each with its reason.

        Called once a turn, before the queue is worked on; it is then known whether it stands.
        """
        requests = self.requests
        while requests and not requests[0].queued:
            requests.popleft()
            self.gone -= 1
        if not requests:
            return
        if self.target:
            self._judge(now, now - requests[0].arrived)
        reason, longest = "deadline", self.deadline
        if self.standing and 2 * self.target < longest:
            reason, longest = "codel", 2 * self.target
        oldest = now - longest
        while requests and requests[0].arrived < oldest:
            request = requests.popleft()
            if request.queued:
                yield request, reason
            else:
                self.gone -= 1
        while self._early and self._early[0][0] <= now:
            request = heappop(self._early)[2]
            if request.queued:
                yield request, "deadline"
                self.dropped()  # the caller has taken it out of the system, here it still stands

    def _judge(self, now: float, waited: float) -> None:
        """Tell whether the queue stands, now that its oldest has waited ``waited`` seconds."""
        if now - self._last > self.interval:
            self.standing = False
            self._above = inf
        if waited > self.target:
            self._last = now
            self._above = min(self._above, now)
            self.standing = self.standing or now - self._above >= self.interval
        elif not self.standing:
            self._above = inf
