"""Where one request ends and the next begins. Sans I/O: bytes in, (head, body) out.

Rules kept here (sections of RFC 9112):

1. Empty lines before a request line are skipped (2.2); nothing else may stand there.
2. A head has at most ``limits.head`` bytes, known before it is complete (431).
3. A body has the length its head says (6.2), or is chunked (7.1); at most ``limits.body``
   bytes, or the route's own ``max_body`` (413), known before it is read where its length is.
4. Chunk sizes are bounded hexadecimal digits; extensions are bounded and ignored; trailers
   are bounded, must be well formed, and are dropped (7.1.1 and 7.1.2).
5. After an error nothing more is read as a request.
6. What is held of a request that is not complete is a head, or a body with no more beside it
   than the line that is being read (see ``pile``). No byte of a body is looked at twice; of a head
   only its copy grows with what is there (``tests/test_limits.py`` counts).
7. A request that streams is returned when its head is complete; ``piece`` then gives its body as it
   comes, under the same rules.
"""

from __future__ import annotations

import re
import sys
from string import ascii_letters, digits

from fluxor_fast.errors import HTTPError
from fluxor_fast.http.grammar import TOKEN
from fluxor_fast.http.request import CHUNKED, Head
from fluxor_fast.server.heads import HeadCache
from fluxor_fast.server.pile import Pile

__all__ = ["END", "ChunkedDecoder", "Reader"]

END = b"\r\n\r\n"

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})([ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_EMPTY_LINES = re.compile(rb"(?:\r\n)*")
_BEGINNINGS = frozenset(b"!#$%&'*+-.^_`|~\r" + digits.encode() + ascii_letters.encode())
_TRAILER = re.compile(rb"%b:[\t\x20-\x7e\x80-\xff]*" % TOKEN.encode())


class ChunkedDecoder:
    """Decodes a chunked body (RFC 9112, section 7.1).

    :param limit: the most bytes the decoded body may have.
    """

    LINE = 1024  # longest chunk-size line, extensions included
    EXTENSIONS = 16 * 1024  # all size lines of one body beyond their bare digits
    TRAILERS = 8 * 1024  # all trailer lines together

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._body = Pile()
        self._length = 0
        self._missing = 0  # of the chunk that is being read
        self._stage = "size"  # size → data → end → size …, and trailer after the last size
        self._overhead = 0
        self._trailers = 0
        self.interrupted = False

    def feed(self, data: bytes, at: int, most: int = sys.maxsize) -> tuple[int, bytes | None]:
        """Read ``data`` from ``at``; return where it stopped, and the body once it is complete.

        After ``most`` lines it stops and is ``interrupted``: call it again, with the rest.

        :raises HTTPError: 400 for bad framing, 413 beyond the limit, 431 for long trailers.
        """
        self.interrupted = False
        for _ in range(most):
            if self._stage == "data":
                piece = data[at : at + self._missing]
                if piece:
                    self._body.add(piece)
                    at += len(piece)
                    self._missing -= len(piece)
                if self._missing:
                    return at, None
                self._stage = "end"
            if self._stage == "end":
                if len(data) - at < 2:
                    if data[at:] not in (b"", b"\r"):
                        raise HTTPError(400, "a chunk does not end with CRLF")
                    return at, None
                if data[at : at + 2] != b"\r\n":
                    raise HTTPError(400, "a chunk does not end with CRLF")
                at += 2
                self._stage = "size"
            stop = data.find(b"\n", at, at + self.LINE)
            if stop < 0:
                if len(data) - at >= self.LINE:
                    raise HTTPError(400, "a line of the chunked body is too long")
                return at, None
            if stop == at or data[stop - 1] != 0x0D:
                raise HTTPError(400, "a line of the chunked body does not end with CRLF")
            line = data[at : stop - 1]
            at = stop + 1
            if self._stage == "size":
                self._size(line)
            elif line:
                self._trailers += len(line) + 2
                if self._trailers > self.TRAILERS:
                    raise HTTPError(431, "the trailers are too long")
                if not _TRAILER.fullmatch(line):
                    raise HTTPError(400, "a trailer is malformed")
            else:
                return at, self.taken()
        self.interrupted = True
        return at, None

    def taken(self) -> bytes:
        """Return what is decoded and was not taken yet."""
        return self._body.take()

    @property
    def received(self) -> int:
        """Bytes of the body that have arrived, its framing not counted."""
        return self._length - self._missing

    def _size(self, line: bytes) -> None:
        match = _SIZE.fullmatch(line)
        if match is None:
            raise HTTPError(400, "a chunk size is malformed")
        self._overhead += len(line) - len(match[1].lstrip(b"0"))
        if self._overhead > self.EXTENSIONS:
            raise HTTPError(400, "too much in chunk extensions")
        size = int(match[1], 16)
        self._length += size
        if self._length > self._limit:
            raise HTTPError(413, f"the body is longer than {self._limit} bytes")
        self._missing = size
        self._stage = "data" if size else "trailer"


class Reader:
    """Reads the requests of one connection.

    Call ``feed`` with what arrived, then ``next`` until it returns None. ``next`` raises an
    ``HTTPError`` where the stream cannot be read any further.
    """

    __slots__ = ("_at", "_body", "_cache", "_chunks", "_data", "_head", "_missing", "_seen")

    def __init__(self, cache: HeadCache) -> None:
        self._cache = cache
        self._data = b""
        self._at = 0
        self._seen = 0  # up to where a head without its end was looked at, and was right
        self._head: Head | None = None
        self._body: Pile | None = None  # of a body that has come in part
        self._missing = 0
        self._chunks: ChunkedDecoder | None = None

    def feed(self, data: bytes) -> None:
        """Take in bytes that arrived."""
        if self._at == len(self._data):
            self._data = data
        else:
            self._data = self._data[self._at :] + data
        self._seen = max(self._seen - self._at, 0)
        self._at = 0

    @property
    def partial(self) -> bool:
        """Whether a request has begun that is not complete."""
        return self._head is not None or self._at < len(self._data)

    def rest(self) -> bytes:
        """Take what has come behind the last request: it is not to be read as another."""
        data, self._data, self._at, self._seen = self._data[self._at :], b"", 0, 0
        return data

    @property
    def begun(self) -> bool:
        """Whether a request has begun that is not complete; an empty line begins none."""
        return self._head is not None or (
            self._at < len(self._data) and self._data[self._at] != 0x0D
        )

    @property
    def received(self) -> int:
        """Bytes of the body that have arrived; for a body that is being read."""
        if self._chunks is not None:
            return self._chunks.received
        return 0 if self._body is None else self._body.size

    @property
    def in_body(self) -> bool:
        """Whether a head is complete and its body is not."""
        return self._head is not None

    @property
    def interrupted(self) -> bool:
        """Whether ``next`` stopped though there may be more to read: call it again, but later."""
        return self._head is not None and self._chunks is not None and self._chunks.interrupted

    @property
    def awaits_continue(self) -> bool:
        """Whether the client waits for ``100 Continue`` before it sends its body."""
        return (
            self._head is not None
            and self._head.expects_continue
            and not self.received
            and self._at == len(self._data)
        )

    def next(self, most: int = sys.maxsize) -> tuple[Head, bytes | None] | None:
        """Return the next complete request, or None if more bytes are needed.

        Of one that streams the body is None: it must be read with ``piece`` until it is not
        ``in_body`` any more.

        :param most: lines of a chunked body that are read at one go; then it is ``interrupted``.
        """
        head = self._head
        if head is None:
            head = self._next_head()
            if head is None:
                return None
            if head.length == 0:
                return head, b""
            limit = head.route.max_body
            if limit is None:
                limit = self._cache.limits.body
            if head.length > limit:
                raise HTTPError(413, f"the body is longer than {limit} bytes")
            self._head = head
            self._missing = head.length
            self._chunks = ChunkedDecoder(limit) if head.length == CHUNKED else None
            if head.streams:
                return head, None
        body = self._next_body(most)
        if body is None:
            return None
        self._head = self._chunks = None  # with what it has collected
        return head, body

    def piece(self, most: int = sys.maxsize) -> bytes:
        """Return what has come of the body since; nothing if that is nothing.

        :param most: as for ``next``.
        :raises HTTPError: as ``next``.
        """
        if self._chunks is not None:
            self._at, rest = self._chunks.feed(self._data, self._at, most)
            if rest is None:
                return self._chunks.taken()
        else:
            at, self._at = self._at, min(self._at + self._missing, len(self._data))
            rest = self._data[at : self._at]
            self._missing -= len(rest)
            if self._missing:
                return rest
        self._head = self._chunks = None
        return rest

    @property
    def missing(self) -> int:
        """How many bytes of the body have not come; less than 0 if that is not known."""
        return self._missing

    def _next_head(self) -> Head | None:
        data, at = self._data, self._at
        if data.startswith(b"\r\n", at):
            at = self._at = _EMPTY_LINES.match(data, at).end()  # type: ignore[union-attr]
        if at == len(data):  # what a read brought is not kept while the connection is idle
            self._data, self._at, self._seen = b"", 0, 0
            return None
        limits = self._cache.limits
        most = at + limits.head
        stop = data.find(END, max(at, self._seen - 3), most)
        if stop < 0:
            # what is wrong is told alike however the bytes were cut: by the first that is wrong
            if data[at] not in _BEGINNINGS or (data[at] == 0x0D and at + 1 < len(data)):
                raise HTTPError(400, "the request line is malformed")
            new = max(at, self._seen)
            self._seen = len(data)
            if data.count(b"\n", new, most) != data.count(b"\r\n", max(at, new - 1), most):
                raise HTTPError(400, "a line of the head does not end with CRLF")
            if len(data) > most:
                if data.find(b"\r\n", at, at + limits.target + 64) < 0:
                    raise HTTPError(414, "the request line is too long")
                raise HTTPError(431, f"the head is longer than {limits.head} bytes")
            return None
        stop += 4
        raw = data[at:stop]
        head = self._cache.found.get(raw) or self._cache.parse(raw)
        self._at = self._seen = stop
        return head

    def _next_body(self, most: int) -> bytes | None:
        data, at = self._data, self._at
        if self._chunks is not None:
            self._at, body = self._chunks.feed(data, at, most)
            return body
        piece = data[at : at + self._missing]
        self._at = at + len(piece)
        self._missing -= len(piece)
        pile = self._body
        if not self._missing and pile is None:
            return piece
        if pile is None:
            pile = self._body = Pile()
        pile.add(piece)
        if self._missing:
            self._data, self._at, self._seen = b"", 0, 0
            return None
        self._body = None
        return pile.take()
