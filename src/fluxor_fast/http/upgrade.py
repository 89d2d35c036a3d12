"""Answers that end HTTP on a connection: 101, and another protocol from there on.

An ``Upgrade`` is answered to a request whose head has ``upgrade`` set. Its head leaves as that of
any answer, and then ``converse`` has the bytes of the connection, through a ``Tunnel``, until it
returns. None of them is ever read as HTTP.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection
from typing import ClassVar, Protocol

from fluxor_fast.http.request import Watcher
from fluxor_fast.http.response import Response, names_of, status_line

__all__ = ["Receiver", "Tunnel", "Upgrade"]


class Receiver(Watcher, Protocol):
    """Who reads from a tunnel; told, too, how the connection goes on."""

    def received(self) -> None:
        """Look at what has come: ``Tunnel.take`` has it."""


class Tunnel(Protocol):
    """The bytes of a connection that does not speak HTTP any more."""

    @property
    def tick(self) -> int:
        """What time it is, in coarse seconds: the clock of ``Watcher.check``."""

    @property
    def blocked(self) -> bool:
        """Whether what was written is too much for now: the client does not take it in."""

    @property
    def unread(self) -> bool:
        """Whether the socket is not read, so that what the client says cannot be heard."""

    @property
    def gone(self) -> bool:
        """Whether the client is gone, or sends nothing more."""

    def open(self, receiver: Receiver, head: bytes) -> None:
        """Send the head of the answer, and from now on tell ``receiver`` what happens."""

    def take(self, most: int) -> bytes:
        """Return up to ``most`` bytes of what has come; nothing if that is nothing."""

    def write(self, data: bytes) -> None:
        """Send bytes."""

    async def turn(self) -> None:
        """Let others run."""

    def close(self) -> None:
        """Close the connection when what was written has left."""

    def abort(self) -> None:
        """Drop the connection."""


class Upgrade(Response):
    """An answer behind which another protocol is spoken.

    :param lines: header fields, ready made and checked; ``Upgrade`` and ``Connection`` among them.
    :param request_id: takes the place of the server's.
    """

    __slots__ = ("_ends", "_lines", "_request_id")

    upgrades: ClassVar[bool] = True

    @property
    def said(self) -> Collection[str]:
        """Names of the header fields that it has itself."""
        return names_of(self._lines)

    def __init__(self, lines: bytes, request_id: bytes | None = None) -> None:
        super().__init__(b"", 200)
        self.status = 101
        self._lines = lines
        self._request_id = request_id
        self._ends: list[Callable[[], None]] = []

    def encode(
        self, block: bytes, rid: bytes, *, connection: bytes = b"", head_only: bool = False
    ) -> bytes:
        """Return the head; it says itself what becomes of the connection."""
        rid = self._request_id or rid
        return b"".join((status_line(101), self._lines, block, rid, b"\r\n\r\n"))

    @abstractmethod
    async def converse(self, tunnel: Tunnel, head: bytes) -> bool:
        """Send ``head``, and speak the other protocol until its end.

        Return whether that was an orderly one; False if the client was just gone.
        """

    @abstractmethod
    def leave(self, code: int) -> None:
        """Come to an end: the worker stops. ``code`` tells why, as in RFC 6455, section 7.4.1."""

    def at_end(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when the conversation is over."""
        self._ends.append(callback)

    def concluded(self) -> None:
        """Tell who wants to know that the conversation is over. Called by the server, once."""
        for callback in self._ends:
            callback()
