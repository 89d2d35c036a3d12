"""One HTTP request handled by an ASGI application (specification 3.0, HTTP 2.4).

The application runs in the task of its request's handler. What it sends is answered from there: a
complete answer at once, as one write; one in pieces by an ``AsgiStream``, to whose writer the
pieces go directly. So ``send`` waits while the client does not take in what it is sent, and
``receive`` has the connection left unread while the application does not take in the body.

Rules:

1. The answer leaves when it is complete, with those of its group (see ``server.running``), not when
   the application returns. What the application does afterwards (background tasks) keeps its slot
   of the limit, and a drain waits for it.
2. An application that breaks the protocol (starts twice, sends a body before the start, returns
   without an answer) is told by an exception, and if no answer has left, the client gets a 500;
   an answer that has begun ends with the connection.
3. A body that cannot be read any further (too long, bad framing, too slow) is a disconnect for the
   application. What it answers then is dropped for the 413, 400 or 408 that this is.
4. ``http.disconnect`` comes when the answer is complete, when the client is gone, and when it sends
   nothing more: TCP does not tell that from going away.
5. ``send`` to a client that is gone raises ``OSError`` for an answer in pieces; a complete one is
   dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

from fluxor_fast.asgi.answers import AsgiResponse, AsgiStream, Fields, fields_of
from fluxor_fast.errors import ClientDisconnected, HTTPError
from fluxor_fast.http.request import Head, Request
from fluxor_fast.http.response import Response
from fluxor_fast.http.streaming import BodyWriter

__all__ = ["Application", "Disconnected", "Exchange", "Message", "Scope", "scope_of"]

log = logging.getLogger("fluxor_fast.asgi")

Message = MutableMapping[str, Any]
Scope = dict[str, Any]
Application = Callable[
    [Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]

KEPT = 2048
"""Bytes of the header fields that a connection keeps though nothing is in progress."""
UNANSWERED = "the application returned without a complete answer"
VERSIONS = {"version": "3.0", "spec_version": "2.4"}


class Disconnected(OSError):
    """The client is gone: nothing that is sent reaches it."""


def scope_of(request: Request) -> Scope:
    """Return the scope but for ``state``; as long as a client repeats its head, by the last one."""
    head, connection = request.head, request.connection
    last = connection.notes
    if last is not None and last[0] is head:
        same: Scope = last[1]
    else:
        same = _of_head(head, request)
        size = sum(len(name) + len(value) for name, value in head.raw_headers)
        connection.notes = (head, same) if size <= KEPT else None
    # copies: applications add to it (the list that Starlette makes of it is put back)
    scope = same.copy()
    scope["headers"] = same["headers"].copy()
    return scope


def _of_head(head: Head, request: Request) -> Scope:
    client, server, scheme, proxied = request.connection.both_ends
    if proxied:
        scheme = request.scheme
        if request.client != client[0]:
            client = request.client, 0
    return {
        "type": "http",
        "asgi": VERSIONS,
        "http_version": "1.1" if head.http_11 else "1.0",
        "method": head.method,
        "path": unquote(head.path),
        "raw_path": head.path.encode("ascii"),
        "query_string": head.query,
        "root_path": "",
        "headers": list(head.raw_headers),
        "server": server,
        "scheme": scheme,
        "client": client if client[0] else None,
    }


class Exchange:
    """``receive`` and ``send`` of one request."""

    __slots__ = (
        "__weakref__",
        "_fields",
        "_over",
        "_read",
        "_request",
        "_response",
        "_status",
        "_stream",
        "_waiter",
        "_writer",
        "error",
    )

    def __init__(self, request: Request) -> None:
        self._request = request
        self._read = False  # the body has been received
        self._status = 0  # of the start; 0: there was none
        self._fields: Fields | None = None  # …and its header fields, until the answer begins
        self._response: Response | None = None  # it has been answered, or is being
        self._stream: AsgiStream | None = None
        self._writer: BodyWriter | None = None
        self._over = False  # the answer is complete
        self._waiter: asyncio.Future[None] | None = None  # for the end
        self.error: HTTPError | None = None  # of the body, see rule 3

    async def run(self, application: Application, scope: Scope) -> Response:
        """Run the application; return what it has answered.

        :raises Exception: what it raised, or that it has not answered.
        """
        try:
            await application(scope, self.receive, self.send)
        except (Exception, asyncio.CancelledError) as error:
            if self._response is None:
                if self.error is not None:
                    raise self.error from None
                raise
            self._break_off(error)
        else:
            if self._response is None:
                raise self.error or RuntimeError(UNANSWERED)
            if not self._over:
                self._break_off(RuntimeError(UNANSWERED))
        finally:
            if not self._over or self._waiter is not None:
                self._end()
        return self._response

    def _break_off(self, error: BaseException) -> None:
        request = self._request
        if not self._over and self._stream is not None:
            self._stream.fail(error)  # logged by who writes it
        elif isinstance(error, Exception):
            log.error(
                "%s %s failed after its answer (request id %s)",
                request.method,
                request.path,
                request.id,
                exc_info=error,
            )

    # what the application calls

    async def receive(self) -> Message:
        """Return the next message of the client."""
        if self._read:
            await self.until_end()
            return {"type": "http.disconnect"}
        source = self._request.source
        if source is None:
            self._read = True
            return {"type": "http.request", "body": self._request.body, "more_body": False}
        try:
            piece = await source.next()
        except ClientDisconnected:
            self._read = True
            return {"type": "http.disconnect"}
        except HTTPError as error:
            self._read = True
            if self._response is None:
                self.error = error
            return {"type": "http.disconnect"}
        self._read = not piece
        return {"type": "http.request", "body": piece, "more_body": bool(piece)}

    async def send(self, message: Message) -> None:
        """Take a message to the client.

        :raises RuntimeError: for one that does not belong here; ``ValueError`` for an answer that
            cannot be sent.
        :raises OSError: if the client is gone.
        """
        if self.error is not None:
            return
        kind = message["type"]
        if kind == "http.response.body":
            fields = self._fields
            body = message.get("body", b"")
            more = message.get("more_body", False)
            if fields is None:
                await self._go_on(body, more)
            elif more:
                await self._open(fields, body)
            else:
                self._answer(AsgiResponse(self._status, fields, body), fields)
                self._over = True
                if self._waiter is not None:
                    self._end()
        elif kind == "http.response.start":
            if self._status:
                raise RuntimeError("http.response.start a second time")
            status = message["status"]
            if not 200 <= status <= 599:
                raise ValueError(f"not a status of an answer: {status}")
            self._fields = fields_of(message.get("headers", ()))
            self._status = status
        else:
            raise RuntimeError(f"a message of this type has no place here: {kind}")

    def _answer(self, response: Response, fields: Fields) -> None:
        request = self._request
        if fields.closes and request.head.keep_alive:
            request.head = request.head.closing()
        request.connection.answer(request, response)
        self._response = response
        self._fields = None

    async def _open(self, fields: Fields, body: bytes) -> None:
        stream = AsgiStream(self._status, fields)
        self._answer(stream, fields)
        self._stream = stream
        self._writer = await stream.writer()
        await self._go_on(body, True)

    async def _go_on(self, body: bytes, more: bool) -> None:
        """Send what follows the beginning of the answer."""
        stream = self._stream
        if not self._status:
            raise RuntimeError("http.response.body before http.response.start")
        if stream is None or self._over:
            raise RuntimeError("http.response.body after the end of the answer")
        if self._writer is not None:
            try:
                if stream.gone:
                    raise ClientDisconnected
                await self._writer.write(body)
            except ClientDisconnected:
                raise Disconnected("the client is gone") from None
        if not more:
            stream.finish()
            self._end()

    # what the connection calls

    def _end(self) -> None:
        self._over = self._over or self._response is not None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def until_end(self) -> None:
        """Wait until the answer is complete, or the client gone."""
        connection = self._request.connection
        if self._over or self.error is not None or connection.gone:
            return
        if self._waiter is not None:
            await asyncio.shield(self._waiter)
            return
        self._waiter = asyncio.get_running_loop().create_future()
        connection.watch(self)
        try:
            await self._waiter
        finally:
            connection.unwatch(self)
            self._waiter = None

    def wake(self) -> None:
        """Nothing to do: writing waits elsewhere."""

    def check(self, tick: int) -> None:
        """Nothing to do: there is no time limit."""

    def ended(self) -> None:
        """Tell the application."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    lost = ended
