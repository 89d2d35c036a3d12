"""Requests that are valid by construction, with what must be read of them, and ways to hurt them.

The grammar is that of RFC 9112 with all bytes that it allows; what the server refuses by choice
(other codings, a Host that is none) is not part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from urllib.parse import quote

from hypothesis import strategies as st

TOKEN = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
PCHAR = "abcxyzABC019-._~!$&'()*+,;=:@"
SPACE = st.sampled_from([b"", b" ", b" ", b"\t", b"  \t "])
MEANT = frozenset(
    b"host content-length transfer-encoding connection expect upgrade x-request-timeout-ms".split()
)


@dataclass(frozen=True)
class Built:
    """One request as bytes, and what they say."""

    wire: bytes
    method: str
    path: str
    query: str
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes
    keep_alive: bool = True


_methods = st.sampled_from(
    ["GET", "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "PROPFIND"]
)
_segment = st.one_of(st.text(PCHAR, max_size=6), st.text(max_size=3).map(lambda t: quote(t, "")))
_paths = st.lists(_segment, min_size=1, max_size=4).map(lambda found: "/" + "/".join(found))
_queries = st.one_of(st.just(""), st.text(PCHAR + "/?", max_size=10).map("?".__add__))
_hosts = st.sampled_from(
    [b"a", b"a.example:8080", b"", b"[2001:db8::1]:80", b"192.0.2.1", b"x_y%41~", b"a:"]
)
_names = (
    st.text(TOKEN, min_size=1, max_size=12)
    .map(str.encode)
    .filter(lambda name: name.lower() not in MEANT)
)
_text = st.lists(st.sampled_from([9, *range(0x20, 0x7F), *range(0x80, 0x100)]), max_size=12)
_values = _text.map(lambda codes: bytes(codes).strip(b" \t"))
_field_lines = st.lists(
    st.one_of(
        st.tuples(_names, _values),
        st.sampled_from(
            [
                (b"Accept", b"*/*"),
                (b"X-Request-ID", b"abc-1"),
                (b"Cookie", b'a="b; c'),
                (b"Connection", b"keep-alive"),
                (b"Upgrade", b"h2c"),
                (b"Transfer_Encoding", b"chunked"),
                (b"X-Request-Timeout-Ms", b"60000"),
            ]
        ),
    ),
    max_size=5,
)
_extension = st.one_of(
    st.tuples(st.text(TOKEN, min_size=1, max_size=5), st.text(TOKEN, min_size=1, max_size=5)).map(
        "=".join
    ),
    st.text(TOKEN, min_size=1, max_size=5),
    st.text(PCHAR + " \t;", max_size=8).map(lambda inside: f'q="{inside}"'),
).map(lambda one: f";{one}".encode())
_extensions = st.lists(_extension, max_size=2).map(b"".join)
_trailers = st.lists(
    st.tuples(_names, _values).map(lambda field: b"%b: %b\r\n" % field), max_size=2
).map(b"".join)


@st.composite
def _bodies(draw: st.DrawFn) -> tuple[list[tuple[bytes, bytes]], bytes, bytes]:
    """The fields that frame a body, the body as it is sent, and the body."""
    kind = draw(st.sampled_from(["none", "length", "chunks"]))
    if kind == "none":
        return [], b"", b""
    if kind == "length":
        body = draw(st.binary(max_size=40))
        digits = b"0" * draw(st.integers(0, 3)) + b"%d" % len(body)
        return [(b"Content-Length", digits)], body, body
    chunks = draw(st.lists(st.binary(min_size=1, max_size=20), max_size=4))
    sent = []
    for chunk in [*chunks, b""]:
        size = b"0" * draw(st.integers(0, 2)) + (draw(st.sampled_from([b"%x", b"%X"])) % len(chunk))
        line = size + draw(_extensions) + b"\r\n"
        sent.append(line + chunk + b"\r\n" if chunk else line)
    coding = draw(st.sampled_from([b"chunked", b"Chunked", b"CHUNKED"]))
    raw = b"".join([*sent, draw(_trailers), b"\r\n"])
    return [(b"Transfer-Encoding", coding)], raw, b"".join(chunks)


@st.composite
def requests(draw: st.DrawFn, *, last: bool = False) -> Built:
    """One request; ``last``: perhaps one that closes the connection."""
    method, path, query = draw(_methods), draw(_paths), draw(_queries)
    framing, sent, body = draw(_bodies())
    host = draw(_hosts)
    fields = [(b"Host", host), *framing, *draw(_field_lines)]
    if framing and draw(st.booleans()):
        fields.append((b"Expect", b"100-continue"))
    fields = draw(st.permutations(fields))
    closes = last and draw(st.booleans())
    if closes:
        fields.append((b"Connection", b"close"))
    target = (path + query).encode()
    if draw(st.integers(0, 7)) == 0 and host:
        target = b"http://b:1" + target
    lines = [b"%b %b HTTP/1.1" % (method.encode(), target)]
    for name, value in fields:
        shown = draw(st.sampled_from([name, name, name.lower(), name.upper()]))
        # llhttp takes no tab behind a coding or its like: only spaces stand around those
        space = st.just(b" ") if name.lower() in MEANT else SPACE
        lines.append(shown + b":" + draw(space) + value + draw(space))
    told = b"b:1" if target.startswith(b"http") else host
    return Built(
        wire=draw(st.sampled_from([b"", b"", b"", b"\r\n"]))
        + b"\r\n".join(lines)
        + b"\r\n\r\n"
        + sent,
        method=method,
        path=path,
        query=query[1:],
        fields=tuple((n.lower(), told if n == b"Host" else v) for n, v in fields),
        body=body,
        keep_alive=not closes,
    )


@st.composite
def pipelines(draw: st.DrawFn) -> list[Built]:
    """Requests one behind the other."""
    found = draw(st.lists(requests(), max_size=3))
    return [*found, draw(requests(last=True))]


places = st.lists(st.integers(0, 10_000), max_size=12)
"""Where to cut; see ``at_places``."""


def at_places(data: bytes, marks: list[int]) -> list[bytes]:
    """Return ``data`` cut at ``marks``, which may lie anywhere."""
    found = sorted({place % (len(data) + 1) for place in marks} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(found)]


SCRAPS = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";", b",", b"\x0b", b"\x7f", b"\xff",
    b"0\r\n\r\n", b"\r\n\r\n", b"5\r\n", b"Host: b\r\n", b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"Expect: x\r\n",
    b"Content-Length: 999\r\n",
    b"HTTP/1.0", b"HTTP/2.0", b"CONNECT ", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"x" * 3000,
]  # fmt: skip
wounds = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0, 10_000), st.integers(1, 255)),
        st.tuples(st.just("delete"), st.integers(0, 10_000), st.integers(1, 9)),
        st.tuples(st.just("double"), st.integers(0, 10_000), st.integers(1, 40)),
        st.tuples(st.just("put"), st.integers(0, 10_000), st.integers(0, len(SCRAPS) - 1)),
        st.tuples(st.just("swap"), st.integers(0, 10_000), st.integers(0, 50)),
    ),
    min_size=1,
    max_size=3,
)
"""What ``hurt`` does."""


def hurt(data: bytes, done: list[tuple[str, int, int]]) -> bytes:
    """Return ``data`` with bytes flipped, taken out, doubled or put in, and lines swapped."""
    for kind, place, what in done:
        at = place % (len(data) + 1)
        if kind == "flip":
            data = data[:at] + bytes(byte ^ what for byte in data[at : at + 1]) + data[at + 1 :]
        elif kind == "delete":
            data = data[:at] + data[at + what :]
        elif kind == "double":
            data = data[: at + what] + data[at:]
        elif kind == "put":
            data = data[:at] + SCRAPS[what] + data[at:]
        else:
            lines = data.split(b"\r\n")
            one, other = place % len(lines), what % len(lines)
            lines[one], lines[other] = lines[other], lines[one]
            data = b"\r\n".join(lines)
    return data
