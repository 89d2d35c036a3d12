"""The middleware around all of the service's routes, as the settings say.

From the outside: access log (added by the worker), recovery, trusted hosts, CORS, security
headers, rate limit by address, compression; inside of them what a route has of its own: its
token, and the limits of who has one (``by_identity``).

The limits are off unless the settings say otherwise: behind a proxy that is not trusted yet, all
clients are one address, and so are all connections of a load test.
"""

from __future__ import annotations

from typing import Final

from fluxor_fast.app import App, Middleware
from fluxor_fast.composition import Layer
from fluxor_fast.http.request import Request
from fluxor_fast.middleware.compression import Compression
from fluxor_fast.middleware.cors import CORS
from fluxor_fast.middleware.rate_limit import RateLimit
from fluxor_fast.middleware.recovery import Recovery
from fluxor_fast.middleware.security_headers import SecurityHeaders
from fluxor_fast.middleware.trusted_hosts import TrustedHosts
from fluxor_fast.redis import Redis
from fluxor_fast.routing import Call, Route
from fluxor_fast.service.runtime import runtime

__all__ = ["by_identity", "install"]

PER_CLIENT: Final = 1000
"""Requests a minute of one address."""
PER_USER: Final = 5000
"""Requests a minute of one user, or API key; the tiers below are of keys."""
TIERS: Final = {"basic": 1000, "standard": 5000, "premium": 10_000}


def install(app: App) -> None:
    """Register the hook that adds them: settings are there at the start only."""

    async def start() -> None:
        web = app.settings.web
        app.add_middleware(Recovery())
        if web.trusted_hosts:
            app.add_middleware(TrustedHosts(web.trusted_hosts))
        if web.cors_origins:
            app.add_middleware(CORS(web.cors_origins, credentials=web.cors_credentials))
        if web.security_headers:
            app.add_middleware(SecurityHeaders())
        if web.rate_limit:
            app.add_middleware(_limits(app).per_client)
        if web.compression:
            app.add_middleware(Compression())

    app.on_startup(start)


class _Limits:
    """The layers of one application. Who is known by name is not charged as a stranger."""

    def __init__(self) -> None:
        outer = self.per_client = RateLimit(PER_CLIENT, redis=_redis)
        self.per_user = RateLimit(PER_USER, by="user", instead_of=outer, redis=_redis)
        self.per_key = RateLimit(
            PER_USER, by="api_key", tiers=TIERS, instead_of=outer, redis=_redis
        )


def _redis(request: Request) -> Redis | None:
    return runtime(request).redis


def _limits(app: App) -> _Limits:
    made: _Limits | None = getattr(app.state, "limits", None)
    if made is None:
        made = app.state.limits = _Limits()
    return made


class _ByIdentity(Layer):
    def __init__(self, app: App) -> None:
        self._app = app

    def __call__(self, call_next: Call, route: Route) -> Call:
        app = self._app
        if app.settings is None or not app.settings.web.rate_limit:
            return call_next
        limits = _limits(app)
        return limits.per_user(limits.per_key(call_next, route), route)


def by_identity(app: App) -> Middleware:
    """Return middleware for inside of what finds out who it is: limits by user and API key."""
    return _ByIdentity(app)
