"""ASGI applications (FastAPI, Starlette, Django) served as an ``App``.

``AsgiApp`` is an ``App`` with one route, which takes every method and path: its handler runs the
application (see ``exchange``). So admission, limits, time limits, metrics and drain are the same as
for any other route. Its hooks are the application's lifespan.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Coroutine, Iterator
from typing import Any, Literal

from fluxor_fast.app import App
from fluxor_fast.asgi.exchange import VERSIONS, Application, Exchange, Message, scope_of
from fluxor_fast.composition import compose
from fluxor_fast.config import Settings
from fluxor_fast.errors import BootError, HTTPError
from fluxor_fast.http.request import Request
from fluxor_fast.http.response import Response
from fluxor_fast.routing import Kind, Match, Route, Router

__all__ = ["AsgiApp", "Interface", "is_asgi"]

log = logging.getLogger("fluxor_fast.asgi")

Interface = Literal["auto", "app", "asgi"]


def is_asgi(value: object) -> bool:
    """Return whether ``value`` looks like an ASGI 3 application: a coroutine function of three."""
    call = value if inspect.isroutine(value) else getattr(value, "__call__", None)  # noqa: B004
    if isinstance(value, type) or not inspect.iscoroutinefunction(call):
        return False
    try:
        inspect.signature(call).bind(None, None, None)
    except TypeError:
        return False
    return True


class _Everything(Router):
    """Finds the same route for whatever is asked."""

    def __init__(self, route: Route) -> None:
        super().__init__()
        self._route = route

    def match(self, method: str, path: str) -> Match:
        """Return the route."""
        return self._route, {}

    def every_route(self) -> Iterator[Route]:
        """Yield the route."""
        yield self._route


class AsgiApp(App):
    """An ASGI application as an ``App``."""

    def __init__(self, application: Application) -> None:
        super().__init__()
        self._application = application
        self._lifespan = Lifespan(application)
        self._state = self._lifespan.state
        self.on_startup(self._lifespan.start)
        self.on_shutdown(self._lifespan.stop)
        # not by ``route``: it takes the methods that nobody has heard of too
        everything = Route(
            "*", "/*", self._handle, kind=Kind.ASYNC, stream=True, buffered=True, websocket=True
        )
        self._routes.append(everything)
        self._route_middleware[everything] = ()

    def router(self) -> Router:
        """Return what finds the one route."""
        (route,) = self._routes
        compose(route, self._middleware, registered=False)
        return _Everything(route)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Let the application itself serve."""
        await self._application(scope, receive, send)

    def _handle(self, request: Request) -> Coroutine[Any, Any, Response]:
        if request.head.upgrade:
            return self._converse(request)
        scope = scope_of(request)
        if self._lifespan.supported:
            scope["state"] = self._state.copy()
        return Exchange(request).run(self._application, scope)

    async def _converse(self, request: Request) -> Response:
        try:
            from fluxor_fast.asgi.websocket import Conversation, Limits
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "websockets":
                raise
            log.error("a WebSocket was asked for: that takes fluxor-fast[websockets]")
            raise HTTPError(501, "WebSockets are not installed here") from None
        server = (self.settings or Settings()).server
        limits = Limits(
            server.websocket_max_message,
            server.websocket_ping_interval,
            server.websocket_ping_timeout,
            server.websocket_compression,
        )
        conversation = Conversation(request, limits)
        scope = conversation.scope
        if self._lifespan.supported:
            scope["state"] = self._state.copy()
        return await conversation.run(self._application, scope)


class Lifespan:
    """The life of the application in this worker: started before it serves, stopped after.

    ``state`` is what the application has put into the scope's state; each request gets a copy.
    """

    def __init__(self, application: Application) -> None:
        self._application = application
        self.state: dict[str, Any] = {}
        self.supported = True
        self._started = False
        self._events: asyncio.Queue[str] = asyncio.Queue()
        self._told: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Have the application start.

        One that raises before it has said anything does not know lifespans: that is allowed.

        :raises BootError: if it says that it cannot.
        """
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._run())
        await self._tell("lifespan.startup")

    async def stop(self) -> None:
        """Have the application stop; what goes wrong is logged."""
        if self.supported and self._task is not None and not self._task.done():
            try:
                await self._tell("lifespan.shutdown")
            except BootError as error:
                log.error("the application's shutdown failed: %s", error)
            self._task.cancel()

    async def _tell(self, event: str) -> None:
        self._told = asyncio.get_running_loop().create_future()
        self._events.put_nowait(event)
        await self._told

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": VERSIONS, "state": self.state}
        try:
            await self._application(scope, self._receive, self._send)
            self._settle(None)
        except Exception as error:
            if self._started:
                log.error("the application's lifespan failed", exc_info=error)
            elif self._told is not None and not self._told.done():
                self.supported = False
                log.info("the application has no lifespan: %s: %s", type(error).__name__, error)
            self._settle(None)

    async def _receive(self) -> Message:
        return {"type": await self._events.get()}

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("lifespan.startup.complete", "lifespan.shutdown.complete"):
            self._started = True
            self._settle(None)
        elif kind in ("lifespan.startup.failed", "lifespan.shutdown.failed"):
            self._settle(BootError(message.get("message") or "the application did not say why"))
        else:
            raise RuntimeError(f"a message of this type has no place here: {kind}")

    def _settle(self, error: BootError | None) -> None:
        if self._told is not None and not self._told.done():
            if error is None:
                self._told.set_result(None)
            else:
                self._told.set_exception(error)
