"""Which handler answers which path.

Paths without parameters are found in one dictionary; the others in a tree of path segments.
``{name}`` takes one segment as text, ``{name:int}`` one of decimal digits, ``{name:uuid}`` a
UUID, and ``{name:path}`` all that is left (it must stand last).

Rules kept here:

1. The more exact wins, whatever the order of registration: a literal segment before an int,
   before a UUID, before text, before the rest of the path; a dead end, or a path that has other
   methods only, backs up and tries the next kind.
2. Segments are split before they are decoded, so ``%2F`` never makes a new segment.
3. A path that exists but not with this method is 405 with ``Allow``; HEAD is answered by GET,
   OPTIONS by the list of methods (RFC 9110, sections 9.3.2, 9.3.7 and 15.5.6).
4. The router always answers with a route: what is not found is a route that raises 404.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes
from uuid import UUID

from fluxor_fast.contract import Contract
from fluxor_fast.errors import HTTPError, RouteError
from fluxor_fast.http.request import UNUSUAL, Request
from fluxor_fast.http.response import Response

if TYPE_CHECKING:
    from fluxor_fast.validation import Arguments

__all__ = ["Kind", "Match", "Priority", "Route", "Router"]

Call = Callable[[Request], Any]


class Kind(Enum):
    """How a handler runs."""

    SYNC = "sync"
    """A plain function, run inside the batch: it must not block."""
    ASYNC = "async"
    """A coroutine function, run as a task; it holds a slot."""
    BLOCKING = "blocking"
    """A plain function that may block, run in a thread; it holds a slot."""


class Priority(IntEnum):
    """Which threshold of the limit a route goes by."""

    EXEMPT = 0
    """Never refused, and not counted: health checks and metrics."""
    CRITICAL = 1
    """Refused at ``max_ccu``."""
    NORMAL = 2
    """Refused at normal capacity."""


class Route:
    """A handler with the path and method it answers. ``call`` is handler and middleware in one.

    ``call(request)`` returns what the handler returned (a coroutine for ``Kind.ASYNC``).
    ``arguments`` are what the handler takes that must be read and checked, if there is anything.
    ``contract`` is what it was declared to take and answer, if it was.
    ``stream``: it is called when the head of the request is complete, and reads the body itself.
    ``buffered``: …but a body that came in one with its head it may be given whole.
    ``lined``: the layers whose lines are on its answers, the outermost first.
    ``lane``: what admission has to look at: 0 nothing, it goes by the limit that most go by, and
    runs when it is its turn; 1 that it needs a slot, too; ``UNUSUAL`` all. A worker adds up those
    of what arrives, and a sum tells whether all are alike.
    ``websocket``: it may answer an offer of a WebSocket with an ``Upgrade``.
    ``wrapped``: there is middleware around it, which may add to its answers.
    ``at_once``: for a coroutine function that mostly has its answer already, what gives that answer
    or a coroutine of it.
    """

    __slots__ = (
        "arguments",
        "at_once",
        "buffered",
        "call",
        "contract",
        "handler",
        "kind",
        "lane",
        "lined",
        "max_body",
        "max_in_flight",
        "method",
        "path",
        "priority",
        "stream",
        "websocket",
        "wrapped",
    )

    def __init__(
        self,
        method: str,
        path: str,
        handler: Callable[..., Any],
        *,
        call: Call | None = None,
        kind: Kind = Kind.SYNC,
        priority: Priority = Priority.NORMAL,
        max_body: int | None = None,
        max_in_flight: int | None = None,
        contract: Contract | None = None,
        arguments: Arguments | None = None,
        stream: bool = False,
        buffered: bool = False,
        websocket: bool = False,
    ) -> None:
        self.method = method
        self.path = path
        self.handler = handler
        self.call: Call = call or handler
        self.kind = kind
        self.priority = priority
        self.max_body = max_body
        self.max_in_flight = max_in_flight
        usual = priority is Priority.NORMAL and max_in_flight is None
        self.lane = UNUSUAL if not usual else 0 if kind is Kind.SYNC else 1
        self.contract = contract
        self.arguments = arguments
        self.stream = stream
        self.buffered = buffered
        self.websocket = websocket
        self.lined: tuple[Any, ...] = ()
        self.wrapped = False
        self.at_once: Call | None = None

    def __repr__(self) -> str:
        return f"<Route {self.method} {self.path} {self.kind.value} {self.priority.name.lower()}>"


MAX_DIGITS = 18
"""Of an int in a path. They fit every 64-bit column; more would be an error deep in a database."""


def _int(text: str) -> int | None:
    fits = text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS
    return int(text) if fits else None


_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _uuid(text: str) -> UUID | None:
    return UUID(text) if _UUID.fullmatch(text) else None


_CONVERTERS: dict[str, Callable[[str], Any]] = {
    "int": _int,
    "uuid": _uuid,
    "str": lambda text: text or None,
}
_ORDER = tuple(_CONVERTERS)  # rule 1
_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?::([a-z]+))?\}")

Match = tuple[Route, dict[str, Any]]


class _Methods:
    """The routes of one path by method, with the answers for the methods it has not."""

    __slots__ = ("denied", "options", "routes")

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}

    def add(self, route: Route) -> None:
        if route.method in self.routes:
            raise RouteError(f"{route.method} {route.path} is registered twice")
        self.routes[route.method] = route
        methods = set(self.routes) | {"OPTIONS"}
        if "GET" in methods:
            methods.add("HEAD")
        allow = ", ".join(sorted(methods))

        def denied(request: Request) -> Any:
            raise HTTPError(
                405, f"{request.path} does not take {request.method}", headers={"Allow": allow}
            )

        def options(request: Request) -> Any:
            return Response(status=204, headers={"Allow": allow})

        self.denied = Route("*", route.path, denied)
        self.options = Route("OPTIONS", route.path, options)

    def takes(self, method: str) -> bool:
        """Whether a route was registered for ``method``."""
        return method in self.routes or (method == "HEAD" and "GET" in self.routes)

    def get(self, method: str) -> Route:
        route = self.routes.get(method)
        if route is None and method == "HEAD":
            route = self.routes.get("GET")
        if route is None:
            return self.options if method == "OPTIONS" else self.denied
        return route


def _whole_server() -> _Methods:
    """Return what answers ``OPTIONS *``, which is about no path (RFC 9110, section 9.3.7)."""
    methods = _Methods()
    methods.options = methods.denied = Route("OPTIONS", "*", lambda request: Response(status=204))
    return methods


class _Node:
    __slots__ = ("children", "leaf", "names", "parameters", "rest", "rest_name")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.parameters: dict[str, _Node] = {}  # by converter
        self.leaf: _Methods | None = None
        self.names: tuple[str, ...] = ()
        self.rest: _Methods | None = None
        self.rest_name: tuple[str, ...] = ()


def _not_found(request: Request) -> Any:
    raise HTTPError(404, f"nothing is at {request.path}")


def parameters_of(path: str) -> dict[str, str]:
    """Return the parameters of a path pattern: name → converter. A bad one is a ``RouteError``."""
    found: dict[str, str] = {}
    segments = path.split("/")
    for position, segment in enumerate(segments):
        if "{" not in segment and "}" not in segment:
            continue
        match = _PARAMETER.fullmatch(segment)
        if match is None:
            raise RouteError(f"{path}: a segment is either text or one {{name:type}}: {segment}")
        name, converter = match[1], match[2] or "str"
        if name in found:
            raise RouteError(f"{path}: the parameter {name} comes twice")
        if converter == "path":
            if position != len(segments) - 1:
                raise RouteError(f"{path}: {{{name}:path}} must stand last")
        elif converter not in _CONVERTERS:
            known = ", ".join((*_ORDER, "path"))
            raise RouteError(f"{path}: unknown type {converter!r} (known: {known})")
        found[name] = converter
    return found


class Router:
    """Finds the route for a method and a path."""

    def __init__(self, routes: Iterable[Route] = ()) -> None:
        self._static: dict[str, _Methods] = {"*": _whole_server()}
        self._root = _Node()
        self._not_found = Route("*", "*", _not_found)
        self._paths: list[_Methods] = []
        for route in routes:
            self.add(route)

    def add(self, route: Route) -> None:
        """Register a route; a clash or a bad path is a ``RouteError``."""
        if not route.path.startswith("/"):
            raise RouteError(f"a path begins with '/': {route.path!r}")
        parameters = parameters_of(route.path)
        node = self._root
        for segment in route.path[1:].split("/"):
            match = _PARAMETER.fullmatch(segment)
            if match is None:
                node = node.children.setdefault(segment, _Node())
                continue
            converter = match[2] or "str"
            if converter == "path":
                self._check_names(route, node.rest_name, tuple(parameters))
                node.rest_name = tuple(parameters)
                node.rest = node.rest or self._path()
                node.rest.add(route)
                return
            node = node.parameters.setdefault(converter, _Node())
        self._check_names(route, node.names, tuple(parameters))
        node.names = tuple(parameters)
        node.leaf = node.leaf or self._path()
        node.leaf.add(route)
        if not parameters:
            self._static[route.path] = node.leaf

    def every_route(self) -> Iterator[Route]:
        """Yield every route that ``match`` may give, those that refuse (404, 405) too."""
        yield self._not_found
        for methods in (self._static["*"], *self._paths):
            yield from {*methods.routes.values(), methods.options, methods.denied}

    def _path(self) -> _Methods:
        methods = _Methods()
        self._paths.append(methods)
        return methods

    @property
    def unrouted(self) -> Iterator[tuple[list[Route], Route]]:
        """What answers where nothing was registered: (the routes of that path, the answer)."""
        yield [], self._not_found
        yield [], self._static["*"].options
        for methods in self._paths:
            routes = list(methods.routes.values())
            yield routes, methods.denied
            if "OPTIONS" not in methods.routes:
                yield routes, methods.options

    @staticmethod
    def _check_names(route: Route, before: tuple[str, ...], now: tuple[str, ...]) -> None:
        if before and before != now:
            raise RouteError(
                f"{route.path}: another method of this path names its parameters {before}"
            )

    def match(self, method: str, path: str) -> Match:
        """Return the route and the parameters' values.

        :param path: as sent, percent-encoded, without the query. One that does not decode to
            UTF-8 is not found.
        """
        methods = self._static.get(path)
        if methods is not None and (methods.takes(method) or path == "*"):
            return methods.get(method), {}
        if "%" in path:
            try:
                segments = [unquote_to_bytes(s).decode() for s in path[1:].split("/")]
            except UnicodeDecodeError:
                return self._not_found, {}
        else:
            segments = path[1:].split("/")
        others: list[Found] = []
        first = _search(self._root, segments, 0, [], method, others)
        if first is None and others:
            first = others[0]
        if first is None:
            return self._not_found, {}
        methods, names, values = first
        return methods.get(method), dict(zip(names, values, strict=True))


Found = tuple[_Methods, tuple[str, ...], list[Any]]


def _search(
    node: _Node, segments: list[str], at: int, values: list[Any], method: str, others: list[Found]
) -> Found | None:
    """Walk the tree depth first, the more exact branch first; return what takes ``method``.

    Those on the way that do not are put into ``others``. Each node has at most five branches and
    each takes one segment, but a path of n segments cannot fan out beyond what was registered: the
    tree, not the client, bounds the work.
    """
    if at == len(segments):
        return _taken(node.leaf, node.names, values, method, others)
    segment = segments[at]
    child = node.children.get(segment)
    if child is not None:
        found = _search(child, segments, at + 1, values, method, others)
        if found is not None:
            return found
    if node.parameters:
        for converter in _ORDER:
            child = node.parameters.get(converter)
            if child is not None:
                value = _CONVERTERS[converter](segment)
                if value is not None:
                    found = _search(child, segments, at + 1, [*values, value], method, others)
                    if found is not None:
                        return found
    if node.rest is None:
        return None
    return _taken(node.rest, node.rest_name, [*values, "/".join(segments[at:])], method, others)


def _taken(
    methods: _Methods | None,
    names: tuple[str, ...],
    values: list[Any],
    method: str,
    others: list[Found],
) -> Found | None:
    if methods is None:
        return None
    found = methods, names, values
    if methods.takes(method):
        return found
    others.append(found)
    return None
