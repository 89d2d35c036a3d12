"""Answers of ASGI applications: header fields as they came, checked, and framed by the server.

Rules:

1. A name is a token and a value has no control characters (RFC 9110, section 5.5), as for every
   answer here. What is not is an error of the application; nothing is sent then.
2. Framing is the server's: ``Transfer-Encoding``, ``Date`` and ``Connection`` of the application
   are left out (but for ``Connection: close``, which is kept to). Its ``Content-Length`` must be
   right; without one a complete body gets its length.
3. The application's ``X-Request-ID`` takes the place of the server's own.
4. Applications repeat their header fields: what a list of them comes to is remembered. Lists that
   set cookies are not, and what is remembered is bounded.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterable
from typing import Any, ClassVar, Final, NamedTuple

from fluxor_fast.http.grammar import BAD_VALUE, TOKEN, is_length, is_request_id
from fluxor_fast.http.response import Response, names_of, status_line
from fluxor_fast.http.streaming import BodySender, BodyWriter

__all__ = ["AsgiResponse", "AsgiStream", "Fields", "fields_of"]

_TOKEN = re.compile(TOKEN.encode()).fullmatch
_BAD_VALUE = re.compile(BAD_VALUE.encode()).search

REMEMBERED: Final = 256  # lists of fields; when there are more all are forgotten
LONGEST: Final = 2048  # bytes of one that is remembered


class Fields(NamedTuple):
    """What a list of header fields comes to."""

    lines: bytes
    """Ready ones, ``Content-Length`` and what rule 2 leaves out not among them."""
    length: int | None
    request_id: bytes | None
    closes: bool
    starts: dict[int, bytes]
    """By status, of answers with a body of ``length``: all up to the server's own lines."""


_known: dict[tuple[Any, ...], Fields] = {}
_last: tuple[tuple[Any, ...], Fields] = (), Fields(b"", None, None, False, {})


def fields_of(headers: Iterable[Iterable[bytes]]) -> Fields:
    """Return what ``headers`` come to.

    :raises ValueError: for what no answer may have as a header; ``TypeError`` for what is no pair
        of bytes.
    """
    global _last
    key = tuple(headers)
    last, found_last = _last
    if key == last:  # comparing costs less than a hash
        return found_last
    try:
        found = _known.get(key)
    except TypeError:  # they are lists
        key = tuple(tuple(pair) for pair in key)
        found = _known.get(key)
    if found is None:
        found, cookie = _read(key)
        if not cookie and len(found.lines) <= LONGEST:
            if len(_known) >= REMEMBERED:
                _known.clear()
            _known[key] = found
            _last = key, found
    else:
        _last = key, found
    return found


def _read(headers: tuple[Any, ...]) -> tuple[Fields, bool]:
    lines: list[bytes] = []
    length: int | None = None
    request_id: bytes | None = None
    closes = cookie = False
    for name, value in headers:
        if not _TOKEN(name) or _BAD_VALUE(value):
            raise ValueError(f"not a header that an answer may have: {name!r}: {value!r}")
        lower = name.lower()
        if lower == b"content-length":
            if not is_length(value) or length not in (None, int(value)):
                raise ValueError(f"not a length of a body: {value!r}")
            length = int(value)
        elif lower == b"connection":
            closes = closes or b"close" in value.lower()
        elif lower == b"x-request-id" and is_request_id(value):
            request_id = bytes(value)
        elif lower not in (b"transfer-encoding", b"date"):
            cookie = cookie or lower == b"set-cookie"
            lines.append(b"%b: %b\r\n" % (name, value))
    return Fields(b"".join(lines), length, request_id, closes, {}), cookie


class AsgiResponse(Response):
    """A complete answer."""

    __slots__ = ("_fields",)

    answered: ClassVar[bool] = True

    def __init__(self, status: int, fields: Fields, body: bytes) -> None:
        # not the parent's: there is nothing to be checked or copied
        self.status = status
        self.body = body
        self._fields = fields

    @property
    def said(self) -> Collection[str]:
        """Names of the header fields that it has itself."""
        return names_of(self._fields.lines)

    def encode(
        self, block: bytes, rid: bytes, *, connection: bytes = b"", head_only: bool = False
    ) -> bytes:
        """Return the bytes on the wire.

        :raises ValueError: if the body has not the length that the application has given.
        """
        lines, length, own, _, starts = self._fields
        body = self.body
        status = self.status
        if own is not None:
            rid = own
        if length == len(body) and not (connection or head_only):
            start = starts.get(status)
            if start is not None:
                return b"".join((start, block, rid, b"\r\n\r\n", body))
            if status not in (204, 304):
                starts[status] = b"%b%bContent-Length: %d\r\n" % (
                    status_line(status), lines, length,
                )  # fmt: skip
        if head_only or status in (204, 304):
            # an answer to HEAD may tell the length of the body that it does not have
            if head_only and status not in (204, 304):
                connection += b"Content-Length: %d\r\n" % (len(body) if length is None else length)
            return b"".join((status_line(status), lines, connection, block, rid, b"\r\n\r\n"))
        if length is not None and length != len(body):
            raise ValueError(f"the body has {len(body)} bytes, not its length of {length}")
        return b"%b%bContent-Length: %d\r\n%b%b%b\r\n\r\n%b" % (
            status_line(status), lines, len(body), connection, block, rid, body,
        )  # fmt: skip


class AsgiStream(BodySender):
    """An answer in pieces: the application writes them itself, by ``writer``."""

    __slots__ = ("_done", "_fields", "_opened", "gone")

    answered: ClassVar[bool] = True

    def __init__(self, status: int, fields: Fields) -> None:
        self.status = status
        self.length = fields.length
        self._fields = fields
        self.gone = False  # nothing that is written reaches anybody
        loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[BodyWriter | None] = loop.create_future()
        self._done: asyncio.Future[None] = loop.create_future()

    @property
    def said(self) -> Collection[str]:
        """Names of the header fields that it has itself."""
        return names_of(self._fields.lines)

    def head(self, block: bytes, rid: bytes, lines: bytes) -> bytes:
        """Return status line and header fields."""
        rid = self._fields.request_id or rid
        parts = (status_line(self.status), self._fields.lines, lines, block, rid, b"\r\n\r\n")
        return b"".join(parts)

    # what the application does

    async def writer(self) -> BodyWriter | None:
        """Return where to write the body; None if there is none to be written."""
        return await asyncio.shield(self._opened)

    def finish(self) -> None:
        """Note that the body is complete."""
        if not self._done.done():
            self._done.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Note that the body breaks off."""
        if not self._done.done():
            self._done.set_exception(error)
            self._done.exception()  # it may be that nobody asks

    # what the server does

    async def send(self, writer: BodyWriter) -> None:
        """Wait until the application has written the body."""
        self._opened.set_result(writer)
        await self._done

    async def close(self) -> None:
        """Let the application know that nobody reads on."""
        if not self._opened.done():
            self._opened.set_result(None)
        elif not self._done.done() or self._done.cancelled():
            self.gone = True
            writer = self._opened.result()
            if writer is not None:
                writer.wake()
