"""How middleware is put around handlers: once for each route, at start.

Middleware is a function ``(call_next, route) -> call``. ``call_next(request)`` gives a ``Response``
(an awaitable of one on async routes). A ``Layer`` is middleware that takes what a handler returned
as it is, so that a dict stays one for as long as nobody needs its bytes.

Rules kept here:

1. The first one added is the outermost; the application's are around a group's, a group's around
   a route's own.
2. Of several layers of one class that is ``once`` only the innermost counts: what is said of the
   route itself takes the place of what is said of all.
3. What middleware adds to *every* answer of a route are ready-made header lines in
   ``Request.fields``: set before the handler is called, they are in its answer whatever that is,
   an error too. Those that depend on head and scheme alone (``Layer.lines``) are there before any
   layer is called, and remembered with the head. What an answer says itself takes the place of
   lines of that name, but for ``Vary`` and ``Set-Cookie``: all of them count.
4. The application's middleware is also around the answers for paths and methods that there are
   not (404, 405, OPTIONS). A layer of a route that is ``on_path`` is around the latter two of its
   path: a preflight is an OPTIONS.
5. A route without middleware, or whose middleware all declined, pays nothing.
6. A coroutine function may have a second form (``offer``): a plain function that returns the
   answer if it is known already, else a coroutine of it. Layers keep it; with other middleware or
   decorators in between the route has only the first form.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import CoroutineType
from typing import Any, ClassVar

from fluxor_fast.contract import Answer
from fluxor_fast.http.request import Request
from fluxor_fast.http.response import Json, to_response
from fluxor_fast.routing import Call, Kind, Route, parameters_of

__all__ = ["Layer", "Middleware", "compose", "offer", "sooner_of"]

Middleware = Callable[[Call, Route], Call]


class Layer:
    """Middleware as two functions, whatever the kind of the route.

    ``begin`` is called before the handler and may answer in its place; ``finish`` takes what the
    handler returned, a ``Response`` or anything that becomes one. What is raised passes through.
    On a blocking route both run in its thread.
    """

    once: ClassVar[bool] = False
    """Whether one further inside takes its place (rule 2)."""
    on_path: ClassVar[bool] = False
    """Whether it also belongs around what the route's path answers to other methods (rule 4)."""
    by_scheme: bool = False
    """Whether its lines differ between http and https."""
    takes_json: ClassVar[bool] = False
    """Whether ``finish`` knows ``Json``. To others what a cache has is given as an object."""

    def check(self, kind: Kind, path: str) -> None:
        """Raise a ``RouteError`` if this was asked for on a route where it can do nothing."""

    def answers(self, route: Route) -> Mapping[int, Answer]:
        """Return what it may answer in the place of the handler of ``route``, by status.

        For the description; each is an error, in the form of all errors.
        """
        return {}

    def lines(self, request: Request) -> bytes:
        """Return header lines for every answer to requests with this head (rule 3)."""
        return b""

    def begin(self, request: Request) -> Any:
        """Return an answer, or None to go on."""

    def finish(self, request: Request, value: Any) -> Any:
        """Return what is answered, given what was returned."""
        return value

    def __call__(self, call_next: Call, route: Route) -> Call:
        """Put this layer around ``call_next``, and its lines on the answers of ``route``."""
        if type(self).lines is not Layer.lines:
            route.lined = (self, *route.lined)
        begins = type(self).begin is not Layer.begin
        finishes = type(self).finish is not Layer.finish
        begin, finish = self.begin, self.finish
        if not begins and not finishes:
            return call_next
        if route.kind is Kind.ASYNC:

            async def layered_async(request: Request) -> Any:
                if begins:
                    early = begin(request)
                    if early is not None:
                        return early
                value = await call_next(request)
                return finish(request, value) if finishes else value

            sooner = sooner_of(call_next)
            if sooner is not None:
                offer(layered_async, self._at_once(sooner))
            return layered_async
        if begins and finishes:

            def layered(request: Request) -> Any:
                early = begin(request)
                return finish(request, call_next(request)) if early is None else early

        elif begins:

            def layered(request: Request) -> Any:
                early = begin(request)
                return call_next(request) if early is None else early

        else:

            def layered(request: Request) -> Any:
                return finish(request, call_next(request))

        return layered

    def _at_once(self, sooner: Call) -> Call:
        """Put this layer around the second form of a coroutine function (rule 6)."""
        begins = type(self).begin is not Layer.begin
        finishes = type(self).finish is not Layer.finish
        begin, finish = self.begin, self.finish

        def begun(request: Request) -> Any:
            early = begin(request)
            return sooner(request) if early is None else early

        if not finishes:
            return begun

        takes_json = self.takes_json

        async def later(request: Request, value: Awaitable[Any]) -> Any:
            return finish(request, await value)

        def only_finished(request: Request) -> Any:
            value = sooner(request)
            return later(request, value) if type(value) is CoroutineType else finish(request, value)

        if takes_json and not begins:
            return only_finished

        def finished(request: Request) -> Any:
            if begins:
                early = begin(request)
                if early is not None:
                    return early
            value = sooner(request)
            if type(value) is CoroutineType:
                return later(request, value)
            if type(value) is Json and not takes_json:
                value = value.value()
            return finish(request, value)

        return finished


def offer(call: Any, sooner: Callable[..., Any]) -> None:
    """Make ``sooner`` the second form of the coroutine function ``call`` (rule 6)."""
    call.at_once = call, sooner


def sooner_of(call: Any) -> Callable[..., Any] | None:
    """Return the second form of ``call``, if it has one of its own.

    What is wrapped around it by ``functools.wraps`` has its attributes, but must not be left out.
    """
    of, sooner = getattr(call, "at_once", (None, None))
    return sooner if of is call else None


def compose(route: Route, chain: Sequence[Middleware], *, registered: bool = True) -> None:
    """Set ``route.call`` to its handler with ``chain`` around it, the outermost first.

    :param registered: whether it takes the path's parameters; the router's own answers do not.
    """
    bare = current = _bind(route) if registered else route.handler
    seen: set[type] = set()
    route.lined = ()
    raw = True  # whether ``current`` gives what the handler returned
    for middleware in reversed(chain):
        if isinstance(middleware, Layer):
            if not (middleware.once and type(middleware) in seen):
                seen.add(type(middleware))
                current = middleware(current, route)
            continue
        inner = _normalised(current, route.kind) if raw else current
        wrapped = middleware(inner, route)
        if wrapped is not inner:
            current, raw = wrapped, False
    route.wrapped = current is not bare or bool(route.lined)
    sooner = sooner_of(current)
    if route.wrapped:
        prepared = _preparing(route.lined)
        current = prepared(current)
        sooner = None if sooner is None else prepared(sooner)
    route.call, route.at_once = current, sooner


def _bind(route: Route) -> Call:
    """Return ``route.handler`` as a function of the request alone."""
    handler = route.handler
    if route.arguments is not None:
        return route.arguments.bind(handler)
    if not parameters_of(route.path):
        return handler

    def bound(request: Request) -> Any:
        return handler(request, **request.head.params)

    sooner = sooner_of(handler)
    if sooner is not None:
        offer(bound, lambda request: sooner(request, **request.head.params))
    return bound


def _preparing(lined: Sequence[Layer]) -> Callable[[Call], Call]:
    """Return what has a call begin with the lines of these layers on the request (rule 3)."""
    plain, secure = object(), object()
    by_scheme = any(layer.by_scheme for layer in lined)

    def found(request: Request, place: object) -> bytes:
        lines = request.head.memo[place] = b"".join(layer.lines(request) for layer in lined)
        return lines

    def prepared(call: Call) -> Call:
        if not lined:

            def with_none(request: Request) -> Any:
                request.fields = b""
                return call(request)

            return with_none

        def with_lines(request: Request) -> Any:
            place = plain
            if by_scheme:  # behind a proxy it takes time to find out
                direct = request.connection.direct
                if (request.scheme if direct is None else direct.scheme) == "https":
                    place = secure
            lines = request.head.memo.get(place)
            request.fields = found(request, place) if lines is None else lines
            return call(request)

        return with_lines

    return prepared


def _normalised(call: Call, kind: Kind) -> Call:
    """Return ``call`` with its value made a ``Response``, for middleware to work on."""
    if kind is Kind.ASYNC:

        async def respond_async(request: Request) -> Any:
            return to_response(await call(request))

        return respond_async
    return lambda request: to_response(call(request))
