"""Responses: what handlers may return, and the bytes it becomes."""

from __future__ import annotations

import dataclasses
from typing import Any

import orjson
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxor_fast import HTTPError, Json, Response
from fluxor_fast.http import response
from fluxor_fast.http.response import (
    encode_json,
    encode_ready,
    encode_text,
    error_response,
    to_response,
)

BLOCK = b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nX-Request-ID: "
RID = b"rid"


@dataclasses.dataclass
class Point:
    x: int


class Model(pydantic.BaseModel):
    x: int


def parse(raw: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], bytes]:
    head, _, body = raw.partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    pairs = [field.partition(b": ") for field in fields]
    return line, [(name, value) for name, _, value in pairs], body


@pytest.mark.parametrize(
    ("value", "status", "content_type", "body"),
    [
        ({"a": 1}, 200, "application/json", b'{"a":1}'),
        ([1, None], 200, "application/json", b"[1,null]"),
        (5, 200, "application/json", b"5"),
        (True, 200, "application/json", b"true"),
        (1.5, 200, "application/json", b"1.5"),
        (Point(1), 200, "application/json", b'{"x":1}'),
        (Model(x=1), 200, "application/json", b'{"x":1}'),
        ({"m": [Model(x=1), Point(2)]}, 200, "application/json", b'{"m":[{"x":1},{"x":2}]}'),
        ({"s": {1}}, 200, "application/json", b'{"s":[1]}'),
        ({1}, 200, "application/json", b"[1]"),
        ("é", 200, "text/plain; charset=utf-8", "é".encode()),
        (b"\0", 200, "application/octet-stream", b"\0"),
        (Json(b'{"a":1}'), 200, "application/json", b'{"a":1}'),
        ((201, Json(b"[]")), 201, "application/json", b"[]"),
        (None, 204, None, b""),
        ((201, {"a": 1}), 201, "application/json", b'{"a":1}'),
        ((404, None), 404, None, b""),
        ((202, "x"), 202, "text/plain; charset=utf-8", b"x"),
    ],
)
def test_what_a_handler_may_return(
    value: Any, status: int, content_type: str | None, body: bytes
) -> None:
    response = to_response(value)
    assert (response.status, response.content_type, response.body) == (status, content_type, body)


@pytest.mark.parametrize(
    "value", [object(), (1, 2, 3), ("200", {}), (True, {}), {"a": object()}, {1: 2}, 2**64, ()]
)
def test_what_it_may_not(value: Any) -> None:
    with pytest.raises(TypeError):
        to_response(value)


@pytest.mark.parametrize("status", [99, 100, 199, 600, -1])
def test_statuses_out_of_range(status: int) -> None:
    with pytest.raises(ValueError, match="status"):
        Response(status=status)
    with pytest.raises(ValueError, match="status"):
        to_response((status, {}))


def test_the_bytes_of_an_answer() -> None:
    raw = Response("hi", 201, {"X-A": "1"}).encode(BLOCK, RID, connection=b"Connection: close\r\n")
    line, fields, body = parse(raw)
    assert line == b"HTTP/1.1 201 Created"
    assert fields == [
        (b"Content-Type", b"text/plain; charset=utf-8"),
        (b"X-A", b"1"),
        (b"Content-Length", b"2"),
        (b"Connection", b"close"),
        (b"Date", b"Thu, 01 Jan 1970 00:00:00 GMT"),
        (b"X-Request-ID", RID),
    ]
    assert body == b"hi"


@pytest.mark.parametrize("status", [204, 304])
def test_no_body_and_no_length(status: int) -> None:
    _, fields, body = parse(Response(b"ignored", status).encode(BLOCK, RID))
    assert b"Content-Length" not in dict(fields)
    assert body == b""


def test_head_has_the_length_and_no_body() -> None:
    _, fields, body = parse(Response("four").encode(BLOCK, RID, head_only=True))
    assert dict(fields)[b"Content-Length"] == b"4"
    assert body == b""


def test_an_empty_answer_has_length_zero() -> None:
    _, fields, _ = parse(Response().encode(BLOCK, RID))
    assert dict(fields)[b"Content-Length"] == b"0"


def test_a_status_without_a_name() -> None:
    assert parse(Response(status=299).encode(BLOCK, RID))[0] == b"HTTP/1.1 299 Unknown"


@given(st.text(), st.text())
def test_no_header_splits_an_answer(name: str, value: str) -> None:
    response = Response("body", headers={name: value})
    try:
        raw = response.encode(BLOCK, RID)
    except ValueError:
        return
    _, fields, body = parse(raw)
    assert body == b"body"
    assert (name.encode(), value.encode("latin-1")) in fields
    assert len(fields) == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X", "a\r\nSet-Cookie: b"),
        ("X", "a\nb"),
        ("X", "a\0"),
        ("X", "a\x7f"),
        ("X: y\r\nZ", "a"),
        ("X Y", "a"),
        ("", "a"),
        ("é", "a"),
        ("X", "€"),
        ("content-LENGTH", "1"),
        ("Transfer-Encoding", "chunked"),
        ("connection", "close"),
        ("Date", "now"),
    ],
)
def test_headers_that_a_handler_may_not_set(name: str, value: str) -> None:
    with pytest.raises(ValueError):
        Response("x", headers={name: value}).encode(BLOCK, RID)
    with pytest.raises(ValueError):
        Response("x", content_type=f"{value}\r\n").encode(BLOCK, RID)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), json_values))
def test_the_short_form_says_the_same(value: dict[str, Any]) -> None:
    short = parse(encode_json(value, BLOCK, RID))
    long = parse(Response.json(value).encode(BLOCK, RID))
    assert short == long
    ready = Json(short[2])
    assert parse(encode_ready(ready, BLOCK, RID)) == long
    assert parse(to_response(ready).encode(BLOCK, RID)) == long
    assert orjson.loads(short[2]) == value


def test_a_name_that_was_good_once_does_not_make_the_next_value_good() -> None:
    assert b"X-A: 1\r\n" in Response("x", headers={"X-A": "1"}).encode(BLOCK, RID)
    for value in ("1\r\nX-B: 2", "1\0", "\n"):
        with pytest.raises(ValueError):
            Response("x", headers={"X-A": value}).encode(BLOCK, RID)
    assert b"X-A: \t\xe9\r\n" in Response("x", headers={"X-A": "\té"}).encode(BLOCK, RID)


def test_ever_new_headers_and_types_leave_only_so_much_behind() -> None:
    for n in range(2000):
        Response("x", headers={f"X-{n}": "1"}, content_type=f"text/{n}").encode(BLOCK, RID)
    assert response._is_name.cache_info().currsize <= 256
    assert response._start.cache_info().currsize <= 256


def test_errors_as_answers() -> None:
    response = error_response(
        HTTPError(429, "slow down", headers={"Retry-After": "3"}, details=[1])
    )
    assert (response.status, response.headers) == (429, {"Retry-After": "3"})
    assert orjson.loads(response.body) == {
        "error": "too_many_requests",
        "message": "slow down",
        "code": "TOO_MANY_REQUESTS",
        "details": [1],
    }
    assert orjson.loads(error_response(HTTPError(599)).body)["code"] == "ERROR"
    with pytest.raises(ValueError, match="599"):
        HTTPError(200)


def test_headers_given_are_copied() -> None:
    shared = {"X": "1"}
    Response(headers=shared).headers["Y"] = "2"
    assert shared == {"X": "1"}


def test_statuses_have_the_same_names_in_every_version_of_python() -> None:
    """They are what codes are made of (RFC 9110, section 15.5); Python took them over with 3.13."""
    names = {413: "CONTENT_TOO_LARGE", 414: "URI_TOO_LONG", 416: "RANGE_NOT_SATISFIABLE"}
    for status, code in {**names, 422: "UNPROCESSABLE_CONTENT", 404: "NOT_FOUND"}.items():
        error = HTTPError(status)
        assert error.code == code
        line = error_response(error).encode(BLOCK, RID).partition(b"\r\n")[0].decode()
        assert line == f"HTTP/1.1 {status} {error.message}"
        assert error.message.upper().replace(" ", "_") == code


def test_lengths_are_told_on_both_sides_of_what_is_ready() -> None:
    for size in (0, 1, response.SHORT - 1, response.SHORT, response.SHORT + 1, 10**6):
        body = b"1" * size
        answers = [
            encode_ready(Json(body), BLOCK, RID),
            Response(body, content_type="application/json").encode(BLOCK, RID),
            encode_text(body.decode(), BLOCK, RID),
            Response(body.decode()).encode(BLOCK, RID),
        ]
        for raw in answers:
            _, fields, sent = parse(raw)
            assert dict(fields)[b"Content-Length"] == b"%d" % size
            assert sent == body
        assert answers[2] == answers[3]
    large = {"a": "b" * response.SHORT}
    assert encode_json(large, BLOCK, RID) == Response.json(large).encode(BLOCK, RID)
