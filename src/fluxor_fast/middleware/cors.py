"""Cross-origin requests: which web pages of other origins may read answers (Fetch, section 3.2).

Rules:

1. A preflight (OPTIONS with ``Origin`` and ``Access-Control-Request-Method``) is answered here,
   whether its path has a route for OPTIONS or not, before anything inside sees it: it carries no
   credentials. What it may not is 403, without any of the headers.
2. Every other request is served, whatever its origin: CORS tells browsers who may read, and keeps
   nobody out. The headers are on every answer, errors too: a page can then read why.
3. ``Vary: Origin`` is on every answer, also of requests without an origin: else a shared cache
   would serve one origin's answer to another. Only where everybody may read there is none.
4. ``*`` and credentials exclude each other: every page of the web would act for its visitor.
   ``null`` cannot be allowed: it is the origin of anyone's sandboxed frame.
5. Origins are compared whole, in lower case. ``https://*.example.com`` allows every subdomain,
   at any depth, not ``https://example.com``; the port must be the same. A wildcard stands for
   whole labels, at the left, before two more at least.

Cost alone: 0.5 µs per request (``python bench/middleware.py cors``), of which 0.4 is what the first
layer of a route costs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal

from fluxor_fast.composition import Layer
from fluxor_fast.contract import Answer
from fluxor_fast.errors import HTTPError
from fluxor_fast.http.origins import read_origin
from fluxor_fast.http.request import Head, Request
from fluxor_fast.http.response import Response, header_line
from fluxor_fast.routing import Call, Route

__all__ = ["CORS"]

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
HEADERS: Final = ("Authorization", "Content-Type", "X-Request-ID", "X-Request-Timeout-Ms")
SAFELISTED: Final = frozenset(("accept", "accept-language", "content-language", "content-type"))
"""Request headers that browsers send without asking (Fetch, section 2.2.2)."""
PREFLIGHT_VARY: Final = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
PREFLIGHTS: Final = ("OPTIONS", "*")
"""Methods of routes that may have a preflight to answer; ``*`` is where there is no route."""
MOST_ASKED: Final = 4096
"""Characters of ``Access-Control-Request-Headers`` that are looked at."""

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")


class CORS(Layer):
    """Middleware: answers to preflights, and the headers that let pages read answers.

    :param origins: ``https://app.example.com``, ``https://*.example.com``, or ``*`` for all.
    :param methods: what a preflight may ask for.
    :param headers: request headers that a preflight may ask for, or ``*`` for any.
    :param credentials: whether browsers send cookies along, and let the page read the answer.
    :param expose: headers of answers that pages may read besides the safelisted ones;
        ``X-Request-ID`` by default.
    :param max_age: seconds for which a browser need not ask again; it may have a limit of its own.
    :raises ValueError: for an origin that is none, or ``*`` together with credentials.
    """

    once: ClassVar[bool] = True
    on_path: ClassVar[bool] = True

    def __init__(
        self,
        origins: Sequence[str],
        *,
        methods: Sequence[str] = METHODS,
        headers: Sequence[str] | Literal["*"] = HEADERS,
        credentials: bool = False,
        expose: Sequence[str] = ("X-Request-ID",),
        max_age: int = 600,
    ) -> None:
        if isinstance(origins, str):
            raise ValueError(f"origins are a list of them, not the text {origins!r}")
        self._all = "*" in origins
        if self._all and credentials:
            raise ValueError("CORS: * and credentials exclude each other; name the origins")
        self._exact: set[str] = set()
        wild: list[str] = []
        for text in origins if not self._all else ():
            origin, is_wild = read_origin(text)
            if is_wild:
                before, after = origin.split("*.")
                wild.append(rf"{re.escape(before)}(?:[a-z0-9_-]+\.)+{re.escape(after)}")
            else:
                self._exact.add(origin)
        self._wild = re.compile("|".join(wild)) if wild else None
        self._methods = frozenset(methods)
        self._any_header = headers == "*"
        self._headers = SAFELISTED | {name.lower() for name in headers}

        with_credentials = (
            header_line("Access-Control-Allow-Credentials", "true") if credentials else b""
        )
        exposed = header_line("Access-Control-Expose-Headers", ", ".join(expose)) if expose else b""
        vary = b"" if self._all else header_line("Vary", "Origin")
        self._plain = with_credentials + exposed + vary
        self._unread = vary
        self._preflight = (
            with_credentials
            + header_line("Access-Control-Allow-Methods", ", ".join(methods))
            + header_line("Access-Control-Max-Age", str(max_age))
        )
        self._allow_headers = ", ".join(headers)

    def _allowed(self, origin: str) -> bool:
        if self._all:
            return True
        origin = origin.lower()
        return origin in self._exact or (
            self._wild is not None and self._wild.fullmatch(origin) is not None
        )

    def answers(self, route: Route) -> Mapping[int, Answer]:
        """Return what a preflight may be refused with: only a route for OPTIONS has it."""
        refused = Answer("Of a preflight: the origin, method or a header is not allowed.")
        return {403: refused} if route.method == "OPTIONS" else {}

    def __call__(self, call_next: Call, route: Route) -> Call:
        """Put this layer around ``call_next``, if that may have preflights to answer."""
        around = super().__call__(call_next, route)
        return around if route.method in PREFLIGHTS else call_next

    def begin(self, request: Request) -> Any:
        """Answer a preflight."""
        origin = _preflight_of(request.head)
        return None if origin is None else self._answer(request, origin)

    def lines(self, request: Request) -> bytes:
        """Return what lets pages read the answer to what is no preflight."""
        head = request.head
        if _preflight_of(head) is not None:
            return b""
        if self._all:  # the same for everybody, so that caches need not care
            return header_line("Access-Control-Allow-Origin", "*") + self._plain
        origin = head.headers.get("origin")
        if origin is None or not self._allowed(origin):
            return self._unread
        return header_line("Access-Control-Allow-Origin", origin) + self._plain

    def _answer(self, request: Request, origin: str) -> Response:
        asked = request.headers
        request.fields += header_line("Vary", PREFLIGHT_VARY)
        if not self._allowed(origin):
            raise _refused("this origin may not read answers")
        if asked["access-control-request-method"] not in self._methods:
            raise _refused("this method is not for other origins")
        text = asked.get("access-control-request-headers", "").lower()
        names = [one for one in (name.strip(" \t") for name in text.split(",")) if one]
        good = len(text) <= MOST_ASKED and all(
            _NAME.fullmatch(name) if self._any_header else name in self._headers for name in names
        )
        if not good:
            raise _refused("one of these headers is not for other origins")
        # what ``*`` stands for is named: the field's own ``*`` leaves out Authorization
        headers = ", ".join(names) if self._any_header else self._allow_headers
        request.fields += (
            header_line("Access-Control-Allow-Origin", "*" if self._all else origin)
            + self._preflight
            + (header_line("Access-Control-Allow-Headers", headers) if headers else b"")
        )
        return Response(status=204)


def _preflight_of(head: Head) -> str | None:
    """Return the origin that a preflight is for; None: it is none (rule 1)."""
    if head.method != "OPTIONS" or "access-control-request-method" not in head.headers:
        return None
    return head.headers.get("origin")


def _refused(message: str) -> HTTPError:
    return HTTPError(403, message, code="CORS_REFUSED")
