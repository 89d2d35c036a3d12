"""Requests as values: headers, query, body."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxor_fast import Headers, HTTPError
from tests.support.pure import make_request

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)


def test_headers_have_no_case_and_may_repeat() -> None:
    headers = Headers(((b"accept", b"a"), (b"host", b"h"), (b"accept", b"b"), (b"x", b"\xe9")))
    assert headers["Accept"] == headers["ACCEPT"] == "a, b"
    assert headers.get_all("Accept") == ["a", "b"]
    assert headers["X"] == "é"
    assert headers.get("nothing") is None
    assert headers.get_all("nothing") == []
    assert "hOsT" in headers
    assert "nothing" not in headers
    assert list(headers) == ["accept", "host", "x"]
    assert len(headers) == 3
    with pytest.raises(KeyError):
        headers["nothing"]
    headers.get_all("accept").append("c")
    assert headers["accept"] == "a, b"


@given(st.lists(st.tuples(text, text), max_size=20))
def test_queries_decode_to_what_was_encoded(pairs: list[tuple[str, str]]) -> None:
    request = make_request(query=urlencode(pairs).encode())
    assert list(request.head.query_items) == pairs
    assert request.query == dict(pairs)


@given(st.binary(max_size=50))
def test_any_query_is_decoded_or_a_400(query: bytes) -> None:
    try:
        pairs = make_request(query=query).query
    except HTTPError as error:
        assert error.status == 400
    else:
        assert all(isinstance(key, str) for key in pairs)


@pytest.mark.parametrize("query", [b"a=%ff", b"%ff=a", b"a=\xff", b"&".join([b"a=1"] * 101)])
def test_queries_that_are_refused(query: bytes) -> None:
    with pytest.raises(HTTPError) as caught:
        _ = make_request(query=query).query
    assert caught.value.status == 400


def test_of_a_repeated_name_the_last_counts() -> None:
    assert make_request(query=b"a=1&b&a=2&c=").query == {"a": "2", "b": "", "c": ""}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"nul", b"[1,]", b"1 2", b"[" * 5000])
def test_a_body_that_is_not_json(body: bytes) -> None:
    with pytest.raises(HTTPError) as caught:
        make_request(body=body).json()
    assert (caught.value.status, caught.value.code) == (400, "BAD_JSON")


@given(st.dictionaries(text, st.integers(-(2**63), 2**63 - 1) | text))
def test_a_body_that_is(value: dict[str, Any]) -> None:
    assert make_request(body=orjson.dumps(value)).json() == value


def test_what_handlers_read() -> None:
    app = object()
    request = make_request("POST", "/x", params={"a": 1}, app=app, headers={"A": "b"})
    assert (request.method, request.path, request.params) == ("POST", "/x", {"a": 1})
    assert (request.id, request.client, request.app) == ("test-request-id", "192.0.2.1", app)
    assert request.headers["a"] == "b"
    request.state["user"] = 1
    assert request.state == {"user": 1}
    assert make_request().state == {}
    assert make_request().params == {}


def test_which_heads_take_the_short_form() -> None:
    assert make_request("GET").head.plain
    assert not make_request("HEAD").head.plain
    assert make_request("GET").head.quick
    assert not make_request("POST", body=b"x").head.quick
