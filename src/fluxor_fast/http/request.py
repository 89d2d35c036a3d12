"""The request as handlers see it: values only, no I/O.

A *head* is the request line and the header fields. It is immutable, and one ``Head`` may
serve many requests: clients repeat the same bytes, and the server remembers what they mean
(see ``server/heads.py``). A ``Request`` is one head with its body and its place on a
connection; a ``StreamedRequest`` is there before its body, and reads it from a ``BodySource``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextvars import ContextVar
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import parse_qsl

import orjson

from fluxor_fast.errors import HTTPError

if TYPE_CHECKING:
    from fluxor_fast.http.response import Response
    from fluxor_fast.routing import Route

__all__ = [
    "CHUNKED",
    "CURRENT",
    "UNUSUAL",
    "BodySource",
    "BothEnds",
    "Connection",
    "Head",
    "Headers",
    "Request",
    "StreamedRequest",
    "Watcher",
]

_new = object.__new__

CHUNKED = -1
"""Value of ``Head.length`` when the body comes in chunks (RFC 9112, section 7.1)."""

UNUSUAL = 1 << 32
"""Value of ``Head.lane`` when admission has to look at all; see ``Route.lane``."""

CURRENT: ContextVar[Request | None] = ContextVar("fluxor_fast_request", default=None)
"""The request that a coroutine or blocking handler runs for, for lines of the log."""


class BothEnds(NamedTuple):
    """Who is connected with whom, without regard to what the head of a request says.

    A port is 0 where it is not known; of a Unix socket ``server`` has the path, and no port.
    """

    client: tuple[str, int]
    server: tuple[str, int | None] | None
    scheme: str
    proxied: bool
    """Whether the other end is a trusted proxy: then each head says who the client is."""


class Watcher(Protocol):
    """What wants to know how a connection goes on."""

    def wake(self) -> None:
        """Look again: it is another answer's turn, or the client takes in what it is sent."""

    def ended(self) -> None:
        """Note that the client sends nothing more."""

    def lost(self) -> None:
        """Note that the client is gone."""

    def check(self, tick: int) -> None:
        """Note what time it is; called about once a second."""


class Connection(Protocol):
    """What a request asks of the connection it came on."""

    notes: tuple[Head, Any] | None
    """What who serves the application in another form has made of its last head."""

    direct: BothEnds | None
    """``both_ends`` where no head can say otherwise; None: a proxy's, or nobody has asked yet."""

    @property
    def both_ends(self) -> BothEnds:
        """Who is connected with whom."""

    @property
    def gone(self) -> bool:
        """Whether the client is gone, or has said that it sends nothing more."""

    @property
    def app(self) -> Any:
        """The application that answers."""

    @property
    def peer(self) -> str:
        """Address of the other end of the socket."""

    @property
    def tls(self) -> bool:
        """Whether the other end speaks TLS with this server."""

    @property
    def client_certificate(self) -> dict[str, Any] | None:
        """The certificate that the other end has shown and proved, if any."""

    def client_of(self, head: Head) -> str:
        """Address of the client, seen through trusted proxies."""

    def scheme_of(self, head: Head) -> str:
        """Scheme that the client used, seen through trusted proxies."""

    def host_of(self, head: Head) -> str:
        """Host that the client asked for, seen through trusted proxies."""

    def answer(self, request: Request, response: Response) -> None:
        """Send the answer now, before its handler is done; see ``Response.answered``."""

    def watch(self, watcher: Watcher) -> None:
        """Tell ``watcher`` how it goes on."""

    def unwatch(self, watcher: Watcher) -> None:
        """Tell it no more."""


class Headers(Mapping[str, str]):
    """Header fields by name, without regard to case; ``get_all`` gives repeated ones.

    Fields that came more than once are joined with ``", "`` (RFC 9110, section 5.3).
    They are made of fields with names in lower case, or of a whole head that was found good.
    """

    def __init__(self, raw: tuple[tuple[bytes, bytes], ...] | bytes) -> None:
        self._fields: dict[str, list[str]] = {}
        if isinstance(raw, bytes):
            for line in raw.decode("latin-1").split("\r\n")[1:-2]:
                text, _, rest = line.partition(":")
                self._fields.setdefault(text.lower(), []).append(rest.strip(" \t"))
            return
        for name, value in raw:
            self._fields.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))

    def __getitem__(self, name: str) -> str:
        return ", ".join(self._fields[name.lower()])

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def get_all(self, name: str) -> list[str]:
        """Return every value of the field ``name``, in the order of arrival."""
        return list(self._fields.get(name.lower(), ()))


class Head:
    """Request line and header fields, parsed, checked and routed.

    ``raw_headers`` are given as fields, or as the bytes of the whole head, from which they are read
    when they are asked for. ``length`` is the length of the body in bytes, or ``CHUNKED``.
    ``request_id`` is the client's own, if it sent a usable one. ``plain`` is true when the answer
    may take the short form (HTTP/1.1, connection kept, body wanted), ``quick`` when besides there
    is no body to wait for; ``direct`` when it is plain and its route has no limit of its own to
    give a permit back to, ``short`` when besides there is no middleware. ``lane``: what its
    admission has to look at (``Route.lane``). ``streams``: the request
    is handed over before its body, because its route reads that itself, or has no use for a body
    that the client has not sent yet. ``timeout`` is how many seconds the client says it waits.
    """

    authority: str | None = None
    """Host and port of a target in absolute form: they count, not ``Host`` (RFC 9112, 3.2.2)."""
    raw = b""
    """The bytes of the head, if requests with it come in one with their bodies."""
    upgrade = False
    """Whether it offers a WebSocket to a route that takes them; the last request, then."""

    # no __slots__: cached properties live in __dict__, and a head is made once for many requests
    def __init__(
        self,
        method: str,
        path: str,
        query: bytes,
        http_11: bool,
        raw_headers: tuple[tuple[bytes, bytes], ...] | bytes,
        length: int,
        keep_alive: bool,
        route: Route,
        expects_continue: bool = False,
        request_id: bytes | None = None,
        timeout: float | None = None,
        params: dict[str, Any] | None = None,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.http_11 = http_11
        self._fields = raw_headers
        self.length = length
        self.keep_alive = keep_alive
        self.expects_continue = expects_continue
        self.request_id = request_id
        self.timeout = timeout
        self.route = route
        self.params: dict[str, Any] = params or {}
        self.streams = length != 0 and (
            route.stream or (expects_continue and route.method == "*")  # nothing is there
        )
        self.plain = http_11 and keep_alive and method != "HEAD" and not self.streams
        self.quick = self.plain and length == 0
        self.direct = self.plain and route.max_in_flight is None
        self.short = self.direct and not route.wrapped
        self.lane = route.lane if timeout is None else UNUSUAL

    def closing(self) -> Head:
        """Return this head as if the client had asked to close the connection after it."""
        head = copy(self)
        head.keep_alive = head.plain = head.quick = head.direct = head.short = False
        head.__dict__.pop("gathered", None)
        return head

    def over(self, raw: bytes) -> Head:
        """Return a head that says the same, of other bytes; only its fields are read from those."""
        head = _new(Head)
        head.method = self.method
        head.path = self.path
        head.query = self.query
        head.http_11 = self.http_11
        head._fields = raw
        head.length = self.length
        head.keep_alive = self.keep_alive
        head.expects_continue = self.expects_continue
        head.request_id = self.request_id
        head.timeout = self.timeout
        head.route = self.route
        head.params = self.params
        head.streams = self.streams
        head.plain = self.plain
        head.quick = self.quick
        head.direct = self.direct
        head.short = self.short
        head.lane = self.lane
        return head

    @cached_property
    def gathered(self) -> Head | None:
        """The head of a request whose body is there already; None if that makes a difference."""
        if self.length <= 0 or self.expects_continue:
            return None
        if not self.streams:
            return self if self.plain else None
        if not self.route.buffered or not self.http_11 or not self.keep_alive:
            return None
        head = copy(self)
        head.streams = False
        head.plain = head.method != "HEAD"
        head.direct = head.plain and head.route.max_in_flight is None
        head.short = head.direct and not head.route.wrapped
        return head if head.plain else None

    @property
    def raw_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """The fields in order: names in lower case, values without white space around them."""
        fields = self._fields
        if isinstance(fields, bytes):
            lines = [line.partition(b":") for line in fields.split(b"\r\n")[1:-2]]
            fields = self._fields = tuple(
                (name.lower(), value.strip(b" \t")) for name, _, value in lines
            )
        return fields

    @cached_property
    def headers(self) -> Headers:
        """The header fields as a mapping."""
        return Headers(self._fields)

    @cached_property
    def memo(self) -> dict[object, Any]:
        """What middleware has found out from these fields alone, for the next request to use."""
        return {}

    @cached_property
    def host(self) -> str:
        """The host that the request names, with its port if it names one; HTTP/1.0 may not."""
        return self.headers.get("host", "") if self.authority is None else self.authority

    @cached_property
    def query_items(self) -> tuple[tuple[str, str], ...]:
        """The query as decoded pairs, in order; a query that is not UTF-8 is a 400."""
        try:
            return tuple(
                parse_qsl(
                    self.query.decode("ascii"),
                    keep_blank_values=True,
                    errors="strict",
                    max_num_fields=100,
                )
            )
        except ValueError as error:
            raise HTTPError(400, "the query string is malformed or too long") from error


class Request:
    """One request.

    Handlers use ``method``, ``path``, ``params``, ``query``, ``headers``, ``body``, ``json()``,
    ``id``, ``client``, ``scheme``, ``host``, ``app``, ``state``; ``stream()`` and ``read()`` give
    the body on every route, and alone give it on one that streams. The other attributes belong to
    the server.
    """

    __slots__ = (
        "_state",
        "answer",
        "arrived",
        "body",
        "connection",
        "fields",
        "head",
        "permit",
        "queued",
        "rid",
    )

    arrived: float
    """When the server took the request in, in monotonic seconds."""
    rid: bytes
    """The request id as it stands in the answer."""
    fields: bytes
    """Header lines, ready made, that its answer will have whatever it is. For middleware: only
    where there is some is it set, with the lines of its layers at first, and looked at."""
    source: BodySource | None = None
    """What the body comes from that was not there yet."""

    def __init__(self, head: Head, body: bytes, connection: Connection) -> None:
        self.head = head
        self.body = body
        self.connection = connection
        self.answer: bytes | None = None  # set while earlier answers of the connection are owed
        self.permit = False  # whether it holds a permit of the limit
        self.queued = False  # whether it waits, admitted
        self._state: dict[str, Any] | None = None

    @property
    def method(self) -> str:
        """The method, in capitals."""
        return self.head.method

    @property
    def path(self) -> str:
        """The path, as sent, without the query."""
        return self.head.path

    @property
    def params(self) -> dict[str, Any]:
        """The values of the path's parameters; not to be changed."""
        return self.head.params

    @property
    def headers(self) -> Headers:
        """The header fields by name, without regard to case."""
        return self.head.headers

    @property
    def query(self) -> dict[str, str]:
        """The query's pairs; of a repeated name the last one counts."""
        return dict(self.head.query_items)

    @property
    def id(self) -> str:
        """The request id that the answer carries as ``X-Request-ID``."""
        return self.rid.decode("ascii")

    @property
    def app(self) -> Any:
        """The application."""
        return self.connection.app

    @property
    def client(self) -> str:
        """Address of the client; a proxy's word for it counts only if the proxy is trusted.

        In one form (no port, no zone, IPv4 where it is IPv4); ``unix`` for who came through a
        Unix socket without a trusted word of another address; empty if it is not known.
        """
        return self.connection.client_of(self.head)

    @property
    def scheme(self) -> str:
        """``https`` if the client speaks TLS with us, or a trusted proxy says so; or ``http``."""
        return self.connection.scheme_of(self.head)

    @property
    def host(self) -> str:
        """The host that the client asked for, with its port if it named one.

        What the request says, or a trusted proxy. The client can write what it likes: compare it
        with what you serve before you build links with it.
        """
        return self.connection.host_of(self.head)

    @property
    def client_certificate(self) -> dict[str, Any] | None:
        """The client's TLS certificate as ``ssl.SSLSocket.getpeercert`` gives it, checked.

        None if it has shown none, or the server asks for none (``--tls-client-certificate``).
        """
        return self.connection.client_certificate

    @property
    def state(self) -> dict[str, Any]:
        """Room for middleware to leave things for handlers."""
        if self._state is None:
            self._state = {}
        return self._state

    def json(self) -> Any:
        """Return the body decoded from JSON; a 400 if it is not JSON."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise HTTPError(400, f"the body is not valid JSON: {error}", code="BAD_JSON") from None

    async def read(self) -> bytes:
        """Return the whole body."""
        return self.body

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the body in pieces as they come; here, the whole of it."""
        if self.body:
            yield self.body


class BodySource(Protocol):
    """Where the body of a ``StreamedRequest`` comes from."""

    async def next(self) -> bytes:
        """Return the next piece, or nothing at the end.

        :raises HTTPError: if there is no next piece, though it is not the end.
        """

    def settle(self) -> bool:
        """Decide what becomes of what was not read, now that the request is answered.

        Return whether the connection must end with the answer.
        """

    def answering(self) -> None:
        """Note that the answer has begun."""


class StreamedRequest(Request):
    """A request whose body comes while it is handled."""

    __slots__ = ("_taken", "_whole", "source")

    source: BodySource

    def __init__(self, head: Head, connection: Connection, source: BodySource) -> None:
        self._whole: bytes | None = None
        self._taken = False
        self.source = source
        super().__init__(head, None, connection)  # type: ignore[arg-type]

    @property
    def body(self) -> bytes:
        """The body, once ``read`` has read it."""
        if self._whole is None:
            raise RuntimeError(
                "this route streams: its body is read with `async for … in request.stream()`,"
                " or with `await request.read()` before `request.body` and `request.json()`"
            )
        return self._whole

    @body.setter
    def body(self, value: bytes | None) -> None:
        self._whole = value

    async def read(self) -> bytes:
        """Read the whole body, and return it; ``body`` and ``json()`` then have it too.

        :raises HTTPError: as ``stream``.
        """
        if self._whole is None:
            if self._taken:
                raise RuntimeError("some of the body has been read as a stream already")
            self._whole = b"".join([piece async for piece in self.stream()])
        return self._whole

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the body in pieces as they come. What was not taken is there for the next caller.

        :raises ClientDisconnected: if the client goes away before the end.
        :raises HTTPError: 400 for bad framing, 413 for a body that is too long, 408 for one that
            takes too long. The connection ends with the answer then.
        """
        if self._whole is not None:
            if self._whole:
                yield self._whole
            return
        self._taken = True
        while piece := await self.source.next():
            yield piece
