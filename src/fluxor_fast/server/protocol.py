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
4. A body that its handler reads in pieces goes to the ``BodyStream`` in ``_body`` (see
   ``streaming``); what stands behind it is read when it is complete.
5. No timer per connection: the worker's sweep calls ``check`` about once a second.
6. Deadlines are absolute: bytes that trickle in put none off. They run while the client may
   send: time in which the socket was not read, or earlier answers were owed, is not the client's.
7. What a client makes a connection hold before admission is bounded: what one read of the loop
   brought (256,000 bytes) and a head; one body; and of requests in progress, ``max_pipeline``
   heads, and bodies up to ``max_body`` and one more. With the defaults 2.5 MB while one body is
   read, and 5 MB with as many requests in progress as can be (``tests/test_limits.py``).
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from dataclasses import dataclass
from math import inf
from typing import Any, Final, Protocol

from fluxor_fast.errors import HTTPError
from fluxor_fast.http.request import Head, Request, StreamedRequest
from fluxor_fast.server.addresses import peer_of
from fluxor_fast.server.admission import SharedLimit
from fluxor_fast.server.batch import BatchRunner
from fluxor_fast.server.clients import ClientLimit, Place
from fluxor_fast.server.forwarded import Proxies
from fluxor_fast.server.framing import END, Reader
from fluxor_fast.server.heads import HeadCache
from fluxor_fast.server.streaming import CONTINUE, AnswerWriter, BodyStream
from fluxor_fast.server.sweep import unsent

__all__ = ["LINGER", "Behind", "HttpProtocol", "Open", "Service", "Timeouts"]

LINGER: Final = 2
GRACE: Final = 5
"""Seconds before it is judged how fast a client sends or reads."""
BURST: Final = 512
"""Chunks read at one go: a read may be full of tiny ones, and would hold up the loop."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds, kept to about a second, and bytes per second."""

    head: float
    body: float
    keep_alive: float
    write: float
    age: float = inf
    """Of a connection; the request after it is the last."""
    body_rate: int = 0
    """The least at which a body comes, on average since it began."""
    write_rate: int = 0
    """The least at which a full buffer is taken in, on average since it was full."""


class Open(Protocol):
    """An open connection, as the worker sees it: it counts, and must end some time."""

    closed: bool

    def check(self, tick: int) -> None:
        """End it if it has outlived a timeout."""

    def close_idle(self) -> None:
        """Close it if nothing is owed on it."""

    def abort(self) -> None:
        """Drop it."""


class Behind(Protocol):
    """A protocol that can take over a connection behind its PROXY header."""

    def take_over(self, transport: asyncio.Transport, peer: str | None, *, tls: bool) -> None:
        """Take a connection that has its place; see ``HttpProtocol.take_over``."""

    def data_received(self, data: bytes) -> None:
        """Take in bytes."""


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
    proxies: Proxies
    open: set[Open]
    room: int = sys.maxsize
    """How many connections this process has descriptors for."""
    clients: ClientLimit | None = None
    """None: a client may have any number of connections."""
    keep_alive_requests: int = 0
    """Requests on a connection; 0: any number."""

    def take_place(self) -> bool:
        """Count one connection more, if there is room; who calls this puts it among ``open``."""
        return len(self.open) < self.room and bool(
            self.connections.acquire(1, self.max_connections)
        )


class _Answered(Request):
    """A place in the order for an answer that needs no request; it is the last."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.queued = self.permit = False


class HttpProtocol(asyncio.Protocol):
    """The protocol object of one connection."""

    __slots__ = (
        "_body",
        "_cached",
        "_client",
        "_closing",
        "_continued",
        "_eof",
        "_held",
        "_kept",
        "_left",
        "_made",
        "_out",
        "_paced",
        "_paused",
        "_peer",
        "_reader",
        "_since_write",
        "_slow",
        "_stopped",
        "_tls",
        "_unsent",
        "closed",
        "current",
        "ends",
        "order",
        "pause",
        "resumed",
        "runner",
        "service",
        "since",
        "streams",
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
        self._peer: str | None = None  # asked for when wanted, or told by a PROXY header
        self._tls = False  # whether such a header says that the client speaks TLS
        self.closed = False
        self.write_paused = False
        self._closing = False  # nothing more is read as a request
        self._eof = False  # the client has said that it sends nothing more
        self._paused = False  # the socket is not read
        self._paced = False  # …because a request on it was refused
        self.pause = self.resumed = 0.0  # the last time that was so (see refusal.Pacer)
        self._reader: Reader | None = None
        self._left = service.keep_alive_requests or None  # None: any number of requests more
        self._slow = self._left is not None  # the reader is in the middle of something, or counts
        self._client: Place = ()
        self._out: list[bytes] = []  # in order, to be written in one go
        self._kept = 0  # permits of answers that the client has not taken in
        self._held = 0  # bytes of bodies since nothing was in progress
        self._unsent = 0  # bytes to be taken in since the buffer was full
        # of the requests in progress
        self.current: Request | None = None
        self.order: deque[Request] | None = None
        self._continued = False
        self.streams: tuple[AnswerWriter | BodyStream, ...] = ()  # what comes or leaves in pieces
        self._body: BodyStream | None = None  # the one among them that is being read
        self.ends = False  # the last answer that is owed ends the connection
        self.since = self._since_write = self._made = self._stopped = service.runner.tick

    # what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it unread when there are too many.

        First of all clients together: then this one's address need not be looked at.
        """
        self.transport = transport
        self.runner.fresh += 1
        if self.service.take_place():
            self._begin()
        else:
            self._turn_away("connections")

    def take_over(self, transport: asyncio.Transport, peer: str | None, *, tls: bool) -> None:
        """Take a connection that has its place, and whose PROXY header has been read.

        :param peer: the address it said; None if that of the transport is meant.
        :param tls: whether it said that the client speaks TLS with the proxy.
        """
        self.transport = transport
        self._peer, self._tls = peer, tls
        self._begin()

    def _begin(self) -> None:
        # the connection has its place, and from here on ``peer`` is who it is
        service = self.service
        if service.clients is None or self.count_for(self.peer):
            service.open.add(self)
        else:
            service.connections.release(1)
            self._turn_away("client")

    def count_for(self, address: str) -> bool:
        """Count the connection as one of the client at ``address``; False: that has too many.

        Again where the address turns out to be another: then it is counted under that alone.
        """
        clients = self.service.clients
        if clients is not None:
            place = clients.acquire(address)
            if place is None:
                return False
            clients.release(self._client)
            self._client = place
        return True

    def _turn_away(self, reason: str) -> None:
        self.closed = self._closing = self._slow = True  # nothing that came already is read
        self.transport.write(self.runner.refuse_connection(reason))
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give back what the connection held; what it waited for is no longer wanted."""
        if self not in self.service.open:
            return
        self.service.open.discard(self)
        self.service.connections.release(1)
        if self._client:
            assert self.service.clients is not None
            self.service.clients.release(self._client)
        owed = self.order or (self.current,)
        self.closed = self._closing = True
        self.order = deque()  # not None: the batch's short way asks this
        for request in owed:
            if request is not None and request.answer is None:
                self.runner.abandon(request)
        self.current = None
        self._reader = self._body = None
        self._out.clear()
        for stream in self.streams:
            stream.lost()
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
        idle = not reader.begun
        reader.feed(data)
        self._read()
        if idle and reader.begun:  # empty lines begin nothing
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
            request = self.current = Request(head, b"", self)
            self.runner.arrivals.append(request)
            self.runner.schedule()
            return True
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
        if self._body is not None:
            self._body.lost()
        self._go_the_long_way()
        if self.current is None:
            self._closing = True  # the request that had begun will never be complete
        return self.current is not None

    def pause_writing(self) -> None:
        """Stop reading while the client does not take in its answers."""
        self.write_paused = True
        self._since_write = self.runner.tick
        self._unsent = self._unread()
        self._go_the_long_way()  # what is still to come is counted by ``flush``
        self._pause()

    def resume_writing(self) -> None:
        """Go on reading."""
        self.write_paused = False
        if self._closing:  # what is left has its own time to leave
            self.since = self.runner.tick
        self._release_if_sent()
        self._resume()
        for stream in self.streams:
            stream.wake()

    # reading

    def _read(self) -> None:
        """Hand complete requests to the batch, up to the cap."""
        reader = self._reader
        assert reader is not None
        cap = self.service.max_pipeline
        most = self.service.heads.limits.body
        if self.current is None:
            self._held = 0
        while not self._closing:
            if self._body is not None and not self._read_body(self._body, reader):
                return
            if (
                (self.current is not None if self.order is None else len(self.order)) >= cap
                or self._held > most
                or self._is_1_0_owed(reader)
            ):
                self._slow = True
                self._go_the_long_way()
                self._pause()
                return
            in_body = reader.in_body
            try:
                message = reader.next(BURST)
            except HTTPError as error:
                self._refuse(error)
                return
            if message is None:
                if reader.in_body and not in_body:  # the deadline of the body begins
                    self.since = self.runner.tick
                    self._continued = False
                if reader.interrupted:  # others first
                    self._pause()
                    self.runner.call_soon(self._resume)
                break
            self.since = self.runner.tick
            self._arrive(*message)
        self._slow = reader.partial or self._left is not None
        if reader.awaits_continue and not self._continued:
            if self.current is None:
                self._continued = True
                self.transport.write(CONTINUE)
            else:
                self._go_the_long_way()  # which comes back here when the answers owed have left

    def _read_body(self, body: BodyStream, reader: Reader) -> bool:
        """Hand on what has come of a body; return whether it is complete."""
        self._slow = True
        try:
            piece = reader.piece(BURST)
        except HTTPError as error:
            body.fail(error)
            return False
        if piece:
            body.feed(piece)
        if reader.in_body:
            if body.full:
                self._pause()
            elif reader.interrupted:  # others first
                self._pause()
                self.runner.call_soon(self._resume)
            return False
        self._body = None
        body.end()
        self._closing = not body.keep_alive
        return not self._closing

    def _is_1_0_owed(self, reader: Reader) -> bool:
        """Whether what is to be read next stands behind a request in HTTP/1.0.

        The answer may end with the connection, so nothing can be owed behind it.
        """
        last = self.order[-1] if self.order else self.current
        return last is not None and not last.head.http_11 and reader.partial

    def _go_the_long_way(self) -> None:
        """Have the batch deliver the answer through ``deliver``: something is to follow it."""
        if self.order is None and self.current is not None:
            self.order = deque((self.current,))

    def _arrive(self, head: Head, body: bytes | None) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                head = head.closing()
        if body is None:
            self._body = BodyStream(self, head)
            self.streams += (self._body,)
            request: Request = StreamedRequest(head, self, self._body)
        else:
            self._held += len(body)
            request = Request(head, body, self)
        if self.current is None:
            self.current = request
        elif self.order is None:
            self.order = deque((self.current, request))
        else:
            self.order.append(request)
        if not head.keep_alive and body is not None:
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
        elif self.ends or not last.head.keep_alive or self.runner.draining or self._eof:
            # one that we end may have sent more already: closed at once, it would be reset
            self._hang_up(
                linger=self._left is not None or (self._reader is not None and self._reader.partial)
            )
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
            answers = out[0] if len(out) == 1 else b"".join(out)
            if self.write_paused:
                self._unsent += len(answers)
            self.transport.write(answers)
            if self._kept:
                self._release_soon()
        out.clear()
        for stream in self.streams:  # its turn may have come
            stream.wake()

    @property
    def front(self) -> Request | None:
        """The request whose answer is the next to leave; None while others' are on the way."""
        if self._out:
            return None
        return self.order[0] if self.order else self.current

    def end_after_answers(self) -> None:
        """Read nothing more as a request, and close when the answers owed have left."""
        self._closing = self.ends = True
        self._body = None
        if self.current is None and not self.closed:
            self._hang_up(linger=True)

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
            self._stopped = self.runner.tick
            self.transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and not (
            self.closed
            or self.write_paused
            or self._paced
            or (self._body is not None and self._body.full)
        ):
            self._paused = False
            self.since += self.runner.tick - max(self._stopped, self.since)
            self.transport.resume_reading()
            if self._reader is not None and not self._closing:
                self._read()

    @property
    def paused(self) -> bool:
        """Whether the socket is not read."""
        return self._paused

    @property
    def missing(self) -> int:
        """How many bytes of the body have not come; less than 0 if that is not known."""
        return -1 if self._reader is None else self._reader.missing

    def go_on(self) -> None:
        """Go on reading if nothing else speaks against it."""
        self._resume()

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
        self.since = self.runner.tick
        if linger and not self._eof and self.transport.can_write_eof():
            self.transport.write_eof()
            self._resume()
        else:  # with TLS this lingers too: input is discarded until the client closes
            self.transport.close()

    def abort(self) -> None:
        """Drop the connection, answer or not."""
        if not self.closed:
            self.transport.abort()

    def check(self, tick: int) -> None:
        """End the connection if it has outlived a timeout. Called by the sweep."""
        timeouts = self.service.timeouts
        for stream in self.streams:
            stream.check(tick)
        age = tick - self.since
        if tick - self._made > timeouts.age and self._left != 1:
            self._take_one_more()
        if self.write_paused:
            waited = tick - self._since_write
            if waited > timeouts.write or (
                waited > GRACE
                and timeouts.write_rate
                and self._unsent - self._unread() < timeouts.write_rate * waited
            ):
                self.abort()
        elif self.current is not None:
            return
        elif self._closing:
            if age > (timeouts.write if self._waiting() else LINGER):
                self.abort()
        elif self._paused:
            return
        elif self._reader is not None and self._reader.begun and self._body is None:
            in_body = self._reader.in_body
            if age > (timeouts.body if in_body else timeouts.head):
                what = "body" if in_body else "head"
                self._refuse(HTTPError(408, f"the {what} of the request took too long"))
            elif in_body and age > GRACE and self._reader.received < timeouts.body_rate * age:
                self._refuse(HTTPError(408, "the body of the request comes too slowly"))
        elif age > timeouts.keep_alive:
            self.close_idle()

    def _take_one_more(self) -> None:
        """Have the next request be the last: its answer says so (RFC 9112, section 9.6).

        By way of the reader, so that requests on the short way need not be looked at for this.
        """
        self._left = 1
        self._slow = True
        if self._reader is None:
            self._reader = Reader(self.service.heads)

    def _waiting(self) -> int:
        """Bytes of answers that wait in this process."""
        return int(self.transport.get_write_buffer_size())

    def _unread(self) -> int:
        """Bytes of answers that the client has not taken in."""
        return unsent(self.transport)

    def close_idle(self) -> None:
        """Close the connection if nothing is owed on it and nothing has begun."""
        begun = self._reader is not None and self._reader.begun
        if self.current is None and not begun and not self._closing:
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
        """Address of the other end, or what a PROXY header said of it.

        ``unix`` if it came through a Unix socket, empty if it is not known.
        """
        peer = self._peer
        if peer is None:
            peer = self._peer = peer_of(self.transport)
        return peer

    @property
    def tls(self) -> bool:
        """Whether the other end speaks TLS with this server."""
        return self.transport.get_extra_info("sslcontext") is not None

    @property
    def client_certificate(self) -> dict[str, Any] | None:
        """The certificate that the other end has shown and proved, if any."""
        return self.transport.get_extra_info("peercert") or None

    def client_of(self, head: Head) -> str:
        """Address of the client, seen through trusted proxies."""
        return self.service.proxies.client(self.peer, head)

    def scheme_of(self, head: Head) -> str:
        """Scheme that the client used, seen through trusted proxies."""
        tls = self._tls or self.tls
        return self.service.proxies.scheme(self.peer, "https" if tls else "http", head)

    def host_of(self, head: Head) -> str:
        """Host that the client asked for, seen through trusted proxies."""
        return self.service.proxies.host(self.peer, head)
