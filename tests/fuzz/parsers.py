"""Targets without a connection: heads, chunked bodies, and the reader of a byte stream.

Each raises ``AssertionError`` where something that must hold does not; whatever else comes out of
the code under test is a finding too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from fluxor_fast import HTTPError
from fluxor_fast.http.request import Head
from fluxor_fast.server.framing import END, ChunkedDecoder, Reader
from fluxor_fast.server.heads import HeadCache, Limits, parse_head
from tests.fuzz.inputs import expanded, pieces, split
from tests.support.heads import contents
from tests.support.routes import bare_router

__all__ = ["LIMITS", "Plain", "chunked", "heads", "reader"]

LIMITS = Limits(head=512, target=128, headers=12, body=256)
"""Small, so that inputs reach them."""


ROUTER = bare_router("GET /", "GET /items/{item:int}", "POST /echo", "POST /small", small=4)


class Plain(HeadCache):
    """Knows identical heads again, and nothing else: what it says goes by ``parse_head`` alone.

    What the code under test is held against. It is kept from one input to the next.
    """

    KEPT: Final = 128

    def parse(self, raw: bytes) -> Head:
        if len(self.found) == self.KEPT:
            self.found.clear()
        head = self.found[raw] = parse_head(raw, self._router, self.limits)
        return head


PLAIN = Plain(ROUTER, LIMITS, lambda: 0)

# heads


class SmallCache(HeadCache):
    """Full, and looked at whether it pays, after a few heads."""

    REVIEW = 5  # type: ignore[misc]
    REST = 3  # type: ignore[misc]
    ENTRIES = 3

    def __init__(self, served: int = 0) -> None:
        super().__init__(ROUTER, LIMITS, lambda: served, entries=self.ENTRIES)


def heads(data: bytes) -> None:
    """A head means the same to a cache, whatever came before, as to ``parse_head``."""
    cache = SmallCache(len(data) & 7)
    at = 0
    while (stop := data.find(END, at) + 4) >= 4:
        raw, at = data[at:stop], stop
        if len(raw) > LIMITS.head or raw.startswith(b"\r\n"):  # the reader stops these
            continue
        try:
            expected: Any = contents(parse_head(raw, ROUTER, LIMITS))
        except HTTPError as error:
            expected = error.payload()
        known = cache.found.get(raw)
        try:
            head = known or cache.parse(raw)
        except HTTPError as error:
            assert error.payload() == expected, (raw, error.payload(), expected)
            assert raw not in cache.found, "what was refused is remembered"
            continue
        assert contents(head) == expected, (raw, contents(head), expected)
        assert cache.found.get(raw, head) is head
        assert len(cache.found) <= cache.ENTRIES


# chunked bodies


class SmallDecoder(ChunkedDecoder):
    """With limits that inputs reach."""

    LINE = 64
    EXTENSIONS = 128
    TRAILERS = 96


_SIZE = re.compile(rb"0*([0-9a-fA-F]*)([\t ]*;[^\0-\x08\x0a-\x1f\x7f]*)?")
_TRAILER = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+:[^\0-\x08\x0a-\x1f\x7f]*")

Outcome = tuple[str, Any, int]


def model(wire: bytes, limit: int) -> Outcome:
    """Decode in one go, by the grammar of RFC 9112, section 7.1, and the decoder's limits."""
    body = b""
    at = extra = trailers = 0
    last = False
    while True:
        stop = wire.find(b"\n", at)
        if stop < 0 or stop - at >= SmallDecoder.LINE:
            return ("error", 400, 0) if len(wire) - at >= SmallDecoder.LINE else ("more", None, 0)
        line, end = wire[at:stop], stop + 1
        if line[-1:] != b"\r":
            return "error", 400, 0
        line = line[:-1]
        at = end
        if last:
            if not line:
                return "body", body, at
            trailers += len(line) + 2
            if trailers > SmallDecoder.TRAILERS:
                return "error", 431, 0
            if not _TRAILER.fullmatch(line):
                return "error", 400, 0
            continue
        match = _SIZE.fullmatch(line)
        written = len(line) - len(match[2] or b"") if match else 0
        if match is None or not 1 <= written <= 15:
            return "error", 400, 0
        extra += len(line) - len(match[1])
        if extra > SmallDecoder.EXTENSIONS:
            return "error", 400, 0
        size = int(match[1] or b"0", 16)
        if len(body) + size > limit:
            return "error", 413, 0
        if size == 0:
            last = True
            continue
        piece = wire[at : at + size + 2]
        body += piece[:size]
        if not b"\r\n".startswith(piece[size:]):
            return "error", 400, 0
        if len(piece) < size + 2:
            return "more", None, 0
        at += size + 2


def decoded(parts: Iterable[bytes], limit: int) -> Outcome:
    """Feed a decoder as ``Reader`` does: what it leaves comes again, with more behind it."""
    decoder = SmallDecoder(limit)
    rest, taken = b"", 0
    try:
        for part in parts:
            rest += part
            at, body = decoder.feed(rest, 0)
            assert 0 <= at <= len(rest)
            taken += at
            if body is not None:
                return "body", body, taken
            rest = rest[at:]
            assert len(rest) < SmallDecoder.LINE, "more is kept than the longest line"
    except HTTPError as error:
        return "error", error.status, 0
    return "more", None, 0


def chunked(data: bytes) -> None:
    """A chunked body is the same however it is cut, and what the grammar says."""
    plan, wire = split(data)
    limit = LIMITS.body
    expected = model(wire, limit)
    whole = decoded([wire], limit)
    assert whole == expected, (wire, whole, expected)
    cut = decoded(pieces(plan, wire), limit)
    assert cut == expected, (plan, wire, cut, expected)


# the reader


def read(parts: Iterable[bytes], cache: HeadCache) -> tuple[list[Any], Any]:
    """Return the requests of a stream, and the status of its error or where it stands."""
    reader = Reader(cache)
    requests: list[Any] = []
    streamed: bytes | None = None
    try:
        for part in parts:
            reader.feed(part)
            while True:
                if streamed is not None:  # the body of one that is answered before it has come
                    requests[-1] = (requests[-1][0], streamed := streamed + reader.piece())
                    assert len(streamed) <= LIMITS.body
                    if reader.in_body:
                        break
                    streamed = None
                message = reader.next()
                if message is None:
                    break
                head, body = message
                if body is None:
                    body = streamed = b""
                assert len(body) <= LIMITS.body
                requests.append((contents(head), body))
    except HTTPError as error:
        if streamed is not None:  # how much of it came before what is wrong with it is left to cuts
            requests[-1] = (requests[-1][0], None)
        return requests, error.status
    return requests, (reader.partial, reader.in_body)


def reader(data: bytes) -> None:
    """The same requests and the same refusal come of a stream however it is cut.

    Whole it is read with what ``parse_head`` says of each head, cut with a new cache.
    """
    plan, wire = split(data)
    wire = expanded(wire)
    whole = read([wire], PLAIN)
    cut = read(pieces(plan, wire), HeadCache(ROUTER, LIMITS, lambda: 0))
    assert cut == whole, (plan, wire, cut, whole)
