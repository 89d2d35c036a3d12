"""The middleware around all of the service's routes, as the settings say.

From the outside: access log (added by the worker), recovery, trusted hosts, CORS, security headers,
compression; inside of them what a route has of its own, such as its token.
"""

from __future__ import annotations

from fluxor_fast.app import App
from fluxor_fast.middleware.compression import Compression
from fluxor_fast.middleware.cors import CORS
from fluxor_fast.middleware.recovery import Recovery
from fluxor_fast.middleware.security_headers import SecurityHeaders
from fluxor_fast.middleware.trusted_hosts import TrustedHosts

__all__ = ["install"]


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
        if web.compression:
            app.add_middleware(Compression())

    app.on_startup(start)
