"""A connection behind a request that offered another protocol (``http.upgrade``).

Rules:

1. Nothing behind such a request is read as HTTP, whatever its answer: a proxy before us may take
   the connection for the client's from there on. If it is refused, what came is dropped, and the
   connection ends with the answer.
2. What comes before the answer is held. Beyond ``HIGH`` bytes that nobody takes, the socket is not
   read, until half of that is left.
3. The time limits of HTTP end with the request; that for what the client does not take in holds on.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from fluxor_fast.http.upgrade import Receiver
from fluxor_fast.server.streaming import HIGH

if TYPE_CHECKING:
    from fluxor_fast.server.protocol import HttpProtocol

__all__ = ["Tunnel"]


class Tunnel:
    """The ``http.upgrade.Tunnel`` of one connection; ``held``: what has come already."""

    __slots__ = ("_buffered", "_connection", "_pieces", "_receiver", "full")

    def __init__(self, connection: HttpProtocol, held: bytes) -> None:
        self._connection = connection
        self._pieces = deque((held,) if held else ())
        self._buffered = len(held)
        self._receiver: Receiver | None = None
        self.full = False  # the socket is not to be read

    # what the connection calls

    def feed(self, data: bytes) -> None:
        """Take in what has come."""
        self._pieces.append(data)
        self._buffered += len(data)
        if self._receiver is not None:
            self._receiver.received()
        if self._buffered > HIGH and not self.full:
            self.full = True
            self._connection.pause_tunnel()

    # what the receiver calls

    @property
    def tick(self) -> int:
        """What time it is."""
        return self._connection.runner.tick

    @property
    def blocked(self) -> bool:
        """Whether the client does not take in what was written."""
        return self._connection.write_paused

    @property
    def unread(self) -> bool:
        """Whether the socket is not read."""
        return self._connection.paused

    @property
    def gone(self) -> bool:
        """Whether the client is gone, or sends nothing more."""
        return self._connection.gone

    def open(self, receiver: Receiver, head: bytes) -> None:
        """Send the head, and from now on tell ``receiver`` what happens."""
        self._receiver = receiver
        self._connection.watch(receiver)
        self._connection.write_tunnel(head)

    def take(self, most: int) -> bytes:
        """Return up to ``most`` bytes of what has come."""
        if not self._pieces:
            return b""
        piece = self._pieces.popleft()
        if len(piece) > most:
            self._pieces.appendleft(piece[most:])
            piece = piece[:most]
        self._buffered -= len(piece)
        if self.full and self._buffered <= HIGH // 2:
            self.full = False
            self._connection.go_on()
        return piece

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self._connection.write_tunnel(data)

    async def turn(self) -> None:
        """Let others run."""
        await self._connection.runner.turns.next()

    def close(self) -> None:
        """Close the connection when what was written has left."""
        if self._receiver is not None:
            self._connection.unwatch(self._receiver)
            self._receiver = None
            self._pieces.clear()
            self._connection.end_tunnel()

    def abort(self) -> None:
        """Drop the connection."""
        self._connection.abort()
