"""What the service's handlers work with, made in each worker at its start."""

from __future__ import annotations

from dataclasses import dataclass

from fluxor_fast.app import App
from fluxor_fast.auth.passwords import Passwords
from fluxor_fast.auth.tokens import Tokens
from fluxor_fast.db.pool import Database
from fluxor_fast.errors import BootError
from fluxor_fast.http.request import Request
from fluxor_fast.observability.health import HealthChecks
from fluxor_fast.service.schema import check_schema, ensure_schema

__all__ = ["Runtime", "has_room", "install", "runtime", "tokens_of"]

FULL_PERCENT = 90.0
"""From this utilisation on an instance asks for no more traffic (fluxor's own threshold)."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """The parts of one worker's service."""

    name: str
    database: Database
    tokens: Tokens
    passwords: Passwords
    health: HealthChecks


def runtime(request: Request) -> Runtime:
    """Return the parts, made by the startup hook."""
    made: Runtime = request.app.state.runtime
    return made


def tokens_of(request: Request) -> Tokens:
    """Return the worker's ``Tokens``, for ``auth.roles.authenticated``."""
    return runtime(request).tokens


def has_room(queue_utilization: float, ccu_utilization: float) -> bool:
    """Return whether the instance should get more traffic; utilisations in percent."""
    return queue_utilization < FULL_PERCENT and ccu_utilization < FULL_PERCENT


def install(app: App) -> None:
    """Register the hooks that make and end the parts."""

    async def start() -> None:
        app.state.runtime = await _start(app)

    async def stop() -> None:
        parts: Runtime | None = getattr(app.state, "runtime", None)
        if parts is not None:
            parts.passwords.close()
            await parts.database.close()

    app.on_startup(start)
    app.on_shutdown(stop)


async def _start(app: App) -> Runtime:
    settings = app.settings
    if settings.database.effective_url is None:
        raise BootError(
            "the service needs a database: --database-url, DATABASE_URL, database.url in the"
            " file, or --database-embedded DIR for a PostgreSQL of its own"
        )
    secret = settings.auth.jwt_secret
    if secret is None:
        raise BootError("the service needs JWT_SECRET (at least 32 bytes), or --dev for a trial")
    # a variable of the environment need not be UTF-8; then Python holds it in surrogates
    key = secret.get_secret_value().encode("utf-8", "surrogatepass")
    tokens = Tokens(key, settings.auth.token_seconds)
    database = Database.from_settings(
        settings,
        prepare=ensure_schema if settings.database.migrate else check_schema,
        publish=app.metrics.publish_pool,
    )
    await database.open()
    try:
        # away is no reason not to start: /ready says so until it is back
        await database.first_contact()
    except BootError:
        await database.close()
        raise
    return Runtime(
        name=settings.observability.service_name,
        database=database,
        tokens=tokens,
        passwords=Passwords(settings.auth.hash_threads, settings.auth.hash_queue),
        health=_checks(app, database),
    )


def _checks(app: App, database: Database) -> HealthChecks:
    def server() -> bool:
        now = app.metrics.snapshot()
        return has_room(now.queue_utilization, now.ccu_utilization)

    checks = HealthChecks()
    checks.add("server", server)
    # its own limit is a second for a connection and one for the answer
    checks.add("database", database.check, timeout=3.0)
    return checks
