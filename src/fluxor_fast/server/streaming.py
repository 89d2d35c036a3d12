"""Bodies that are not whole when their request or answer is: the server's side of both.

``AnswerWriter`` is what an answer writes its body to that sends it itself (see
``http/streaming.py``).

Rules:

1. An answer writes when it is its turn in the order of its connection, and while the client takes
   in what it is sent. What is not with the kernel is at most the transport's high-water mark and
   one piece.
2. What is written is framed here (RFC 9112, section 6.3): a length that is kept to, chunks, or the
   end of the connection.
3. An iterator that always has more still lets others run: after ``YIELD`` bytes, of which each
   piece counts some more than it has, the loop goes round.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from fluxor_fast.errors import ClientDisconnected
from fluxor_fast.http.request import Request
from fluxor_fast.http.streaming import BodySender

if TYPE_CHECKING:
    from fluxor_fast.server.protocol import HttpProtocol

__all__ = ["CLOSE", "AnswerWriter"]

log = logging.getLogger("fluxor_fast.server")

CLOSE: Final = b"Connection: close\r\n"
YIELD: Final = 64 * 1024
PIECE: Final = 1024
"""What a piece counts beside its bytes."""


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
                connection.streams = (*connection.streams, self)
                await response.send(self)
                if self._missing > 0:
                    raise ValueError(f"the body is {self._missing} bytes shorter than its length")
            connection.ends = connection.ends or self._last
            left = b"" if self.began else self._head
            return left + b"0\r\n\r\n" if self._chunked else left
        except Exception as error:
            if not self.began:
                raise
            if not connection.closed:
                self._log("broke off", error)
                connection.abort()
            return None
        finally:
            connection.streams = tuple(one for one in connection.streams if one is not self)
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

    def _log(self, what: str, error: Exception) -> None:
        request = self._request
        log.error(
            "the answer to %s %s %s (request id %s)",
            request.method,
            request.path,
            what,
            request.id,
            exc_info=error,
        )

    # what the connection calls

    def wake(self) -> None:
        """Look again whether to go on: the turn may have come, or the client have read."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def lost(self) -> None:
        """Note that the client is gone: whatever the body waits for is not wanted any more."""
        if self._task is not None:
            self._task.cancel()

    def check(self, tick: int) -> None:
        """Break the silence if it has lasted. Called by the sweep."""
        if self._alive and self.began and tick - self._ticked >= self._seconds:
            self._put(self._alive)

    # what the answer calls

    @property
    def transport(self) -> Any:
        """The connection's transport."""
        return self._connection.transport

    @property
    def tls(self) -> bool:
        """Whether what the transport is given is encrypted on its way to the socket."""
        return self.transport.get_extra_info("sslcontext") is not None

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
        if not self.began or self._connection.closed:
            await self._ready()
        self._put(data)
        if self._connection.write_paused:
            self._pieces = 0
            await self._ready()
            return
        self._pieces += len(data) + PIECE
        if self._pieces >= YIELD:
            self._pieces = 0
            await asyncio.sleep(0)

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

    async def _ready(self) -> None:
        """Wait until it is this answer's turn and the client takes in what it is sent.

        :raises ClientDisconnected: if the client is gone.
        """
        connection = self._connection
        while not connection.closed:
            if connection.is_turn_of(self._request) and not connection.write_paused:
                return
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        raise ClientDisconnected
