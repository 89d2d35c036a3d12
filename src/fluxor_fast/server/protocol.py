"""One connection: bytes in, requests to the batch, answers out in order.

The short way: the bytes that arrive are exactly a head seen before, and nothing else is going
on. Heads alone, one new or several pipelined, take a short way too. Everything else goes through
``framing.Reader``.

Rules:

1. Answers leave in the order of their requests. While one request is in progress it is
   ``current``; with more, all stand in ``order`` and an answer waits for those before it.
2. At most ``max_pipeline`` requests are in progress; beyond that, and while the client does
   not take in its answers, the socket is not read: what arrives waits in the kernel.
3. What cannot be read as a request is answered once, behind the answers owed before it; then
   nothing more is read as a request. Input is discarded for ``LINGER`` seconds so that the
   answer is not lost in a reset (RFC 9112, section 9.6).
4. No timer per connection: the worker's sweep calls ``check`` about once a second.
"""

from __future__ import annotations

import asyncio
import ipaddress
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from fluxor_fast.errors import HTTPError
from fluxor_fast.http.request import Head, Request
from fluxor_fast.server.admission import SharedLimit
from fluxor_fast.server.batch import BatchRunner
from fluxor_fast.server.framing import END, Reader
from fluxor_fast.server.heads import HeadCache

__all__ = ["HttpProtocol", "Service", "Timeouts"]

LINGER: Final = 2
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds, kept to about a second."""

    head: float
    body: float
    keep_alive: float
    write: float


@dataclass(slots=True)
class Service:
    """What all connections of a worker share."""

    app: Any
    runner: BatchRunner
    heads: HeadCache
    timeouts: Timeouts
    connections: SharedLimit
    max_connections: int
    max_pipeline: int
    trusted_proxies: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]
    open: set[HttpProtocol]
    room: int = sys.maxsize
    """How many connections this process has descriptors for."""


class _Answered(Request):
    """A place in the order for an answer that needs no request; it is the last."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.queued = self.permit = False


class HttpProtocol(asyncio.Protocol):
    """The protocol object of one connection."""

    __slots__ = (
        "_cached",
        "_closing",
        "_continued",
        "_eof",
        "_kept",
        "_out",
        "_paced",
        "_paused",
        "_reader",
        "_since_write",
        "_slow",
        "closed",
        "current",
        "order",
        "pause",
        "resumed",
        "runner",
        "service",
        "since",
        "transport",
        "write_paused",
    )

    def __init__(self, service: Service) -> None:
        # of the worker
        self.service = service
        self.runner = service.runner
        self._cached = service.heads.found
        # of the connection
        self.transport: Any = None
        self.closed = False
        self.write_paused = False
        self._closing = False  # nothing more is read as a request
        self._eof = False  # the client has said that it sends nothing more
        self._paused = False  # the socket is not read
        self._paced = False  # …because a request on it was refused
        self.pause = self.resumed = 0.0  # the last time that was so (see refusal.Pacer)
        self._reader: Reader | None = None
        self._slow = False  # the reader is in the middle of something
        self._out: list[bytes] = []  # in order, to be written in one go
        self._kept = 0  # permits of answers that the client has not taken in
        # of the requests in progress
        self.current: Request | None = None
        self.order: deque[Request] | None = None
        self._continued = False
        self.since = self._since_write = service.runner.tick

    # what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it unread when there are too many."""
        self.transport = transport
        self.runner.fresh += 1
        service = self.service
        if len(service.open) >= service.room or not service.connections.acquire(
            1, service.max_connections
        ):
            self.closed = True
            self.transport.write(self.runner.refuse_connection())
            self.transport.close()
            return
        service.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give back what the connection held; what it waited for is no longer wanted."""
        if self not in self.service.open:
            return
        self.service.open.discard(self)
        self.service.connections.release(1)
        owed = self.order or (self.current,)
        self.closed = self._closing = True
        self.order = deque()  # not None: the batch's short way asks this
        for request in owed:
            if request is not None and request.answer is None:
                self.runner.abandon(request)
        self.current = None
        self._reader = None
        self._out.clear()
        self._release_kept()

    def data_received(self, data: bytes) -> None:
        """Take in bytes."""
        if not self._slow and self.current is None:
            head = self._cached.get(data)
            if head is not None and head.quick:
                request = self.current = Request(head, b"", self)
                runner = self.runner
                if not runner.arrivals:
                    runner.schedule()
                runner.arrivals.append(request)
                return
            if not self._closing and self._take_heads(data, head):
                return
        if self._closing:
            return
        reader = self._reader
        if reader is None:
            reader = self._reader = Reader(self.service.heads)
        idle = not reader.partial
        reader.feed(data)
        self._read()
        if idle and reader.partial:  # empty lines begin nothing
            self.since = self.runner.tick

    def _take_heads(self, data: bytes, known: Head | None) -> bool:
        """Take in what is heads and nothing else: one not seen before, or several pipelined.

        Return False if there is anything to it that the reader must see.
        """
        heads = self.service.heads
        stop = data.find(END) + 4
        if stop < 4:
            return False
        if stop == len(data):
            if known is not None or stop > heads.limits.head or data[0] == 0x0D:
                return False
            try:
                head = heads.parse(data)
            except HTTPError as error:
                self._refuse(error)
                return True
            if not head.quick:
                return False
            found = [head]
        else:
            found, at = [], 0
            while at < len(data):
                stop = data.find(END, at) + 4
                several = self._cached.get(data[at:stop]) if stop > at else None
                if several is None or not several.quick:
                    return False
                found.append(several)
                at = stop
            if len(found) > self.service.max_pipeline:
                return False
        requests = [Request(head, b"", self) for head in found]
        self.current = requests[0]
        if len(requests) > 1:
            self.order = deque(requests)
        self.runner.arrivals.extend(requests)
        self.runner.schedule()
        return True

    def eof_received(self) -> bool:
        """Keep the connection for what is owed; without that, let it go.

        The end of input may mean that the client only reads from now on, or that it is gone:
        TCP does not tell. One whose request still waits for its turn is taken to be gone.
        """
        self._eof = True
        owed = self.order or (self.current,)
        if any(request is not None and request.queued for request in owed):
            return False
        self._go_the_long_way()
        if self.current is None:
            self._closing = True  # the request that had begun will never be complete
        return self.current is not None

    def pause_writing(self) -> None:
        """Stop reading while the client does not take in its answers."""
        self.write_paused = True
        self._since_write = self.runner.tick
        self._pause()

    def resume_writing(self) -> None:
        """Go on reading."""
        self.write_paused = False
        if self._closing:  # what is left has its own time to leave
            self.since = self.runner.tick
        self._release_if_sent()
        self._resume()

    # reading

    def _read(self) -> None:
        """Hand complete requests to the batch, up to the cap."""
        reader = self._reader
        assert reader is not None
        cap = self.service.max_pipeline
        while not self._closing:
            if (self.current is not None if self.order is None else len(self.order)) >= cap:
                self._slow = True
                self._go_the_long_way()
                self._pause()
                return
            in_body = reader.in_body
            try:
                message = reader.next()
            except HTTPError as error:
                self._refuse(error)
                return
            if message is None:
                if reader.in_body and not in_body:  # the deadline of the body begins
                    self.since = self.runner.tick
                    self._continued = False
                break
            self.since = self.runner.tick
            self._arrive(*message)
        self._slow = reader.partial
        if self._slow and reader.awaits_continue and not self._continued:
            if self.current is None:
                self._continued = True
                self.transport.write(CONTINUE)
            else:
                self._go_the_long_way()  # which comes back here when the answers owed have left

    def _go_the_long_way(self) -> None:
        """Have the batch deliver the answer through ``deliver``: something is to follow it."""
        if self.order is None and self.current is not None:
            self.order = deque((self.current,))

    def _arrive(self, head: Head, body: bytes) -> None:
        request = Request(head, body, self)
        if self.current is None:
            self.current = request
        elif self.order is None:
            self.order = deque((self.current, request))
        else:
            self.order.append(request)
        if not head.keep_alive:
            self._closing = True
        self.runner.arrivals.append(request)
        self.runner.schedule()

    def _refuse(self, error: HTTPError) -> None:
        """Answer what cannot be read, behind what is owed, and close."""
        self._closing = True
        self._slow = True
        last = _Answered(self.runner.error_bytes(error))
        if self.current is None:
            self.transport.write(last.answer)
            self._hang_up(linger=True)
        else:
            self._go_the_long_way()
            assert self.order is not None
            self.order.append(last)

    # answering

    def deliver(self, request: Request, answer: bytes) -> None:
        """Send the answer of ``request`` when all before it have left."""
        order = self.order
        self.since = self.runner.tick
        if order is None:
            self.current = None
            self.transport.write(answer)
            self._answered(request)
            return
        request.answer = answer
        if order[0] is not request:
            return
        last = request
        out = self._out
        first = not out
        while order and order[0].answer is not None:
            last = order.popleft()
            out.append(last.answer)  # type: ignore[arg-type]
        if not order:
            self.flush()  # now: without an order, the next answer is written directly
            self.order = None
            self.current = None
            self._answered(last)
            return
        if first:
            self.runner.outbox.append(self)
            self.runner.schedule()
        if self._paused and len(order) <= self.service.max_pipeline // 2:
            self._resume()

    def _answered(self, last: Request) -> None:
        """Go on after the last answer that was owed."""
        if type(last) is _Answered:
            self._hang_up(linger=True)
        elif not last.head.keep_alive or self.runner.draining or self._eof:
            self._hang_up(linger=self._reader is not None and self._reader.partial)
        elif self._paused:
            self._resume()
        elif self._slow:
            self._read()

    def ends_with(self, request: Request) -> bool:
        """Take in no more requests; return whether ``request`` is the last of those owed.

        Behind an answer that says ``close`` there must be none (RFC 9112, section 9.6).
        """
        self._closing = True
        return not self.order or self.order[-1] is request

    def flush(self) -> None:
        """Write the answers collected in this turn as one."""
        out = self._out
        if out and not self.closed:
            self.transport.write(out[0] if len(out) == 1 else b"".join(out))
            if self._kept:
                self._release_soon()
        out.clear()

    def hold(self) -> None:
        """Keep the permit of a request until the client has taken in its answer.

        Its ``permit`` stays set, which tells here that an answer is held that has not left.
        """
        self._kept += 1
        self._release_soon()

    def _release_soon(self) -> None:
        # the transport tells at the end of this turn whether it could not send all
        asyncio.get_running_loop().call_soon(self._release_if_sent)

    def _release_if_sent(self) -> None:
        if self._kept and not self.write_paused:
            left = sum(r.permit for r in self.order or () if r.answer is not None)
            kept, self._kept = self._kept, left
            self.runner.taken(kept - left)

    def _release_kept(self) -> None:
        if self._kept:
            kept, self._kept = self._kept, 0
            self.runner.taken(kept)

    # the socket

    def _pause(self) -> None:
        if not self._paused and not self.closed:
            self._paused = True
            self.transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and not (self.closed or self.write_paused or self._paced):
            self._paused = False
            self.transport.resume_reading()
            if self._reader is not None and not self._closing:
                self._read()

    def leave_unread(self) -> bool:
        """Stop reading until ``read_again``, unless more is already under way."""
        if self.current is not None or self._paused or self._closing:
            return False
        self._paced = True
        self._pause()
        return True

    def read_again(self) -> None:
        """Go on reading."""
        self._paced = False
        self._resume()

    def _hang_up(self, *, linger: bool) -> None:
        """Close, at once or after the client had time to read."""
        self._closing = True
        self._paced = False
        self._slow = True
        if linger and not self._eof:
            self.since = self.runner.tick
            self.transport.write_eof()
            self._resume()
        else:
            self.transport.close()

    def abort(self) -> None:
        """Drop the connection, answer or not."""
        if not self.closed:
            self.transport.abort()

    def check(self, tick: int) -> None:
        """End the connection if it has outlived a timeout. Called by the sweep."""
        timeouts = self.service.timeouts
        age = tick - self.since
        if self.write_paused:
            if tick - self._since_write > timeouts.write:
                self.abort()
        elif self.current is not None:
            return
        elif self._closing:
            if age > (timeouts.write if self.transport.get_write_buffer_size() else LINGER):
                self.abort()
        elif self._slow and self._reader is not None:
            in_body = self._reader.in_body
            if age > (timeouts.body if in_body else timeouts.head):
                what = "body" if in_body else "head"
                self._refuse(HTTPError(408, f"the {what} of the request took too long"))
        elif age > timeouts.keep_alive:
            self.close_idle()

    def close_idle(self) -> None:
        """Close the connection if nothing is owed on it and nothing has begun."""
        if self.current is None and not self._slow and not self._closing:
            self._closing = True
            self.since = self.runner.tick
            self.transport.close()

    # what requests ask

    @property
    def app(self) -> Any:
        """The application."""
        return self.service.app

    @property
    def peer(self) -> str:
        """Address of the other end."""
        name = self.transport.get_extra_info("peername")
        return str(name[0]) if name else ""

    def client_of(self, head: Head) -> str:
        """Address of the client, through the trusted proxies' ``X-Forwarded-For``.

        Read from the right, the first address that is no trusted proxy is the client's: what
        stands left of it the client may have made up.
        """
        client = self.peer
        trusted = self.service.trusted_proxies
        if not trusted:
            return client
        forwarded = head.headers.get("x-forwarded-for", "")
        for hop in reversed(forwarded.split(",")):
            try:
                known = ipaddress.ip_address(client)
            except ValueError:
                return client
            if not any(known in network for network in trusted):
                return client
            hop = hop.strip()
            try:
                ipaddress.ip_address(hop)
            except ValueError:
                return client
            client = hop
        return client
