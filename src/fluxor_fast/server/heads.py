"""From the bytes of a head to a checked and routed ``Head``, remembered.

Clients repeat the same bytes on every request. ``HeadCache`` maps the exact bytes of a head
that was accepted to its parsed and routed form; identical bytes always parse identically, and
routes do not change while a worker lives, so it changes nothing but speed.

Bounds: ``entries`` heads of at most ``longest`` bytes each, the oldest entry leaves first. While
nearly every head is new the cache stops storing, and tries again later.

A head that is new mostly differs from others in a token, a trace, a cookie, a length.
``_PLAIN_LINE`` and ``_PLAIN_FIELDS`` are the grammar of heads that need no parser: within it
nothing is refused by the rules below, and there is one way to read what is there. What it does not
match, good or bad, goes to ``parse_head``. Nothing is kept of a head outside of its entry but its
*start*, the request line and ``Host`` of a route without parameters, if it comes without a query.

What a head must fulfil here, beyond what httptools (llhttp) checks (RFC 9112 unless said):

1. Lines end with CRLF; no bare CR or LF, no NUL, no folded lines (sections 2.2 and 5.2).
2. Version 1.0 or 1.1 (505 otherwise); the method is a token (501 if nobody knows it).
3. HTTP/1.1 has exactly one well-formed ``Host`` (section 3.2): a name whose ``%`` begins an
   octet, or an IPv6 address without a zone, and a port up to 65535 only behind one of them. It may
   be empty, as a client without an authority must send it.
4. ``Content-Length`` comes once and is digits only; with ``Transfer-Encoding`` it is refused;
   of transfer codings only ``chunked``, once, and only in HTTP/1.1 (sections 6.1 to 6.3).
5. ``Expect`` is ``100-continue`` or 417 (RFC 9110, section 10.1.1).
6. Targets in origin form, absolute form, or ``*`` for OPTIONS (section 3.2). What an absolute
   form names takes the place of ``Host``: the field that came is never seen (section 3.2.2).

``docs/HTTP.md`` lists what is decided here beyond llhttp, and what the cache holds for how long.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any, Final

import httptools

from fluxor_fast.errors import HTTPError
from fluxor_fast.http.grammar import TCHAR, TOKEN, is_length, is_request_id
from fluxor_fast.http.request import CHUNKED, Head
from fluxor_fast.routing import Route, Router

__all__ = ["HeadCache", "Limits", "parse_head"]

_REQUEST_LINE = re.compile(
    rb"(%b) ([\x21-\x7e\x80-\xff]+) HTTP/([0-9])\.([0-9])\r\n" % TOKEN.encode()
)
_HOST = re.compile(
    rb"(?:\[([0-9A-Fa-f:.]+)\]|((?:[A-Za-z0-9\-._~!$&'()*+,;=]++|%[0-9A-Fa-f]{2})*))"
    rb"(?::([0-9]{0,5}))?"
)
_PLAIN_HOST = re.compile(rb"[A-Za-z0-9\-._]+(?::[0-9]{1,4})?").fullmatch  # most are: it is cheap
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)([^#]*)", re.IGNORECASE)
_MILLISECONDS = re.compile(rb"[1-9][0-9]{0,8}")


def _named(text: str) -> bytes:
    """Return the expression in ``text``, with ``<…>`` for text in any case.

    As sets of two letters, by which alternatives are told apart faster than with ``(?i:…)``.
    """

    def letters(match: re.Match[str]) -> str:
        return "".join(f"[{c.upper()}{c}]" if c.isalpha() else c for c in match[1])

    return re.sub("<([^>]*)>", letters, text).encode("ascii")


_OTHER_LINE = _named(
    r"(?!(?:<host>|<con>(?:<tent-length>|<nection>)|<transfer-encoding>|<expect>|<upgrade>"
    r"|<proxy-connection>|<x-request->(?:<id>|<timeout-ms>)):)"
    rf"[{TCHAR}]++:[\t\x20-\x7e\x80-\xff]*+\r\n"
)
"""A field that says nothing to this server, nor to httptools."""
_MEANT_LINE = _named(
    r"(?:<host>: ?(?(1)(?!))([A-Za-z0-9\-._]++(?::(?:6[0-4][0-9]{3}|[1-5]?[0-9]{1,4}))?)"
    r"|<con>(?:<tent-length>: ?(?(2)(?!))([0-9]{1,18}+)|<nection>: ?(?(3)(?!))([\x20-\x7e]*+))"
    r"|<transfer-encoding>: ?(?(4)(?!))(<chunked>)"
    r"|<x-request->(?:<id>: ?(?(5)(?!))([\x21-\x7e]{1,128}+)"
    r"|<timeout-ms>: ?(?(6)(?!))([1-9][0-9]{0,8}+)))\r\n"
)
"""A field that says something, in its plain form, and none of its name before: ``(?(1)(?!))``
fails once group 1 has matched. A line that is neither this nor the other ends the match: as no
line can be read two ways, what is tried again fails at its first letters, and time is linear."""
_PLAIN_LINE = re.compile(
    rb"(GET|HEAD|POST|PUT|PATCH|DELETE) (/[\x21\x24-\x3e\x40-\x7e]*+)(?:\?([\x21\x24-\x7e]*+))?+"
    rb" HTTP/1\.1\r\n"
).match
_PLAIN_FIELDS = re.compile(
    # not possessive: in CPython 3.11.2 such a loop of lines fails where there are none, and before
    # 3.13 a group within one can have the span of another
    rb"(?:%b)*(?:%b(?:%b)*)*\r\n" % (_OTHER_LINE, _MEANT_LINE, _OTHER_LINE)
).fullmatch


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may measure, in bytes (but for ``headers``, a count)."""

    head: int = 16 * 1024
    target: int = 8 * 1024
    headers: int = 100
    body: int = 1024 * 1024


class _Fields:
    """Collects what the parser finds."""

    __slots__ = ("done", "headers", "url")

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.done = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.done = True


def _bad(message: str) -> HTTPError:
    return HTTPError(400, message)


def parse_head(raw: bytes, router: Router, limits: Limits) -> Head:
    """Return the head in ``raw``, which ends with the empty line.

    :raises HTTPError: for what the module's rules refuse; the connection must then be closed.
    """
    if not raw.count(b"\n") == raw.count(b"\r\n") == raw.count(b"\r"):
        raise _bad("a line of the head does not end with CRLF")
    if b"\0" in raw or b"\r\n " in raw or b"\r\n\t" in raw:
        raise _bad("the head holds a NUL or a folded line")
    line = _REQUEST_LINE.match(raw)
    if line is None:
        raise _bad("the request line is malformed")
    method, target, major, minor = line.groups()
    if len(target) > limits.target:
        raise HTTPError(414, f"the request target is longer than {limits.target} bytes")
    if major != b"1" or minor not in b"01":
        raise HTTPError(505, "this server speaks HTTP/1.1 and HTTP/1.0")
    if method == b"CONNECT":
        raise HTTPError(501, "CONNECT is not served")
    fields = _Fields()
    parser = httptools.HttpRequestParser(fields)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass  # an offer that is not taken up; only the head was fed, nothing is lost
    except httptools.HttpParserInvalidMethodError:
        raise HTTPError(501, "the method is not known here") from None
    except httptools.HttpParserError as error:
        if "Invalid method" in str(error):  # of RTSP, which llhttp knows
            raise HTTPError(501, "the method is not known here") from None
        raise _bad(f"the head is malformed: {error}") from None
    if not fields.done:
        raise _bad("the head is malformed")
    if len(fields.headers) > limits.headers:
        raise HTTPError(431, f"more than {limits.headers} header fields")
    return _check(method, fields, minor == b"1", router)


def _check(method: bytes, fields: _Fields, http_11: bool, router: Router) -> Head:
    hosts: list[bytes] = []
    lengths: list[bytes] = []
    codings: list[bytes] = []
    tokens: set[bytes] = set()
    protocols: set[bytes] = set()
    request_id: bytes | None = None
    timeout: float | None = None
    expects = False
    for name, value in fields.headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
        elif name == b"connection":
            tokens.update(token.strip() for token in value.lower().split(b","))
        elif name == b"upgrade":
            protocols.update(token.strip() for token in value.lower().split(b","))
        elif name == b"expect":
            if value.lower() != b"100-continue":
                raise HTTPError(417, "the only expectation met here is 100-continue")
            expects = http_11  # RFC 9110, section 10.1.1: a 1.0 client gets no 100
        elif name == b"x-request-timeout-ms" and _MILLISECONDS.fullmatch(value):
            timeout = int(value) / 1000
        elif name == b"x-request-id" and is_request_id(value):
            request_id = value
    if len(hosts) > 1 or (http_11 and not hosts):
        raise _bad("exactly one Host field is wanted")
    if hosts and not _PLAIN_HOST(hosts[0]) and not _is_host(hosts[0]):
        raise _bad("the Host field is malformed")
    path, query, authority = _target(fields.url, method)
    if authority:
        fields.headers = [(n, authority if n == b"host" else v) for n, v in fields.headers]
    route, params = router.match(method.decode(), path)
    # RFC 9110, section 7.8: in HTTP/1.0 an offer is ignored
    upgrade = http_11 and route.websocket and b"upgrade" in tokens and b"websocket" in protocols
    head = Head(
        method=method.decode(),
        path=path,
        query=query,
        http_11=http_11,
        raw_headers=tuple(fields.headers),
        length=_length(lengths, codings, http_11),
        keep_alive=not upgrade and b"close" not in tokens and (http_11 or b"keep-alive" in tokens),
        expects_continue=expects,
        request_id=request_id,
        timeout=timeout,
        route=route,
        params=params,
    )
    if upgrade:
        head.upgrade = True
    if not fields.url.startswith(b"/"):
        absolute = _ABSOLUTE.fullmatch(fields.url)
        head.authority = absolute and absolute[1].decode("ascii")
    return head


def _length(lengths: list[bytes], codings: list[bytes], http_11: bool) -> int:
    if codings:
        if lengths:
            raise _bad("Content-Length beside Transfer-Encoding")
        if not http_11:
            raise _bad("Transfer-Encoding in an HTTP/1.0 request")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise HTTPError(501, "the only transfer coding served is chunked, once")
        return CHUNKED
    if not lengths:
        return 0
    if len(lengths) > 1 or not is_length(lengths[0]):
        raise _bad("Content-Length is malformed or comes more than once")
    return int(lengths[0])


def _is_host(value: bytes) -> bool:
    """Return whether ``value`` is a host, perhaps with a port (RFC 3986, section 3.2), or empty."""
    match = _HOST.fullmatch(value)
    if match is None:
        return False
    address, name, port = match.groups()
    if address is not None:
        try:
            IPv6Address(address.decode())
        except ValueError:
            return False
    elif not name and port is not None:
        return False
    return not port or int(port) <= 65535


def _target(url: bytes, method: bytes) -> tuple[str, bytes, bytes]:
    """Return path, query and, of the absolute form, host and port of a request target."""
    authority = b""
    if url == b"*" and method == b"OPTIONS":
        return "*", b"", b""
    if not url.startswith(b"/"):
        absolute = _ABSOLUTE.fullmatch(url)
        if absolute is None or not absolute[1] or not _is_host(absolute[1]):
            raise _bad("the request target is malformed")
        authority, url = absolute.groups()
        if not url.startswith(b"/"):
            url = b"/" + url
    if b"#" in url:
        raise _bad("the request target has a fragment")
    path, _, query = url.partition(b"?")
    try:
        return path.decode("ascii"), query, authority
    except UnicodeDecodeError:
        raise _bad("the request target is not ASCII") from None


def _keeps(connection: bytes) -> bool:
    """Return whether a connection is kept, by its only ``Connection`` field in HTTP/1.1."""
    value = connection.lower()
    return b"close" not in value or b"close" not in map(bytes.strip, value.split(b","))


def _said(
    raw: bytes,
    method: str,
    path: str,
    query: bytes,
    route: Route,
    params: dict[str, Any],
    fields: re.Match[bytes],
) -> Head | None:
    """Return the head with what ``_PLAIN_FIELDS`` found, or None if the parser is to see it."""
    _, length, connection, coding, request_id, timeout = fields.groups()
    if coding is not None and length is not None:
        return None
    return Head(
        method,
        path,
        query,
        True,
        raw,
        CHUNKED if coding is not None else 0 if length is None else int(length),
        connection is None or _keeps(connection),
        route,
        False,
        request_id,
        None if timeout is None else int(timeout) / 1000,
        params,
    )


class HeadCache:
    """Heads by their exact bytes.

    :param router: where parsed heads are routed.
    :param served: how many requests the worker has taken so far, hits and misses alike.
    :param entries: how many heads are kept; ``longest``: the longest head kept, in bytes.
    """

    REVIEW: Final = 512  # misses between two looks at whether storing pays
    REST: Final = 8192  # misses for which a cache that did not pay stores nothing
    STARTS: Final = 256  # kept; when there are more they are all forgotten

    def __init__(
        self,
        router: Router,
        limits: Limits,
        served: Callable[[], int],
        *,
        entries: int = 1024,
        longest: int = 2048,
    ) -> None:
        self.limits = limits
        self.found: dict[bytes, Head] = {}  # looked up by the protocol itself: no call on a hit
        self._router = router
        self._served = served
        self._entries = entries
        self._longest = longest
        self._countdown = self.REVIEW
        self._served_then = 0
        self._storing = entries > 0
        self._short = 4 * limits.headers  # bytes of a head that cannot have more fields
        self._starts: dict[bytes, Head] = {}  # with what they say if nothing more is said

    def parse(self, raw: bytes) -> Head:
        """Return the head in ``raw``, which is not in the cache, and remember it.

        :raises HTTPError: as ``parse_head``; what is refused is never remembered.
        """
        head = self._plain(raw) or parse_head(raw, self._router, self.limits)
        self._countdown -= 1
        if self._countdown == 0:
            self._review()
        if self._storing and len(raw) <= self._longest and not head.upgrade:
            found = self.found
            if len(found) >= self._entries:
                del found[next(iter(found))]
            found[raw] = head
        return head

    def _plain(self, raw: bytes) -> Head | None:
        """Return the head if it is of the plain form, within the limits."""
        at = raw.find(b"\n", raw.find(b"\n") + 1) + 1
        start = self._starts.get(raw[:at])
        if start is None:
            return self._of_new_start(raw, at)
        fields = _PLAIN_FIELDS(raw, at)
        if fields is None or (len(raw) > self._short and self._has_many(raw)):
            return None
        if fields.lastindex is None:
            return start.over(raw)
        if fields[1] is not None:  # a second Host
            return None
        return _said(raw, start.method, start.path, b"", start.route, start.params, fields)

    def _of_new_start(self, raw: bytes, at: int) -> Head | None:
        line = _PLAIN_LINE(raw)
        if line is None or line.end() > self.limits.target:
            return None
        fields = _PLAIN_FIELDS(raw, line.end())
        if fields is None or fields[1] is None or self._has_many(raw):
            return None
        method, path = line[1].decode("ascii"), line[2].decode("ascii")
        route, params = self._router.match(method, path)
        if (
            fields.end(1) + 2 == at <= self._longest  # Host is the first field
            and line[3] is None
            and route.path == path
            and not params
        ):
            if len(self._starts) >= self.STARTS:
                self._starts.clear()
            self._starts[raw[:at]] = Head(method, path, b"", True, b"", 0, True, route)
        return _said(raw, method, path, line[3] or b"", route, params, fields)

    def _has_many(self, raw: bytes) -> bool:
        return raw.count(b"\n") - 2 > self.limits.headers

    def _review(self) -> None:
        served = self._served()
        taken = max(served - self._served_then, 1)
        self._served_then = served
        if self._storing and 0.9 * taken < self.REVIEW:
            self._storing = False
            self.found.clear()
            self._countdown = self.REST
        else:
            self._storing = self._entries > 0
            self._countdown = self.REVIEW
