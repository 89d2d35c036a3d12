"""One turn of a worker: all requests that have arrived, admitted as a batch, then run.

A turn goes: arrivals → admission (what cannot be taken is refused at once) → exempt routes →
what waits, a few milliseconds of it → one write per connection. Then the loop polls again.

A ``BatchRunner`` is ``Leaving`` (how requests go), ``Running`` (tasks and their slots), with turns.
Each knows only those before it.

Rules:

1. Synchronous handlers run here, in order of arrival. All others wait for a slot (see ``running``).
2. While slots are taken, waiting requests are looked at every ``POLL`` seconds, so that a slot
   given back by another worker is found (that is the slack of work conservation), and one that
   has waited too long is told.
3. Under standing overload what waits is let go by its waiting time (see ``queueing``), and the
   connections of the refused are paced (see ``refusal``). Who does not stay away all the same
   gets only what is idle.
4. While new connections come as fast as they can be taken, handlers wait for a few turns of the
   loop: a health check may be among the next. They have at least a slice in ``PUT_OFF`` turns.
5. Counters reach shared memory once a turn (see ``counters``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from inspect import CORO_CREATED, getcoroutinestate
from itertools import chain, count
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Final

from fluxor_fast.http.request import UNUSUAL, Request
from fluxor_fast.http.response import Response, encode_json, encode_text
from fluxor_fast.routing import Kind, Priority, Route
from fluxor_fast.server.admission import SharedLimit, Thresholds
from fluxor_fast.server.leaving import LARGE
from fluxor_fast.server.queueing import WaitingQueue
from fluxor_fast.server.running import Running
from fluxor_fast.server.streaming import Turns

if TYPE_CHECKING:
    from fluxor_fast.server.answering import Answering
    from fluxor_fast.server.protocol import HttpProtocol

__all__ = ["BatchRunner", "request_ids"]

POLL: Final = 0.002
LET_IN: Final = 0.25
"""Seconds after which one who did not stay away is taken though others wait."""
ACCEPTS: Final = 8
"""New connections that a worker takes in a turn (see ``worker``)."""
PUT_OFF: Final = 16
"""Turns in a row that handlers wait while as many connections as that come in each."""

CRITICAL, NORMAL = Priority.CRITICAL, Priority.NORMAL
SYNC = Kind.SYNC
_LOW: Final = [b"%02x" % low for low in range(256)]


def request_ids(prefix: bytes) -> Iterator[bytes]:
    """Return endless request ids that begin with ``prefix`` (16 hexadecimal digits behind it)."""
    # most are two texts put together, which is quicker than to format a number
    return chain.from_iterable(map((prefix + b"%014x" % high).__add__, _LOW) for high in count())


class BatchRunner(Running):
    """Runs the requests of one worker.

    :param published: one word, the limit for normal requests as it adapts; None: it does not.
    :param deadline: seconds a request may wait.
    :param target: seconds the oldest may wait before the queue is said to stand; 0 turns that
        off. ``interval``: for how long.
    :param slice_seconds: how long handlers run before the loop polls again.

    The others are those of ``Running`` and ``Leaving``.
    """

    __slots__ = (
        "_call_later",
        "_exempt",
        "_let_in",
        "_polling",
        "_published",
        "_put_off",
        "_ready",
        "_scheduled",
        "arrivals",
        "call_soon",
        "fresh",
        "lanes",
        "outbox",
        "slice_seconds",
        "turns",
    )

    def __init__(
        self,
        *,
        limit: SharedLimit,
        slots: SharedLimit,
        thresholds: Thresholds,
        routes: dict[Route, SharedLimit],
        claims: memoryview[int],
        published: memoryview[int] | None,
        index: int,
        region: memoryview[int],
        deadline: float,
        target: float,
        interval: float,
        pause: float,
        slice_seconds: float,
        ids: Iterator[bytes],
        call_soon: Callable[..., object],
        call_later: Callable[[float, Callable[[], None]], object],
        threads: Executor,
    ) -> None:
        super().__init__(
            slots=slots,
            thresholds=thresholds,
            waiting=WaitingQueue(deadline, target, interval),
            claims=claims,
            index=index,
            threads=threads,
            limit=limit,
            routes=routes,
            region=region,
            pause=pause,
            ids=ids,
        )
        self.slice_seconds = slice_seconds
        self._published = published
        self.call_soon = call_soon
        self._call_later = call_later

        self.arrivals: list[Request] = []
        self.lanes = 0  # of all of these, added up (see ``Route.lane``)
        self.outbox: list[Answering] = []
        self.turns = Turns(call_soon)  # of the answers that come in pieces
        self.fresh = 0  # connections made since the last turn

        self._ready = WaitingQueue(deadline, target, interval)  # synchronous, admitted
        self._exempt = WaitingQueue(inf, 0.0, inf)  # never has anyone wait
        self._put_off = 0  # turns in a row in which handlers had to wait for new connections
        self._let_in = -inf  # when one who did not stay away was last taken though others wait
        self._scheduled = False
        self._polling = False

    # what protocols call

    def arrive(self, request: Request) -> None:
        """Take a request in; it is admitted in the next turn."""
        if not self.arrivals:
            self.schedule()
        self.arrivals.append(request)
        self.lanes += request.head.lane

    def schedule(self) -> None:
        """Have a turn soon: not in the context of who asks, which may be a request's handler."""
        if not self._scheduled:
            self._scheduled = True
            self.call_soon(self.turn, context=self._context.copy())

    @property
    def busy(self) -> int:
        """Requests in this worker: arrived, waiting or running."""
        return len(self.arrivals) + len(self._ready) + len(self._waiting) + len(self._tasks)

    def abandon(self, request: Request) -> None:
        """Note that the client of ``request`` is gone; what waits gives its place back at once."""
        if request.queued:
            request.queued = False
            self._queue_of(request).dropped()
            self.counters.accepted += 1
            self._abort(request)
            self.schedule()

    def _queue_of(self, request: Request) -> WaitingQueue:
        return self._ready if request.head.route.kind is SYNC else self._waiting

    # the turn

    def turn(self) -> None:
        """Take in what has arrived, and run a slice of what is admitted."""
        self._scheduled = False
        now = self._now = monotonic()
        if self.arrivals:
            self._take(now)
        ready, waiting = self._ready, self._waiting
        if ready.requests:
            for request, reason in ready.overdue(now):
                self._let_go(request, reason)
            if self.fresh >= ACCEPTS and self._put_off < PUT_OFF:
                self._put_off += 1
            else:
                self._put_off = 0
                ready.served(self._execute(ready, now + self.slice_seconds), now)
        self.fresh = 0
        if waiting.requests or self._claimed:
            self._context.copy().run(self._start, now)
        if self.outbox:
            outbox, self.outbox = self.outbox, []
            for connection in outbox:
                connection.flush()
        self.counters.publish()
        if self.pacer.waiting:
            self.pacer.release(now)
        if ready.requests or waiting.requests:
            self.refusals.note_drain(max(ready.wait, waiting.wait))
        if ready.requests:
            self.schedule()
        elif (waiting.requests or self.pacer.waiting) and not self._polling:
            self._polling = True
            self._call_later(POLL, self._poll)

    def _poll(self) -> None:
        self._polling = False
        self.schedule()

    def _take(self, now: float) -> None:
        """Admit the arrivals: exempt ones run now, the others queue or are refused."""
        normal, self.arrivals = self.arrivals, []
        lanes, self.lanes = self.lanes, 0
        self.counters.offered += len(normal)
        for request in normal:
            request.arrived = now
        if lanes >= UNUSUAL:
            normal = self._sorted(normal)
        if normal and self.pacer.recent(now):
            normal = self._without_early(normal, now)
            lanes = lanes and UNUSUAL  # it is no longer the sum of theirs
        if normal:
            most, reason = self.thresholds.normal, self.thresholds.normal_reason
            if self._published is not None and 0 < self._published[0] < most:
                most, reason = self._published[0], "capacity"
            self._admit(normal, most, reason, lanes)

    def _sorted(self, arrivals: list[Request]) -> list[Request]:
        """Run exempt ones, admit critical ones, and return the others."""
        exempt = self._exempt
        critical: list[Request] = []
        normal: list[Request] = []
        for request in arrivals:
            priority = request.head.route.priority
            if priority is NORMAL:
                normal.append(request)
            elif priority is CRITICAL:
                critical.append(request)
            else:
                request.queued = True
                exempt.requests.append(request)
        if exempt.requests:
            for request in [r for r in exempt.requests if r.head.route.kind is not SYNC]:
                exempt.requests.remove(request)
                request.queued = False
                self.counters.accepted += 1
                self._launch(request)
            self._execute(exempt, inf)
        if critical:
            self._admit(critical, self.thresholds.critical, "capacity", UNUSUAL)
        return normal

    def _without_early(self, requests: list[Request], now: float) -> list[Request]:
        """Refuse who was refused and did not stay away, unless it can be run at once.

        It has waited unread, so it would be late; and the time is owed to who came first, or
        waited as it was told. What is idle it may have: no capacity is lost. And now and then one
        is taken all the same, so that those who are in do not keep the others out for good.
        """
        kept: list[Request] = []
        early: list[Request] = []
        for request in requests:
            connection: HttpProtocol = request.connection  # type: ignore[assignment]
            (early if self.pacer.early(connection, now) else kept).append(request)
        if early and now - self._let_in >= LET_IN:
            self._let_in = now
            kept.append(early.pop(0))
        if early:
            waiters = [request for request in kept if request.head.route.kind is not SYNC]
            at_once = not self._ready and len(waiters) == len(kept)
            slots = self.thresholds.slots - self.slots.total() - len(self._waiting) - len(waiters)
            for request in early:
                if request.head.route.kind is SYNC:
                    taken, at_once = at_once, False
                else:
                    taken = slots > 0
                    slots -= 1
                if taken:
                    kept.append(request)
                else:
                    self._refuse(request, "codel")
        return kept

    def _admit(self, requests: list[Request], limit: int, reason: str, lanes: int) -> None:
        """Queue as many of ``requests`` as get a permit, refuse the others.

        :param lanes: theirs, added up (see ``Route.lane``).
        """
        alike = lanes == 0 or lanes == len(requests)
        if lanes >= UNUSUAL and self._routes:
            requests = [request for request in requests if self._enter_route(request)]
        granted = self.limit.acquire(len(requests), limit) if requests else 0
        if granted < len(requests):
            for request in requests[granted:]:
                self._leave_route(request)
                self._refuse(request, reason)
            requests = requests[:granted]
        ready, waiting = self._ready, self._waiting
        for request in requests:
            request.permit = request.queued = True
        if alike:
            (waiting if lanes else ready).requests += requests
        else:
            for request in requests:
                head = request.head
                queue = ready if head.route.kind is SYNC else waiting
                queue.requests.append(request)
                if head.timeout is not None:
                    self._hasten(request, queue, head.timeout)
        for queue in (ready, waiting):
            if queue.rate and queue.wait > queue.deadline:
                self._turn_away(queue)

    def _hasten(self, request: Request, queue: WaitingQueue, timeout: float) -> None:
        """Take into account that the client has said how long it waits."""
        if timeout >= queue.deadline:
            return
        if queue.wait > timeout:
            queue.requests.pop()
            self._let_go(request, "deadline")
        else:
            queue.hasten(request, request.arrived + timeout)

    def _turn_away(self, queue: WaitingQueue) -> None:
        """Refuse those at the end of the queue who would wait beyond their deadline."""
        while queue.wait > queue.deadline and queue.requests[-1].arrived == self._now:
            request = queue.requests.pop()
            if request.queued:
                self._let_go(request, "deadline")
            else:
                queue.gone -= 1

    def _execute(self, queue: WaitingQueue, until: float) -> int:
        """Run synchronous handlers until the queue is empty or the time is up; return how many.

        This is the hot path: the commonest answers (JSON, text or a ``Response``, of success,
        HTTP/1.1, to a client that takes its answers in) go to the connection from here, all others
        behind the last of them (see ``Running._leave_all``).
        """
        requests = queue.requests
        take = requests.pop if queue.standing else requests.popleft
        next_id = self._next_id
        block = self.block
        tick = self.tick
        keep = not self.draining
        now = stamp = 0.0
        same = done = others = 0
        answer: bytes | None
        counters = self.counters
        pacing = self.pacer.waiting > 0
        try:
            while requests:
                request = take()
                if not request.queued:  # its client went away, its permit with it
                    queue.gone -= 1
                    continue
                request.queued = False
                head = request.head
                rid = request.rid = head.request_id or next_id()
                connection: HttpProtocol = request.connection  # type: ignore[assignment]
                try:
                    value = head.route.call(request)
                    kind = type(value)
                    if (
                        (kind is dict or kind is str or (kind is Response and value.status < 300))
                        and head.short
                        and keep
                    ):
                        if kind is dict:
                            answer = encode_json(value, block, rid)
                        elif kind is str:
                            answer = encode_text(value, block, rid)
                        else:
                            answer = value.encode(block, rid)
                        if len(answer) < LARGE and (
                            connection.order is None
                            or not (connection.closed or connection.write_paused)
                        ):
                            if pacing:
                                connection.pause = 0.0
                            if connection.order is None:
                                connection.current = None
                                connection.since = tick
                                connection.transport.write(answer)
                            else:
                                connection.deliver(request, answer)
                            now = monotonic()
                            if request.arrived is not stamp:
                                counters.observe(now - stamp, same)
                                stamp = request.arrived
                                done += same
                                same = 0
                            same += 1
                            if now >= until:
                                break
                            continue
                    found = self._encoded(request, value)
                    if type(found) is tuple:
                        status, answer = found
                    else:
                        status, answer = 0, None
                except (Exception, asyncio.CancelledError) as error:
                    status, answer = self._failure(request, error)
                except BaseException:  # it ends the loop, or should
                    others += 1
                    connection.abort()
                    self._abort(request)
                    raise
                others += 1
                now = monotonic()
                if answer is None:
                    self._context.copy().run(self._launch, request, found)  # type: ignore[arg-type]
                else:
                    self._answers.append((request, status, answer))
                if now >= until:
                    break
        finally:
            counters.observe(now - stamp, same)
            done += same
            counters.responses[2] += done
            counters.accepted += done + others
            counters.completed += done
            if done and queue is not self._exempt:  # the permits of others are with their answers
                self.limit.release(done)
            if self._answers:
                self._leave_all()
        return done + others

    # the end

    async def finish(self, seconds: float) -> int:
        """Wait until nothing is in this worker any more; return how many had to be cancelled."""
        until = monotonic() + seconds
        while self.busy and monotonic() < until:
            await asyncio.sleep(0.005)
        if self.busy:  # the time is up: who comes from now on is refused, and begins nothing
            self.thresholds = Thresholds(0, "draining", 0, 0)
        for queue in (self._ready, self._waiting):  # for these there is no time left
            for request in [request for request in queue.requests if request.queued]:
                self._let_go(request, "draining")
            queue.clear()
        self._claimed = self._claims[self._index] = 0
        await asyncio.sleep(0)
        # a task that has not begun could not clean up after itself; on an exempt route, or in the
        # turn that was due, there may be new ones
        while any(getcoroutinestate(task.get_coro()) == CORO_CREATED for task in self._tasks):  # type: ignore[arg-type]
            await asyncio.sleep(0)
        left = list(self._tasks)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=1.0)
        self.counters.publish()
        return len(left)
