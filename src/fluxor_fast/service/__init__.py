"""The reference service: accounts, users, health and metrics on PostgreSQL.

``fluxor-fast serve`` runs ``fluxor_fast.service:app`` when no other application is named.
"""

from fluxor_fast import __version__, documentation, openapi
from fluxor_fast.app import App
from fluxor_fast.cache import Cache
from fluxor_fast.service import accounts, chain, keys, runtime, sessions, status, users

__all__ = ["app", "build"]


def build() -> App:
    """Return a new application with every route and hook of the service."""
    made = App(title="fluxor-fast reference service", version=__version__)
    chain.install(made)
    cache = Cache()
    runtime.install(made, cache)
    status.add_routes(made)
    accounts.add_routes(made)
    sessions.add_routes(made)
    keys.add_routes(made)
    users.add_routes(made, cache)
    openapi.publish(made)
    documentation.install(made)
    return made


app = build()
