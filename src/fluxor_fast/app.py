"""The application: routes, middleware, hooks.

Everything is registered before the server starts; ``App.router`` composes each route's handler
with its middleware once, so that a request pays for nothing that its route does not use.

*Middleware* is a function that wraps one route's handler::

    def timed(call_next, route):          # called once per route, at start
        if route.kind is not Kind.ASYNC:
            return call_next              # untouched: costs nothing
        async def wrapper(request):
            started = monotonic()
            response = await call_next(request)
            response.headers["Server-Timing"] = f"app;dur={(monotonic() - started) * 1e3:.1f}"
            return response
        return wrapper

``call_next(request)`` gives a ``Response`` (an awaitable of one on async routes); an exception
of the handler passes through. The first one added is the outermost (see ``composition``, and
``middleware/`` for what there is).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

from fluxor_fast.composition import Layer, Middleware, compose
from fluxor_fast.contract import Contract
from fluxor_fast.errors import RouteError
from fluxor_fast.files import StaticFiles
from fluxor_fast.parameters import parameters_read
from fluxor_fast.routing import Kind, Priority, Route, Router, parameters_of
from fluxor_fast.validation import MAX_BODY, Arguments

__all__ = ["App", "Group", "Middleware"]

Handler = TypeVar("Handler", bound=Callable[..., Any])
Hook = Callable[[], Awaitable[None] | None]


class _Verbs:
    """Registration by method."""

    def route(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        raise NotImplementedError

    def get(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        """Register for GET (and so HEAD); options as for ``route``."""
        return self.route(path, methods=("GET",), **options)

    def post(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        """Register for POST; options as for ``route``."""
        return self.route(path, methods=("POST",), **options)

    def put(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        """Register for PUT; options as for ``route``."""
        return self.route(path, methods=("PUT",), **options)

    def patch(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        """Register for PATCH; options as for ``route``."""
        return self.route(path, methods=("PATCH",), **options)

    def delete(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        """Register for DELETE; options as for ``route``."""
        return self.route(path, methods=("DELETE",), **options)


class Group(_Verbs):
    """Routes whose paths begin alike, with middleware and options in common.

    Made by ``App.group``; options given to a route itself come before the group's.
    """

    def __init__(
        self, parent: App | Group, prefix: str, middleware: Sequence[Middleware], **options: Any
    ) -> None:
        if not prefix.startswith("/") or prefix.endswith("/"):
            raise RouteError(f"a group's prefix begins with '/' and ends without: {prefix!r}")
        self._parent = parent
        self._prefix = prefix
        self._middleware = tuple(middleware)
        self._options = options

    def route(
        self, path: str, *, middleware: Sequence[Middleware] = (), **options: Any
    ) -> Callable[[Handler], Handler]:
        """Register a handler at the prefix and ``path``; options as for ``App.route``.

        :param path: begins with ``/``, or is empty for the prefix itself.
        """
        return self._parent.route(
            self._prefix + path,
            middleware=(*self._middleware, *middleware),
            **{**self._options, **options},
        )

    def group(self, prefix: str, *, middleware: Sequence[Middleware] = (), **options: Any) -> Group:
        """Return a group within this one."""
        return Group(self, prefix, middleware, **options)


class App(_Verbs):
    """An application.

    ``state`` is free for the application's own things; ``settings`` and ``metrics`` are set by
    the worker before the startup hooks run.

    :param title: what its description is headed with (see ``openapi``).
    :param version: the application's own.
    """

    settings: Any = None
    """The effective ``Settings``."""
    metrics: Any = None
    """The instance's figures (``observability.metrics.InstanceMetrics``)."""
    accounts: Any = None
    """The instance's accounts of rate limits (``limits.table.Table``), once somebody wants them."""
    shared: Any = None
    """What the workers of the instance share (``arbiter.shared.SharedMemory``)."""
    stopping: bool = False
    """Whether the instance is about to stop: it should get no more traffic."""

    def __init__(self, *, title: str = "API", version: str = "0") -> None:
        self.title = title
        self.version = version
        self.state = SimpleNamespace()
        self._routes: list[Route] = []
        self._middleware: list[Middleware] = []
        self._route_middleware: dict[Route, Sequence[Middleware]] = {}
        self._startup: list[Hook] = []
        self._shutdown: list[Hook] = []
        self._asgi: Callable[..., Awaitable[None]] | None = None

    # registration

    def route(  # type: ignore[override]
        self,
        path: str,
        *,
        methods: Sequence[str] = ("GET",),
        priority: str = "normal",
        blocking: bool = False,
        middleware: Sequence[Middleware] = (),
        max_body: int | None = None,
        max_in_flight: int | None = None,
        contract: Contract | None = None,
        strict_query: bool = False,
        stream: bool = False,
    ) -> Callable[[Handler], Handler]:
        """Register a handler, called as ``handler(request, **path_parameters)``.

        What its annotations ask for of query, headers and body it gets too: see ``parameters``.

        :param path: ``/users/{id:int}``; see ``routing``.
        :param priority: ``exempt``, ``critical`` or ``normal``.
        :param blocking: run the (plain) function in a thread.
        :param middleware: for this route only, inside the application's own.
        :param max_body: largest body in bytes, instead of the server's ``max_body``.
        :param max_in_flight: the most requests of this route in the system at once, over all
            workers (a bulkhead); beyond it 503 with the reason ``route``.
        :param contract: what it takes and answers, for its description.
        :param strict_query: refuse query parameters that the handler does not take, with 422.
        :param stream: call the handler, a coroutine function, when the head of the request is
            complete; it reads the body with ``request.stream()`` or ``await request.read()``.
        :raises RouteError: for a bad path or priority, a handler whose signature does not take
            the path's parameters, or a path and method that are registered already.
        """

        def register(handler: Handler) -> Handler:
            try:
                rank = Priority[priority.upper()]
            except KeyError:
                raise RouteError(
                    f"{path}: priority is exempt, critical or normal, not {priority!r}"
                ) from None
            if max_in_flight is not None and (max_in_flight < 1 or rank is Priority.EXEMPT):
                raise RouteError(
                    f"{path}: max_in_flight is at least 1, and exempt routes are never refused"
                )
            kind = _kind(path, handler, blocking)
            if stream and kind is not Kind.ASYNC:
                raise RouteError(f"{path}: only a coroutine function can read its body as a stream")
            for one in middleware:
                if isinstance(one, Layer):
                    one.check(kind, path)
            parameters = parameters_of(path)
            read = parameters_read(path, handler, parameters, methods=methods, stream=stream)
            _check_signature(path, handler, [*parameters, *(one.name for one in read)])
            arguments = None
            if read or strict_query:
                arguments = Arguments(path, read, strict_query=strict_query)
            made = [
                Route(
                    method.upper(),
                    path,
                    handler,
                    kind=kind,
                    priority=rank,
                    max_body=max_body,
                    max_in_flight=max_in_flight,
                    contract=contract,
                    arguments=arguments,
                    stream=stream,
                )
                for method in methods
            ]
            Router([*self._routes, *made])  # a clash shows where it is made, and leaves nothing
            self._routes += made
            self._route_middleware |= dict.fromkeys(made, tuple(middleware))
            return handler

        return register

    def files(
        self,
        path: str,
        directory: str | os.PathLike[str],
        *,
        index: str | None = None,
        cache_control: str | None = None,
        **options: Any,
    ) -> None:
        """Serve the files below the folder ``directory`` at ``path``; see ``files.StaticFiles``.

        :param path: such as ``/static``, or ``/`` for what no other route takes.
        :param options: as for ``route``.
        :raises RouteError: if there is no such folder, or as ``route``.
        """
        handler = StaticFiles(directory, index=index, cache_control=cache_control)
        self.get(f"{path.rstrip('/')}/{{path:path}}", **options)(handler)

    def group(self, prefix: str, *, middleware: Sequence[Middleware] = (), **options: Any) -> Group:
        """Return a group of routes below ``prefix``.

        :param middleware: around each of its routes, inside the application's own.
        :param options: as for ``route``, for all of them (``max_body``, ``priority``, …).
        :raises RouteError: for a prefix that does not begin with ``/``, or ends with one.
        """
        return Group(self, prefix, middleware, **options)

    def add_middleware(self, middleware: Middleware) -> None:
        """Wrap every route, and the answers where there is none; the first is the outermost."""
        self._middleware.append(middleware)

    def on_startup(self, hook: Hook) -> Hook:
        """Run ``hook`` in each worker before it takes requests; an error ends the worker."""
        self._startup.append(hook)
        return hook

    def on_shutdown(self, hook: Hook) -> Hook:
        """Run ``hook`` in each worker after its last answer."""
        self._shutdown.append(hook)
        return hook

    # what other servers call

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Serve as an ASGI 3 application: for test clients, or mounted (see ``asgi.adapter``).

        With the first call the routes are fixed.
        """
        if self._asgi is None:
            from fluxor_fast.asgi.adapter import AsgiAdapter  # wanted only here

            self._asgi = AsgiAdapter(self)
        await self._asgi(scope, receive, send)

    # what the worker calls

    @property
    def routes(self) -> tuple[Route, ...]:
        """The registered routes."""
        return tuple(self._routes)

    def layers_of(self, route: Route) -> list[Layer]:
        """Return the layers around a route, as far as middleware was added by now."""
        chain = [*self._middleware, *self._route_middleware[route]]
        return [one for one in chain if isinstance(one, Layer)]

    def router(self) -> Router:
        """Compose every route with its middleware and return the router over them."""
        router = Router(self._routes)
        for route in self._routes:
            compose(route, [*self._middleware, *self._route_middleware[route]])
            if route.max_body is None and route.arguments and route.arguments.body:
                server = self.settings.server.max_body if self.settings else MAX_BODY
                route.max_body = min(server, MAX_BODY)
        for others, route in router.unrouted:
            own = self._route_middleware[others[0]] if others else ()
            on_path = [one for one in own if isinstance(one, Layer) and one.on_path]
            compose(route, [*self._middleware, *on_path], registered=False)
        return router

    async def start(self) -> None:
        """Run the startup hooks in order."""
        await _run(self._startup)

    async def stop(self) -> None:
        """Run the shutdown hooks, the last one registered first."""
        await _run(self._shutdown[::-1])


def _kind(path: str, handler: Callable[..., Any], blocking: bool) -> Kind:
    # an object may be called by a coroutine function of its class
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004
    ):
        if blocking:
            raise RouteError(f"{path}: a coroutine function cannot be blocking")
        return Kind.ASYNC
    return Kind.BLOCKING if blocking else Kind.SYNC


def _check_signature(path: str, handler: Callable[..., Any], parameters: Sequence[str]) -> None:
    try:
        inspect.signature(handler).bind(None, **dict.fromkeys(parameters))
    except TypeError as error:
        raise RouteError(
            f"{path}: the handler {getattr(handler, '__name__', handler)!r} must take the request"
            f" and {', '.join(parameters) or 'nothing else'}: {error}"
        ) from None


async def _run(hooks: Sequence[Hook]) -> None:
    for hook in hooks:
        result = hook()
        if inspect.isawaitable(result):
            await result
