"""A connection in memory: what the server takes for a transport, and the client's end of it.

The server's end does what uvloop does for a socket, as far as a protocol can tell:

1. The protocol is called by the loop alone, never from within what it calls itself, and in a
   context of the server's: what a test keeps in context variables does not reach handlers.
2. What a client sends comes in pieces of ``READ`` bytes at most, and not while reading is paused.
   While one waits the client does too before the next, as before a full socket.
3. Beyond ``HIGH`` bytes that the client has not taken in, the protocol is told to pause, below a
   quarter of that to resume.
4. After ``close`` what was written is still taken in; the connection is lost when that is done.

Two things are simpler than with a kernel in between. There is one buffer each way. And a client
that leaves while an answer is owed to it is known to be gone at once, not at the next write.

All of it happens in the server's loop. The client may call from another thread only through that.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import Any, Final

__all__ = ["Wire"]

READ: Final = 256_000
"""What uvloop reads from a socket at one go."""
HIGH: Final = 64 * 1024
"""The high-water mark of asyncio's transports."""


class Wire(asyncio.Transport):
    """One connection.

    :param protocol: what serves it; ``connection_made`` is called from here.
    :param context: the context in which it is called.
    :param peer: address and port of the client.
    """

    def __init__(self, protocol: asyncio.Protocol, context: Context, peer: tuple[str, int]) -> None:
        super().__init__({"peername": peer, "sockname": ("127.0.0.1", 80)})
        self._loop = asyncio.get_running_loop()
        self._protocol: asyncio.BaseProtocol = protocol
        self._context = context
        self._high, self._low = HIGH, HIGH // 4
        # from the client
        self._sent = b""  # not read yet
        self._reading = True
        self._closing = False
        self._left = False  # the client is gone
        # to the client
        self._written = bytearray()
        self._full = False  # the protocol was told so
        self._ended = False  # nothing more is written
        self._lost = False
        # the client waits, for the one or the other
        self._sending: asyncio.Future[None] | None = None
        self._receiving: asyncio.Future[None] | None = None
        context.run(protocol.connection_made, self)

    # the client's end

    async def send(self, data: bytes) -> None:
        """Send ``data``; wait while the server reads too little of it.

        :raises BrokenPipeError: if the server reads no more.
        """
        for at in range(0, len(data), READ):
            while self._sent and not self._closing:
                self._sending = self._loop.create_future()
                await self._sending
            if self._closing:
                raise BrokenPipeError("the server has closed the connection")
            self._sent = data[at : at + READ]
            self._soon(self._deliver)

    async def receive(self, most: int) -> bytes:
        """Return up to ``most`` bytes as soon as there are some; none at the end."""
        while not (self._written or self._ended):
            self._receiving = self._loop.create_future()
            await self._receiving
        data = bytes(self._written[:most])
        del self._written[:most]
        self._soon(self._balance)
        return data

    @property
    def readable(self) -> bool:
        """Whether ``receive`` would not wait."""
        return bool(self._written) or self._ended

    def encrypt(self) -> None:
        """Have the server see the rest as TLS, without a handshake."""
        self._extra["sslcontext"] = object()  # type: ignore[attr-defined]

    def leave(self) -> None:
        """Go away, and take nothing more in."""
        if not self._left:
            self._left = True
            self._soon(self._gone)

    def _gone(self) -> None:
        if not self._closing:
            protocol = self._protocol
            assert isinstance(protocol, asyncio.Protocol)
            owed = protocol.eof_received()
            self._lose(ConnectionResetError("the client has left") if owed else None)
        else:
            self._lose(None)

    # the server's end

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Have the client take in ``data``; dropped once the connection is lost."""
        if not (self._lost or self._ended):
            self._written += data
            self._wake(self._receiving)
            self._soon(self._balance)

    def can_write_eof(self) -> bool:
        """Return that this end can be closed by itself."""
        return True

    def write_eof(self) -> None:
        """Have the client see the end behind what was written, and go on reading."""
        self._ended = True
        self._wake(self._receiving)

    def close(self) -> None:
        """Read no more; end when what was written is taken in."""
        if not self._closing:
            self._closing = self._ended = True
            self._wake(self._sending, self._receiving)
            self._soon(self._balance)

    def abort(self) -> None:
        """End now."""
        self.close()
        self._lose(None)

    def is_closing(self) -> bool:
        """Return whether it was closed."""
        return self._closing

    def pause_reading(self) -> None:
        """Hold the client up."""
        self._reading = False

    def resume_reading(self) -> None:
        """Go on reading."""
        self._reading = True
        self._soon(self._deliver)

    def is_reading(self) -> bool:
        """Return whether the client is read."""
        return self._reading and not self._closing

    def get_write_buffer_size(self) -> int:
        """Return how many bytes the client has not taken in."""
        return len(self._written)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the low and the high mark, in bytes."""
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the marks, in bytes."""
        self._high = HIGH if high is None else high
        self._low = self._high // 4 if low is None else low
        self._soon(self._balance)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Have another protocol serve the connection from now on."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return what serves the connection."""
        return self._protocol

    # in the loop

    def _soon(self, call: Any) -> None:
        self._loop.call_soon(call, context=self._context)

    @staticmethod
    def _wake(*waiters: asyncio.Future[None] | None) -> None:
        for waiter in waiters:
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def _deliver(self) -> None:
        """Give the protocol the piece that waits."""
        if self._sent and self._reading and not self._closing:
            protocol = self._protocol
            assert isinstance(protocol, asyncio.Protocol)
            data, self._sent = self._sent, b""
            protocol.data_received(data)
            self._wake(self._sending)

    def _balance(self) -> None:
        """Tell the protocol how full the buffer is, and that the connection is lost in the end."""
        if self._lost:
            return
        size = len(self._written)
        if self._full and size <= self._low:
            self._full = False
            self._protocol.resume_writing()
        elif not self._full and size > self._high:
            self._full = True
            self._protocol.pause_writing()
        if self._closing and not self._written:
            self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = self._closing = self._ended = True
            self._wake(self._sending, self._receiving)
            self._soon(lambda: self._protocol.connection_lost(error))
