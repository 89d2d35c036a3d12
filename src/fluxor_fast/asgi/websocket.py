"""One WebSocket handled by an ASGI application (specification 3.0, WebSocket 2.4).

The handshake is a request like any other: admitted, queued, run in a slot. Until the application
accepts it the answer may be any (``websocket.http.response``; 403 for a close). With the 101 the
slot is given back; the permit is kept, as who has a WebSocket open is a user.

Rules:

1. What is not taken is bounded: ``HELD`` bytes or ``MESSAGES`` messages wait for ``receive``, and
   what the last ``SLICE`` completed; then no more is read. ``send`` waits while the client does not
   read. An application that always sends still lets others run.
2. ``websocket.disconnect`` comes after the messages before it, with the code that the client sent,
   1006 if it was just gone, or the code with which we closed. Then ``send`` raises ``OSError``.
3. An application that returns closes with 1000; one that raises, with 1011 and a line in the log.
4. A client that is silent for ``ping_interval`` is asked whether it is there, and dropped when
   nothing comes for ``ping_timeout``. While the socket is not read nothing can be heard, and that
   is not held against the client. Who is told of a close has ``CLOSING`` seconds to answer.
5. When the worker stops the client is told (1001, or 1012 if there will be others), and the
   application by a disconnect; what it still does has the rest of the graceful timeout.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Final

from fluxor_fast.asgi.answers import fields_of
from fluxor_fast.asgi.exchange import Application, Disconnected, Exchange, Message, Scope, scope_of
from fluxor_fast.asgi.wire import Agreed, Wire, shake_hands
from fluxor_fast.errors import HTTPError
from fluxor_fast.http.grammar import TOKEN
from fluxor_fast.http.request import Request
from fluxor_fast.http.response import JSON, Response, error_response
from fluxor_fast.http.upgrade import Tunnel, Upgrade

__all__ = ["Conversation", "Limits"]

log = logging.getLogger("fluxor_fast.asgi")

HELD: Final = 64 * 1024
MESSAGES: Final = 256
SLICE: Final = 16 * 1024
"""Bytes read at one go: they may be thousands of messages."""
YIELD: Final = 64 * 1024
"""Bytes sent until others run, each message counting ``MESSAGE`` more than it has."""
MESSAGE: Final = 1024
CLOSING: Final = 10

_TOKEN = re.compile(TOKEN).fullmatch
_DENIAL = "websocket.http.response."


@dataclass(frozen=True, slots=True)
class Limits:
    """Of every WebSocket: bytes, and coarse seconds (0: no pings)."""

    max_message: int
    ping_interval: float
    ping_timeout: float
    compression: bool


class Conversation:
    """``receive`` and ``send`` of one WebSocket, before and after it is accepted.

    :raises HTTPError: if the request is no handshake.
    """

    def __init__(self, request: Request, limits: Limits) -> None:
        self._request = request
        self._limits = limits
        self._agreed = shake_hands(request.head, compression=limits.compression)
        self._denial = Exchange(request)
        self._denied = False
        self._connected = False  # the application has been told
        self._socket: _Socket | None = None
        self._accepted = asyncio.get_running_loop().create_future()

    @property
    def scope(self) -> Scope:
        """The scope but for ``state``."""
        scope = scope_of(self._request)
        del scope["method"]
        scope["type"] = "websocket"
        scope["scheme"] = "wss" if scope["scheme"] == "https" else "ws"
        scope["subprotocols"] = self._agreed.subprotocols
        scope["extensions"] = {"websocket.http.response": {}}
        return scope

    async def run(self, application: Application, scope: Scope) -> Response:
        """Run the application until it has decided; return its answer.

        :raises Exception: what it raised before, or that it did not decide.
        """
        task = asyncio.ensure_future(application(scope, self.receive, self.send))
        try:
            await asyncio.wait({task, self._accepted}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            raise
        if self._socket is not None:
            self._socket.application = task
            return self._socket

        def decided(*_: object) -> Awaitable[None]:
            return task

        return await self._denial.run(decided, scope)

    async def receive(self) -> Message:
        """Return the next message of the client."""
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        if self._socket is None and not self._denied:
            await self._denial.until_end()
        if self._socket is None:
            return {"type": "websocket.disconnect", "code": 1006, "reason": ""}
        return await self._socket.next()

    async def send(self, message: Message) -> None:
        """Take a message to the client.

        :raises RuntimeError: for one that does not belong here; ``ValueError`` for what cannot be
            sent.
        :raises OSError: if the WebSocket is closed.
        """
        kind: str = message["type"]
        if self._socket is not None:
            await self._socket.send(message)
        elif kind.startswith(_DENIAL):
            self._denied = True
            await self._denial.send({**message, "type": kind.removeprefix("websocket.")})
        elif self._denied:
            raise RuntimeError(f"{kind} after the WebSocket was refused")
        elif kind == "websocket.accept":
            self._socket = _Socket(self._request, message, self._agreed, self._limits)
            if not self._accepted.done():
                self._accepted.set_result(None)
        elif kind == "websocket.close":
            self._denied = True
            refusal = error_response(HTTPError(403, "the WebSocket is refused"))
            headers = [(b"content-type", JSON.encode())]
            await self._denial.send(
                {"type": "http.response.start", "status": 403, "headers": headers}
            )
            await self._denial.send({"type": "http.response.body", "body": refusal.body})
        else:
            raise RuntimeError(f"a message of this type has no place here: {kind}")


def _accepting(message: Message) -> tuple[bytes, bytes | None]:
    """Return the header lines that the application adds to the 101, and its request id."""
    headers = [(bytes(name), bytes(value)) for name, value in message.get("headers") or ()]
    for name, _ in headers:
        if name.lower().startswith(b"sec-websocket-") or name.lower() == b"upgrade":
            raise ValueError(f"not a header for websocket.accept: {name!r}")
    fields = fields_of(headers)
    lines = fields.lines
    subprotocol = message.get("subprotocol")
    if subprotocol is not None:
        if not _TOKEN(subprotocol):
            raise ValueError(f"not the name of a subprotocol: {subprotocol!r}")
        lines += b"Sec-WebSocket-Protocol: %b\r\n" % subprotocol.encode("ascii")
    return lines, fields.request_id


class _Socket(Upgrade):
    """An accepted WebSocket."""

    __slots__ = (
        "_closing", "_ending", "_full", "_heard", "_held", "_left", "_limits", "_messages",
        "_orderly", "_over", "_pinged", "_pumping", "_reader", "_request", "_sent", "_tunnel",
        "_wire", "_writers", "application",
    )  # fmt: skip

    def __init__(self, request: Request, accept: Message, agreed: Agreed, limits: Limits) -> None:
        lines, request_id = _accepting(accept)
        super().__init__(agreed.lines + lines, request_id)
        loop = asyncio.get_running_loop()
        self._request = request
        self._limits = limits
        self._wire = Wire(limits.max_message, agreed.extensions)
        self.application: asyncio.Future[None]  # runs on
        self._tunnel: Tunnel | None = None  # from the 101 on
        # what has come
        self._messages: deque[str | bytes] = deque()
        self._held = 0  # bytes of them
        self._full = False
        self._pumping = False  # it is due to go on
        self._reader: asyncio.Future[None] | None = None
        # what is sent
        self._writers: list[asyncio.Future[None]] = []  # wait until the client reads, or the 101
        self._sent = 0  # since others ran
        # its end
        self._left = 0  # the code with which the worker leaves
        self._ending: tuple[int, str] | None = None  # code and reason, once no messages come
        self._orderly = False
        self._over: asyncio.Future[None] = loop.create_future()
        self._heard = 0  # when something last came, in ticks
        self._pinged: int | None = None  # when the client was asked
        self._closing: int | None = None  # when it was told of a close

    # what the runner calls

    async def converse(self, tunnel: Tunnel, head: bytes) -> bool:
        """Speak until both the WebSocket and the application are over."""
        self._tunnel = tunnel
        self._heard = tunnel.tick
        tunnel.open(self, head)
        if tunnel.gone:
            self.ended()
        elif self._left:
            self._close(self._left)
        self.received()
        self.wake()
        try:
            await asyncio.wait({self.application})
            error = self.application.exception() if not self.application.cancelled() else None
            if error is not None and not (self._ending and isinstance(error, OSError)):
                self._log(error)
            self._close(1000 if error is None else 1011)
            await self._over
        except asyncio.CancelledError:
            self.application.cancel()
            await asyncio.wait({self.application})
            raise
        finally:
            tunnel.close()
        return self._orderly

    def leave(self, code: int) -> None:
        """Close, as the worker stops."""
        self._left = code
        if self._tunnel is not None:
            self._close(code)

    def _log(self, error: BaseException) -> None:
        request = self._request
        log.error(
            "the WebSocket %s failed (request id %s)", request.path, request.id, exc_info=error
        )

    # what the application calls

    async def next(self) -> Message:
        """Return the next message, or that there are no more."""
        while not self._messages:
            if self._ending is not None:
                code, reason = self._ending
                return {"type": "websocket.disconnect", "code": code, "reason": reason}
            if self._reader is not None:
                raise RuntimeError("another receive waits already")
            self._reader = asyncio.get_running_loop().create_future()
            self._sent = 0  # others run now
            try:
                await self._reader
            finally:
                self._reader = None
        message = self._messages.popleft()
        self._held -= len(message)
        if self._full and self._held <= HELD // 2 and len(self._messages) <= MESSAGES // 2:
            self._full = False
            self.received()
        key = "text" if isinstance(message, str) else "bytes"
        return {"type": "websocket.receive", key: message}

    async def send(self, message: Message) -> None:
        """Send a message, or close."""
        kind = message["type"]
        if kind == "websocket.send":
            text, data = message.get("text"), message.get("bytes")
            while self._ending is None and (self._tunnel is None or self._tunnel.blocked):
                await self._woken()
            if self._ending is not None or self._tunnel is None:
                raise Disconnected("the WebSocket is closed")
            if data is not None:
                self._wire.binary(data)
            elif text is not None:
                self._wire.text(text)
            else:
                raise ValueError("websocket.send has neither text nor bytes")
            self._sent += self._flush() + MESSAGE
            if self._sent >= YIELD:
                self._sent = 0
                await self._tunnel.turn()
        elif kind == "websocket.close":
            if self._ending is not None:
                raise Disconnected("the WebSocket is closed")
            code = message.get("code", 1000)
            while self._tunnel is None:  # the 101 is about to leave
                await self._woken()
            self._close(1000 if code is None else code, message.get("reason") or "")
        else:
            raise RuntimeError(f"a message of this type has no place here: {kind}")

    async def _woken(self) -> None:
        """Wait until the client reads, or the 101 has left, or all is over."""
        writable = asyncio.get_running_loop().create_future()
        self._writers.append(writable)
        await writable

    # bytes

    def _flush(self) -> int:
        data = self._wire.output()
        if data and self._tunnel is not None:
            self._tunnel.write(data)
        return len(data)

    def received(self) -> None:
        """Read what has come, as far as there is room."""
        tunnel = self._tunnel
        if self._pumping or tunnel is None:
            return
        while not (self._full or tunnel.blocked or self._over.done()):
            data = tunnel.take(SLICE)
            if not data:
                return
            self._heard = tunnel.tick
            self._pinged = None
            messages = self._wire.receive(data)
            if messages and self._ending is None:
                self._messages.extend(messages)
                self._held += sum(map(len, messages))
                self._full = self._held > HELD or len(self._messages) > MESSAGES
                if self._reader is not None and not self._reader.done():
                    self._reader.set_result(None)
            if self._wire.speaks:
                self._flush()
                if self._wire.over:
                    self._end(*self._wire.ending)
                    self._finish(orderly=True)
            if len(data) == SLICE:  # others first
                self._pumping = True
                asyncio.get_running_loop().call_soon(self._go_on)
                return

    def _go_on(self) -> None:
        self._pumping = False
        self.received()

    # the end

    def _close(self, code: int, reason: str = "") -> None:
        """Tell the client, if it was not told before."""
        if self._ending is None and self._tunnel is not None:
            self._wire.close(code, reason)
            self._flush()
            self._closing = self._tunnel.tick
            self._end(code, reason)
            self._full = False  # messages are dropped now: the client's close is among what comes
            self.received()

    def _end(self, code: int, reason: str) -> None:
        """Take in no more messages, and have the application told."""
        if self._ending is None:
            self._ending = code, reason
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        self._wake_writers()

    def _finish(self, *, orderly: bool) -> None:
        """Close the connection."""
        if not self._over.done():
            assert self._tunnel is not None
            self._orderly = orderly
            self._over.set_result(None)
            self._tunnel.close()

    def _wake_writers(self) -> None:
        writers, self._writers = self._writers, []
        for writer in writers:
            if not writer.done():
                writer.set_result(None)

    # what the connection calls

    def wake(self) -> None:
        """Go on: the client takes in what it is sent."""
        self._wake_writers()
        self.received()

    def ended(self) -> None:
        """Note that the client sends nothing more: without a close, that is gone."""
        self._end(1006, "")
        self._finish(orderly=False)

    def lost(self) -> None:
        """Note that the client is gone."""
        self.ended()

    def check(self, tick: int) -> None:
        """Ask a silent client whether it is there, and drop one that is not."""
        tunnel, limits = self._tunnel, self._limits
        if tunnel is None or self._over.done():
            return
        if self._closing is not None:
            if tick - self._closing > CLOSING:
                self._finish(orderly=False)
        elif tunnel.unread:
            self._heard, self._pinged = tick, None
        elif self._pinged is not None:
            if tick - self._pinged > limits.ping_timeout:
                self._end(1006, "")
                self._finish(orderly=False)
                tunnel.abort()
        elif limits.ping_interval and tick - self._heard >= limits.ping_interval:
            self._pinged = tick
            self._wire.ping()
            self._flush()
