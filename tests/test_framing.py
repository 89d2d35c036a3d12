"""Where requests end: every case whole, byte by byte, before another request, and cut at random.

The invariant behind all of it: what a stream means does not depend on how it was cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fluxor_fast import HTTPError
from fluxor_fast.server.framing import ChunkedDecoder, Reader
from fluxor_fast.server.heads import HeadCache, Limits
from tests.support.inprocess import head, post
from tests.support.routes import bare_router
from tests.support.seeds import cut, examples, seeded, single

LIMITS = Limits(head=512, target=100, headers=10, body=64)


ROUTER = bare_router(
    "GET /", "POST /", "POST /small", "POST /none", "POST /large", small=4, none=0, large=100_000
)
Message = tuple[str, str, bytes]


@dataclass
class Outcome:
    """What a stream was read as: requests, then perhaps the status that ended it."""

    messages: list[Message]
    status: int | None = None
    partial: bool = False


def reader(limits: Limits = LIMITS) -> Reader:
    return Reader(HeadCache(ROUTER, limits, lambda: 0))


def read(pieces: list[bytes], limits: Limits = LIMITS) -> Outcome:
    it = reader(limits)
    messages: list[Message] = []
    for piece in pieces:
        it.feed(piece)
        try:
            while (message := it.next()) is not None:
                found, body = message
                messages.append((found.method, found.path, body))
        except HTTPError as error:
            return Outcome(messages, error.status)
    return Outcome(messages, partial=it.partial)


def chunked(*chunks: bytes, trailers: bytes = b"") -> bytes:
    parts = [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks]
    return b"".join([*parts, b"0\r\n", trailers, b"\r\n"])


def sent_in_chunks(raw: bytes, path: str = "/") -> bytes:
    return head(path, "Transfer-Encoding: chunked", method="POST") + raw


GET = head()
NEXT: Message = ("GET", "/", b"")


def padded(size: int) -> bytes:
    """Return a head of exactly ``size`` bytes."""
    empty = len(head("/", "X-Pad: "))
    return head("/", "X-Pad: " + "p" * (size - empty))


def aimed(size: int) -> bytes:
    """Return a head whose target has exactly ``size`` bytes."""
    return head("/" + "t" * (size - 1))


GOOD: dict[str, tuple[bytes, list[Message]]] = {
    "no body": (GET, [NEXT]),
    "empty lines before the request (RFC 9112, 2.2)": (b"\r\n\r\n\r\n" + GET, [NEXT]),
    "a body by its length (6.2)": (post("/", b"hello"), [("POST", "/", b"hello")]),
    "a body that looks like a request": (post("/", GET), [("POST", "/", GET)]),
    "an empty body": (post("/", b""), [("POST", "/", b"")]),
    "an empty line behind a body (2.2)": (
        post("/", b"hello") + b"\r\n" + GET,
        [("POST", "/", b"hello"), NEXT],
    ),
    "chunks (7.1)": (sent_in_chunks(chunked(b"hel", b"lo")), [("POST", "/", b"hello")]),
    "no chunk but the last": (sent_in_chunks(chunked()), [("POST", "/", b"")]),
    "chunks that look like framing": (
        sent_in_chunks(chunked(b"\r\n0\r\n\r\n", GET[:20])),
        [("POST", "/", b"\r\n0\r\n\r\n" + GET[:20])],
    ),
    "chunk sizes with zeros and letters": (
        sent_in_chunks(b"000a\r\n0123456789\r\n0A\r\n0123456789\r\n00\r\n\r\n"),
        [("POST", "/", b"0123456789" * 2)],
    ),
    "chunk extensions are ignored (7.1.1)": (
        sent_in_chunks(b'5;a;b=c;d="e f"\r\nhello\r\n0 ;x\r\n\r\n'),
        [("POST", "/", b"hello")],
    ),
    "trailers are dropped (7.1.2)": (
        sent_in_chunks(chunked(b"hello", trailers=b"X-Sum: 1\r\nX-Empty:\r\n")),
        [("POST", "/", b"hello")],
    ),
    "several in their order": (
        GET + post("/", b"a") + sent_in_chunks(chunked(b"b")) + post("/small", b"cccc") + GET,
        [NEXT, ("POST", "/", b"a"), ("POST", "/", b"b"), ("POST", "/small", b"cccc"), NEXT],
    ),
    "a head of just the limit": (padded(LIMITS.head), [NEXT]),
    "a target of just the limit": (aimed(LIMITS.target), [("GET", "/" + "t" * 99, b"")]),
    "a body of just the limit": (post("/", b"x" * 64), [("POST", "/", b"x" * 64)]),
    "chunks of just the limit": (
        sent_in_chunks(chunked(b"x" * 60, b"x" * 4)),
        [("POST", "/", b"x" * 64)],
    ),
    "a route's own larger limit": (post("/large", b"x" * 999), [("POST", "/large", b"x" * 999)]),
    "no body where none may be": (post("/none", b""), [("POST", "/none", b"")]),
    "just the limit of a size line": (
        sent_in_chunks(b"1;" + b"x" * 1020 + b"\r\na\r\n0\r\n\r\n"),
        [("POST", "/", b"a")],
    ),
    "just the limit of the trailers": (
        sent_in_chunks(b"0\r\n" + (b"X: " + b"y" * 507 + b"\r\n") * 16 + b"\r\n"),
        [("POST", "/", b"")],
    ),
}

BAD: dict[str, tuple[bytes, int]] = {
    "a bare LF ends a line": (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
    "bare LFs end the head": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "a bare CR before the request": (b"\r" + GET, 400),
    "a bare CR before a request that is not complete": (b"\r" + GET[:9], 400),
    "a space before the request": (b" " + GET, 400),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "a NUL": (b"\0", 400),
    "a head beyond the limit": (padded(LIMITS.head + 1), 431),
    "a head far beyond the limit": (padded(LIMITS.head * 4), 431),
    "a head without an end": (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200, 431),
    "a target beyond the limit": (aimed(LIMITS.target + 1), 414),
    "a target beyond the limit of the head": (aimed(LIMITS.head * 2), 414),
    "a target without an end": (b"GET /" + b"t" * 1000, 414),
    "a bare LF in a head beyond the limit": (b"GET / HTTP/1.1\r\nA: b\n" + b"c" * 2000, 400),
    "a body beyond the limit": (post("/", b"x" * 65), 413),
    "a body beyond the route's own limit": (post("/small", b"xxxxx"), 413),
    "a body where none may be": (post("/none", b"x"), 413),
    "a body beyond any memory": (
        head("/", "Content-Length: 999999999999999999", method="POST"),
        413,
    ),
    "a chunk beyond the limit": (sent_in_chunks(b"41\r\n"), 413),
    "chunks that are together beyond the limit": (
        sent_in_chunks(chunked(b"x" * 60, b"x" * 5)),
        413,
    ),
    "chunks beyond the route's own limit": (sent_in_chunks(b"5\r\n", "/small"), 413),
    "no chunk size": (sent_in_chunks(b"\r\n"), 400),
    "a chunk size that is no number": (sent_in_chunks(b"xyz\r\n"), 400),
    "a negative chunk size": (sent_in_chunks(b"-1\r\n"), 400),
    "a signed chunk size": (sent_in_chunks(b"+1\r\na\r\n0\r\n\r\n"), 400),
    "a chunk size with 0x": (sent_in_chunks(b"0x1\r\na\r\n0\r\n\r\n"), 400),
    "a chunk size with an underscore": (sent_in_chunks(b"1_0\r\n"), 400),
    "a chunk size of 16 digits": (sent_in_chunks(b"1000000000000000\r\n"), 400),
    "a space before a chunk size": (sent_in_chunks(b" 1\r\na\r\n0\r\n\r\n"), 400),
    "a space behind a chunk size": (sent_in_chunks(b"1 \r\na\r\n0\r\n\r\n"), 400),
    "a chunk size line that ends with LF": (sent_in_chunks(b"1\na\r\n0\r\n\r\n"), 400),
    "a chunk size line with a CR inside": (sent_in_chunks(b"1;\r;\r\na\r\n0\r\n\r\n"), 400),
    "a chunk extension with a NUL": (sent_in_chunks(b"1;\0\r\na\r\n0\r\n\r\n"), 400),
    "a chunk that is longer than it says": (sent_in_chunks(b"1\r\nab\r\n0\r\n\r\n"), 400),
    "a chunk that ends with LF": (sent_in_chunks(b"1\r\na\n0\r\n\r\n"), 400),
    "a chunk that ends with CR": (sent_in_chunks(b"1\r\na\r0\r\n\r\n"), 400),
    "a size line beyond its limit": (
        sent_in_chunks(b"1;" + b"x" * 1021 + b"\r\na\r\n0\r\n\r\n"),
        400,
    ),
    "a size line without an end": (sent_in_chunks(b"1;" + b"x" * 5000), 400),
    "too much in extensions": (
        sent_in_chunks((b"1;" + b"x" * 1000 + b"\r\na\r\n") * 17, "/large"),
        400,
    ),
    "too many zeros before sizes": (
        sent_in_chunks((b"0" * 14 + b"1\r\na\r\n") * 1200, "/large"),
        400,
    ),
    "trailers beyond their limit": (
        sent_in_chunks(b"0\r\n" + (b"X: " + b"y" * 507 + b"\r\n") * 17 + b"\r\n"),
        431,
    ),
    "a trailer without a colon": (sent_in_chunks(b"0\r\nX-Sum\r\n\r\n"), 400),
    "a trailer with a space before the colon": (sent_in_chunks(b"0\r\nX : 1\r\n\r\n"), 400),
    "a folded trailer": (sent_in_chunks(b"0\r\nX: 1\r\n 2\r\n\r\n"), 400),
    "a trailer with a NUL": (sent_in_chunks(b"0\r\nX: \0\r\n\r\n"), 400),
    "a trailer that ends with LF": (sent_in_chunks(b"0\r\nX: 1\n\r\n"), 400),
    "trailers that end with LF": (sent_in_chunks(b"0\r\n\n"), 400),
}


def ways(name: str, data: bytes) -> list[list[bytes]]:
    rng = seeded(name)
    return [[data], single(data), *(cut(data, rng) for _ in range(5))]


@pytest.mark.parametrize("name", GOOD)
def test_what_is_well_formed_is_read_alike_however_it_was_cut(name: str) -> None:
    data, messages = GOOD[name]
    for pieces in ways(name, data):
        assert read(pieces) == Outcome(messages)


@pytest.mark.parametrize("name", GOOD)
def test_the_next_request_begins_where_this_one_ends(name: str) -> None:
    data, messages = GOOD[name]
    for pieces in ways(name, data + GET):
        assert read(pieces) == Outcome([*messages, NEXT])


@pytest.mark.parametrize("name", GOOD)
def test_no_request_is_read_before_its_last_byte(name: str) -> None:
    data, messages = GOOD[name]
    outcome = read([data[:-1]])
    assert outcome == Outcome(messages[:-1], partial=True)


@pytest.mark.parametrize("name", BAD)
def test_what_is_malformed_is_refused_alike_however_it_was_cut(name: str) -> None:
    data, status = BAD[name]
    for before, messages in ((b"", []), (post("/", b"a"), [("POST", "/", b"a")])):
        for pieces in ways(name, before + data):
            assert read(pieces) == Outcome(messages, status)
        for pieces in ways(name, before + data + GET):
            assert read(pieces) == Outcome(messages, status)


def test_a_body_that_is_too_long_is_refused_before_it_is_read() -> None:
    """413 needs the head alone where the length is known, one size line where it is not."""
    for raw in (
        head("/", "Content-Length: 65", method="POST"),
        head("/small", "Content-Length: 5", method="POST"),
        sent_in_chunks(b"41\r\n"),
    ):
        assert read(single(raw)[:-1]).status is None
        assert read([raw]).status == 413


def test_endless_empty_lines_are_nothing() -> None:
    it = reader()
    for _ in range(1000):
        it.feed(b"\r\n\r\n")
        assert it.next() is None
        assert not it.partial


@pytest.mark.parametrize(
    "data",
    [GET, post("/", b"secret"), sent_in_chunks(chunked(b"secret")), GET + b"\r\n", GET + GET],
)
def test_an_idle_connection_keeps_nothing_of_what_it_sent(data: bytes) -> None:
    """Thousands of them would hold a packet each, and a token longer than it is needed."""
    for pieces in ([data], single(data)):
        it = reader()
        for piece in pieces:
            it.feed(piece)
            while it.next() is not None:
                pass
        assert not it.partial
        held = (getattr(it, name) for name in Reader.__slots__)
        assert not any(isinstance(one, bytes) and one for one in held)


def test_partial_and_in_body_tell_where_the_reader_stands() -> None:
    it = reader()
    seen = []
    for byte in single(b"\r\n" + post("/", b"ab")):
        it.feed(byte)
        done = it.next()
        seen.append((it.partial, it.in_body))
        if done:
            break
    head_bytes = len(post("/", b"ab")) - 2
    assert seen[:2] == [(True, False), (False, False)]  # CR, LF
    assert seen[2:-2] == [(True, False)] * (head_bytes - 1) + [(True, True)]
    assert seen[-2:] == [(True, True), (False, False)]


@pytest.mark.parametrize("framing", ["Content-Length: 2", "Transfer-Encoding: chunked"])
def test_continue_is_awaited_until_the_body_begins(framing: str) -> None:
    raw = head("/", framing, "Expect: 100-continue", method="POST")
    it = reader()
    it.feed(raw[:-1])
    assert it.next() is None and not it.awaits_continue
    it.feed(raw[-1:])
    assert it.next() is None and it.awaits_continue
    if framing.startswith("C"):
        it.feed(b"a")
        assert it.next() is None and not it.awaits_continue
        it.feed(b"b")
    else:
        it.feed(chunked(b"ab"))
    assert it.next() is not None and not it.awaits_continue


def test_a_head_that_was_seen_before_is_not_parsed_again() -> None:
    it = reader()
    it.feed(GET + GET)
    first, second = it.next(), it.next()
    assert first is not None and second is not None
    assert first[0] is second[0]


# for all streams

_bodies = st.binary(max_size=64)
_requests = st.one_of(
    st.just((GET, NEXT)),
    st.just((b"\r\n" + GET, NEXT)),
    _bodies.map(lambda body: (post("/", body), ("POST", "/", body))),
    st.lists(st.binary(min_size=1, max_size=12), max_size=5).map(
        lambda chunks: (sent_in_chunks(chunked(*chunks)), ("POST", "/", b"".join(chunks)))
    ),
)


def at_places(data: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(marks)]


_places = st.lists(st.integers(0, 10_000), max_size=12)


@examples(300)
@given(requests=st.lists(_requests, max_size=6), places=_places)
def test_every_stream_of_requests_is_read_in_order(
    requests: list[tuple[bytes, Message]], places: list[int]
) -> None:
    data = b"".join(raw for raw, _ in requests)
    assert read(at_places(data, places)) == Outcome([message for _, message in requests])


_SCRAPS = [b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b";", b"0", b"ff", b"\r\n\r\n", b"Host: b\r\n"]
_SCRAPS += [b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"x" * 300, b"\xff", GET]


@examples(500)
@given(
    requests=st.lists(_requests, min_size=1, max_size=3),
    wounds=st.lists(
        st.tuples(st.integers(0, 10_000), st.integers(0, 9), st.sampled_from(_SCRAPS)),
        min_size=1,
        max_size=3,
    ),
    places=_places,
)
@example(requests=[(GET, NEXT)], wounds=[(16, 0, b"x" * 300), (16, 0, b"\n" * 300)], places=[])
def test_what_a_damaged_stream_means_does_not_depend_on_how_it_was_cut(
    requests: list[tuple[bytes, Message]], wounds: list[tuple[int, int, bytes]], places: list[int]
) -> None:
    data = b"".join(raw for raw, _ in requests)
    for place, removed, put in wounds:
        place %= len(data) + 1
        data = data[:place] + put + data[place + removed :]
    whole = read([data])
    assert read(at_places(data, places)) == whole
    assert read(single(data)) == whole


@examples(300)
@given(
    chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    after=st.binary(max_size=10),
    places=_places,
)
def test_the_decoder_stops_just_behind_the_body(
    chunks: list[bytes], after: bytes, places: list[int]
) -> None:
    raw = chunked(*chunks)
    decoder = ChunkedDecoder(limit=1000)
    left = b""
    for piece in at_places(raw, places):
        data = left + piece
        at, body = decoder.feed(data, 0)
        left = data[at:]
    data = left + after
    if body is None:
        at, body = decoder.feed(data, 0)
        left = data[at:]
    else:
        left = data
    assert (body, left) == (b"".join(chunks), after)


@examples(300)
@given(sizes=st.lists(st.integers(1, 50), max_size=8), limit=st.integers(0, 200))
def test_the_decoder_never_holds_more_than_its_limit(sizes: list[int], limit: int) -> None:
    """It refuses at the size line of the chunk that goes beyond, before that chunk's data."""
    decoder: Any = ChunkedDecoder(limit)
    total = 0
    for size in sizes:
        if total + size > limit:
            with pytest.raises(HTTPError) as caught:
                decoder.feed(b"%x\r\n" % size, 0)
            assert caught.value.status == 413
            return
        decoder.feed(b"%x\r\n%b\r\n" % (size, b"x" * size), 0)
        total += size
    assert decoder.feed(b"0\r\n\r\n", 0) == (5, b"x" * total)
