"""A connection whose first bytes are a PROXY header: read it, then hand over to what follows.

Rules:

1. The header is wanted on every connection, and only from trusted proxies: whether one is sent is
   never guessed from the bytes, or a client could say who it is (specification, section 5). A Unix
   socket is trusted: who may connect there is a matter of its file.
2. What is not a whole header ends the connection at once and without an answer. So does a header
   that is not there in the time that a head may take.
3. The connection counts from the start, and keeps its place when it is handed over. Without one
   it is told so, unless the client wants TLS: then it is dropped.
4. After the header this is out of the way: the transport calls the next protocol itself.
5. What was refused is counted by its reason (``PROXY_REFUSALS``): nothing of it was a request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from fluxor_fast.server.addresses import UNIX, peer_of
from fluxor_fast.server.common import Behind, Service
from fluxor_fast.server.proxy_header import ProxyHeader, ProxyHeaderError

__all__ = ["Complaints", "ProxiedProtocol"]

log = logging.getLogger("fluxor_fast.proxied")


class Complaints:
    """Tells why connections were closed, in at most one line a second."""

    def __init__(self) -> None:
        self._count = 0
        self._told: int | None = None

    def add(self, why: str, peer: str, tick: int) -> None:
        """Note that a connection of ``peer`` was closed; ``why`` has no bytes of the client."""
        self._count += 1
        if tick != self._told:
            log.warning(
                "connections closed for want of a PROXY header: %d; the last, from %s: %s",
                self._count,
                peer or "-",
                why,
            )
            self._count, self._told = 0, tick


class ProxiedProtocol(asyncio.Protocol):
    """The protocol object of one connection until its header has been read.

    :param behind: makes the protocol that the connection is handed over to.
    :param tls: whether that one speaks TLS.
    """

    __slots__ = (
        "_behind",
        "_complaints",
        "_header",
        "_peer",
        "_since",
        "_tls",
        "_transport",
        "closed",
        "service",
    )

    def __init__(
        self,
        service: Service,
        complaints: Complaints,
        behind: Callable[[], Behind],
        *,
        tls: bool = False,
    ) -> None:
        self.service = service
        self._complaints = complaints
        self._behind = behind
        self._tls = tls
        self._header = ProxyHeader()
        self._transport: Any = None
        self._peer = ""
        self._since = service.runner.tick
        self.closed = False

    # what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it unread."""
        self._transport = transport
        self._peer = peer_of(transport)
        service = self.service
        service.runner.fresh += 1
        if self._peer != UNIX and not service.proxies.trusts(self._peer):
            self._drop("untrusted", "it is no trusted proxy")
        elif service.take_place():
            service.open.add(self)
        else:
            self.closed = True
            refusal = service.runner.refuse_connection("connections")
            if self._tls:
                self._transport.abort()
            else:
                self._transport.write(refusal)
                self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Take in bytes of the header; hand over what is behind it."""
        if self.closed:
            return
        try:
            origin = self._header.feed(data)
        except ProxyHeaderError as error:
            self._drop("malformed", str(error))
            return
        if origin is None:
            return
        self.closed = True
        self.service.open.discard(self)  # its place is the next one's
        behind = self._behind()
        self._transport.set_protocol(behind)
        behind.take_over(self._transport, origin.address, tls=origin.tls)
        if self._header.rest:
            behind.data_received(self._header.rest)

    def eof_received(self) -> None:
        """Let the connection go; without a byte it was a look whether we are there."""
        if self._header.begun and not self.closed:
            self._drop("cut_off", "a part of a header, then the end")

    def connection_lost(self, exc: Exception | None) -> None:
        """Give back the place."""
        self.closed = True
        self.service.leave(self)

    # what the worker calls

    def check(self, tick: int) -> None:
        """End the connection if its header takes too long. Called by the sweep."""
        if not self.closed and tick - self._since > self.service.timeouts.head:
            self._drop("timeout", "it took too long")

    def close_idle(self) -> None:
        """Close: nothing is owed before there is a header."""
        self.closed = True
        self._transport.close()

    def abort(self) -> None:
        """Drop the connection."""
        self.closed = True
        self._transport.abort()

    def _drop(self, reason: str, why: str) -> None:
        runner = self.service.runner
        runner.counters.without_header(reason)
        runner.schedule()
        self._complaints.add(why, self._peer, runner.tick)
        self.abort()
