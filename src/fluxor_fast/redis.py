"""Redis as one worker uses it: a pool of connections, and word at once when it is away.

redis-py lends the connections; a task, the *keeper*, watches the server. Rules kept here:

1. Redis is never needed: whoever asks it has another way, and hears ``RedisAway`` quickly. While
   it is away (``ready`` is false) nothing is sent and nothing waits (a circuit breaker).
2. The first command that fails or is not answered in time opens the breaker for all; the keeper
   looks at once, and the breaker closes when Redis answers a ``PING`` of its own connection.
3. Nothing waits without bound: a command ``timeout`` (the wait for a connection included), a
   look ``connect_timeout``.
4. Nothing is sent twice. Connections of a server that went away are closed before it counts as
   back, and one that has ended meanwhile is seen before it is lent (by redis-py).
5. Sizes are per worker: their sum over the workers never exceeds the instance's, but that each
   worker may have one; each has one more for the keeper, and one for each subscription.
6. Nothing that goes wrong in a look ends the keeper: nothing else would bring Redis back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

from fluxor_fast.errors import BootError, ConfigError, RedisAway
from fluxor_fast.tasks import end

if TYPE_CHECKING:
    from redis.asyncio import BlockingConnectionPool, ConnectionPool
    from redis.asyncio import Redis as Client
    from redis.asyncio.client import PubSub

    from fluxor_fast.config import Settings

__all__ = ["Redis"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

ROUND_SECONDS = 1.0
"""Time between two looks while Redis answers."""
AWAY_SECONDS = 0.25
"""The same while it is away; with a look's own time it is back within a second."""
PACE_SECONDS = 0.05
"""Least time between two looks, however many commands fail."""


class Redis:
    """Redis of one worker.

    :param url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, with user, password and database.
    :param max_connections: most connections of this worker, besides the keeper's.
    :param idle: connections made when Redis appears, so that a burst need not.
    :param timeout: seconds for a command, waiting for a connection included.
    :param connect_timeout: seconds to reach the server, or for it to answer a look.
    :raises ConfigError: the package is not installed.
    """

    ready: bool = False
    """Whether commands are sent: Redis answered, and none has failed since."""

    def __init__(
        self,
        url: str,
        *,
        max_connections: int,
        idle: int,
        timeout: float,
        connect_timeout: float,
    ) -> None:
        try:
            from redis import asyncio as library
            from redis import exceptions
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError:
            raise ConfigError(
                ["Redis needs one more package: pip install 'fluxor-fast[redis]'"]
            ) from None
        options = {
            "retry": Retry(NoBackoff(), 0),  # rule 4
            # each read and write would be a timer of its own, a write even a task
            "socket_timeout": None,
            "socket_connect_timeout": connect_timeout,
            "protocol": 2,
        }
        self._pool: BlockingConnectionPool = library.BlockingConnectionPool.from_url(
            url, max_connections=max_connections, timeout=None, **options
        )
        self._client: Client = library.Redis(connection_pool=self._pool)
        aside: ConnectionPool = library.ConnectionPool.from_url(url, **options)
        self._aside: Client = library.Redis(connection_pool=aside)
        # a replica that was the primary a moment ago is as good as away: a new connection helps
        self._lost = (
            exceptions.ConnectionError,
            exceptions.ReadOnlyError,
            exceptions.ClusterDownError,
            OSError,  # TimeoutError is one
        )
        self._refused = (exceptions.AuthenticationError, exceptions.AuthorizationError)
        self._idle = min(idle, max_connections)
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        parts = urlsplit(url)
        self.place = parts.netloc.rpartition("@")[2] or parts.path
        self._doubt = asyncio.Event()
        self._looked = asyncio.Event()
        self._connected = False  # as of the last look
        self._failure: Exception | None = None
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Self | None:
        """Return this worker's share of the instance's connections; ``None``: no Redis is set."""
        redis = settings.redis
        url = redis.secret_url
        if url is None:
            return None
        workers = settings.server.worker_count
        return cls(
            url,
            max_connections=max(1, redis.pool_max // workers),
            idle=redis.pool_min // workers,
            timeout=redis.timeout,
            connect_timeout=redis.connect_timeout,
        )

    async def open(self) -> None:
        """Start the keeper and wait for its first look; that Redis is away is no error.

        :raises BootError: when it refuses the user or password: no further try could succeed.
        """
        self._task = asyncio.create_task(self._keep(), name="redis keeper")
        await self._looked.wait()
        # redis-py says ConnectionError of whatever goes wrong in connecting
        if self._failure is not None and isinstance(self._failure.__cause__, self._refused):
            await self.close()
            raise BootError(f"redis {self.place} refuses the user or password")

    async def close(self) -> None:
        """Stop the keeper and close every connection."""
        self.ready = False
        task, self._task = self._task, None
        if task is not None:
            await end(task)
        for pool in (self._pool, self._aside.connection_pool):
            with suppress(Exception):  # what cannot be said goodbye to is gone
                await pool.disconnect()

    async def run(
        self, use: Callable[[Client], Awaitable[T]], *, timeout: float | None = None
    ) -> T:
        """Return what ``use`` got from the client, such as ``run(lambda c: c.get("key"))``.

        What Redis says of the command itself (``redis.ResponseError``) passes through.

        :param timeout: seconds, instead of those for all commands.
        :raises RedisAway: Redis is away, or did not do it in time. Whether it did it later nobody
            can tell.
        """
        if not self.ready:
            raise RedisAway
        try:
            async with asyncio.timeout(self._timeout if timeout is None else timeout):
                return await use(self._client)
        except self._lost as error:
            self.ready = False  # rule 2
            self._doubt.set()
            raise RedisAway from error

    def pubsub(self) -> PubSub:
        """Return a subscription of redis-py's, on a connection of its own.

        Neither ``ready`` nor the timeouts are looked at: whoever listens sees to that.
        """
        return self._aside.pubsub()

    async def check(self) -> None:
        """Ask Redis for a ``PING``, for ``HealthChecks``.

        :raises RedisAway: as ``run``.
        """
        await self.run(lambda client: client.ping())

    async def _keep(self) -> None:
        while True:
            self._doubt.clear()
            try:
                await self._look()
            except Exception as error:  # rule 6
                self._note_failure(error)
            self._looked.set()
            pause = ROUND_SECONDS if self._connected else AWAY_SECONDS
            await asyncio.sleep(PACE_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause - PACE_SECONDS):
                    await self._doubt.wait()

    async def _look(self) -> None:
        async with asyncio.timeout(self._connect_timeout):
            await self._aside.ping()
            if not self._connected:
                await self._warm()
        if not self._connected:
            logger.info("redis %s: connected", self.place)
        self._connected = self.ready = True
        self._failure = None

    async def _warm(self) -> None:
        """Close what is left of the connections to the server that went, and make new ones."""
        await self._pool.disconnect(inuse_connections=False)
        pool: Any = self._pool  # this method of it has no types
        made = [await pool.get_connection() for _ in range(self._idle)]
        for connection in made:
            await self._pool.release(connection)

    def _note_failure(self, error: Exception) -> None:
        # said once for each time it goes away
        if self._connected or self._failure is None:
            logger.warning("redis %s: away: %s", self.place, str(error) or type(error).__name__)
        self._connected = self.ready = False
        self._failure = error
