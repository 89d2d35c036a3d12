"""Who may call a route: middleware for ``App.route(middleware=…)``.

::

    signed_in = authenticated(lambda request: request.app.state.tokens)

    @app.get("/reports", middleware=(signed_in, require_role("admin")))
    def reports(request):
        claims = request.state["user"]

``authenticated`` comes first (outermost). Both work for plain, blocking and coroutine handlers,
and check before the handler is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fluxor_fast.app import Middleware
from fluxor_fast.auth.tokens import Claims, Tokens, unauthorized
from fluxor_fast.errors import HTTPError
from fluxor_fast.http.request import Request
from fluxor_fast.routing import Call, Kind, Route

__all__ = ["authenticated", "require_role"]


def authenticated(tokens_of: Callable[[Request], Tokens]) -> Middleware:
    """Return middleware that lets in requests with a good bearer token (RFC 6750, section 2.1).

    The handler finds the ``Claims`` in ``request.state["user"]``. Without a good token the
    answer is 401, ``UNAUTHORIZED`` or ``TOKEN_EXPIRED``, with ``WWW-Authenticate: Bearer``.

    :param tokens_of: gives the ``Tokens`` to verify with; called for each request, because
        they are made at start.
    """

    def check(request: Request) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        token = token.strip(" ")
        if scheme.lower() != "bearer" or not token:
            raise unauthorized("a bearer token is needed")
        request.state["user"] = tokens_of(request).verify(token)

    return _before(check)


def require_role(*roles: str) -> Middleware:
    """Return middleware that lets in users who have one of ``roles``; 403 ``FORBIDDEN`` else.

    The roles are those of the token: one that was taken away is good until the token expires.
    """
    wanted = frozenset(roles)

    def check(request: Request) -> None:
        claims = request.state.get("user")
        if not isinstance(claims, Claims):
            raise unauthorized("a bearer token is needed")
        if wanted.isdisjoint(claims.roles):
            raise HTTPError(403, f"this needs the role {' or '.join(sorted(wanted))}")

    return _before(check)


def _before(check: Callable[[Request], None]) -> Middleware:
    """Return middleware that calls ``check`` before the handler, whatever its kind."""

    def middleware(call_next: Call, route: Route) -> Call:
        if route.kind is Kind.ASYNC:

            async def checked_async(request: Request) -> Any:
                check(request)
                return await call_next(request)

            return checked_async

        def checked(request: Request) -> Any:
            check(request)
            return call_next(request)

        return checked

    return middleware
