"""Answers: from what a handler returns to the bytes on the wire.

``to_response`` turns any value a handler may return into a ``Response``; ``encode_json``,
``encode_ready`` and ``encode_text`` are the short forms that the server takes for a dict, for
``Json`` and for text, with 200.

Rules kept here:

1. A header name is a token, a value has no control characters (RFC 9110, section 5.5): an
   answer cannot be split by what a handler puts into it.
2. 1xx, 204 and 304 have neither body nor ``Content-Length`` (RFC 9110, sections 8.6 and 15).
3. An answer to HEAD has the length of the body and no body (RFC 9110, section 9.3.2).
4. What is kept from one answer for the next is bounded, and is never a header's value: that may be
   a secret, and ever new.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any, ClassVar, Final

import orjson

from fluxor_fast.errors import HTTPError, phrase_of
from fluxor_fast.http.grammar import BAD_VALUE, TOKEN

__all__ = [
    "JSON",
    "Json",
    "Response",
    "encode_json",
    "encode_ready",
    "encode_text",
    "encode_value",
    "error_response",
    "header_line",
    "json_response",
    "names_of",
    "status_line",
    "to_response",
    "without",
]

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
BINARY = "application/octet-stream"

_new = object.__new__
_TOKEN = re.compile(TOKEN)
_BAD_VALUE = re.compile(BAD_VALUE)
_SEVERAL = {b"vary", b"set-cookie"}
_OWNED = {"content-length", "transfer-encoding", "connection", "date"}

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {phrase_of(status.value)}\r\n".encode()
    for status in HTTPStatus
}

SHORT: Final = 2048
"""Bytes of a body up to which what tells its length is ready."""
END: Final = b"\r\n\r\n"


def _start_of(content_type: str) -> Callable[[int], bytes]:
    """Return what makes the start of a 200 answer, given the length of its body."""
    line = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: %d\r\n"
    return line.encode().__mod__


# to join what is ready is quicker than to format a number into it
_LENGTHS: Final = [b"Content-Length: %d\r\n" % length for length in range(SHORT)]
_json_start, _text_start = _start_of(JSON), _start_of(TEXT)
_JSON_STARTS: Final = [*map(_json_start, range(SHORT))]
_TEXT_STARTS: Final = [*map(_text_start, range(SHORT))]
"""Starts of the commonest answers, by the lengths of their bodies."""


def status_line(status: int) -> bytes:
    """Return the first line of an answer."""
    return _STATUS_LINES.get(status) or f"HTTP/1.1 {status} Unknown\r\n".encode()


def _length_line(length: int) -> bytes:
    return _LENGTHS[length] if length < SHORT else b"Content-Length: %d\r\n" % length


@lru_cache(256)
def _start(status: int, content_type: str | None) -> bytes:
    """Return the status line and the field ``Content-Type``."""
    line = status_line(status)
    return line if content_type is None else line + header_line("Content-Type", content_type)


@lru_cache(256)
def _is_name(name: str) -> bool:
    """Whether a handler may set a header of that name."""
    return _TOKEN.fullmatch(name) is not None and name.lower() not in _OWNED


def header_line(name: str, value: str) -> bytes:
    """Return a header field as a line; a ``ValueError`` if no handler may set it (rule 1)."""
    plain = value.isascii() and value.isprintable()  # most are, and this is soon told
    if not _is_name(name) or (not plain and _BAD_VALUE.search(value)):
        raise ValueError(f"not a header that a handler may set: {name!r}: {value!r}")
    return f"{name}: {value}\r\n".encode("latin-1")


def names_of(lines: bytes) -> list[str]:
    """Return the names of ready header lines."""
    return [line.partition(b":")[0].decode("latin-1") for line in lines.splitlines()]


def without(lines: bytes, names: Iterable[str]) -> bytes:
    """Return ready header lines but for those named.

    ``Vary`` stays, as two of it are one list, and ``Set-Cookie``: each is of a cookie of its own.
    """
    dropped = {name.lower().encode("utf-8", "surrogatepass") for name in names} - _SEVERAL
    lower = b"\n" + lines.lower()
    if not any(b"\n%b:" % name in lower for name in dropped):  # the commonest
        return lines
    kept = lines.splitlines(keepends=True)
    return b"".join(line for line in kept if line.partition(b":")[0].lower() not in dropped)


class Json(bytes):
    """JSON that is ready, such as from a database: what a handler may return for 200."""

    __slots__ = ()

    def value(self) -> Any:
        """Return what it says."""
        return orjson.loads(memoryview(self))  # a subclass of bytes it does not take


class Response:
    """An answer with status, headers and a complete body.

    :param body: bytes, or text (sent as UTF-8).
    :param status: 200 to 599.
    :param headers: names and values; ``Content-Length``, ``Transfer-Encoding``, ``Connection``
        and ``Date`` are the server's own, and naming them is a ``ValueError``, as is a name or
        value that could split the answer.
    :param content_type: ``Content-Type``; by default that of plain text, of ``Json``, or of a byte
        stream.
    """

    __slots__ = ("body", "content_type", "headers", "status")

    streams: ClassVar[bool] = False
    """Whether it sends its body itself (see ``streaming.BodySender``)."""
    answered: ClassVar[bool] = False
    """Whether, when a handler returns it, it has been given to ``Connection.answer`` already."""
    upgrades: ClassVar[bool] = False
    """Whether it is an ``upgrade.Upgrade``."""

    def __init__(
        self,
        body: bytes | str = b"",
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        content_type: str | None = None,
    ) -> None:
        if not 200 <= status <= 599:
            raise ValueError(f"a response takes a status from 200 to 599, not {status}")
        if isinstance(body, str):
            body = body.encode()
            content_type = content_type or TEXT
        self.body = body
        self.status = status
        usual = JSON if type(body) is Json else BINARY
        self.content_type = content_type or (usual if body else None)
        self.headers = dict(headers) if headers else {}

    @classmethod
    def json(
        cls, value: Any, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Return ``value`` encoded as JSON; a value JSON cannot hold is a ``TypeError``."""
        return cls(encode_value(value), status, headers, JSON)

    def encode(
        self, block: bytes, rid: bytes, *, connection: bytes = b"", head_only: bool = False
    ) -> bytes:
        """Return the bytes on the wire.

        :param block: the ``Date`` field and the name of the request id's field, ready made.
        :param rid: the request id.
        :param connection: a ready ``Connection`` field line, or nothing.
        :param head_only: the request was HEAD.
        """
        status, body = self.status, self.body
        if status == 204 or status == 304:
            return self.head(block, rid, connection)
        start = _start(status, self.content_type)
        for name, value in self.headers.items():
            start += header_line(name, value)
        length = _length_line(len(body))
        return b"".join((start, length, connection, block, rid, END, b"" if head_only else body))

    @property
    def said(self) -> Collection[str]:
        """Names of the header fields that it has itself."""
        return self.headers

    @property
    def bodiless(self) -> bool:
        """Whether the status forbids a body (rule 2)."""
        return self.status in (204, 304)

    def head(self, block: bytes, rid: bytes, lines: bytes) -> bytes:
        """Return status line and header fields; ``lines`` are ready ones of the server's own."""
        start = _start(self.status, self.content_type)
        for name, value in self.headers.items():
            start += header_line(name, value)
        return b"%b%b%b%b\r\n\r\n" % (start, lines, block, rid)


def json_response(body: bytes) -> Response:
    """Return the 200 answer with what is JSON already."""
    response = _new(Response)
    response.body = body
    response.status = 200
    response.content_type = JSON
    response.headers = {}
    return response


def _default(value: Any) -> Any:
    """Encode what orjson does not know: pydantic models, msgspec structs, sets."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    fields = getattr(value, "__struct_fields__", None)
    if fields is not None:
        return {name: getattr(value, name) for name in fields}
    if isinstance(value, set | frozenset):
        return list(value)
    raise TypeError(f"a {type(value).__name__} does not fit into JSON")


def encode_value(value: Any) -> bytes:
    """Return ``value`` as JSON; one that JSON cannot hold is a ``TypeError``."""
    return orjson.dumps(value, _default)


def encode_json(value: dict[str, Any], block: bytes, rid: bytes, lines: bytes = b"") -> bytes:
    """Return a 200 answer with ``value`` as JSON, on a connection that is kept.

    :param lines: further header lines, ready made.
    """
    body = orjson.dumps(value, _default)
    try:
        start = _JSON_STARTS[len(body)]
    except IndexError:
        start = _json_start(len(body))
    return b"".join((start, lines, block, rid, END, body))


def encode_ready(body: Json, block: bytes, rid: bytes, lines: bytes = b"") -> bytes:
    """Return a 200 answer with what is JSON already, as ``encode_json``."""
    try:
        start = _JSON_STARTS[len(body)]
    except IndexError:
        start = _json_start(len(body))
    return b"".join((start, lines, block, rid, END, body))


def encode_text(value: str, block: bytes, rid: bytes) -> bytes:
    """Return a 200 answer with ``value`` as text, on a connection that is kept."""
    body = value.encode()
    try:
        start = _TEXT_STARTS[len(body)]
    except IndexError:
        start = _text_start(len(body))
    return b"".join((start, block, rid, END, body))


def to_response(value: Any) -> Response:
    """Return the answer for what a handler returned.

    ``Response`` as it is; ``(status, value)``; ``None`` is 204; ``str`` is text; ``Json`` is JSON
    already, other ``bytes`` a byte stream; dict, list, dataclass, numbers and models become JSON.
    """
    if type(value) is dict:  # the commonest
        return json_response(encode_value(value))
    if isinstance(value, Response):
        return value
    if value is None:
        return Response(status=204)
    if isinstance(value, Json):
        return json_response(value)
    if isinstance(value, str | bytes):
        return Response(value)
    if isinstance(value, tuple):
        if len(value) == 2 and type(value[0]) is int:
            response = to_response(value[1])
            if not 200 <= value[0] <= 599:
                raise ValueError(f"a response takes a status from 200 to 599, not {value[0]}")
            response.status = value[0]
            return response
        raise TypeError("a tuple returned by a handler must be (status, body)")
    if isinstance(value, dict | list | int | float) or dataclasses.is_dataclass(value):
        return Response.json(value)
    return Response.json(_default(value))


def error_response(error: HTTPError) -> Response:
    """Return the JSON answer for an ``HTTPError``."""
    return Response.json(error.payload(), error.status, error.headers)
