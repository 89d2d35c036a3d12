"""Who may call a route: layers for ``App.route(middleware=…)``.

::

    signed_in = authenticated(lambda request: request.app.state.tokens)

    @app.get("/reports", middleware=(signed_in, require_role("admin")))
    def reports(request):
        user = request.state["user"]

What tells who is asking (``authenticated``, ``api_key``, ``bearer_or_key``) comes first (outermost)
and leaves it in ``request.state["user"]``; what is required of them comes behind. Rules:

1. All check before the handler is called. Who is asking is 401 where it cannot be told, what is
   required 403.
2. Roles and permissions are those of the token or key: one that was taken away is good until the
   token expires, or the key has been looked up again. Roles say what somebody is (``admin``),
   permissions what they may do (``reports:write``); they are compared as text, none is within
   another, and having a role gives no permission.
3. ``authenticated`` and what is required work on plain, blocking and coroutine handlers. A layer
   that may have to wait for an answer, as for a key that nobody has shown before, is a ``Waiting``,
   and refused on plain handlers, which cannot wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from fluxor_fast.auth.verifying import unauthorized
from fluxor_fast.composition import Layer, offer, sooner_of
from fluxor_fast.errors import HTTPError, RouteError
from fluxor_fast.http.request import Request
from fluxor_fast.routing import Call, Kind, Route

__all__ = [
    "Identity",
    "Verifier",
    "Waiting",
    "authenticated",
    "bearer_of",
    "require_any",
    "require_permission",
    "require_role",
]


class Identity(Protocol):
    """Who is asking, as ``request.state["user"]``."""

    @property
    def roles(self) -> tuple[str, ...]:
        """What they are."""

    @property
    def permissions(self) -> tuple[str, ...]:
        """What they may do."""


class Verifier(Protocol):
    """What judges tokens, such as ``Tokens``."""

    def verify(self, token: str) -> Identity:
        """Return who a good token speaks for; 401 ``HTTPError`` for another one."""


def bearer_of(request: Request) -> str:
    """Return the bearer token of a request (RFC 6750, section 2.1).

    :raises HTTPError: 401 ``UNAUTHORIZED`` if there is none.
    """
    memo = request.head.memo
    token: str | None = memo.get(bearer_of)
    if token is None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        token = token.strip(" ")
        if scheme.lower() != "bearer" or not token:
            raise unauthorized("a bearer token is needed")
        memo[bearer_of] = token
    return token


class authenticated(Layer):
    """Lets in requests with a good bearer token.

    The handler finds what the token says in ``request.state["user"]``. Without a good one the
    answer is 401, ``UNAUTHORIZED`` or ``TOKEN_EXPIRED``, with ``WWW-Authenticate: Bearer``.
    Cost of a token that is remembered: ``bench/middleware.py bearer``.

    :param tokens_of: gives what verifies, such as ``Tokens``; called for each request, because
        they are made at start.
    """

    def __init__(self, tokens_of: Callable[[Request], Verifier]) -> None:
        self._tokens_of = tokens_of

    def begin(self, request: Request) -> None:
        """Look at the token."""
        request.state["user"] = self._tokens_of(request).verify(bearer_of(request))


class _Required(Layer):
    """Lets in who ``is_met`` says."""

    def __init__(self, message: str) -> None:
        self._message = message

    def is_met(self, user: Identity) -> bool:
        raise NotImplementedError

    def begin(self, request: Request) -> None:
        """Look at who is asking."""
        user: Identity | None = request.state.get("user")
        if user is None:
            raise unauthorized("this needs to know who is asking")
        if not self.is_met(user):
            raise HTTPError(403, self._message)


class require_any(_Required):
    """Lets in users who have at least one of ``roles``; 403 ``FORBIDDEN`` else."""

    def __init__(self, *roles: str) -> None:
        if not roles:
            raise ValueError("no role is named: nobody would get in")
        super().__init__(f"this needs the role {' or '.join(sorted(roles))}")
        self._roles = frozenset(roles)

    def is_met(self, user: Identity) -> bool:
        """Tell whether the user has one of them."""
        return not self._roles.isdisjoint(user.roles)


class require_role(require_any):
    """Lets in users who have ``role``; 403 ``FORBIDDEN`` else."""

    def __init__(self, role: str) -> None:
        super().__init__(role)


class require_permission(_Required):
    """Lets in users who have all of ``permissions``; 403 ``FORBIDDEN`` else."""

    def __init__(self, *permissions: str) -> None:
        if not permissions:
            raise ValueError("no permission is named: everybody would get in")
        super().__init__(f"this needs the permission {' and '.join(sorted(permissions))}")
        self._permissions = frozenset(permissions)

    def is_met(self, user: Identity) -> bool:
        """Tell whether the user has all of them."""
        return self._permissions.issubset(user.permissions)


class Waiting(Layer):
    """A layer that mostly knows at once, and else waits, which takes a coroutine or a thread.

    :raises RouteError: on a plain handler.
    """

    def known(self, request: Request) -> bool:
        """Return whether all is known; what is refused raises an ``HTTPError``."""
        raise NotImplementedError

    async def find_out(self, request: Request) -> None:
        """Wait until it is known; what is refused raises an ``HTTPError``."""
        raise NotImplementedError

    def loop_of(self, request: Request) -> asyncio.AbstractEventLoop:
        """Return the worker's loop, for who asks from a thread."""
        raise NotImplementedError

    def check(self, kind: Kind, path: str) -> None:
        """Refuse plain handlers."""
        if kind is Kind.SYNC:
            raise RouteError(
                f"{path}: {type(self).__name__} may have to wait:"
                " the handler must be a coroutine function, or blocking"
            )

    def __call__(self, call_next: Call, route: Route) -> Call:
        """Put this layer around ``call_next``."""
        self.check(route.kind, route.path)
        known, find_out = self.known, self.find_out
        if route.kind is Kind.ASYNC:

            async def waiting(request: Request) -> Any:
                if not known(request):
                    await find_out(request)
                return await call_next(request)

            async def found_out(request: Request) -> Any:
                await find_out(request)
                return await call_next(request)

            sooner = sooner_of(call_next)
            if sooner is not None:
                offer(waiting, lambda r: sooner(r) if known(r) else found_out(r))
            return waiting

        def waiting_in_thread(request: Request) -> Any:
            if not known(request):
                asyncio.run_coroutine_threadsafe(find_out(request), self.loop_of(request)).result()
            return call_next(request)

        return waiting_in_thread
