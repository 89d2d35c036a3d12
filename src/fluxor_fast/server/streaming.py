"""Bodies that are not whole when their request or answer is: the server's side of both.

``AnswerWriter`` is what an answer writes its body to that sends it itself (see
``http/streaming.py``). ``BodyStream`` is where the body of a request stands that is handled while
it comes. A connection has them in ``streams``, and tells them when to look again (``wake``), that
the client is gone (``lost``), and about once a second what time it is (``check``).

Rules for answers:

1. An answer writes when it is its turn in the order of its connection, and while the client takes
   in what it is sent. What is not with the kernel is at most the transport's high-water mark and
   one piece.
2. What is written is framed here (RFC 9112, section 6.3): a length that is kept to, chunks, or the
   end of the connection.
3. An iterator that always has more still lets others run: after ``YIELD`` bytes, of which each
   piece counts some more than it has, it waits for its turn (``Turns``). A loop turn has some of
   them: thousands that all wrote in one would hold it up for seconds.

Rules for requests:

4. Beyond ``HIGH`` bytes, or ``PIECES`` pieces, that the handler has not taken the socket is not
   read, until half of that is left. So a body fills at most that and what one read brings.
5. ``100 Continue`` leaves when the handler first wants what has not come, after the answers owed
   before, and not once the answer has begun (RFC 9110, section 10.1.1).
6. A body has ``timeouts.body`` seconds in all, and after ``GRACE`` must have come at
   ``timeouts.body_rate``. The time in which the client could not have sent does not count: while
   the socket is not read, and while it may still get a 100.
7. What was not read when the request is answered is read and dropped if it is known to be little
   (``REST``), and the client need not be asked for it; else the connection ends with the answer,
   and lingers (RFC 9112, section 9.6).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from fluxor_fast.errors import ClientDisconnected, HTTPError
from fluxor_fast.http.request import Head, Request
from fluxor_fast.http.streaming import BodySender

if TYPE_CHECKING:
    from fluxor_fast.server.protocol import HttpProtocol

__all__ = ["CLOSE", "CONTINUE", "GRACE", "AnswerWriter", "BodyStream", "Turns", "is_cancelled"]

log = logging.getLogger("fluxor_fast.server")

GRACE: Final = 5
"""Seconds before it is judged how fast a client sends or reads."""
CLOSE: Final = b"Connection: close\r\n"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
HIGH: Final = 64 * 1024
PIECES: Final = 1024
REST: Final = 64 * 1024
YIELD: Final = 64 * 1024
PIECE: Final = 1024
"""What a piece counts beside its bytes."""
AT_A_TURN: Final = 4
"""Streams that go on in a turn of the loop: a quarter of a megabyte in all."""


def is_cancelled(error: BaseException) -> bool:
    """Whether ``error`` says that this task is cancelled, not just something it waited for."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and bool(task and task.cancelling())


class BodyStream:
    """The ``BodySource`` of one request: filled by its connection, emptied by its handler."""

    __slots__ = ("_asked", "_connection", "_ends", "_error", "_expected", "_late", "_pieces",
                 "_received", "_settled", "_ticked", "_waited", "_waiter", "buffered", "complete",
                 "full", "keep_alive")  # fmt: skip

    def __init__(self, connection: HttpProtocol, head: Head) -> None:
        self._connection = connection
        self.keep_alive = head.keep_alive
        self.buffered = 0  # bytes that have come and were not taken
        self.full = False  # they are too many
        self._received = 0  # bytes that have come
        self.complete = False
        self._pieces: deque[bytes] = deque()
        # why no more comes: made anew whenever it is raised, as an exception that was raised keeps
        # the frames it left, and they would keep this
        self._error: Callable[[], Exception] | None = None
        self._expected = head.expects_continue  # the client waits to be asked
        self._asked = False  # …and the handler wants it to be
        self._late = False  # …which it cannot be any more
        self._settled = False  # the request is answered: what comes is dropped
        self._ends = False  # the connection ends with the answer
        self._waited = 0  # seconds for which the client could have sent
        self._ticked = connection.runner.tick
        self._waiter: asyncio.Future[None] | None = None

    # what the connection calls

    def feed(self, piece: bytes) -> None:
        """Take in what has come."""
        self._expected = False
        self._received += len(piece)
        if not self._settled:
            self._pieces.append(piece)
            self.buffered += len(piece)
            self.full = self.full or self.buffered > HIGH or len(self._pieces) > PIECES
            self._tell()

    def end(self) -> None:
        """Note that the body is complete."""
        self.complete = True
        self._leave()

    def fail(self, error: Callable[[], Exception]) -> None:
        """Note that no more comes of the body; the connection can serve nothing after it.

        :param error: returns what is raised to who asks for more.
        """
        self._error = error
        self._leave()
        self._connection.end_after_answers()

    def lost(self) -> None:
        """Note that the client is gone, or sends nothing more."""
        self.fail(ClientDisconnected)

    def ended(self) -> None:
        """Note that the client sends nothing more."""
        self.lost()

    def wake(self) -> None:
        """Ask the client for the body if that is wanted and it is the turn."""
        if self._asked and self._expected and not self._late:
            front = self._connection.front
            if front is not None and front.source is self:
                self._expected = False
                self._connection.transport.write(CONTINUE)

    def check(self, tick: int) -> None:
        """End a body that takes too long, or comes too slowly. Called by the sweep."""
        elapsed, self._ticked = tick - self._ticked, tick
        connection = self._connection
        if connection.paused or (self._expected and not self._late):
            return
        waited = self._waited = self._waited + elapsed
        timeouts = connection.service.timeouts
        if waited > timeouts.body:
            self.fail(partial(HTTPError, 408, "the body of the request took too long"))
        elif waited > GRACE and self._received < timeouts.body_rate * waited:
            self.fail(partial(HTTPError, 408, "the body of the request comes too slowly"))

    def _leave(self) -> None:
        self._connection.unwatch(self)
        self._tell()

    def _tell(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # what the request calls

    async def next(self) -> bytes:
        """Return the next piece, or nothing at the end."""
        while not self._pieces:
            if self.complete:
                return b""
            if self._error is not None:
                raise self._error()
            if self._waiter is not None:
                raise RuntimeError("the body is being read already")
            self._asked = True
            self.wake()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        piece = self._pieces.popleft()
        self.buffered -= len(piece)
        if self.full and self.buffered <= HIGH // 2 and len(self._pieces) <= PIECES // 2:
            self.full = False
            self._connection.go_on()
        return piece

    def answering(self) -> None:
        """Note that the answer has begun: it is too late to ask."""
        self._late = True

    def settle(self) -> bool:
        """Decide what becomes of what was not read; return whether the connection must end."""
        if self._settled:
            return self._ends
        self._settled = True
        self._pieces.clear()
        self.buffered = 0
        full, self.full = self.full, False
        if self.complete:
            return False
        connection = self._connection
        if self._error is not None or self._expected or not 0 <= connection.missing <= REST:
            self._ends = True
            self._leave()
            connection.end_after_answers()
        elif full:
            connection.go_on()
        if self._error is None:
            self._error = partial(
                RuntimeError, "the request is answered: its body is not read any more"
            )
        return self._ends


class Turns:
    """Lets the streams of a worker go on in order, ``AT_A_TURN`` in a turn of the loop."""

    __slots__ = ("_call_soon", "_waiting")

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._call_soon = call_soon
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def crowded(self) -> bool:
        """Whether more wait than go on in the next turn: who begins has to wait as well."""
        return len(self._waiting) >= AT_A_TURN

    async def next(self) -> None:
        """Wait for the next turn."""
        future = asyncio.get_running_loop().create_future()
        if not self._waiting:
            self._call_soon(self._go)
        self._waiting.append(future)
        await future

    def _go(self) -> None:
        waiting, left = self._waiting, AT_A_TURN
        while waiting and left:
            future = waiting.popleft()
            if not future.done():  # its client has left
                future.set_result(None)
                left -= 1
        if waiting:
            self._call_soon(self._go)


class AnswerWriter:
    """The ``BodyWriter`` of one answer."""

    __slots__ = ("_alive", "_chunked", "_connection", "_head", "_last", "_missing", "_pieces",
                 "_request", "_response", "_seconds", "_task", "_ticked", "_waiter",
                 "began")  # fmt: skip

    def __init__(self, request: Request, response: BodySender) -> None:
        self._connection: HttpProtocol = request.connection  # type: ignore[assignment]
        self._request = request
        self._response = response
        self.began = 0.0  # when the head left, in monotonic seconds
        self._head = b""
        self._missing = -1  # bytes of the body; less than 0: the length is not known
        self._chunked = False
        self._last = False  # the end of the body is that of the connection
        self._pieces = 0  # written since the loop last went round, see YIELD
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._alive = b""  # what is sent after so many seconds of silence
        self._seconds = 0.0
        self._ticked = 0

    # what the batch calls

    async def run(self, block: bytes, line: bytes) -> bytes | None:
        """Send the answer; return what is left of it to be delivered, or None if it broke off.

        :param block: the ``Date`` field and the name of the request id's field, ready made.
        :param line: a ready ``Connection`` field line, or nothing.
        :raises Exception: what went wrong before anything was sent.
        """
        connection, response = self._connection, self._response
        try:
            self._head = self._frame(block, line)
            if not (response.bodiless or self._request.method == "HEAD"):
                self._task = asyncio.current_task()
                connection.watch(self)
                await response.send(self)
                if self._missing > 0:
                    raise ValueError(f"the body is {self._missing} bytes shorter than its length")
            connection.ends = connection.ends or self._last
            if self._request.source is not None:
                self._request.source.settle()
            left = b"" if self.began else self._head
            return left + b"0\r\n\r\n" if self._chunked else left
        except (Exception, asyncio.CancelledError) as error:
            if not self.began or is_cancelled(error):
                raise
            if not (connection.closed or isinstance(error, ClientDisconnected)):
                self._log("broke off", error)
            connection.abort()
            return None
        finally:
            connection.unwatch(self)
            self._task = None  # one that is cancelled keeps its frames, and they would keep this
            await self._close()

    def _frame(self, block: bytes, line: bytes) -> bytes:
        """Decide on the framing, and return the head.

        :raises ValueError: for what no answer may have as a header.
        """
        response, head = self._response, self._request.head
        if response.bodiless:
            pass
        elif response.length is not None:
            line = b"Content-Length: %d\r\n%b" % (response.length, line)
            self._missing = response.length
        elif head.method == "HEAD":
            pass  # there is nothing to frame
        elif head.http_11:
            line = b"Transfer-Encoding: chunked\r\n" + line
            self._chunked = True
        else:
            line = CLOSE
            self._last = True
        return response.head(block, self._request.rid, line)

    async def _close(self) -> None:
        try:
            await self._response.close()
        except Exception as error:
            self._log("could not be closed", error)

    def _log(self, what: str, error: BaseException) -> None:
        request = self._request
        on_purpose = isinstance(error, HTTPError)
        log.log(
            logging.WARNING if on_purpose else logging.ERROR,
            "the answer to %s %s %s (request id %s): %s",
            request.method,
            request.path,
            what,
            request.id,
            error,
            exc_info=None if on_purpose else error,
        )

    # what the connection calls

    def wake(self) -> None:
        """Look again whether to go on: the turn may have come, or the client have read."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def ended(self) -> None:
        """Go on: who sends nothing more may still read."""

    def lost(self) -> None:
        """Note that the client is gone: whatever the body waits for is not wanted any more."""
        if self._task is not None:
            self._task.cancel()

    def check(self, tick: int) -> None:
        """Break the silence if it has lasted. Called by the sweep."""
        silent = tick - self._ticked
        if (
            self._alive
            and self.began
            and silent >= self._seconds
            and not self._connection.write_paused
        ):
            self._put(self._alive)

    # what the answer calls

    @property
    def transport(self) -> Any:
        """The connection's transport."""
        return self._connection.transport

    @property
    def tls(self) -> bool:
        """Whether what the transport is given is encrypted on its way to the socket."""
        return self._connection.tls

    async def begin(self) -> None:
        """Wait for the turn, and send the head if it has not left yet."""
        if not self.began:
            await self._ready()
            self._start()
            self.transport.write(self._head)

    async def write(self, data: bytes) -> None:
        """Send a piece of the body; wait until there is room for the next."""
        if not data:
            return  # as a chunk it would be the end of the body
        self.sent(len(data))
        turns = self._connection.runner.turns
        if not self.began or self._connection.closed:
            if turns.crowded:
                await turns.next()
            await self._ready()
        self._put(data)
        if self._connection.write_paused:
            self._pieces = 0
            await self._ready()
            return
        self._pieces += len(data) + PIECE
        if self._pieces >= YIELD:
            self._pieces = 0
            await turns.next()

    async def drained(self) -> None:
        """Wait until all that was written is with the kernel."""
        transport = self.transport
        if transport.get_write_buffer_size():
            transport.set_write_buffer_limits(high=0)  # told when it is empty
            try:
                await self._ready()
            finally:
                if not transport.is_closing():
                    transport.set_write_buffer_limits()

    def sent(self, count: int) -> None:
        """Note that ``count`` bytes of the body are sent."""
        if self._missing >= 0:
            if count > self._missing:
                raise ValueError(f"the body is longer than its length of {self._response.length}")
            self._missing -= count

    async def blocked(self, writable: Awaitable[object]) -> None:
        """Wait for ``writable`` as for a buffer that is too full."""
        connection = self._connection
        connection.pause_writing()
        try:
            await writable
        finally:
            if not connection.closed:
                connection.resume_writing()

    def keep_alive(self, seconds: float, data: bytes) -> None:
        """From now on send ``data`` when nothing else was sent for ``seconds``."""
        self._seconds, self._alive = seconds, data
        self._ticked = self._connection.runner.tick

    def _put(self, data: bytes) -> None:
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if not self.began:
            self._start()
            data = self._head + data
        self._ticked = self._connection.runner.tick
        self.transport.write(data)

    def _start(self) -> None:
        self.began = monotonic()
        if self._request.source is not None:
            self._request.source.answering()

    async def _ready(self) -> None:
        """Wait until it is this answer's turn and the client takes in what it is sent.

        :raises ClientDisconnected: if the client is gone.
        """
        connection = self._connection
        while not connection.closed:
            if connection.front is self._request and not connection.write_paused:
                return
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        raise ClientDisconnected
