"""What the service's handlers work with, made in each worker at its start."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass

import psycopg

from fluxor_fast.app import App
from fluxor_fast.auth.apikeys import ApiKeys
from fluxor_fast.auth.keys import Key, KeySet
from fluxor_fast.auth.passwords import Passwords
from fluxor_fast.auth.revocation import Revocations
from fluxor_fast.auth.tokens import Tokens
from fluxor_fast.cache import Cache
from fluxor_fast.config import AuthSettings
from fluxor_fast.db.pool import Database
from fluxor_fast.errors import BootError, HTTPError
from fluxor_fast.http.request import Request
from fluxor_fast.observability.checks import disk_space
from fluxor_fast.observability.health import HealthChecks
from fluxor_fast.redis import Redis
from fluxor_fast.service.attempts import Attempts
from fluxor_fast.service.schema import check_schema, ensure_schema
from fluxor_fast.service.store import fetch_key, revoked_since, sweep
from fluxor_fast.tasks import end

__all__ = ["Runtime", "has_room", "install", "keys_of", "runtime", "tokens_of"]

FULL_PERCENT = 90.0
"""From this utilisation on an instance asks for no more traffic (fluxor's own threshold)."""
SWEEP_SECONDS = 60.0
"""Time between two sweeps of old rows, by each worker; one that finds none costs little."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """The parts of one worker's service."""

    name: str
    database: Database
    tokens: Tokens
    passwords: Passwords
    health: HealthChecks
    redis: Redis | None
    keys: ApiKeys
    revocations: Revocations
    attempts: Attempts
    refresh_seconds: int
    behind: tuple[asyncio.Task[None], ...]
    """What goes on beside the requests, until the stop."""


def runtime(request: Request) -> Runtime:
    """Return the parts, made by the startup hook."""
    made: Runtime = request.app.state.runtime
    return made


def tokens_of(request: Request) -> Tokens:
    """Return the worker's ``Tokens``, for ``auth.roles.authenticated``."""
    return runtime(request).tokens


def keys_of(request: Request) -> ApiKeys:
    """Return the worker's ``ApiKeys``, for ``auth.apikeys.bearer_or_key``."""
    return runtime(request).keys


def has_room(queue_utilization: float, ccu_utilization: float) -> bool:
    """Return whether the instance should get more traffic; utilisations in percent."""
    return queue_utilization < FULL_PERCENT and ccu_utilization < FULL_PERCENT


def install(app: App, cache: Cache) -> None:
    """Register the hooks that make and end the parts."""

    async def start() -> None:
        app.state.runtime = await _start(app)
        await cache.start(app, app.state.runtime.redis)

    async def stop() -> None:
        parts: Runtime | None = getattr(app.state, "runtime", None)
        if parts is not None:
            await end(*parts.behind)
            parts.passwords.close()
            await cache.stop()
            if parts.redis is not None:
                await parts.redis.close()
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
    signing = _signing_keys(settings.auth)
    database = Database.from_settings(
        settings,
        prepare=ensure_schema if settings.database.migrate else check_schema,
        publish=app.metrics.publish_pool,
    )
    redis = Redis.from_settings(settings)
    await database.open()
    try:
        # away is no reason not to start: /ready says so until it is back
        await database.first_contact()
        if redis is not None:
            await redis.open()
    except BootError:
        await database.close()
        raise
    lifetime = settings.auth.token_seconds
    revocations = Revocations(lambda since: revoked_since(database, since), lifetime)
    with contextlib.suppress(HTTPError):  # away: as above
        await revocations.look()
    behind: list[Coroutine[None, None, None]] = [
        revocations.keep_looking(),
        _keep_sweeping(database, lifetime),
    ]
    return Runtime(
        name=settings.observability.service_name,
        database=database,
        tokens=Tokens(signing, lifetime, revoked=revocations),
        passwords=Passwords(settings.auth.hash_threads, settings.auth.hash_queue),
        health=_checks(app, database, redis),
        redis=redis,
        keys=ApiKeys(lambda prefix: fetch_key(database, prefix)),
        revocations=revocations,
        attempts=Attempts(database),
        refresh_seconds=settings.auth.refresh_seconds,
        behind=tuple(asyncio.ensure_future(task) for task in behind),
    )


def _signing_keys(settings: AuthSettings) -> KeySet:
    """Return the keys of tokens: that which signs, and the one before it."""
    if settings.jwt_secret is None:
        raise BootError("the service needs JWT_SECRET (at least 32 bytes), or --dev for a trial")
    secrets = {
        # a variable of the environment need not be UTF-8; then Python holds it in surrogates
        secret.get_secret_value().encode("utf-8", "surrogatepass"): None
        for secret in (settings.jwt_secret, settings.jwt_previous_secret)
        if secret is not None
    }
    return KeySet([Key.named(secret) for secret in secrets])


async def _keep_sweeping(database: Database, token_seconds: int) -> None:
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        # away, or a standby that cannot be written: the next one will do
        with contextlib.suppress(HTTPError, psycopg.Error):
            await sweep(database, token_seconds)


def _checks(app: App, database: Database, redis: Redis | None) -> HealthChecks:
    def server() -> bool:
        now = app.metrics.snapshot()
        return has_room(now.queue_utilization, now.ccu_utilization)

    checks = HealthChecks()
    checks.add("server", server)
    # its own limit is a second for a connection and one for the answer
    checks.add("database", database.check, timeout=3.0)
    checks.add("disk", disk_space("/", least_percent=1.0), critical=False)
    if redis is not None:
        # whoever asks it has another way
        checks.add("redis", redis.check, critical=False)
    return checks
