"""A connection: its place among the others, its socket, and who is at the other end.

What is read from it is ``protocol``'s business, what is sent on it ``answering``'s.

Rules:

1. A connection has its place from ``connection_made`` on, or what went before (a handshake, a
   PROXY header) has it and hands it over. It is given back once, when the connection is lost.
2. One too many is told so and closed, and nothing that it sends is read: first by the count of
   all clients together, then its client's own need not be looked at.
3. Who the other end is is asked for when it is wanted, and seen through trusted proxies only here.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from abc import abstractmethod
from contextlib import suppress
from typing import Any, Final

from fluxor_fast.http.request import BothEnds, Head
from fluxor_fast.server.addresses import peer_of
from fluxor_fast.server.clients import Place
from fluxor_fast.server.common import Service

__all__ = ["Connection"]

_AT_ONCE: Final = struct.pack("ii", 1, 0)
"""``struct linger``: on, for no time."""


class Connection(asyncio.Protocol):
    """The part of a connection's protocol object that knows nothing of requests."""

    __slots__ = (
        "_both",
        "_client",
        "_closing",
        "_made",
        "_peer",
        "_stopped",
        "_tls",
        "closed",
        "direct",
        "notes",
        "paused",
        "runner",
        "service",
        "since",
        "transport",
    )

    def __init__(self, service: Service) -> None:
        self.service = service
        self.runner = service.runner
        self.transport: Any = None
        self._peer: str | None = None  # asked for when wanted, or told by a PROXY header
        self._both: BothEnds | None = None  # asked for when wanted
        self.direct: BothEnds | None = None  # the same, if no head can say otherwise
        self._tls = False  # whether such a header says that the client speaks TLS
        self._client: Place = ()
        self.notes: tuple[Head, Any] | None = None  # not ours: see ``http.request.Connection``
        self.closed = False
        self._closing = False  # nothing more is read as a request
        self.paused = False  # the socket is not read
        self.since = self._made = self._stopped = service.runner.tick

    # its place

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it unread when there are too many (rule 2)."""
        self.transport = transport
        self.runner.fresh += 1
        if self.service.take_place():
            self._begin()
        else:
            self._turn_away("connections")

    def take_over(self, transport: asyncio.Transport, peer: str | None, *, tls: bool) -> None:
        """Take a connection that has its place, and whose PROXY header has been read.

        :param peer: the address it said; None if that of the transport is meant.
        :param tls: whether it said that the client speaks TLS with the proxy.
        """
        self.transport = transport
        self._peer, self._tls = peer, tls
        self._begin()

    def _begin(self) -> None:
        # the connection has its place, and from here on ``peer`` is who it is
        service = self.service
        if service.clients is None or self.count_for(self.peer):
            service.open.add(self)
        else:
            service.connections.release(1)
            self._turn_away("client")

    def count_for(self, address: str) -> bool:
        """Count the connection as one of the client at ``address``; False: that has too many.

        Again where the address turns out to be another: then it is counted under that alone.
        """
        clients = self.service.clients
        if clients is not None:
            place = clients.acquire(address)
            if place is None:
                return False
            clients.release(self._client)
            self._client = place
        return True

    def _turn_away(self, reason: str) -> None:
        self.closed = self._closing = True
        self.transport.write(self.runner.refuse_connection(reason))
        self.transport.close()

    # the socket

    def _pause(self) -> None:
        if not self.paused and not self.closed:
            self.paused = True
            self._stopped = self.runner.tick
            self.transport.pause_reading()

    @abstractmethod
    def go_on(self) -> None:
        """Go on reading if nothing speaks against it."""

    @abstractmethod
    def check(self, tick: int) -> None:
        """End the connection if it has outlived a timeout. Called by the sweep."""

    @abstractmethod
    def close_idle(self) -> None:
        """Close the connection if nothing is owed on it and nothing has begun."""

    def abort(self) -> None:
        """Drop the connection, answer or not."""
        if not self.closed:
            self.transport.abort()

    def reset(self) -> None:
        """Drop the connection of a client that does not read, and what it was to read.

        Else the kernel keeps the socket in FIN-WAIT-1 with all that the client has not taken in,
        megabytes of it, for as long as the client answers its probes, and no limit of ours counts
        it any more (socket(7), ``SO_LINGER``; nginx has ``reset_timedout_connection`` for this).
        """
        if not self.closed:
            sock = self.transport.get_extra_info("socket")
            if sock is not None:
                with suppress(OSError):  # closed already
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            self.abort()

    def unsent(self) -> int:
        """Return how many bytes written to the connection the client has not taken in.

        That is what waits in the process and what waits in the kernel (``SIOCOUTQ``, tcp(7)): the
        kernel lets us write on only when a third of its buffer is free, so for a slow client the
        first alone may stand still for a minute.
        """
        waiting = int(self.transport.get_write_buffer_size())
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            try:
                raw = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
            except (OSError, ValueError):  # closed, or of a kind that cannot tell
                return waiting
            waiting += struct.unpack("i", raw)[0]
        return waiting

    # what requests ask

    @property
    def app(self) -> Any:
        """The application."""
        return self.service.app

    @property
    def peer(self) -> str:
        """Address of the other end, or what a PROXY header said of it.

        ``unix`` if it came through a Unix socket, empty if it is not known.
        """
        peer = self._peer
        if peer is None:
            peer = self._peer = peer_of(self.transport)
        return peer

    @property
    def tls(self) -> bool:
        """Whether the other end speaks TLS with this server."""
        return self.transport.get_extra_info("sslcontext") is not None

    @property
    def _scheme(self) -> str:
        """What the other end speaks, or what a PROXY header said that its client does."""
        return "https" if self._tls or self.tls else "http"

    @property
    def client_certificate(self) -> dict[str, Any] | None:
        """The certificate that the other end has shown and proved, if any."""
        return self.transport.get_extra_info("peercert") or None

    @property
    def both_ends(self) -> BothEnds:
        """Who is connected with whom."""
        both = self._both
        if both is None:
            name = self.transport.get_extra_info("peername")
            known = isinstance(name, tuple) and peer_of(self.transport) == self.peer
            port = name[1] if known else 0  # that of a proxy's client is not known
            own = self.transport.get_extra_info("sockname")
            server = tuple(own[:2]) if isinstance(own, tuple) else (own, None) if own else None
            both = self._both = BothEnds(
                (self.peer, port),
                server,
                self._scheme,
                self.service.proxies.trusts(self.peer),
            )
            if not both.proxied:
                self.direct = both
        return both

    def client_of(self, head: Head) -> str:
        """Address of the client, seen through trusted proxies."""
        both = self._both or self.both_ends
        return self.service.proxies.client(self.peer, head) if both.proxied else both.client[0]

    def scheme_of(self, head: Head) -> str:
        """Scheme that the client used, seen through trusted proxies."""
        both = self._both or self.both_ends
        if both.proxied:
            return self.service.proxies.scheme(self.peer, self._scheme, head)
        return both.scheme

    def host_of(self, head: Head) -> str:
        """Host that the client asked for, seen through trusted proxies."""
        return self.service.proxies.host(self.peer, head)
