"""Where llhttp, which httptools wraps, is more lenient than RFC 9110 and 9112 or than we are.

``LET_THROUGH`` is what llhttp takes and we refuse; a row that llhttp refuses as well fails, so
that nobody relies on a check that has become needless, or believes in a row that never was.
``TAKEN`` is what both take though a server could refuse it, each decided. No lenient flag of
llhttp is set. Of a message llhttp sees the head alone: bodies, chunks, trailers, what stands
between messages and what follows the last are read by ``server/framing.py``.
"""

from __future__ import annotations

from pathlib import Path

import httptools
import pytest

from fluxor_fast import HTTPError
from fluxor_fast.server import heads
from fluxor_fast.server.heads import Limits, parse_head
from tests.support import docs
from tests.support.routes import bare_router

LIMITS = Limits(head=16 * 1024, target=100, headers=10, body=1000)
Row = tuple[bytes, str, str]


ROUTER = bare_router("GET /")


def get(*lines: bytes, first: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: a") -> bytes:
    return b"\r\n".join([first, *([host] if host else []), *lines]) + b"\r\n\r\n"


CODING = b"Transfer-Encoding: "
LENGTH = b"Content-Length: "

LET_THROUGH: dict[str, Row] = {
    "empty lines of bare LF or CR before the request line": (
        b"\n\r\r\n" + get(),
        "400",
        "RFC 9112, 2.2: an empty line is CRLF (those `framing.py` skips, before llhttp)",
    ),
    "several spaces in the request line": (
        get(first=b"GET  /  HTTP/1.1"),
        "400",
        "RFC 9112, 3: one space; others find another target",
    ),
    "a request line without a version (HTTP/0.9)": (
        b"GET /\r\n\r\n",
        "400",
        "RFC 9112, 2.3: not served",
    ),
    "version 0.9": (get(first=b"GET / HTTP/0.9"), "505", "RFC 9110, 15.6.6"),
    "version 2.0": (get(first=b"GET / HTTP/2.0"), "505", "RFC 9110, 15.6.6"),
    "another protocol: RTSP": (get(first=b"GET / RTSP/1.0"), "400", "RFC 9112, 2.3"),
    "another protocol: ICE": (get(first=b"SOURCE / ICE/1.0"), "400", "RFC 9112, 2.3"),
    "CONNECT": (
        get(first=b"CONNECT a:80 HTTP/1.1"),
        "501",
        "RFC 9110, 9.3.6: no proxy; llhttp would hand all that follows to a tunnel",
    ),
    "no Host": (get(host=b""), "400", "RFC 9112, 3.2"),
    "two Hosts": (get(b"Host: a"), "400", "RFC 9112, 3.2"),
    "a Host of two words": (get(host=b"Host: a b"), "400", "RFC 9112, 3.2"),
    "a Host with a path": (get(host=b"Host: a/b"), "400", "RFC 9112, 3.2"),
    "a Host that is a port alone": (get(host=b"Host: :80"), "400", "RFC 9110, 4.2.1"),
    "an asterisk, but not for OPTIONS": (get(first=b"GET * HTTP/1.1"), "400", "RFC 9112, 3.2.4"),
    "a target with a fragment": (get(first=b"GET /#a HTTP/1.1"), "400", "RFC 9112, 3.2"),
    "an absolute target with a user": (
        get(first=b"GET http://u@a/ HTTP/1.1"),
        "400",
        "RFC 9110, 4.2.4",
    ),
    "an absolute target without a host": (
        get(first=b"GET http:///a HTTP/1.1"),
        "400",
        "RFC 9110, 4.2.1",
    ),
    "an absolute target of another scheme": (
        get(first=b"GET ftp://a/ HTTP/1.1"),
        "400",
        "RFC 9112, 3.2.2",
    ),
    "an absolute target with half an IPv6 address": (
        get(first=b"GET http://[::1/ HTTP/1.1"),
        "400",
        "RFC 3986, 3.2.2",
    ),
    "a coding in HTTP/1.0": (
        get(CODING + b"chunked", first=b"POST / HTTP/1.0"),
        "400",
        "RFC 9112, 6.1: its framing is faulty",
    ),
    "a coding before chunked": (
        get(CODING + b"gzip, chunked"),
        "501",
        "RFC 9112, 6.1: not understood here",
    ),
    "a coding before chunked in a field of its own": (
        get(CODING + b"gzip", CODING + b"chunked"),
        "501",
        "RFC 9112, 6.1: not understood here",
    ),
    "an empty member before chunked": (
        get(CODING + b", chunked"),
        "501",
        "RFC 9112, 6.1: the field is `chunked`, or it is refused",
    ),
    "a length of more than 18 digits": (
        get(LENGTH + b"0" * 20 + b"5"),
        "400",
        "RFC 9110, 8.6: bounded, leading zeros included",
    ),
    "a length of 2^64 - 1": (
        get(LENGTH + b"18446744073709551615"),
        "400",
        "RFC 9110, 8.6: no overflow anywhere behind us",
    ),
    "an expectation other than 100-continue": (get(b"Expect: x"), "417", "RFC 9110, 10.1.1"),
    "a target of any length": (get(first=b"GET /%b HTTP/1.1" % (b"x" * 200)), "414", "a limit"),
    "fields of any number": (get(*[b"A: b"] * 20), "431", "a limit"),
}

TAKEN: dict[str, Row] = {
    "an empty Host": (
        get(host=b"Host:"),
        "taken",
        "RFC 9112, 3.2: who asks for a target without an authority must send it",
    ),
    "Host beside an absolute target that names another": (
        get(first=b"GET http://b/ HTTP/1.1"),
        "taken",
        "RFC 9112, 3.2.2: the target counts; handlers see its host in place of the field",
    ),
    "characters in a target that no URI may have": (
        get(first=b'GET /?"<>\\^`{|} HTTP/1.1'),
        "taken",
        "RFC 9112, 3.2: common, no delimiter of anything here; handed on as they are",
    ),
    "a percent sign that begins no octet": (
        get(first=b"GET /?a=%zz HTTP/1.1"),
        "taken",
        "RFC 3986, 2.1: data of the application",
    ),
    "NUL, CR and LF, percent-encoded": (
        get(first=b"GET /?a=%00%0d%0a HTTP/1.1"),
        "taken",
        "RFC 3986, 2.1: data of the application, never decoded before routing",
    ),
    "methods that no route takes": (
        get(first=b"SOURCE / HTTP/1.1"),
        "taken",
        "RFC 9110, 15.5.6: 405 if llhttp knows them, 501 if not",
    ),
    "names with an underscore": (
        get(b"Content_Length: 5"),
        "taken",
        "RFC 9110, 5.1: fields of their own; nothing here makes `-` of `_`",
    ),
    "bytes beyond ASCII in values": (
        get(b"X: \xe4\xff"),
        "taken",
        "RFC 9110, 5.5: obs-text, handed on as Latin-1",
    ),
    "an offer to upgrade": (
        get(b"Connection: upgrade", b"Upgrade: h2c"),
        "taken",
        "RFC 9110, 7.8: not taken up; what follows is HTTP/1.1",
    ),
    "leading zeros in a length": (
        get(LENGTH + b"0005"),
        "taken",
        "RFC 9110, 8.6: digits, up to 18",
    ),
    "a body of GET": (
        get(LENGTH + b"5"),
        "taken",
        "RFC 9110, 9.3.1: it is read, so that it is never the next request",
    ),
    "100-continue said twice": (
        get(b"Expect: 100-continue", b"Expect: 100-continue"),
        "taken",
        "RFC 9110, 10.1.1",
    ),
}


class Quiet:
    """Takes nothing down."""

    done = False

    def on_headers_complete(self) -> None:
        self.done = True


def taken_by_llhttp(raw: bytes) -> bool:
    seen = Quiet()
    try:
        httptools.HttpRequestParser(seen).feed_data(raw)
    except httptools.HttpParserUpgrade:
        return True
    except httptools.HttpParserError:
        return False
    return seen.done


@pytest.mark.parametrize("name", LET_THROUGH)
def test_what_llhttp_lets_through_is_refused(name: str) -> None:
    raw, status, _ = LET_THROUGH[name]
    assert taken_by_llhttp(raw)
    with pytest.raises(HTTPError) as caught:
        parse_head(raw, ROUTER, LIMITS)
    assert str(caught.value.status) == status


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_by_decision(name: str) -> None:
    raw, _, _ = TAKEN[name]
    assert taken_by_llhttp(raw)
    parse_head(raw, ROUTER, LIMITS)


def test_no_lenient_flag_is_set() -> None:
    assert "leniencies" not in Path(heads.__file__).read_text()
    for lenient in (
        get(b"X: a\r\n b"),
        get(b"X: a\nY: b"),
        get(b"X : a"),
        get(LENGTH + b"5", CODING + b"chunked"),
        get(LENGTH + b"5", LENGTH + b"5"),
        get(b"X: \x01"),
        get(CODING + b"chunked, gzip"),
    ):
        assert not taken_by_llhttp(lenient)


def test_the_document_has_both_tables() -> None:
    def rows(of: dict[str, Row], test: str) -> list[list[str]]:
        return [[name, answer, why, f"`{test}[{name}]`"] for name, (_, answer, why) in of.items()]

    header = "| in the head | we | why | test |"
    refused = rows(LET_THROUGH, test_what_llhttp_lets_through_is_refused.__name__)
    taken = rows(TAKEN, test_what_is_taken_by_decision.__name__)
    docs.check("HTTP.md", "llhttp", docs.table(header, refused))
    docs.check("HTTP.md", "taken", docs.table(header, taken))
