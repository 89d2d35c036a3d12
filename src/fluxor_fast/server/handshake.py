"""TLS on a connection: its handshake, and what HTTP over it does in another way.

Rules:

1. A connection takes its place (``max_connections``, descriptors, its client's connections) when
   it is accepted, or its PROXY header has been read, before the handshake. Without a place it is
   dropped unanswered: an answer would cost a handshake.
2. A handshake has as long as a head has. One that fails has its alert sent, the end of the stream
   behind it, and ``LINGER`` seconds to take it in.
3. A client that ends its side of TLS gets nothing more: uvloop closes then. A request that is in
   progress is abandoned.
4. What the client has not taken in lies in the transport below, which alone knows how much. If
   that is too much, the connection is paused as it would be without TLS (see ``TlsProtocol``).
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from fluxor_fast.server.addresses import peer_of
from fluxor_fast.server.clients import Place
from fluxor_fast.server.common import Service
from fluxor_fast.server.protocol import LINGER, HttpProtocol
from fluxor_fast.server.tls import Certificates, Context

__all__ = ["Handshake", "TlsProtocol"]

HIGH_WATER: Final = 64 * 1024
"""Bytes kept in each direction between TLS and HTTP; uvloop's own limits are 512 and 256 KiB."""


class Handshake(asyncio.Protocol):
    """A connection until TLS stands."""

    __slots__ = ("_certificates", "_client", "_early", "_failed", "_peer", "_service", "_since",
                 "_task", "_transport", "closed")  # fmt: skip

    def __init__(self, service: Service, certificates: Certificates) -> None:
        self._service = service
        self._certificates = certificates
        self._transport: Any = None
        self._task: asyncio.Task[None] | None = None
        self._peer: str | None = None  # told by a PROXY header
        self._client: Place = ()
        self._early = b""  # what came before uvloop took over
        self.closed = False
        self._failed = False
        self._since = 0.0

    # what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or drop it when there are too many."""
        self._transport = transport
        service = self._service
        service.runner.fresh += 1
        if service.take_place():
            self._begin()
        else:
            self._turn_away("connections")

    def take_over(self, transport: asyncio.Transport, peer: str | None, *, tls: bool) -> None:
        """Take a connection that has its place, and whose PROXY header has been read.

        :param peer: the address it said; None if that of the transport is meant.
        :param tls: whether it said that the client speaks TLS with the proxy: it does with us.
        """
        self._transport, self._peer = transport, peer
        transport.pause_reading()  # what is behind the header fits into uvloop's buffer, no more
        self._begin()

    def _begin(self) -> None:
        service = self._service
        if service.clients is not None:
            place = service.clients.acquire(self._peer or peer_of(self._transport))
            if place is None:
                service.connections.release(1)
                self._turn_away("client")
                return
            self._client = place
        service.open.add(self)
        self._task = asyncio.get_running_loop().create_task(self._shake_hands())

    def _turn_away(self, reason: str) -> None:
        self.closed = True
        self._service.runner.refuse_connection(reason)
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Keep what comes before the task has begun."""
        self._early += data

    async def _shake_hands(self) -> None:
        loop = asyncio.get_running_loop()
        service, raw = self._service, self._transport
        protocol = TlsProtocol(service, raw, self._peer, self._client)
        context = self._certificates.context
        try:
            if raw.is_closing():
                return
            # just before uvloop's own first step, which start_tls puts behind it in the queue
            loop.call_soon(self._hand_over, context)
            transport = await loop.start_tls(
                raw,
                protocol,
                context,
                server_side=True,
                ssl_handshake_timeout=service.timeouts.head,
                ssl_shutdown_timeout=service.timeouts.write,
            )
            if transport is not None and not transport.is_closing():
                service.open.discard(self)  # its place goes over to the protocol
                protocol.begin(transport)
        except OSError:  # a failed handshake (ssl.SSLError), one that took too long, or a reset
            pass
        finally:
            self.closed = True
            service.leave(self, self._client)

    def _hand_over(self, context: Context) -> None:
        """Give uvloop's TLS what has come, and have it tell of a failure."""
        context.on_failure = self._fail
        early, self._early = self._early, b""
        if early:
            engine = self._transport.get_protocol()
            engine.get_buffer(len(early))[: len(early)] = early
            engine.buffer_updated(len(early))

    def _fail(self) -> None:
        asyncio.get_running_loop().call_soon(self._hang_up)  # behind the alert

    def _hang_up(self) -> None:
        if not self._transport.is_closing():
            self._failed = True
            self._since = self._service.runner.tick
            self._transport.write_eof()

    # what the worker calls

    def check(self, tick: int) -> None:
        """End a failed handshake whose alert has had its time."""
        if self._failed and tick - self._since > LINGER:
            self.abort()

    def close_idle(self) -> None:
        """Close: nothing is owed on a connection that has not begun."""
        self._transport.close()

    def abort(self) -> None:
        """Drop the connection."""
        self._transport.abort()


class TlsProtocol(HttpProtocol):
    """HTTP over a connection on which TLS stands.

    :param raw: the transport below TLS.
    :param peer: who a PROXY header says it is; None: whom the transport knows.
    :param client: where it is counted as one of its client's.

    uvloop hands all that is written to the transport below, and tells of a full buffer only
    when that one is full and as much again has been written. So after an answer whose permit is
    kept, the buffer below is looked at. If it is above its high-water mark, a limit of 0 makes
    uvloop pause this protocol, and resume it when the buffer below has drained.
    """

    __slots__ = ("_raw",)

    def __init__(self, service: Service, raw: Any, peer: str | None, client: Place) -> None:
        super().__init__(service)
        self._raw = raw
        self._peer, self._client = peer, client

    def begin(self, transport: Any) -> None:
        """Begin with HTTP; the connection has its places already."""
        self.transport = transport
        self.since = self.runner.tick
        transport.set_write_buffer_limits(high=HIGH_WATER)
        transport.set_read_buffer_limits(high=HIGH_WATER)
        self.service.open.add(self)

    def eof_received(self) -> bool:
        """Let the connection go; uvloop answers the client's ``close_notify``."""
        if super().eof_received():
            self.abort()
        return False

    def resume_writing(self) -> None:
        """Go on reading."""
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        super().resume_writing()

    def _release_if_sent(self) -> None:
        if self._kept and not (self.write_paused or self.closed):
            raw = self._raw
            if raw.get_write_buffer_size() > raw.get_write_buffer_limits()[1]:
                self.transport.set_write_buffer_limits(high=0)
        super()._release_if_sent()

    def unsent(self) -> int:
        """Return how many bytes the client has not taken in; most lie in the transport below."""
        return super().unsent() + int(self._raw.get_write_buffer_size())
