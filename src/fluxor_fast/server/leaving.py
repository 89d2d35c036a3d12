"""How a request leaves: answered, refused, or because its client is gone.

Rules:

1. Every request leaves once, through ``_leave``, ``_abort``, ``_refuse`` or the short ways of
   ``batch`` and ``running``, which do the same as ``_leave``: with its permit and its route's given
   back, and counted as completed, aborted or refused.
2. An answer above ``LARGE`` bytes, or to a connection that already has too much unread, keeps
   its permit until the client has taken it in.
3. What a handler raises becomes an answer that tells nothing which it did not mean to tell; what
   was not meant is logged, under the request id that the client is told.
4. A refusal is ready made but for the date and the request id; who is refused is paced (see
   ``refusal``).
5. What is no request (bytes that cannot be read, a connection too many) has its answer counted.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from fluxor_fast.errors import HTTPError
from fluxor_fast.http.failure import failure
from fluxor_fast.http.request import Request
from fluxor_fast.http.response import (
    Json,
    Response,
    encode_json,
    encode_ready,
    error_response,
    to_response,
    without,
)
from fluxor_fast.routing import Route
from fluxor_fast.server.admission import SharedLimit
from fluxor_fast.server.counters import Counters
from fluxor_fast.server.refusal import Pacer, Refusals
from fluxor_fast.server.streaming import CLOSE

if TYPE_CHECKING:
    from fluxor_fast.server.protocol import HttpProtocol

__all__ = ["LARGE", "Leaving"]

log = logging.getLogger("fluxor_fast.server")

LARGE: Final = 64 * 1024


class Leaving:
    """The part of a worker's runner that lets requests go.

    :param limit: permits, one per request in the system.
    :param routes: the limits of routes that have one of their own.
    :param region: this worker's words in shared memory.
    :param pause: longest time a refused connection is left unread, in seconds; 0 turns that off.
    :param ids: request ids.
    """

    __slots__ = (
        "_next_id",
        "_now",
        "_routes",
        "block",
        "counters",
        "draining",
        "limit",
        "pacer",
        "refusals",
        "tick",
    )

    def __init__(
        self,
        *,
        limit: SharedLimit,
        routes: dict[Route, SharedLimit],
        region: memoryview[int],
        pause: float,
        ids: Iterator[bytes],
    ) -> None:
        self.limit = limit
        self._routes = routes
        self._next_id = ids.__next__
        self.block = b""  # Date field and the name of the request id's, made once a second
        self.draining = False
        self.counters = Counters(region)
        self.refusals = Refusals()
        self.pacer = Pacer(pause)
        self._now = 0.0  # when this turn began
        self.tick = 0  # seconds, coarse: what the connections' timeouts go by

    @abstractmethod
    def schedule(self) -> None:
        """Have a turn soon: it publishes what was counted."""

    # requests

    def _leave(self, request: Request, status: int, answer: bytes, now: float) -> None:
        """Give the answer to the connection, the permit back, and count."""
        connection: HttpProtocol = request.connection  # type: ignore[assignment]
        if connection.closed:
            self._abort(request)
            return
        connection.pause = 0.0  # who is served starts anew (see refusal)
        counters = self.counters
        counters.completed += 1
        counters.answered(status)
        counters.observe(now - request.arrived, 1)
        self._leave_route(request)
        connection.deliver(request, answer)
        if request.permit:
            if len(answer) >= LARGE or connection.write_paused:
                connection.hold()
            else:
                request.permit = False
                self.limit.release(1)

    def _conclude(self, request: Request) -> None:
        """Count a request whose answer is no concern of the connection's any more."""
        self.counters.completed += 1
        self._leave_route(request)
        if request.permit:
            request.permit = False
            self.limit.release(1)

    def _abort(self, request: Request) -> None:
        self.counters.abandoned()
        self._leave_route(request)
        if request.permit:
            request.permit = False
            self.limit.release(1)
        self.schedule()

    def _let_go(self, request: Request, reason: str) -> None:
        """Refuse a request that was admitted and waits (and has been taken out of its queue)."""
        request.queued = request.permit = False
        self.limit.release(1)
        self._leave_route(request)
        self._refuse(request, reason)

    def _refuse(self, request: Request, reason: str) -> None:
        """Answer 503: ready made but for the date and the request id."""
        counters = self.counters
        counters.refused(reason)
        connection: HttpProtocol = request.connection  # type: ignore[assignment]
        if connection.closed:
            return
        counters.responses[5] += 1
        head = request.head
        rid = request.rid = head.request_id or self._next_id()
        refusal = self.refusals.get(reason)
        if head.plain and not self.draining:
            connection.deliver(request, refusal.encode(self.block, rid))
            self.pacer.refused(connection, request.arrived, self._now)
        else:
            connection.deliver(request, self._encode(request, refusal.response))

    def _enter_route(self, request: Request) -> bool:
        """Take a permit of the route's own limit, if it has one; refuse the request otherwise."""
        route = request.head.route
        if route.max_in_flight is None or self._routes[route].acquire(1, route.max_in_flight):
            return True
        self._refuse(request, "route")
        return False

    def _leave_route(self, request: Request) -> None:
        route = request.head.route
        if route.max_in_flight is not None:
            self._routes[route].release(1)

    # the bytes of their answers

    def _connection_line(self, request: Request) -> bytes:
        head = request.head
        connection: HttpProtocol = request.connection  # type: ignore[assignment]
        if not head.keep_alive or (self.draining and connection.ends_with(request)):
            return CLOSE
        return b"" if head.http_11 else b"Connection: keep-alive\r\n"

    def _block_for(self, request: Request, response: Response | None = None) -> bytes:
        """Return the ready lines for the answer, with what middleware has added.

        :param response: the answer, if it may have headers of its own.
        """
        if not request.head.route.wrapped:
            return self.block
        try:
            lines = request.fields
        except AttributeError:  # it never came to its middleware
            return self.block
        if response is not None and (said := response.said):  # these count, not ours
            lines = without(lines, said)
        return lines + self.block

    def _encoded(self, request: Request, value: Any) -> tuple[int, bytes] | Response:
        """Return status and bytes of the answer for what a handler returned.

        One that sends its body itself, or upgrades, is returned as it is.
        """
        head = request.head
        kind = type(value)
        if (kind is dict or kind is Json or kind is Response) and head.plain and not self.draining:
            if kind is Response:
                return value.status, value.encode(self._block_for(request, value), request.rid)
            lines = request.fields if head.route.wrapped else b""
            encode = encode_json if kind is dict else encode_ready
            return 200, encode(value, self.block, request.rid, lines)
        response = to_response(value)
        if response.streams or response.upgrades:
            return response
        return response.status, self._encode(request, response)

    def _encode(self, request: Request, response: Response) -> bytes:
        head = request.head
        if head.plain and not self.draining:  # so there is no source either
            block = self._block_for(request, response) if head.route.wrapped else self.block
            return response.encode(block, request.rid)
        ends = request.source is not None and request.source.settle()
        return response.encode(
            self._block_for(request, response),
            request.rid,
            connection=CLOSE if ends else self._connection_line(request),
            head_only=head.method == "HEAD",
        )

    def _failure(self, request: Request, error: BaseException) -> tuple[int, bytes]:
        """Return the answer for what a handler raised; what was not on purpose is logged."""
        if isinstance(error, HTTPError):
            try:
                return error.status, self._encode(request, error_response(error))
            except Exception as fault:  # its headers or details cannot be sent
                error = fault
        response = failure(log, request.method, request.path, request.id, error)
        return 500, self._encode(request, response)

    # what protocols call

    def taken(self, requests: int) -> None:
        """Note that the client has taken in ``requests`` answers whose permits were kept."""
        self.limit.release(requests)

    def refuse_connection(self, reason: str) -> bytes:
        """Return the 503 for a connection too many; counted as a request that was refused.

        :param reason: ``connections`` (of all clients) or ``client`` (of this one).
        """
        self.counters.offered += 1
        self.counters.refused(reason)
        self.counters.answered(503)
        self.schedule()
        return self.refusals.get(reason).response.encode(
            self.block, self._next_id(), connection=CLOSE
        )

    def error_bytes(self, error: HTTPError) -> bytes:
        """Return the answer to what is not a request; it closes the connection. Counted."""
        self.counters.answered(error.status)
        self.schedule()
        return error_response(error).encode(self.block, self._next_id(), connection=CLOSE)
