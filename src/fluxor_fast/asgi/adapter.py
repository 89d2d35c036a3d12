"""``App`` as an ASGI 3 application: for test clients, and to be mounted in others.

The same routes, middleware, hooks and errors as under this project's own server. What is the
server's there is the other server's here: admission, ``max_in_flight``, time limits, pipelining.
``max_body`` is kept to. A mounted ``App`` sees the path below its mount point.

Rules:

1. Routing goes by ``raw_path`` where the server gives it, so that ``%2F`` is no new segment.
2. An error before the start of the answer is its JSON; after it the exception goes to the server,
   which alone can break the connection off.
3. When the client goes away, an answer in pieces is cancelled, once the body has been read.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fluxor_fast.asgi.exchange import Message, Scope
from fluxor_fast.config import Settings
from fluxor_fast.errors import ClientDisconnected, HTTPError
from fluxor_fast.http.failure import failure
from fluxor_fast.http.grammar import is_length, is_request_id
from fluxor_fast.http.request import CHUNKED, BothEnds, Head, Request, StreamedRequest, Watcher
from fluxor_fast.http.response import Response, error_response, to_response, without
from fluxor_fast.http.streaming import BodySender
from fluxor_fast.routing import Kind

if TYPE_CHECKING:
    from fluxor_fast.app import App

__all__ = ["AsgiAdapter"]

Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

log = logging.getLogger("fluxor_fast.asgi")

UNESCAPED = "/:@!$&'()*+,;=~"  # in a path (RFC 3986, section 3.3)


class AsgiAdapter:
    """Makes requests of what an ASGI server says, and messages of the answers."""

    def __init__(self, app: App) -> None:
        if app.settings is None:
            app.settings = Settings()
        self._app = app
        self._router = app.router()
        self._ids = map((secrets.token_hex(8) + "%016x").__mod__, count(1))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, request or lifespan."""
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})  # a 403: there are none here

    async def _live(self, receive: Receive, send: Send) -> None:
        hooks = {"startup": self._app.start, "shutdown": self._app.stop}
        while hooks:
            event = (await receive())["type"].removeprefix("lifespan.")
            try:
                await hooks.pop(event)()
            except Exception as error:
                log.exception("a %s hook failed", event)
                said = f"{type(error).__name__}: {error}"
                await send({"type": f"lifespan.{event}.failed", "message": said})
                return
            await send({"type": f"lifespan.{event}.complete"})
            if event == "shutdown":
                return

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        out = _Writer(scope["method"] == "HEAD", send)
        rid = next(self._ids).encode()
        request: Request | None = None
        try:
            head = self._head(scope)
            rid = head.request_id or rid
            limit = head.route.max_body
            source = _Body(receive, self._app.settings.server.max_body if limit is None else limit)
            if head.length not in (0, CHUNKED) and head.length > source.limit:
                raise source.too_long()
            place = _Place(self._app, scope)
            if head.streams:
                request = StreamedRequest(head, place, source)
            else:
                request = Request(head, b"", place)
                request.body = b"".join([piece async for piece in source.rest()])
            request.rid = rid
            request.arrived = asyncio.get_running_loop().time()
            response = to_response(await _call(request))
            if isinstance(response, BodySender):
                await out.stream(response, rid, source, _added(request, response))
                return
        except ClientDisconnected:
            return
        except HTTPError as error:
            response = error_response(error)
        except Exception as error:
            if out.begun:
                raise
            response = failure(log, scope["method"], scope["path"], rid.decode("latin-1"), error)
        await out.whole(response, rid, _added(request, response))

    def _head(self, scope: Scope) -> Head:
        raw = scope.get("raw_path")
        path = quote(scope["path"], UNESCAPED) if raw is None else raw.decode("latin-1")
        if not path.isascii():
            raise HTTPError(400, "the request target is not ASCII")
        mount = quote(scope.get("root_path", ""), UNESCAPED)
        if mount and path.startswith(mount):
            path = path[len(mount) :] or "/"
        length, request_id = CHUNKED, None
        headers = tuple((bytes(name), bytes(value)) for name, value in scope["headers"])
        for name, value in headers:
            if name == b"content-length" and is_length(value):
                length = int(value)
            elif name == b"x-request-id" and is_request_id(value):
                request_id = value
        method = scope["method"]
        route, params = self._router.match(method, path)
        return Head(
            method,
            path,
            scope.get("query_string", b""),
            scope.get("http_version", "1.1") != "1.0",
            headers,
            length,
            keep_alive=True,
            request_id=request_id,
            route=route,
            params=params,
        )


def _added(request: Request | None, response: Response) -> bytes:
    """Return the lines that middleware has added, if the request came to it."""
    return without(getattr(request, "fields", b""), response.said)


async def _call(request: Request) -> Any:
    route = request.head.route
    if route.kind is Kind.ASYNC:
        return await route.call(request)
    if route.kind is Kind.BLOCKING:
        return await asyncio.to_thread(route.call, request)
    return route.call(request)


class _Place:
    """The ``Connection`` of a request: all of it is in the scope."""

    client_certificate = None
    gone = False
    notes: tuple[Head, Any] | None = None

    def __init__(self, app: App, scope: Scope) -> None:
        self.app = app
        client = scope.get("client") or ("", 0)
        server = scope.get("server")
        self.peer: str = client[0]
        scheme = scope.get("scheme", "http")
        self.tls = scheme == "https"
        self.both_ends = BothEnds(
            (client[0], client[1]), server and (server[0], server[1]), scheme, False
        )
        self.direct: BothEnds | None = self.both_ends

    def client_of(self, head: Head) -> str:
        return self.peer

    def scheme_of(self, head: Head) -> str:
        return self.both_ends.scheme

    def host_of(self, head: Head) -> str:
        return head.host

    def answer(self, request: Request, response: Response) -> None:
        raise NotImplementedError("here an answer leaves when its handler returns it")

    def watch(self, watcher: Watcher) -> None:
        """Nobody is told."""

    def unwatch(self, watcher: Watcher) -> None:
        """Nobody is told."""


class _Body:
    """The ``BodySource`` of a request: what its messages bring."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self.receive = receive
        self.limit = limit
        self.complete = False
        self._received = 0

    def too_long(self) -> HTTPError:
        return HTTPError(413, f"the body is longer than {self.limit} bytes")

    async def next(self) -> bytes:
        while not self.complete:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            self.complete = not message.get("more_body", False)
            piece = bytes(message.get("body", b""))
            self._received += len(piece)
            if self._received > self.limit:
                raise self.too_long()
            if piece:
                return piece
        return b""

    async def rest(self) -> Any:
        while piece := await self.next():
            yield piece

    async def disconnected(self) -> None:
        """Wait until the client is gone; for a body that is complete."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    def settle(self) -> bool:
        return False

    def answering(self) -> None:
        """Nobody waits to be asked for the body: that is the server's."""


class _Writer:
    """Sends answers; the ``BodyWriter`` of those that send their body themselves."""

    transport: Any = None
    tls = True  # so nobody looks for a socket below

    def __init__(self, head_only: bool, send: Send) -> None:
        self.begun = False
        self._head_only = head_only
        self._send = send
        self._start: Message = {}
        self._missing = -1  # bytes of the body; less than 0: the length is not known
        self._pings: asyncio.Task[None] | None = None
        self._silent = True  # nothing was written since the last look

    def _begin(self, response: Response, rid: bytes, length: int | None, added: bytes) -> None:
        # ``head`` checks what may stand in it
        lines = (response.head(b"", b"", b"") + added).split(b"\r\n")[1:]
        fields = [line.split(b": ", 1) for line in lines if line]
        headers = [(name.lower(), value) for name, value in fields]
        if length is not None and not response.bodiless:
            headers.append((b"content-length", b"%d" % length))
        headers.append((b"x-request-id", rid))
        self._start = {
            "type": "http.response.start", "status": response.status, "headers": headers,
        }  # fmt: skip

    async def whole(self, response: Response, rid: bytes, added: bytes) -> None:
        """Send a complete answer."""
        self._begin(response, rid, len(response.body), added)
        await self.begin()
        body = b"" if self._head_only or response.bodiless else response.body
        await self._send({"type": "http.response.body", "body": body})

    async def stream(self, response: BodySender, rid: bytes, body: _Body, added: bytes) -> None:
        """Send an answer that sends its body itself."""
        try:
            self._begin(response, rid, response.length, added)
            if not (self._head_only or response.bodiless):
                self._missing = -1 if response.length is None else response.length
                await self._until_gone(response.send(self), body)
                if self._missing > 0:
                    raise ValueError(f"the body is {self._missing} bytes shorter than its length")
        finally:
            if self._pings is not None:
                self._pings.cancel()
            await response.close()
        await self.begin()
        await self._send({"type": "http.response.body", "body": b""})

    async def _until_gone(self, sending: Any, body: _Body) -> None:
        if not body.complete:  # what comes is the body's
            await sending
            return
        sender = asyncio.ensure_future(sending)
        watcher = asyncio.ensure_future(body.disconnected())
        try:
            await asyncio.wait({sender, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if not sender.done():
                raise ClientDisconnected
            sender.result()
        finally:
            for task in (sender, watcher):
                task.cancel()
            await asyncio.wait({sender, watcher})

    # the BodyWriter

    async def begin(self) -> None:
        """Send the head if it has not left yet."""
        if not self.begun:
            self.begun = True
            await self._send(self._start)

    async def write(self, data: bytes) -> None:
        """Send a piece of the body."""
        if data:
            self.sent(len(data))
            self._silent = False
            try:
                await self.begin()
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
            except OSError:
                raise ClientDisconnected from None

    async def drained(self) -> None:
        """Return: what the server holds is not known."""

    def sent(self, count: int) -> None:
        """Note that ``count`` bytes are sent."""
        if self._missing >= 0:
            if count > self._missing:
                raise ValueError("the body is longer than its length")
            self._missing -= count

    async def blocked(self, writable: Awaitable[object]) -> None:
        """Wait."""
        await writable

    def keep_alive(self, seconds: float, data: bytes) -> None:
        """From now on send ``data`` when nothing else was sent for ``seconds``."""
        self._pings = asyncio.ensure_future(self._ping(seconds, data))

    async def _ping(self, seconds: float, data: bytes) -> None:
        with suppress(ClientDisconnected):
            while True:
                self._silent = True
                await asyncio.sleep(seconds)
                if self._silent:
                    await self.write(data)

    def wake(self) -> None:
        """Nobody waits here."""
