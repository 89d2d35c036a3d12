"""Answers that send their body themselves, piece by piece: streams, events, files.

A ``BodySender`` has a head like any ``Response`` and writes its body in ``send``, through a
``BodyWriter`` that the server hands it. The writer knows the framing; what is written is the body.

Rules:

1. With a ``length`` the body has that many bytes: what would exceed it is not sent, and a body that
   is too short or too long ends with the connection, never looking complete. Without one it is
   chunked (RFC 9112, section 7.1), or ends with the connection for a client of HTTP/1.0.
2. The head leaves with the first piece of the body, or with ``begin``. What goes wrong before
   is answered as any error; afterwards there is no second answer, the connection is dropped.
3. ``send`` is not called for HEAD, nor for a status without a body; ``close`` always is, once.
4. When the client goes away, ``send`` is cancelled.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Mapping
from typing import Any, ClassVar, Protocol

from fluxor_fast.http.response import BINARY, Response

__all__ = ["BodySender", "BodyWriter", "StreamingResponse", "close_iterator"]


class BodyWriter(Protocol):
    """What ``BodySender.send`` writes to: one answer's place on a connection."""

    @property
    def transport(self) -> Any:
        """The connection's ``asyncio`` transport; to be written to only between ``drained`` and
        the next ``write``, and only as much as ``sent`` is then told."""

    @property
    def tls(self) -> bool:
        """Whether what the transport is given is encrypted on its way to the socket."""

    async def begin(self) -> None:
        """Wait for the answers before this one, and send the head if it has not left yet."""

    async def write(self, data: bytes) -> None:
        """Send a piece of the body (and the head, if it has not left yet); nothing if it is empty.

        Returns when there is room for the next piece: while the client does not take in what it
        was sent, this waits.

        :raises ValueError: if the body would become longer than its length; nothing is sent then.
        :raises ClientDisconnected: if the client is gone.
        """

    async def drained(self) -> None:
        """Wait until all that was written is with the kernel."""

    def sent(self, count: int) -> None:
        """Note that ``count`` bytes of the body were sent in another way than ``write``.

        :raises ValueError: if the body is longer than its length now.
        """

    async def blocked(self, writable: Awaitable[object]) -> None:
        """Wait for ``writable``, which ends when the client takes in more: for no longer than the
        write timeout, after which the connection is dropped."""

    def wake(self) -> None:
        """Have who waits here look again: the client may be gone."""

    def keep_alive(self, seconds: float, data: bytes) -> None:
        """From now on send ``data`` as a piece of the body when nothing else was sent for
        ``seconds`` (kept to about a second)."""


class BodySender(Response):
    """An answer that sends its body itself.

    :param length: of the body in bytes; None if it is not known beforehand. Of a status without a
        body it is not told.
    """

    __slots__ = ("length",)

    streams: ClassVar[bool] = True
    keeps_slot: ClassVar[bool] = True
    """Whether it holds its handler's slot until the body is sent. One that then mostly waits should
    not: its clients would take the slots of others. Nor does one, whatever this says, that has to
    wait for earlier answers on its connection."""

    def __init__(
        self,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        content_type: str | None = None,
        length: int | None = None,
    ) -> None:
        super().__init__(b"", status, headers, content_type)
        if length is not None and length < 0:
            raise ValueError(f"a body has no length of {length} bytes")
        self.length = length

    @abstractmethod
    async def send(self, writer: BodyWriter) -> None:
        """Write the body."""

    async def close(self) -> None:
        """Let go of what the body was to come from. Called once, after ``send`` if that was."""


class StreamingResponse(BodySender):
    """An answer whose body comes from an asynchronous iterable.

    :param chunks: bytes, or text (sent as UTF-8). Empty ones are skipped. If it has ``aclose``
        (asynchronous generators have) that is called at the end, whatever the end is.
    :param status: 200 to 599; with 204 and 304 there is no body, and ``chunks`` is only closed.
    :param headers: as for ``Response``.
    :param content_type: by default a byte stream.
    :param length: of the body in bytes, if it is known beforehand. It must then be kept to.
    """

    __slots__ = ("chunks",)

    def __init__(
        self,
        chunks: AsyncIterable[bytes | str],
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        content_type: str | None = None,
        length: int | None = None,
    ) -> None:
        super().__init__(status, headers, content_type, length)
        if content_type is None and not self.bodiless:
            self.content_type = BINARY
        self.chunks = aiter(chunks)

    async def send(self, writer: BodyWriter) -> None:
        """Write the chunks as they come."""
        async for chunk in self.chunks:
            piece = chunk.encode() if isinstance(chunk, str) else chunk
            if not isinstance(piece, bytes):
                raise TypeError(f"a chunk is bytes or text, not {type(piece).__name__}")
            await writer.write(piece)

    async def close(self) -> None:
        """Close the iterable, so that its ``finally`` clauses run now."""
        await close_iterator(self.chunks)


async def close_iterator(iterator: AsyncIterator[Any]) -> None:
    """Close an asynchronous iterator if it can be closed."""
    aclose = getattr(iterator, "aclose", None)
    if aclose is not None:
        await aclose()
