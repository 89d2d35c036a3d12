"""What a head must fulfil, rule by rule, and that remembering heads changes nothing but speed.

The numbers of the rules are those of ``server/heads.py``; sections are of RFC 9112 unless said.
"""

from __future__ import annotations

import gc
import itertools
import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxor_fast import HTTPError
from fluxor_fast.http.request import CHUNKED, Head
from fluxor_fast.routing import Route
from fluxor_fast.server.heads import HeadCache, Limits, parse_head
from tests.support.heads import contents
from tests.support.routes import bare_router
from tests.support.seeds import examples

LIMITS = Limits(head=4096, target=200, headers=20, body=1000)


ROUTER = bare_router("GET /", "POST /items/{item:int}")


def parse(raw: bytes) -> Head:
    return parse_head(raw, ROUTER, LIMITS)


def refused(raw: bytes) -> int:
    with pytest.raises(HTTPError) as caught:
        parse(raw)
    return caught.value.status


def get(*lines: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def line(request_line: bytes) -> bytes:
    return request_line + b"\r\nHost: a\r\n\r\n"


def host(value: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: " + value + b"\r\n\r\n"


def body(*lines: bytes, version: bytes = b"1.1") -> bytes:
    fields = b"".join(line + b"\r\n" for line in lines)
    return b"POST / HTTP/" + version + b"\r\nHost: a\r\n" + fields + b"\r\n"


# rule 1


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n\r\n",
        get(b"X: a\nY: b"),
        get(b"X: a\rY: b"),
        get(b"X: a\r"),
        get(b"\rX: a"),
    ],
)
def test_rule_1_section_2_2_lines_end_with_crlf_and_hold_no_bare_cr_or_lf(raw: bytes) -> None:
    assert refused(raw) == 400


@pytest.mark.parametrize("raw", [get(b"X: a\0b"), get(b"X\0: a"), line(b"GET /\0 HTTP/1.1")])
def test_rule_1_section_5_no_nul(raw: bytes) -> None:
    assert refused(raw) == 400


@pytest.mark.parametrize(
    "raw", [get(b"X: a", b" b"), get(b"X: a", b"\tb"), b"GET / HTTP/1.1\r\n Host: a\r\n\r\n"]
)
def test_rule_1_section_5_2_no_folded_lines(raw: bytes) -> None:
    assert refused(raw) == 400


@pytest.mark.parametrize(
    "field",
    [
        b"X : a",
        b": a",
        b"X",
        b"X\xe9: a",
        b"X Y: a",
        b"X\t: a",
        b"(X): a",
        b"X: a\x01",
        b"X: a\x7f",
    ],
)
def test_section_5_1_a_field_is_a_token_a_colon_and_visible_characters(field: bytes) -> None:
    assert refused(get(field)) == 400


def test_section_5_1_space_around_a_value_is_no_part_of_it() -> None:
    found = parse(get(b"X: \t a b\t ", b"Y:c", b"Z:", b"Z:  ", b"W: caf\xe9"))
    fields = ((b"x", b"a b"), (b"y", b"c"), (b"z", b""), (b"z", b""), (b"w", b"caf\xe9"))
    assert found.raw_headers == ((b"host", b"a"), *fields)
    assert found.headers.get_all("Z") == ["", ""]


# rule 2


@pytest.mark.parametrize("version", [b"1.2", b"1.9", b"2.0", b"3.0", b"0.9", b"9.9"])
def test_rule_2_section_2_3_other_versions_are_505(version: bytes) -> None:
    assert refused(line(b"GET / HTTP/" + version)) == 505


def test_rule_2_the_preface_of_http_2_is_505() -> None:
    """RFC 9113, section 3.4."""
    assert refused(b"PRI * HTTP/2.0\r\n\r\n") == 505


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /",
        b"GET",
        b"",
        b"GET / http/1.1",
        b"GET / HTTP/1",
        b"GET / HTTP/1.",
        b"GET / HTTP/1.10",
        b"GET / HTTP/11",
        b"GET / HTTP/x.y",
        b"GET / HTTPS/1.1",
        b"GET / HTTP/1.1 ",
        b"GET  / HTTP/1.1",
        b"GET /  HTTP/1.1",
        b"GET\t/\tHTTP/1.1",
        b"GET / a HTTP/1.1",
        b" GET / HTTP/1.1",
        b"G(T / HTTP/1.1",
        b"G\xc9T / HTTP/1.1",
    ],
)
def test_rule_2_section_3_a_malformed_request_line_is_400(request_line: bytes) -> None:
    assert refused(line(request_line)) == 400


@pytest.mark.parametrize(
    "method", [b"FOO", b"get", b"Get", b"GETS", b"CONNECT", b"M-X", b"PLAY", b"GET_PARAMETER"]
)
def test_rule_2_methods_nobody_knows_are_501(method: bytes) -> None:
    """RFC 9110, section 9.1; methods are case-sensitive."""
    assert refused(line(method + b" / HTTP/1.1")) == 501


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_rule_2_known_methods_are_taken(method: str) -> None:
    assert parse(line(f"{method} / HTTP/1.1".encode())).method == method


# rule 3


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        get(b"Host: a"),
        get(b"host: b"),
        b"GET http://a/ HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n",
    ],
)
def test_rule_3_section_3_2_exactly_one_host(raw: bytes) -> None:
    assert refused(raw) == 400


BAD_HOSTS = (
    b"a b|a, b|a/b|u@a|a:x|a:80:80|[::1|::1|a\\b|http://a|:80|:|a:65536|a:000080|a%|a%4|a%zz|[]"
    b"|[:]|[:::]|[1.2.3.4]|[v1.a]|[::1%25eth0]|[fe80::1%e]|[1:2:3:4:5:6:7:8:9]"
).split(b"|")
GOOD_HOSTS = (
    b"|a|a:|a:80|1.2.3.4:80|[::1]|[::ffff:1.2.3.4]:8|x_y.z-|a%41|a:0|a:65535|a:00080|[fe80::1]:"
    b"|a,b;c=d!$&'()*+~"
).split(b"|")


@pytest.mark.parametrize("value", BAD_HOSTS)
def test_rule_3_section_3_2_a_malformed_host_is_400(value: bytes) -> None:
    assert refused(host(value)) == 400


@pytest.mark.parametrize("value", GOOD_HOSTS)
def test_rule_3_section_3_2_a_well_formed_host_is_taken(value: bytes) -> None:
    assert parse(host(value)).headers["host"] == value.decode()


def test_rule_3_http_1_0_needs_no_host() -> None:
    assert not parse(b"GET / HTTP/1.0\r\n\r\n").http_11


# rule 4


@pytest.mark.parametrize(
    "value",
    [
        b"+5",
        b"-5",
        b"5,5",
        b"5, 5",
        b"5 5",
        b"0x5",
        b"5.0",
        b"",
        b"1e3",
        b"\xb25",
        b"5_0",
        b"9" * 19,
        b"9" * 40,
        b"five",
    ],
)
def test_rule_4_section_6_2_content_length_is_digits_of_a_sane_number(value: bytes) -> None:
    assert refused(body(b"Content-Length: " + value)) == 400


@pytest.mark.parametrize("second", [b"5", b"6"])
def test_rule_4_section_6_3_content_length_comes_once(second: bytes) -> None:
    assert refused(body(b"Content-Length: 5", b"Content-Length: " + second)) == 400


@pytest.mark.parametrize("coding", [b"chunked", b"gzip", b"identity", b""])
def test_rule_4_section_6_1_not_both_content_length_and_transfer_encoding(coding: bytes) -> None:
    length, encoding = b"Content-Length: 5", b"Transfer-Encoding: " + coding
    assert refused(body(length, encoding)) == 400
    assert refused(body(encoding, length)) == 400


@pytest.mark.parametrize(
    ("codings", "status"),
    [
        ([b"gzip"], 400),
        ([b"identity"], 400),
        ([b"chunked, gzip"], 400),
        ([b"chunked, chunked"], 400),
        ([b"chunked", b"chunked"], 400),
        ([b"chunked", b"identity"], 400),
        ([b"xchunked"], 400),
        ([b"chunked;q=1"], 400),
        ([b'"chunked"'], 400),
        ([b"\x0bchunked"], 400),
        ([b""], 400),
        ([b"gzip, chunked"], 501),
        ([b"gzip", b"chunked"], 501),
        ([b"identity, chunked"], 501),
    ],
)
def test_rule_4_section_6_1_only_chunked_once(codings: list[bytes], status: int) -> None:
    """400 where the end of the body cannot be known (section 6.3), 501 where it could."""
    assert refused(body(*(b"Transfer-Encoding: " + coding for coding in codings))) == status


def test_rule_4_section_6_1_no_transfer_encoding_in_http_1_0() -> None:
    assert refused(body(b"Transfer-Encoding: chunked", version=b"1.0")) == 400


def test_rule_4_lengths_are_read() -> None:
    assert parse(get()).length == 0
    assert parse(body()).length == 0
    assert parse(body(b"Content-Length: 0")).length == 0
    assert parse(body(b"Content-Length: 0012")).length == 12
    assert parse(body(b"content-length:12")).length == 12
    assert parse(body(b"Transfer-Encoding: chunked")).length == CHUNKED
    assert parse(body(b"transfer-encoding: CHUNKED")).length == CHUNKED


# rule 5


def test_rule_5_expectations_other_than_100_continue_are_417() -> None:
    """RFC 9110, section 10.1.1."""
    assert refused(get(b"Expect: something")) == 417
    assert refused(get(b"Expect: 100-continue, x")) == 417
    assert parse(get(b"Expect: 100-Continue")).expects_continue
    assert not parse(get()).expects_continue


def test_rule_5_an_expectation_in_http_1_0_is_ignored() -> None:
    raw = b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"
    assert not parse(raw).expects_continue


# rule 6


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/", "/", b""),
        (b"/a/b", "/a/b", b""),
        (b"/?", "/", b""),
        (b"/a?b=c?d", "/a", b"b=c?d"),
        (b"//a", "//a", b""),
        (b"/%2F%00", "/%2F%00", b""),
        (b"http://a/x?y", "/x", b"y"),
        (b"HTTP://a:80/x", "/x", b""),
        (b"https://[::1]:80", "/", b""),
        (b"http://a?y", "/", b"y"),
    ],
)
def test_rule_6_section_3_2_targets_in_origin_and_absolute_form(
    target: bytes, path: str, query: bytes
) -> None:
    found = parse(line(b"GET " + target + b" HTTP/1.1"))
    assert (found.path, found.query) == (path, query)


@pytest.mark.parametrize(
    "target",
    [
        b"*",
        b"a",
        b"a:80",
        b"?x",
        b"",
        b"http://",
        b"http:///x",
        b"http://u@a/",
        b"ftp://a/",
        b"http://a b/",
        b"/#x",
        b"/a?b#c",
        b"http://a/#x",
        b"/\xc3\xa9",
        b"/?\xff",
        b"/\x7f",
        b"http:/a",
        b"http://:80/",
        b"http://a%zz/",
        b"http://a:65536/",
        b"http://[::1%25e]/",
    ],
)
def test_rule_6_section_3_2_other_targets_are_400(target: bytes) -> None:
    assert refused(line(b"GET " + target + b" HTTP/1.1")) == 400


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_rule_6_section_3_2_2_what_an_absolute_form_names_takes_the_place_of_host(
    version: bytes,
) -> None:
    raw = b"GET http://b:8/x HTTP/" + version + b"\r\nA: 1\r\nHost: a\r\nB: 2\r\n\r\n"
    assert parse(raw).raw_headers == ((b"a", b"1"), (b"host", b"b:8"), (b"b", b"2"))
    assert parse(line(b"OPTIONS * HTTP/1.1")).headers["host"] == "a"


def test_what_an_absolute_form_names_is_never_taken_for_what_a_host_line_says() -> None:
    heads = HeadCache(ROUTER, LIMITS, lambda: 0)
    heads.parse(line(b"GET http://evil/ HTTP/1.1"))
    for path in (b"/", b"/other"):
        assert heads.parse(line(b"GET " + path + b" HTTP/1.1")).headers["host"] == "a"


def test_rule_6_section_3_2_4_asterisk_form_is_for_options() -> None:
    assert parse(line(b"OPTIONS * HTTP/1.1")).path == "*"
    assert refused(line(b"POST * HTTP/1.1")) == 400


# bounds


def test_a_target_beyond_its_limit_is_414() -> None:
    assert parse(line(b"GET /" + b"x" * 199 + b" HTTP/1.1")).path == "/" + "x" * 199
    assert refused(line(b"GET /" + b"x" * 200 + b" HTTP/1.1")) == 414


def test_header_fields_beyond_their_limit_are_431() -> None:
    fields = [b"X: %d" % n for n in range(19)]  # and Host
    assert len(parse(get(*fields)).raw_headers) == 20
    assert refused(get(*fields, b"Y: 1")) == 431


# what else is read from a head


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        (get(), True),
        (get(b"Connection: close"), False),
        (get(b"Connection: CLOSE"), False),
        (get(b"Connection: x, close ,y"), False),
        (get(b"Connection: keep-alive", b"Connection: close"), False),
        (get(b"Connection: closed"), True),
        (get(b"Proxy-Connection: close"), True),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", False),
    ],
)
def test_section_9_3_whether_the_connection_is_kept(raw: bytes, kept: bool) -> None:
    found = parse(raw)
    assert found.keep_alive == kept
    assert found.plain == (kept and found.http_11)


def test_section_9_9_an_offer_to_upgrade_is_not_taken_up() -> None:
    found = parse(get(b"Connection: upgrade", b"Upgrade: websocket", b"Content-Length: 3"))
    assert (found.path, found.length, found.keep_alive) == ("/", 3, True)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b"a", True),
        (b"~!x-1", True),
        (b"x" * 128, True),
        (b"x" * 129, False),
        (b"", False),
        (b"a b", False),
        (b"caf\xe9", False),
        (b"a\tb", False),
    ],
)
def test_a_usable_request_id_is_kept(value: bytes, kept: bool) -> None:
    assert parse(get(b"X-Request-ID: " + value)).request_id == (value if kept else None)


def test_a_head_is_routed() -> None:
    found = parse(line(b"POST /items/12 HTTP/1.1"))
    assert (found.route.path, found.params) == ("/items/{item:int}", {"item": 12})
    assert not parse(line(b"HEAD / HTTP/1.1")).plain
    assert not parse(body(b"Content-Length: 1")).quick


# the cache


def outcome(call: Any, raw: bytes) -> dict[str, Any] | tuple[int, str]:
    try:
        return contents(call(raw))
    except HTTPError as error:
        return (error.status, error.message)


_token = st.text("aZ09-_", min_size=1, max_size=8).map(str.encode)
_value = st.binary(max_size=12).map(lambda v: bytes(b for b in v if b not in b"\r\n"))
_field = st.one_of(
    st.tuples(_token, _value).map(lambda pair: pair[0] + b": " + pair[1]),
    st.sampled_from(
        [
            b"Host: a",
            b"Host: b:1",
            b"Content-Length: 3",
            b"Content-Length: 0",
            b"Connection: close",
            b"Transfer-Encoding: chunked",
            b"Expect: 100-continue",
            b"X-Request-ID: abc",
            b"X: ",
            b"Connection: keep-alive",
            b"Expect: x",
            b" folded",
            b"X-Forwarded-For: 1.2.3.4",
        ]
    ),
)
_target = st.sampled_from(
    [b"/", b"/items/1", b"/items/x", b"/none", b"/?a=b", b"*", b"http://a/", b"x"]
)
_head = st.builds(
    lambda method, target, version, host, fields: (
        b"%b %b HTTP/%b\r\n" % (method, target, version)
        + b"".join(one + b"\r\n" for one in (host + fields))
        + b"\r\n"
    ),
    st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"FOO"]),
    _target,
    st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0", b"2.0"]),
    st.sampled_from([[b"Host: a"], [b"Host: a"], []]),
    st.lists(_field, max_size=4),
)


def cache(**options: Any) -> HeadCache:
    return HeadCache(ROUTER, LIMITS, options.pop("served", lambda: 10**9), **options)


def ask(heads: HeadCache, raw: bytes) -> Head:
    """Return the head as ``Reader`` does."""
    return heads.found.get(raw) or heads.parse(raw)


@examples(600)
@given(raws=st.lists(_head, min_size=1, max_size=8), order=st.lists(st.integers(0, 7), max_size=30))
def test_cached_and_parsed_heads_are_alike(raws: list[bytes], order: list[int]) -> None:
    """Whatever stands in the cache is what parsing gives; what is refused does not stand in it."""
    heads = cache(entries=3, longest=90)
    for at in order:
        raw = raws[at % len(raws)]
        assert outcome(lambda raw: ask(heads, raw), raw) == outcome(parse, raw)
        assert len(heads.found) <= 3
    for raw, head in heads.found.items():
        assert len(raw) <= 90
        assert contents(head) == contents(parse(raw))


def numbered(n: int) -> bytes:
    return get(b"X: %d" % n)


def test_the_oldest_entry_leaves_first() -> None:
    heads = cache(entries=2)
    for n in (1, 2, 3):
        ask(heads, numbered(n))
    assert list(heads.found) == [numbered(2), numbered(3)]


def test_long_heads_are_not_stored() -> None:
    heads = cache(longest=100)
    short, long = get(b"X: " + b"x" * 68), get(b"X: " + b"x" * 69)
    assert (len(short), len(long)) == (100, 101)
    ask(heads, short)
    ask(heads, long)
    assert list(heads.found) == [short]


def test_refused_heads_are_never_stored() -> None:
    heads = cache()
    for raw in (
        host(b"a b"),
        line(b"FOO / HTTP/1.1"),
        get(b"Expect: x"),
        body(b"Content-Length: x"),
    ):
        for _ in range(2):
            with pytest.raises(HTTPError):
                ask(heads, raw)
    assert heads.found == {}


def test_a_cache_without_entries_stores_nothing() -> None:
    heads = cache(entries=0)
    for n in range(HeadCache.REVIEW * 2):
        ask(heads, numbered(n % 3))
    assert heads.found == {}


def test_the_cache_rests_while_nearly_every_head_is_new_and_tries_again() -> None:
    served = 0
    heads = cache(served=lambda: served)

    def serve(n: int) -> None:
        nonlocal served
        served += 1
        ask(heads, numbered(n))

    found = heads.found
    for n in range(HeadCache.REVIEW - 1):
        serve(n)
    assert len(found) == HeadCache.REVIEW - 1
    serve(HeadCache.REVIEW - 1)
    assert len(found) == 0  # it gave its memory back
    for _ in range(HeadCache.REST - 1):
        serve(7)
        assert len(found) == 0
    serve(7)
    assert len(found) == 1  # it tries again
    assert heads.found is found  # which connections hold on to


def test_the_cache_goes_on_while_it_hits() -> None:
    """At every review at least a tenth of what was served came from the cache."""
    served = 0
    heads = cache(served=lambda: served)
    for n in range(HeadCache.REVIEW * 5):
        served += 2
        ask(heads, numbered(n))
        ask(heads, numbered(n))
    assert len(heads.found) == 1024


# heads of the plain form, which are read without the parser


MEANT = [
    b"Host: a",
    b"Host: b.example:8080",
    b"host:c",
    b"HOST: a",
    b"Host: a:60000",
    b"Host: a:64999",
    b"Host: a:65000",
    b"Host: a:65535",
    b"Host: a:65536",
    b"Host: a:00080",
    b"Host: [::1]",
    b"Host:",
    b"Host: a:",
    b"Host: a ",
    b"Host:  a",
    b"Host:\ta",
    b"Host: a b",
    b"Host: caf\xe9",
    b"Content-Length: 3",
    b"Content-Length:0",
    b"content-length: 0012",
    b"Content-Length: 5 ",
    b"Content-Length:\t5",
    b"Content-Length: 5\t",
    b"Content-Length: +5",
    b"Content-Length: 5, 5",
    b"Content-Length: " + b"9" * 18,
    b"Content-Length: " + b"9" * 19,
    b"Content-Length:",
    b"Transfer-Encoding: chunked",
    b"transfer-encoding:CHUNKED",
    b"Transfer-Encoding: chunked ",
    b"Transfer-Encoding: chunked\t",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: gzip",
    b"Transfer-Encoding:",
    b"Connection: close",
    b"Connection: keep-alive",
    b"connection:Keep-Alive, Upgrade",
    b"Connection: closed",
    b"Connection: x,  CLOSE ,y",
    b"Connection: close\t",
    b"Connection:",
    b"Connection: \xe9, close",
    b"Proxy-Connection: close",
    b"Upgrade: h2c",
    b"Expect: 100-continue",
    b"Expect: x",
    b"X-Request-Timeout-Ms: 250",
    b"x-request-timeout-ms:250",
    b"X-Request-Timeout-Ms: 0",
    b"X-Request-Timeout-Ms: " + b"9" * 10,
    b"X-Request-ID: abc-1",
    b"x-request-id:~",
    b"X-Request-ID: a b",
    b"X-Request-ID: \xe9",
    b"X-Request-ID: " + b"x" * 128,
    b"X-Request-ID: " + b"x" * 129,
    b"X-Request-ID:",
]
NAMES = sorted({text.partition(b":")[0].lower() for text in MEANT})
NEAR = [
    *(name[:-1] for name in NAMES),
    *(name[1:] for name in NAMES),
    *(name + b"s" for name in NAMES),
    *(b"x" + name for name in NAMES),
    *(name.replace(b"-", b"_") for name in NAMES if b"-" in name),
    *(name.replace(b"-", b"") for name in NAMES if b"-" in name),
    *(name.replace(b"e", b"E", 1) for name in NAMES),
    *(name + b" " for name in NAMES),
]
OTHERS = [
    b"X-Number: 1",
    b"authorization:  Bearer a.b.c \t",
    b"Cookie:",
    b"Cookie: a=b; \xe9\t\xff",
    b"A: Host: b",
    b"!#$%&'*+-.^_`|~: 1",
]
BROKEN = [
    b"X-\x01: 1",
    b"X : 1",
    b" folded",
    b"X: a\rb",
    b"X: a\nb",
    b"X: a\nHost: b",
    b"X: a\r",
    b"X: \x00",
    b"X: \x7f",
    b": 1",
    b"X",
    b"",
]
REQUEST_LINES = [
    b"GET / HTTP/1.1",
    b"GET /?q=1&r=%20 HTTP/1.1",
    b"GET /?q=1&r=%20\xff HTTP/1.1",
    b"GET /?#x HTTP/1.1",
    b"GET /? HTTP/1.1",
    b"POST / HTTP/1.1",
    b"POST /items/12?a?b HTTP/1.1",
    b"POST /items/{item:int} HTTP/1.1",
    b"HEAD / HTTP/1.1",
    b"HEAD //nowhere HTTP/1.1",
    b"GET http://a/ HTTP/1.1",
    b"GET / HTTP/1.0",
    b"GET / HTTP/1.2",
    b"OPTIONS / HTTP/1.1",
    b"OPTIONS * HTTP/1.1",
    b"GET * HTTP/1.1",
    b"GET /\xc3\xa4 HTTP/1.1",
    b'GET /" HTTP/1.1',
    b"GET /\x7f HTTP/1.1",
    b"BREW / HTTP/1.1",
    b"get / HTTP/1.1",
    b"GET  / HTTP/1.1",
    b"GET / HTTP/1.1 ",
    b"GET /%b HTTP/1.1" % (b"x" * 199),
    b"GET /%b HTTP/1.1" % (b"x" * 200),
    b"GET /?%b HTTP/1.1" % (b"x" * 198),
    b"GET /?%b HTTP/1.1" % (b"x" * 199),
]
heads_of_lines = st.builds(
    lambda first, host, lines: b"\r\n".join([first, *host, *lines]) + b"\r\n\r\n",
    st.one_of(st.just(REQUEST_LINES[0]), st.sampled_from(REQUEST_LINES)),
    st.sampled_from([[MEANT[0]], [MEANT[0]], [OTHERS[0], MEANT[0]], []]),
    st.lists(
        st.one_of(
            st.sampled_from(OTHERS),
            st.sampled_from(MEANT),
            st.sampled_from(MEANT),
            st.sampled_from(BROKEN),
            st.tuples(st.sampled_from(NEAR), st.sampled_from([b": 5", b":close"])).map(b"".join),
            st.binary(min_size=1, max_size=12).map(lambda value: b"X-Any: " + value),
            st.binary(min_size=1, max_size=6).map(lambda name: name + b": x"),
        ),
        max_size=5,
    ),
)


def read_as_the_parser_does(heads: HeadCache, raw: bytes) -> bool:
    """Check that ``raw`` means what ``parse_head`` says; return whether that took no parser."""
    assert outcome(heads.parse, raw) == outcome(parse, raw), raw
    found = heads._plain(raw)
    if found is not None:
        assert outcome(heads._plain, raw) == outcome(parse, raw), raw
    return found is not None


@given(st.lists(heads_of_lines, min_size=1, max_size=30))
@examples(300)
def test_what_the_grammar_of_plain_heads_matches_means_what_the_parser_says(
    raws: list[bytes],
) -> None:
    heads = cache()
    for raw in raws:
        read_as_the_parser_does(heads, raw)


def test_each_line_and_each_pair_of_lines_means_what_the_parser_says() -> None:
    """Whatever stands in a line that is meant, once, twice, and with each other."""
    heads = cache(entries=0)
    plain = 0
    alone = [*OTHERS, *BROKEN, *MEANT, *(name + b": 5" for name in NEAR)]
    pairs = [*itertools.product(MEANT, MEANT), *((one,) for one in alone)]
    for lines in pairs:
        plain += read_as_the_parser_does(heads, get(*lines))
        plain += read_as_the_parser_does(heads, get(*lines).replace(b"Host: a\r\n", b"", 1))
    assert plain > 400


def test_each_request_line_means_what_the_parser_says() -> None:
    heads = cache(entries=0)
    plain = [one for one in REQUEST_LINES if read_as_the_parser_does(heads, line(one))]
    assert len(plain) == 8, plain


def test_each_octet_in_each_place_means_what_the_parser_says() -> None:
    heads = cache(entries=0)
    whole = (
        b"GET /a?b HTTP/1.1\r\nHost: a:1\r\nContent-Length: 5\r\nConnection: c\r\nX-Y: z\r\n\r\n"
    )
    for at in range(len(whole)):
        for octet in range(256):
            changed = bytearray(whole)
            changed[at] = octet
            read_as_the_parser_does(heads, bytes(changed))


@pytest.mark.parametrize(
    "raw",
    [
        get(),
        get(b"X-Number: 7", b"Connection: close", b"X-Request-ID: me"),
        get(b"Content-Length: 123", b"X-Request-Timeout-Ms: 200"),
        body(b"Transfer-Encoding: chunked"),
        line(b"POST /items/12?q HTTP/1.1"),
        host(b"any.example:8080"),
    ],
)
def test_plain_heads_are_read_without_the_parser(
    raw: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(parse(raw))
    monkeypatch.setattr("fluxor_fast.server.heads.parse_head", None)
    assert contents(cache().parse(raw)) == expected


def test_limits_hold_for_plain_heads() -> None:
    heads = cache()
    for number in range(17, 23):
        read_as_the_parser_does(heads, get(*[b"X:"] * number))
        read_as_the_parser_does(heads, get(*[b"X: a long value"] * number))
    for number in range(185, 210):
        read_as_the_parser_does(heads, line(b"DELETE /%b HTTP/1.1" % (b"x" * number)))
        read_as_the_parser_does(heads, line(b"GET /a?%b HTTP/1.1" % (b"x" * number)))


@pytest.mark.parametrize(
    "lines",
    [
        [b"a:"] * 4000,
        [b"X-Request-ID: a"] * 900,
        [b"Connection: close"] * 900,
        [b"x-request-timeout-ms: 1" + b"0" * 15_000],
        [b"Host: " + b"a:1" * 5000],
        [b"content-lengt" * 1200],
        [b"X: " + b" \t" * 8000],
    ],
    ids=lambda lines: lines[0][:20].decode(),
)
def test_what_does_not_match_is_given_up_in_linear_time(lines: list[bytes]) -> None:
    raw = get(*lines)[:-4] + b"\0\r\n\r\n"
    started = time.process_time()
    assert cache()._plain(raw) is None
    assert time.process_time() - started < 0.1  # it takes less than a millisecond


def test_only_starts_of_the_application_are_remembered() -> None:
    heads = cache(entries=0, longest=60)
    for target in (b"/", b"/?secret", b"/secret", b"/items/1", b"/items/2", b"/items/%7Bitem%7D"):
        for method in (b"GET", b"POST", b"DELETE"):
            heads.parse(line(b"%b %b HTTP/1.1" % (method, target)))
    heads.parse(get().replace(b"Host: a", b"Secret: x\r\nHost: b"))
    heads.parse(host(b"a" * 60))
    known = [b"%b / HTTP/1.1\r\nHost: a\r\n" % method for method in (b"GET", b"POST", b"DELETE")]
    assert list(heads._starts) == known


def test_starts_are_bounded() -> None:
    heads = cache(entries=0)
    for number in range(3 * HeadCache.STARTS):
        assert heads.parse(host(b"h%d" % number)).host == f"h{number}"
        assert 0 < len(heads._starts) <= HeadCache.STARTS


def test_nothing_is_remembered_of_fields() -> None:
    heads = cache(longest=40)
    heads.parse(get(b"Authorization: Bearer secret", b"Cookie: secret"))
    heads.parse(get(b"Connection: secret", b"Content-Length: 1", b"X-Request-ID: secret"))
    assert not heads.found
    assert not holds(heads, b"secret")


@given(st.lists(st.sampled_from([*OTHERS, *MEANT]), max_size=6))
@examples(300)
def test_fields_are_read_when_they_are_asked_for_and_as_the_parser_does(lines: list[bytes]) -> None:
    raw = b"".join(one + b"\r\n" for one in [b"GET / HTTP/1.1", *lines, b""])
    head = cache()._plain(raw)
    if head is not None:
        expected = parse(raw)
        assert head.headers == expected.headers and list(head.headers) == list(expected.headers)
        assert head.raw_headers == expected.raw_headers
        assert head.host == expected.host


def within(heads: HeadCache) -> list[Any]:
    """Return every object that is in memory because ``heads`` is."""
    found: dict[int, Any] = {}
    left = [value for name, value in vars(heads).items() if name not in ("_router", "_served")]
    while left:
        one = left.pop()
        if id(one) not in found and not isinstance(one, (type, Route)):
            found[id(one)] = one
            left.extend(gc.get_referents(one))
    return list(found.values())


def holds(heads: HeadCache, text: bytes) -> bool:
    return any(
        text in (one if isinstance(one, bytes) else one.encode())
        for one in within(heads)
        if isinstance(one, (bytes, str))
    )


def test_a_secret_is_kept_no_longer_than_the_entry_of_its_head_lives() -> None:
    served = 0
    heads = cache(entries=5, served=lambda: served)

    def ask_with(*lines: bytes) -> None:
        head = ask(heads, get(*lines, b"Connection: close"))
        assert head.headers  # and what handlers make of it, which is kept with it

    for secret in (b"Authorization: Bearer s3cret", b"Cookie: s3cret", b"X-Other: s3cret"):
        ask_with(secret)
        assert holds(heads, b"s3cret")
        for number in range(5):
            assert holds(heads, b"s3cret")
            ask_with(b"X-Number: %d" % number, secret[:10] + b": %d" % number)
        assert not holds(heads, b"s3cret")
    ask_with(b"Authorization: Bearer s3cret")
    for number in range(2 * HeadCache.REVIEW):  # it comes to rest, and gives its memory back
        ask_with(b"Authorization: Bearer s3cret", b"X-Number: %d" % number)
    assert not holds(heads, b"s3cret")


def test_a_secret_in_a_head_that_is_refused_is_not_kept() -> None:
    heads = cache()
    for broken in (b"Content-Length: x", b"Expect: x", b"X : 1", b"Host: b"):
        with pytest.raises(HTTPError):
            ask(heads, get(b"Authorization: Bearer s3cret", broken))
    assert not holds(heads, b"s3cret")


def worst(number: int) -> dict[str, bytes]:
    """Return the heads, ever new, of which a cache keeps the most."""
    some = b"%x" % (number + 0x10000)
    least = b"".join(b"%x:\r\n" % field for field in range(16, 16 + 90))
    return {
        "long": get(b"X: " + some + b"x" * 2000),
        "of many fields": get(*[b"%x:%b" % (field, some) for field in range(16, 16 + 97)]),
        "of many lines that are meant": get(*[b"Connection:%b%x" % (some, n) for n in range(97)]),
        "of a long target": line(b"GET /" + some + b"y" * 1900 + b" HTTP/1.1"),
        "with many parameters": line(b"GET /?" + b"%b%%41&" % some * 99 + b" HTTP/1.1"),
        "of many hosts": host(some + b"x" * 1900),
        "of empty fields": b"GET /%b HTTP/1.1\r\nHost: a\r\n" % some + least + b"\r\n",
    }


@pytest.mark.parametrize("kind", worst(0))
def test_the_cache_is_bounded_in_entries_and_in_bytes_whatever_the_heads(kind: str) -> None:
    """Others hit, so that it never rests."""
    router, limits = ROUTER, Limits()
    others = iter(range(10**6, 10**9, 10**6))  # who hit, so that it goes on
    heads = HeadCache(router, limits, others.__next__)
    for number in range(1300):
        head = ask(heads, worst(number)[kind])
        assert head.headers and head.query_items is not None  # kept with it, once it was asked
    assert len(heads.found) <= 1024
    assert max(map(len, heads.found)) <= 2048
    assert len(heads._starts) <= HeadCache.STARTS
    assert sum(map(len, heads._starts)) <= HeadCache.STARTS * 2048
    size = sum(map(sys.getsizeof, within(heads)))
    print(f"heads {kind}: {size / 2**20:.1f} MiB")
    assert size < 64 * 2**20
