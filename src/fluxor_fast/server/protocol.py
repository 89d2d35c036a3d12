"""One connection: bytes in, requests to the batch, and how it ends.

The short way: the bytes that arrive are exactly a head seen before, and nothing else is going
on. Heads alone, one new or several pipelined, take a short way too, and so does a head seen before
with the whole of its body. Everything else goes through ``framing.Reader``.

An ``HttpProtocol`` is a ``Connection`` (its place, its socket) that is ``Answering`` (its answers,
in order) and reads. Each knows only those before it; what they ask of it is abstract there.

Rules:

1. At most ``max_pipeline`` requests are in progress; beyond that, and while the client does
   not take in its answers, the socket is not read: what arrives waits in the kernel.
2. What cannot be read as a request is answered once, behind the answers owed before it; then
   nothing more is read as a request. Input is discarded for ``LINGER`` seconds so that the
   answer is not lost in a reset (RFC 9112, section 9.6), longer while the client takes it in.
3. A body that its handler reads in pieces goes to the ``BodyStream`` in ``_body`` (see
   ``streaming``); what stands behind it is read when it is complete.
4. No timer per connection: the worker's sweep calls ``check`` about once a second.
5. Deadlines are absolute: bytes that trickle in put none off. They run while the client may
   send: time in which the socket was not read, or earlier answers were owed, is not the client's.
6. What a client makes a connection hold before admission is bounded: what one read of the loop
   brought (256,000 bytes) and a head; one body; and of requests in progress, ``max_pipeline``
   heads, and bodies up to ``max_body`` and one more. With the defaults 2.5 MB while one body is
   read, and 5 MB with as many requests in progress as can be (``tests/test_limits.py``).
7. What stands behind an offer of a WebSocket goes to the ``tunnel`` and never through the reader.
   Such an offer is answered by itself: pipelined behind another request it is a 400.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final
from weakref import ref

from fluxor_fast.errors import HTTPError
from fluxor_fast.http.request import Head, Request, StreamedRequest
from fluxor_fast.server.answering import Answered, Answering
from fluxor_fast.server.common import Service
from fluxor_fast.server.framing import END, Reader
from fluxor_fast.server.streaming import CONTINUE, GRACE, BodyStream
from fluxor_fast.server.tunnel import Tunnel

__all__ = ["LINGER", "HttpProtocol"]

LINGER: Final = 2
WHOLE: Final = -1
"""Value of ``_slow`` while requests come in one with their bodies: what comes next is not looked up
as a head then, since that hashes all of it."""
BURST: Final = 512
"""Chunks read at one go: a read may be full of tiny ones, and would hold up the loop."""


def _none() -> None:
    """Instead of a reference to nothing."""


class HttpProtocol(Answering):
    """The protocol object of one connection."""

    __slots__ = (
        "_body",
        "_cached",
        "_continued",
        "_eof",
        "_held",
        "_left",
        "_more",
        "_paced",
        "_reader",
        "_slow",
        "_whole",
        "ends",
        "pause",
        "resumed",
        "tunnel",
    )

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        # of the connection
        self._cached = service.heads.found
        self._more = False  # something has come behind what was the last to be read
        self._eof = False  # the client has said that it sends nothing more
        self._paced = False  # the socket is not read because a request on it was refused
        self.pause = self.resumed = 0.0  # the last time that was so (see refusal.Pacer)
        self._reader: Reader | None = None
        self._left = service.keep_alive_requests or None  # None: any number of requests more
        # above 0: the reader is in the middle of something, or counts; or ``WHOLE``
        self._slow: int = self._left is not None
        # of the last request that came in one with its body; the cache of heads keeps it, not we
        self._whole: Callable[[], Head | None] = _none
        self._held = 0  # bytes of bodies since nothing was in progress
        # of the requests in progress
        self._continued = False
        self._body: BodyStream | None = None  # the one among ``streams`` that is being read
        self.ends = False  # the last answer that is owed ends the connection
        self.tunnel: Tunnel | None = None  # behind an offer of a WebSocket

    # what the loop calls

    def _turn_away(self, reason: str) -> None:
        self._slow = True  # nothing that came already is read
        super()._turn_away(reason)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give back what the connection held; what it waited for is no longer wanted."""
        if not self.service.leave(self, self._client):
            return
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
                if head.lane:
                    runner.lanes += head.lane
                return
            if not self._closing and self._take_heads(data, head):
                return
        elif (
            self._slow == WHOLE
            and self.current is None
            and not self._closing
            and (self._take_another(data) or self._take_heads(data, None))
        ):
            return
        if self._closing:
            self._more = True
            if self.tunnel is not None:
                self.tunnel.feed(data)
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

        Or one seen before with the whole of its body. Return False if there is anything to it that
        the reader must see.
        """
        heads = self.service.heads
        stop = data.find(END) + 4
        if stop < 4:
            return False
        if stop == len(data):
            if self._slow:  # no body any more
                self._slow = 0
                known = self._cached.get(data)
                if known is not None and known.quick:
                    request = self.current = Request(known, b"", self)
                    self.runner.arrive(request)
                    return True
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
            self.runner.arrive(request)
            return True
        several = self._cached.get(data[:stop])
        if several is not None and several.length > 0:
            return stop + several.length == len(data) and self._take_whole(several, data, stop)
        if several is None or not several.quick:
            return False
        found, lanes, at = [several], several.lane, stop
        times = len(data) // stop
        if data == data[:stop] * times:  # as of one who asks for the same again and again
            found, lanes, at = found * times, lanes * times, len(data)
        while at < len(data):
            stop = data.find(END, at) + 4
            another = self._cached.get(data[at:stop]) if stop > at else None
            if another is None or not another.quick:
                return False
            found.append(another)
            lanes += another.lane
            at = stop
        if len(found) > self.service.max_pipeline:
            return False
        requests = [Request(head, b"", self) for head in found]
        self.current = requests[0]
        self.order = deque(requests)
        runner = self.runner
        runner.arrivals += requests
        runner.lanes += lanes
        runner.schedule()
        return True

    def _take_another(self, data: bytes) -> bool:
        """Take in a request that came in one if its head is that of the one before."""
        head = self._whole()
        if (
            head is None
            or not data.startswith(head.raw)
            or len(data) != len(head.raw) + head.length
        ):
            return False
        self._held = head.length
        request = self.current = Request(head, data[len(head.raw) :], self)
        self.runner.arrive(request)
        return True

    def _take_whole(self, head: Head, data: bytes, stop: int) -> bool:
        """Take in a request that came in one; return False if the reader must see to it.

        :param stop: where its body begins.
        """
        gathered = head.gathered
        most = head.route.max_body
        if most is None:
            most = self.service.heads.limits.body
        if gathered is None or head.length > most:
            return False
        self._held = head.length
        self._slow = WHOLE
        self._whole = ref(gathered)
        gathered.raw = gathered.raw or data[:stop]
        request = self.current = Request(gathered, data[stop:], self)
        self.runner.arrive(request)
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
        for stream in self.streams:
            stream.ended()
        self._go_the_long_way()
        if self.current is None:
            self._closing = True  # the request that had begun will never be complete
        return self.current is not None

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
                    self.runner.call_soon(self.go_on)
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
            body.fail(partial(HTTPError, error.status, error.message, code=error.code))
            return False
        if piece:
            body.feed(piece)
        if reader.in_body:
            if body.full:
                self._pause()
            elif reader.interrupted:  # others first
                self._pause()
                self.runner.call_soon(self.go_on)
            return False
        self._body = None
        self._held += body.buffered
        body.end()
        self._closing = not body.keep_alive
        return not self._closing

    def _is_1_0_owed(self, reader: Reader) -> bool:
        """Whether what is to be read next stands behind a request in HTTP/1.0.

        The answer may end with the connection, so nothing can be owed behind it.
        """
        last = self.order[-1] if self.order else self.current
        return last is not None and not last.head.http_11 and reader.partial

    def _arrive(self, head: Head, body: bytes | None) -> None:
        if head.upgrade and head.length == 0:
            if self.current is not None:
                self._refuse(HTTPError(400, "an offer to upgrade is not to be pipelined"))
                return
            assert self._reader is not None
            held = self._reader.rest()
            self._more = bool(held)
            self.tunnel = Tunnel(self, held)
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                head = head.closing()
        if body is None:
            self._body = BodyStream(self, head)
            self.watch(self._body)
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
        self.runner.arrive(request)

    def _refuse(self, error: HTTPError) -> None:
        """Answer what cannot be read, behind what is owed, and close."""
        self._closing = True
        self._slow = True
        self._reader = None  # and what it holds of a body
        last = Answered(self.runner.error_bytes(error))
        if self.current is None:
            self.transport.write(last.answer)
            self._hang_up(linger=True)
        else:
            self._go_the_long_way()
            assert self.order is not None
            self.order.append(last)

    # the end

    def _answered(self, last: Request) -> None:
        """Go on after the last answer that was owed."""
        if type(last) is Answered:
            self._hang_up(linger=True)
        elif self.ends or not last.head.keep_alive or self.runner.draining or self._eof:
            # one that we end may have sent more already: closed at once, it would be reset
            self._hang_up(
                linger=self._left is not None
                or self._more
                or (self._reader is not None and self._reader.partial)
            )
        elif self.paused:
            self.go_on()
        elif self._slow > 0:
            self._read()

    def ends_with(self, request: Request) -> bool:
        """Take in no more requests; return whether ``request`` is the last of those owed.

        Behind an answer that says ``close`` there must be none (RFC 9112, section 9.6).
        """
        self._closing = True
        return not self.order or self.order[-1] is request

    def end_after_answers(self) -> None:
        """Read nothing more as a request, and close when the answers owed have left."""
        self._closing = self.ends = True
        self._body = None
        if self.current is None and not self.closed:
            self._hang_up(linger=True)

    # the socket

    def go_on(self) -> None:
        """Go on reading if nothing speaks against it."""
        if self.paused and not (
            self.closed
            or self.write_paused
            or self._paced
            or (self._body is not None and self._body.full)
            or (self.tunnel is not None and self.tunnel.full)
        ):
            self.paused = False
            self.since += self.runner.tick - max(self._stopped, self.since)
            self.transport.resume_reading()
            if self._reader is not None and not self._closing:
                self._read()

    def pause_tunnel(self) -> None:
        """Leave the socket unread until ``go_on``: what has come is not taken."""
        self._pause()

    def write_tunnel(self, data: bytes) -> None:
        """Send what is no answer."""
        if not self.closed:
            if self.write_paused:
                self._unsent += len(data)
            self.transport.write(data)

    def end_tunnel(self) -> None:
        """Close when what was written has left, and the client had time to read it."""
        self.current = self.order = None
        if not self.closed:
            self._hang_up(linger=True)

    @property
    def missing(self) -> int:
        """How many bytes of the body have not come; less than 0 if that is not known."""
        return -1 if self._reader is None else self._reader.missing

    def leave_unread(self) -> bool:
        """Stop reading until ``read_again``, unless more is already under way."""
        if self.current is not None or self.paused or self._closing:
            return False
        self._paced = True
        self._pause()
        return True

    def read_again(self) -> None:
        """Go on reading."""
        self._paced = False
        self.go_on()

    def _hang_up(self, *, linger: bool) -> None:
        """Close, at once or after the client had time to read."""
        self._closing = True
        self._paced = False
        self._slow = True
        self.tunnel = None  # nobody wants what still comes
        self.since = self.runner.tick
        if linger and not self._eof and self.transport.can_write_eof():
            self.transport.write_eof()
            self.go_on()
        else:  # with TLS this lingers too: input is discarded until the client closes
            self.transport.close()

    def check(self, tick: int) -> None:
        """End the connection if it has outlived a timeout. Called by the sweep."""
        timeouts = self.service.timeouts
        for stream in self.streams:
            stream.check(tick)
        age = tick - self.since
        if tick - self._made > timeouts.age and self._left != 1:
            self._take_one_more()
        if self.write_paused:
            if self.stalled(tick):
                self.reset()
        elif self.current is not None:
            return
        elif self._closing:
            if age > (timeouts.write if self.unsent() else LINGER):
                self.abort()
        elif self.paused:
            return
        elif self._reader is not None and self._reader.begun and self._body is None:
            if self._reader.in_body:
                self._check_body(self._reader.received, age)
            elif age > timeouts.head:
                self._refuse(HTTPError(408, "the head of the request took too long"))
        elif age > timeouts.keep_alive:
            self._end_idle(tick)

    def _check_body(self, received: int, age: int) -> None:
        timeouts, bodies = self.service.timeouts, self.service.bodies
        judged = age > GRACE
        if age > timeouts.body:
            self._refuse(HTTPError(408, "the body of the request took too long"))
        elif judged and received < max(timeouts.body_rate, bodies.least) * age:
            self._refuse(HTTPError(408, "the body of the request comes too slowly"))
        else:
            bodies.note(received, age, judged=judged)

    def _end_idle(self, tick: int) -> None:
        """Close an idle connection; reset it if its client takes in no more of its answers.

        All of them are with the kernel, which would keep them (see ``reset``). Whether
        the client still reads shows only after a while.
        """
        unread = self.unsent()
        rate = self.service.timeouts.write_rate
        if not (unread and rate):
            self.close_idle()
        elif self._since_write <= self.since:  # the first look
            self._since_write = tick
            self._unsent = unread
        elif (waited := tick - self._since_write) > GRACE:
            if self._unsent - unread < rate * waited:
                self.reset()
            else:
                self.close_idle()

    def _take_one_more(self) -> None:
        """Have the next request be the last: its answer says so (RFC 9112, section 9.6).

        By way of the reader, so that requests on the short way need not be looked at for this.
        """
        self._left = 1
        self._slow = True
        if self._reader is None:
            self._reader = Reader(self.service.heads)

    def close_idle(self) -> None:
        """Close the connection if nothing is owed on it and nothing has begun."""
        begun = self._reader is not None and self._reader.begun
        if self.current is None and not begun and not self._closing:
            self._closing = True
            self.since = self.runner.tick
            self.transport.close()

    # what requests ask

    @property
    def gone(self) -> bool:
        """Whether the client is gone, or has said that it sends nothing more."""
        return self.closed or self._eof
