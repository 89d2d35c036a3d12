"""Compressed answers for clients that take them: gzip, and with ``fluxor-fast[compression]`` zstd
and brotli. From Python 3.14 on zstd is there without it.

Rules (sections of RFC 9110):

1. Of what ``Accept-Encoding`` allows (12.5.3) the coding with the highest weight is taken; of those
   alike zstd, then brotli, then gzip. ``x-gzip`` is gzip.
2. Compressed is what has ``minimum`` to ``largest`` bytes and a type that is text by nature. Not:
   204, 206, 304; what has a ``Content-Encoding`` or ``Content-Range`` already; ``no-transform`` in
   ``Cache-Control``; files above ``files.SMALL``, which the kernel sends; and streams, unless
   wanted. What does not become smaller stays.
3. ``Vary: Accept-Encoding`` is on every answer, whether compressed or not (12.5.5).
4. An ``ETag`` becomes weak: the bytes are others (8.8.3.3). ``Accept-Ranges`` is taken away.
5. Compression takes time in the event loop, about 10 ms for a megabyte: hence ``largest``. On
   blocking routes it is in the thread.

BREACH: an answer over TLS that holds a secret (a CSRF token, an address) *and* repeats something
the client sent, tells the secret by its length to who can make a victim's browser send requests
and watch the wire. Bearer tokens of an API in its answers are safe while nothing sent is repeated
beside them. Leave such routes out with ``Cache-Control: no-transform``, or mask the secret anew in
each answer.

Cost alone: 0.6 µs per request of a client that takes no coding, 0.9 µs for an answer that is too
small (``python bench/middleware.py compression compression_small``), of which 0.4 is what the first
layer of a route costs; compressing 4.1 KB of JSON: zstd 16 µs, gzip 45 µs, brotli 43 µs.
"""

from __future__ import annotations

import re
import sys
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from typing import Any, ClassVar, Final, Protocol

from fluxor_fast.composition import Layer
from fluxor_fast.http.grammar import TOKEN
from fluxor_fast.http.request import Request
from fluxor_fast.http.response import Json, Response, encode_value, to_response
from fluxor_fast.http.streaming import StreamingResponse, close_iterator

brotli: Any = None
zstd: Any = None
with suppress(ImportError):  # the extra need not be installed
    brotli = import_module("brotli")
with suppress(ImportError):
    zstd = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")

__all__ = ["AVAILABLE", "Compression", "best_coding"]

VARY: Final = b"Vary: Accept-Encoding\r\n"
GZIP_LEVEL: Final = 5
BROTLI_QUALITY: Final = 4
ZSTD_LEVEL: Final = 3
_GZIP: Final = 31  # window bits that ask zlib for gzip's frame

_TYPES = re.compile(
    r"text/[^;]+|[^;]+\+(?:json|xml|text)"
    r"|application/(?:json|javascript|xml|wasm|x-ndjson|yaml|graphql|manifest\+json)"
    r"|image/(?:svg\+xml|bmp|x-icon|vnd\.microsoft\.icon)|font/(?:ttf|otf)",
    re.IGNORECASE,
)
_MEMBER = re.compile(
    rf"[ \t]*(?P<coding>{TOKEN})[ \t]*"
    r"(?:;[ \t]*[qQ]=(?P<weight>0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)[ \t]*)?"
)


# a zstd compressor is dear to make, and no two threads may share one
_of_thread = threading.local()


def _gzip(body: bytes) -> bytes:
    return zlib.compress(body, GZIP_LEVEL, _GZIP)


def _brotli(body: bytes) -> bytes:
    made: bytes = brotli.compress(body, quality=BROTLI_QUALITY)
    return made


def _zstd(body: bytes) -> bytes:
    try:
        compressor = _of_thread.zstd
    except AttributeError:
        compressor = _of_thread.zstd = zstd.ZstdCompressor(level=ZSTD_LEVEL)
    made: bytes = compressor.compress(body, compressor.FLUSH_FRAME)
    return made


_COMPRESSORS: Final[dict[str, Callable[[bytes], bytes]]] = {
    **({"zstd": _zstd} if zstd is not None else {}),
    **({"br": _brotli} if brotli is not None else {}),
    "gzip": _gzip,
}
AVAILABLE: Final = tuple(_COMPRESSORS)
"""Codings there are, the preferred first."""


def best_coding(accepted: str, codings: Sequence[str]) -> str | None:
    """Return the coding to use for a client with this ``Accept-Encoding``; None: none.

    A member that is malformed is not counted.

    :param codings: those that can be used, the preferred first.
    """
    weights: dict[str, float] = {}
    for member in accepted.split(","):
        match = _MEMBER.fullmatch(member)
        if match is not None:
            name = match["coding"].lower()
            weights["gzip" if name == "x-gzip" else name] = float(match["weight"] or 1)
    others = weights.get("*", 0.0)
    best, most = None, 0.0
    for coding in codings:
        weight = weights.get(coding, others)
        if weight > most:
            best, most = coding, weight
    # who would rather have it as it is says so (its weight is 1 only if it is named)
    return best if most >= weights.get("identity", 0.0) else None


@lru_cache(maxsize=256)
def _is_text(content_type: str) -> bool:
    return _TYPES.fullmatch(content_type.partition(";")[0].strip()) is not None


class Compression(Layer):
    """Middleware: compresses answers.

    :param minimum: bytes below which a body stays as it is: it would fit into one packet anyway.
    :param largest: bytes beyond which it does, for the time it would take.
    :param codings: of ``zstd``, ``br`` and ``gzip``, the preferred first; by default all there are.
    :param streams: also compress a ``StreamingResponse``, each piece readable when it is there.
    :raises ValueError: for a coding that is not there; ``fluxor-fast[compression]`` has them all.
    """

    once: ClassVar[bool] = True
    takes_json: ClassVar[bool] = True

    def __init__(
        self,
        *,
        minimum: int = 1024,
        largest: int = 1_048_576,
        codings: Sequence[str] = AVAILABLE,
        streams: bool = False,
    ) -> None:
        for coding in codings:
            if coding not in _COMPRESSORS:
                raise ValueError(
                    f"the coding {coding!r} is not there ({', '.join(AVAILABLE)} are);"
                    " fluxor-fast[compression] has zstd and br"
                )
        self.minimum = minimum
        self.largest = largest
        self.codings = tuple(codings)
        self.streams = streams

    def lines(self, request: Request) -> bytes:
        """Say that answers vary."""
        return VARY

    def finish(self, request: Request, value: Any) -> Any:
        """Compress what is worth it."""
        memo = request.head.memo
        try:
            coding: str | None = memo[self]
        except KeyError:
            accepted = request.headers.get("accept-encoding", "")
            coding = memo[self] = best_coding(accepted, self.codings)
        if coding is None:
            return value
        if type(value) is dict:
            value = Json(encode_value(value))
        if type(value) is Json and not self.minimum <= len(value) <= self.largest:
            return value
        response = to_response(value)
        if response.streams:
            if self.streams and type(response) is StreamingResponse and _may(response):
                return _Pieces(response, coding)
        elif self.minimum <= len(response.body) <= self.largest and _may(response):
            self._compress(response, coding)
        return response

    @staticmethod
    def _compress(response: Response, coding: str) -> None:
        body = _COMPRESSORS[coding](response.body)
        if len(body) < len(response.body):
            response.body = body
            _mark(response, coding)


def _may(response: Response) -> bool:
    """Return whether the answer may be in another coding (rule 2)."""
    if response.status in (204, 206, 304) or not _is_text(response.content_type or ""):
        return False
    for name, value in response.headers.items():
        name = name.lower()
        if name in ("content-encoding", "content-range") or (
            name == "cache-control" and "no-transform" in value.lower()
        ):
            return False
    return True


def _mark(response: Response, coding: str) -> None:
    """Say how the answer is encoded (rule 4)."""
    headers = response.headers
    for name in list(headers):
        lower = name.lower()
        if lower == "etag" and not headers[name].startswith("W/"):
            headers[name] = f"W/{headers[name]}"
        elif lower == "accept-ranges":
            del headers[name]
    headers["Content-Encoding"] = coding


class _Compressor(Protocol):
    """Compresses piece by piece."""

    def piece(self, data: bytes) -> bytes:
        """Return bytes from which all of ``data`` can be read."""

    def end(self) -> bytes:
        """Return what completes the body."""


class _GzipPieces:
    def __init__(self) -> None:
        self._compressor = zlib.compressobj(GZIP_LEVEL, wbits=_GZIP)

    def piece(self, data: bytes) -> bytes:
        return self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._compressor.flush()


class _BrotliPieces:
    def __init__(self) -> None:
        self._compressor = brotli.Compressor(quality=BROTLI_QUALITY)

    def piece(self, data: bytes) -> bytes:
        made: bytes = self._compressor.process(data) + self._compressor.flush()
        return made

    def end(self) -> bytes:
        made: bytes = self._compressor.finish()
        return made


class _ZstdPieces:
    def __init__(self) -> None:
        self._compressor = zstd.ZstdCompressor(level=ZSTD_LEVEL)

    def piece(self, data: bytes) -> bytes:
        made: bytes = self._compressor.compress(data, self._compressor.FLUSH_BLOCK)
        return made

    def end(self) -> bytes:
        made: bytes = self._compressor.flush()
        return made


_PIECES: Final[dict[str, Callable[[], _Compressor]]] = {
    "gzip": _GzipPieces,
    "br": _BrotliPieces,
    "zstd": _ZstdPieces,
}


class _Pieces(StreamingResponse):
    """A stream, compressed piece by piece."""

    __slots__ = ("_inner",)

    def __init__(self, inner: StreamingResponse, coding: str) -> None:
        _mark(inner, coding)
        self._inner = inner.chunks
        super().__init__(
            _compressed(inner.chunks, _PIECES[coding]()),
            inner.status,
            inner.headers,
            inner.content_type,
        )

    async def close(self) -> None:
        """Close both iterables; the inner one also if nothing was sent."""
        await super().close()
        await close_iterator(self._inner)


async def _compressed(
    chunks: AsyncIterator[bytes | str], compressor: _Compressor
) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        data = chunk.encode() if isinstance(chunk, str) else chunk
        if data:
            yield compressor.piece(data)
    yield compressor.end()
