"""One turn of a worker: all requests that have arrived, admitted as a batch, then run.

A turn goes: arrivals → admission (what cannot be taken is refused at once) → exempt routes →
what waits, a few milliseconds of it → one write per connection. Then the loop polls again.

Rules:

1. Every request leaves once, through ``_leave`` or the short path of ``_execute`` that does the
   same: with its permit given back, and counted as completed, aborted or refused.
2. Synchronous handlers run here, in order of arrival. Coroutines and blocking functions need a
   slot of the instance; they wait for it first in, first out.
3. A request that waited longer than its deadline is refused when its turn comes; while slots
   are taken, waiting requests are looked at every ``POLL`` seconds, so that a slot given back
   by another worker is found (that is the slack of work conservation).
4. An answer above ``LARGE`` bytes, or to a connection that already has too much unread, keeps
   its permit until the client has taken it in.
5. Counters reach shared memory once a turn.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from itertools import count
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Final

from fluxor_fast.arbiter.shared import BOUNDS, SHED_REASONS, Word
from fluxor_fast.errors import HTTPError
from fluxor_fast.http.request import Request
from fluxor_fast.http.response import Response, encode_json, error_response, to_response
from fluxor_fast.routing import Kind, Priority
from fluxor_fast.server.admission import SharedLimit, Thresholds

if TYPE_CHECKING:
    from fluxor_fast.server.protocol import HttpProtocol

__all__ = ["BatchRunner", "request_ids"]

log = logging.getLogger("fluxor_fast.server")

POLL: Final = 0.002
LARGE: Final = 64 * 1024

EXEMPT, CRITICAL = Priority.EXEMPT, Priority.CRITICAL
SYNC, BLOCKING = Kind.SYNC, Kind.BLOCKING

REASON_WORDS: Final = {reason: Word.SHED + at for at, reason in enumerate(SHED_REASONS)}

_MESSAGES: Final = {
    "capacity": "the server is at capacity",
    "queue_full": "the server's queue is full",
    "deadline": "the request waited longer than its deadline",
    "codel": "the server's queue stands too long",
    "draining": "the server is going away",
    "connections": "the server has as many connections as it takes",
}


def refusal(reason: str, retry_after: int = 1) -> Response:
    """Return the 503 for a request refused for ``reason``."""
    return Response.json(
        {
            "error": "capacity_exceeded",
            "message": _MESSAGES[reason] + ", try again later",
            "code": "BACKPRESSURE",
            "reason": reason,
        },
        503,
        {"Retry-After": str(retry_after)},
    )


class _Refusal:
    """A 503, ready made but for the date and the request id."""

    __slots__ = ("after", "before", "response")

    def __init__(self, reason: str) -> None:
        self.response = refusal(reason)
        before, after = self.response.encode(b"\0", b"").split(b"\0")
        self.before, self.after = before, after

    def encode(self, block: bytes, rid: bytes) -> bytes:
        return self.before + block + rid + self.after


def request_ids(prefix: bytes) -> Iterator[bytes]:
    """Return endless request ids that begin with ``prefix`` (16 hexadecimal digits behind it)."""
    return map((prefix + b"%016x").__mod__, count(1))


class BatchRunner:
    """Runs the requests of one worker.

    :param limit: permits, one per request in the system; ``slots``: one per running request
        that waits for something.
    :param region: this worker's words in shared memory.
    :param deadline: seconds a request may wait.
    :param slice_seconds: how long handlers run before the loop polls again.
    :param ids: request ids.
    """

    def __init__(
        self,
        *,
        limit: SharedLimit,
        slots: SharedLimit,
        thresholds: Thresholds,
        region: memoryview[int],
        deadline: float,
        slice_seconds: float,
        ids: Iterator[bytes],
        call_soon: Callable[[Callable[[], None]], object],
        call_later: Callable[[float, Callable[[], None]], object],
        threads: Executor,
    ) -> None:
        self.limit = limit
        self.slots = slots
        self.thresholds = thresholds
        self.region = region
        self.deadline = deadline
        self.slice_seconds = slice_seconds
        self.threads = threads
        self._next_id = ids.__next__
        self._call_soon = call_soon
        self._call_later = call_later

        self.arrivals: list[Request] = []
        self.outbox: list[HttpProtocol] = []
        self.block = b""  # Date field and the name of the request id's, made once a second
        self.tick = 0  # seconds, coarse: what the connections' timeouts go by
        self.draining = False

        self._ready: deque[Request] = deque()  # synchronous, admitted
        self._waiting: deque[Request] = deque()  # admitted, in want of a slot
        self._gone = 0  # of these two, how many have no client any more
        self._tasks: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._polling = False
        self.responses = [0] * 6  # by status class
        self._buckets = [0] * (len(BOUNDS) + 1)
        self._duration = 0.0
        self.offered = 0
        self._accepted = 0
        self._completed = 0
        self._aborted = 0
        self._shed = dict.fromkeys(SHED_REASONS, 0)
        self._rare = False  # whether a counter changed that seldom does
        self._refusals = {reason: _Refusal(reason) for reason in SHED_REASONS}

    # what protocols call

    def schedule(self) -> None:
        """Have a turn soon."""
        if not self._scheduled:
            self._scheduled = True
            self._call_soon(self.turn)

    @property
    def busy(self) -> int:
        """Requests in this worker: arrived, waiting or running."""
        waiting = len(self._ready) + len(self._waiting) - self._gone
        return len(self.arrivals) + waiting + len(self._tasks)

    def abandon(self, request: Request) -> None:
        """Note that the client of ``request`` is gone; what waits gives its place back at once."""
        if request.queued:
            request.queued = False
            self._gone += 1
            self._accepted += 1
            self._abort(request)
            if self._gone > 64 and self._gone * 2 > len(self._ready) + len(self._waiting):
                self._ready = deque(r for r in self._ready if r.queued)
                self._waiting = deque(r for r in self._waiting if r.queued)
                self._gone = 0
            self.schedule()

    def taken(self, requests: int) -> None:
        """Note that the client has taken in ``requests`` answers whose permits were kept."""
        self.limit.release(requests)

    def refuse_connection(self) -> bytes:
        """Return the 503 for a connection too many; counted as a request that was refused."""
        self.offered += 1
        self._shed["connections"] += 1
        self._count_rare(503)
        self.schedule()
        return self._refusals["connections"].response.encode(
            self.block, self._next_id(), connection=b"Connection: close\r\n"
        )

    def error_bytes(self, error: HTTPError) -> bytes:
        """Return the answer to what is not a request; it closes the connection. Counted."""
        self._count_rare(error.status)
        self.schedule()
        return error_response(error).encode(
            self.block, self._next_id(), connection=b"Connection: close\r\n"
        )

    # the turn

    def turn(self) -> None:
        """Take in what has arrived, and run a slice of what is admitted."""
        self._scheduled = False
        now = monotonic()
        if self.arrivals:
            self._take(now)
        if self._ready:
            self._expire(self._ready, now)
            self._execute(self._ready, now + self.slice_seconds)
        if self._waiting:
            self._start(now)
        if self.outbox:
            outbox, self.outbox = self.outbox, []
            for connection in outbox:
                connection.flush()
        self._publish()
        if self._ready:
            self.schedule()
        elif self._waiting and not self._polling:
            self._polling = True
            self._call_later(POLL, self._poll)

    def _poll(self) -> None:
        self._polling = False
        self.schedule()

    def _take(self, now: float) -> None:
        """Admit the arrivals: exempt ones run now, the others queue or are refused."""
        arrivals, self.arrivals = self.arrivals, []
        self.offered += len(arrivals)
        exempt: deque[Request] = deque()
        critical: list[Request] = []
        normal: list[Request] = []
        for request in arrivals:
            request.arrived = now
            priority = request.head.route.priority
            if priority is EXEMPT:
                exempt.append(request)
            elif priority is CRITICAL:
                critical.append(request)
            else:
                normal.append(request)
        if critical:
            granted = self.limit.acquire(len(critical), self.thresholds.critical)
            self._queue(critical, granted, "capacity")
        if normal:
            granted = self.limit.acquire(len(normal), self.thresholds.normal)
            self._queue(normal, granted, self.thresholds.normal_reason)
        if exempt:
            for request in [r for r in exempt if r.head.route.kind is not SYNC]:
                exempt.remove(request)
                self._launch(request)
            for request in exempt:
                request.queued = True
            self._execute(exempt, inf)

    def _queue(self, requests: list[Request], granted: int, reason: str) -> None:
        ready, waiting = self._ready, self._waiting
        if granted < len(requests):
            for request in requests[granted:]:
                self._refuse(request, reason)
            requests = requests[:granted]
        for request in requests:
            request.permit = request.queued = True
            if request.head.route.kind is SYNC:
                ready.append(request)
            else:
                waiting.append(request)

    def _execute(self, queue: deque[Request], until: float) -> None:
        """Run synchronous handlers until the queue is empty or the time is up.

        This is the hot path: the commonest answer (a dict, HTTP/1.1, nothing else owed on the
        connection) goes to the transport from here, everything else through ``_leave``.
        """
        popleft = queue.popleft
        next_id = self._next_id
        block = self.block
        tick = self.tick
        keep = not self.draining
        now = stamp = 0.0
        same = done = permits = 0
        while queue:
            request = popleft()
            if not request.queued:  # its client went away, its permit with it
                self._gone -= 1
                continue
            request.queued = False
            if request.permit:
                permits += 1
            head = request.head
            rid = request.rid = head.request_id or next_id()
            connection: HttpProtocol = request.connection  # type: ignore[assignment]
            try:
                value = head.route.call(request)
                if type(value) is dict and head.plain and keep and connection.order is None:
                    answer = encode_json(value, block, rid)
                    if len(answer) < LARGE:
                        connection.current = None
                        connection.since = tick
                        connection.transport.write(answer)
                        done += 1
                        now = monotonic()
                        if request.arrived is not stamp:
                            self._observe(now - stamp, same)
                            stamp = request.arrived
                            same = 0
                        same += 1
                        if now >= until:
                            break
                        continue
                response = to_response(value)
                answer = self._encode(request, response)
                status = response.status
            except Exception as error:
                status, answer = self._failure(request, error)
            if request.permit:
                permits -= 1  # _leave gives it back
            self._accepted += 1
            now = monotonic()
            self._leave(request, status, answer, now)
            if now >= until:
                break
        self._observe(now - stamp, same)
        self.responses[2] += done
        self._accepted += done
        self._completed += done
        if permits:
            self.limit.release(permits)

    # coroutines and blocking functions

    def _start(self, now: float) -> None:
        """Start what slots allow, first in, first out."""
        waiting = self._waiting
        self._expire(waiting, now)
        wanted = len(waiting)
        if not wanted:
            return
        granted = self.slots.acquire(wanted, self.thresholds.slots)
        started = 0
        while started < granted and waiting:
            request = waiting.popleft()
            if not request.queued:
                self._gone -= 1
                continue
            request.queued = False
            started += 1
            self._launch(request)
        if started < granted:
            self.slots.release(granted - started)

    if sys.version_info >= (3, 12):

        def _launch(self, request: Request) -> None:
            self._accepted += 1
            task = asyncio.Task(
                self._serve(request), loop=asyncio.get_running_loop(), eager_start=True
            )
            if not task.done():
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    else:

        def _launch(self, request: Request) -> None:
            self._accepted += 1
            task = asyncio.get_running_loop().create_task(self._serve(request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, request: Request) -> None:
        """Run a coroutine or blocking handler and answer."""
        head = request.head
        request.rid = head.request_id or self._next_id()
        route = head.route
        try:
            if route.kind is BLOCKING:
                loop = asyncio.get_running_loop()
                value = await loop.run_in_executor(self.threads, route.call, request)
            else:
                value = route.call(request)
                if route.kind is not SYNC:
                    value = await value
            response = to_response(value)
            answer = self._encode(request, response)
            status = response.status
        except asyncio.CancelledError:
            if request.permit:
                self.slots.release(1)
            connection: HttpProtocol = request.connection  # type: ignore[assignment]
            connection.abort()
            self._abort(request)
            raise
        except Exception as error:
            status, answer = self._failure(request, error)
        if request.permit:
            self.slots.release(1)
        self._leave(request, status, answer, monotonic())
        self.schedule()  # the slot may serve another; the counters are due

    async def finish(self, seconds: float) -> int:
        """Wait until nothing is in this worker any more; return how many had to be cancelled."""
        until = monotonic() + seconds
        while self.busy and monotonic() < until:
            await asyncio.sleep(0.005)
        for queue in (self._ready, self._waiting):  # for these there is no time left
            self._expire(queue, inf, "draining")
        await asyncio.sleep(0)  # a task that has not begun could not clean up after itself
        left = list(self._tasks)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=1.0)
        self._publish()
        return len(left)

    # leaving

    def _encode(self, request: Request, response: Response) -> bytes:
        head = request.head
        connection = b""
        if not head.keep_alive or self.draining:
            connection = b"Connection: close\r\n"
        elif not head.http_11:
            connection = b"Connection: keep-alive\r\n"
        return response.encode(
            self.block, request.rid, connection=connection, head_only=head.method == "HEAD"
        )

    def _failure(self, request: Request, error: Exception) -> tuple[int, bytes]:
        """Return the answer for what a handler raised; what was not on purpose is logged."""
        if isinstance(error, HTTPError):
            try:
                return error.status, self._encode(request, error_response(error))
            except Exception as fault:  # its headers or details cannot be sent
                error = fault
        log.error(
            "%s %s failed (request id %s)",
            request.method,
            request.path,
            request.id,
            exc_info=error,
        )
        failed = HTTPError(500, "the request failed; see the server's log under its X-Request-ID")
        return 500, self._encode(request, error_response(failed))

    def _leave(self, request: Request, status: int, answer: bytes, now: float) -> None:
        """Give the answer to the connection, the permit back, and count."""
        connection: HttpProtocol = request.connection  # type: ignore[assignment]
        if connection.closed:
            self._abort(request)
            return
        self._completed += 1
        self._count_rare(status)
        self._observe(now - request.arrived, 1)
        connection.deliver(request, answer)
        if request.permit:
            if len(answer) >= LARGE or connection.write_paused:
                connection.hold()
            else:
                request.permit = False
                self.limit.release(1)

    def _abort(self, request: Request) -> None:
        self._aborted += 1
        self._rare = True
        if request.permit:
            request.permit = False
            self.limit.release(1)
        if not self._scheduled:
            self.schedule()

    def _refuse(self, request: Request, reason: str) -> None:
        """Answer 503: ready made but for the date and the request id."""
        self._shed[reason] += 1
        self._rare = True
        connection: HttpProtocol = request.connection  # type: ignore[assignment]
        if connection.closed:
            return
        self.responses[5] += 1
        head = request.head
        rid = request.rid = head.request_id or self._next_id()
        if head.plain and not self.draining:
            answer = self._refusals[reason].encode(self.block, rid)
        else:
            answer = self._encode(request, self._refusals[reason].response)
        connection.deliver(request, answer)

    def _expire(self, queue: deque[Request], now: float, reason: str = "deadline") -> None:
        """Refuse what has waited too long; the oldest stand first."""
        oldest = now - self.deadline
        while queue and queue[0].arrived < oldest:
            request = queue.popleft()
            if not request.queued:
                self._gone -= 1
                continue
            request.queued = request.permit = False
            self.limit.release(1)
            self._refuse(request, reason)

    # figures

    def _observe(self, seconds: float, requests: int) -> None:
        if requests:
            self._buckets[bisect_left(BOUNDS, seconds)] += requests
            self._duration += seconds * requests

    def _count_rare(self, status: int) -> None:
        self.responses[status // 100] += 1
        self._rare = True

    def _publish(self) -> None:
        """Write the counters that changed; called once a turn."""
        region = self.region
        region[Word.OFFERED] = self.offered
        region[Word.ACCEPTED] = self._accepted
        region[Word.COMPLETED] = self._completed
        region[_RESPONSES_2XX] = self.responses[2]
        if self._rare:
            self._rare = False
            region[Word.ABORTED] = self._aborted
            for status_class in range(1, 6):
                region[Word.RESPONSES + status_class - 1] = self.responses[status_class]
            for reason, word in REASON_WORDS.items():
                region[word] = self._shed[reason]

    def publish_latencies(self) -> None:
        """Write the histogram; called by the sweep, so that it costs a request nothing."""
        region = self.region
        region[Word.DURATION_US] = int(self._duration * 1e6)
        for at, value in enumerate(self._buckets):
            if value:
                region[Word.BUCKETS + at] = value


_RESPONSES_2XX: Final = Word.RESPONSES + 1
