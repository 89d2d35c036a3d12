"""Routers whose handlers do nothing, for tests of what stands before a handler."""

from __future__ import annotations

from fluxor_fast import Request
from fluxor_fast.routing import Route, Router


def nothing(request: Request, **params: object) -> None: ...


def bare_router(*routes: str, **max_body: int) -> Router:
    """Return a router for ``routes``, each a method and a path.

    :param max_body: the most that a route takes, by the name that its path is, in bytes.
    """
    return Router(
        Route(method, path, nothing, max_body=max_body.get(path.strip("/")))
        for method, path in (route.split() for route in routes)
    )
