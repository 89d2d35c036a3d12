"""The keeper: a task that gives a pool to a server that is there, and takes it back.

Rules kept here:

1. It looks every second: has a query succeeded since, does an idle connection answer, does a
   new connection? Only when all three fail is the database away.
2. Away means: no pool, so that requests fail at once; those under way are hung up on, so that
   a server that has gone silent holds nobody; so is one that waits beyond the statement
   timeout, which the server would have kept. Each change is one line in the log.
3. A server that appears gets a *new* pool. The old one would go by its back-off (each try
   waits twice as long) and hold connections that have long ended.
4. ``prepare`` has run before there is a pool.
5. Nothing that goes wrong in a look ends the keeper: nothing else would bring the pool back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from fluxor_fast.db.connection import (
    Connection,
    conninfo,
    hang_up,
    hang_up_on_stuck,
    is_full,
    needs_a_person,
    place,
    reason,
)
from fluxor_fast.errors import BootError
from fluxor_fast.tasks import end

__all__ = ["CHECK_SECONDS", "COUNTERS", "Keeper", "Options", "Pool"]

Pool = AsyncConnectionPool[Connection]

logger = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
"""How long a ``select 1`` may take."""
ROUND_SECONDS = 1.0
"""Time between two looks while the database is there."""
AWAY_SECONDS = 0.5
"""The same while it is away: back within a second of the server, well below the 2 s promised."""
PREPARE_SECONDS = 20.0
"""How long ``prepare`` may take: less than a worker has for its start."""
PACE_SECONDS = 0.05
"""Least time between two looks, however many connections are lost."""
RECONNECT_SECONDS = 5.0
"""How long the pool retries one connection in the background before it waits for demand."""
COUNTERS = (
    *("requests_num", "requests_queued", "requests_wait_ms", "requests_errors", "usage_ms"),
    "returns_bad",
    "connections_num",
    "connections_ms",
    "connections_errors",
    "connections_lost",
)
"""The figures of psycopg_pool that only grow; the others are of the moment."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a worker's pool is to be; the words are those of ``db.pool.Database``."""

    min_size: int
    max_size: int
    timeout: float
    max_waiting: int
    lifetime: float
    idle: float
    statement_timeout: float
    connect_timeout: float
    workers: int = 1
    prepare: Callable[[Connection], Awaitable[None]] | None = None
    publish: Callable[[int, int, int], None] | None = None


class Keeper:
    """Keeps the pool of one worker; ``db.pool.Database`` lends from it.

    :raises BootError: when libpq does not take the URL.
    """

    pool: Pool | None = None
    """There is one exactly while the database is there."""

    def __init__(self, url: str, options: Options) -> None:
        self._conninfo = conninfo(url, options.connect_timeout)
        self.place = place(url)
        self.lent: set[Connection] = set()
        self.served = 0  # queries that succeeded
        self._options = options
        self._min_size = min(options.min_size, options.max_size)
        self._max_size = options.max_size
        self._totals: Counter[str] = Counter()  # of the pools before this one
        self._seen = 0  # value of served at the last look
        self._doubt = asyncio.Event()
        self._looked = asyncio.Event()
        self._failure: BaseException | None = None
        self._capped = False
        self._task: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def most(self) -> int:
        """Most connections of the pool."""
        return self._max_size

    def start(self) -> None:
        """Begin to look, in the background."""
        self._task = asyncio.create_task(self._keep(), name="database keeper")

    async def stop(self) -> None:
        """Stop looking, and close every idle connection."""
        task, self._task = self._task, None
        if task is not None:
            await end(task)
        self._retire_pool()
        if self._closing:
            await asyncio.wait(set(self._closing))

    async def first_look(self) -> bool:
        """Wait for the first look and return whether the database was there.

        :raises BootError: when no further try could succeed: authentication failed, the
            database or role does not exist, privileges are missing, or ``prepare`` says so.
        """
        await self._looked.wait()
        if isinstance(self._failure, BootError):
            raise self._failure
        if self._failure is not None and needs_a_person(self._failure):
            raise BootError(f"the database {self.place} refuses: {reason(self._failure)}")
        return self.pool is not None

    def doubt(self) -> None:
        """Look now: a connection was lost."""
        self._doubt.set()

    def statistics(self) -> dict[str, int]:
        """Return psycopg_pool's figures; the counters cover the keeper's whole life."""
        figures = {
            "pool_min": self._min_size,
            "pool_max": self._max_size,
            "pool_size": 0,
            "pool_available": 0,
            "requests_waiting": 0,
        }
        current = self.pool.get_stats() if self.pool is not None else {}
        figures |= {key: current[key] for key in figures if key in current}
        for key in COUNTERS:
            figures[key] = self._totals[key] + current.get(key, 0)
        return figures

    async def _keep(self) -> None:
        while True:
            hang_up_on_stuck(self.lent, self._options.statement_timeout + CHECK_SECONDS)
            try:
                await self._look()
                self._publish()
            except Exception as error:  # rule 5
                logger.error("database %s: keeper: %s", self.place, type(error).__name__)
            self._looked.set()
            pause = AWAY_SECONDS if self.pool is None else ROUND_SECONDS
            await asyncio.sleep(PACE_SECONDS)
            try:
                async with asyncio.timeout(pause - PACE_SECONDS):
                    await self._doubt.wait()
            except TimeoutError:
                continue

    def _publish(self) -> None:
        if self._options.publish is not None:
            now = self.statistics()
            available = now["pool_available"]
            # psycopg_pool's own size counts connections that are still being made
            self._options.publish(available + len(self.lent), available, now["requests_waiting"])

    async def _look(self) -> None:
        doubt = self._doubt.is_set()
        self._doubt.clear()
        if self.pool is not None and not doubt and await self._pool_answers(self.pool):
            return
        try:
            await self._contact()
        except BootError as error:  # of prepare: there is no pool, and so there stays none
            if self._looked.is_set() and str(error) != str(self._failure):
                logger.error("database %s: %s", self.place, error)
            self._failure = error
            return
        except (psycopg.Error, OSError, TimeoutError) as error:
            self._note_failure(error)
            return
        self._failure = None
        if self.pool is None:
            self.pool = await self._new_pool()
            logger.info("database %s: connected", self.place)

    def _note_failure(self, error: BaseException) -> None:
        self._failure = error
        if self.pool is None:
            if not self._looked.is_set() and not needs_a_person(error):
                logger.warning("database %s: away: %s", self.place, reason(error))
        elif not is_full(error):  # a full server is there, and those who are on it may stay
            logger.warning("database %s: away: %s", self.place, reason(error))
            self._retire_pool()
            for connection in self.lent:
                hang_up(connection)

    async def _pool_answers(self, pool: Pool) -> bool:
        """Return whether the pool proves that the server answers."""
        served, self._seen = self.served - self._seen, self.served
        if served:
            return True
        if not pool.get_stats()["pool_available"]:
            return False  # all are lent, perhaps to slow queries, which proves nothing
        try:
            connection = await pool.getconn(CHECK_SECONDS)
        except psycopg.OperationalError:
            return False
        timer = asyncio.get_running_loop().call_later(CHECK_SECONDS, hang_up, connection)
        try:
            await connection.execute("select 1")
        except psycopg.Error:
            return False
        finally:
            timer.cancel()
            await pool.putconn(connection)
        return True

    async def _contact(self) -> None:
        """Connect anew; if the server has just appeared, make it and the sizes ready."""
        async with asyncio.timeout(self._options.connect_timeout):
            connection = await Connection.connect(
                self._conninfo, autocommit=True, row_factory=dict_row
            )
        loop = asyncio.get_running_loop()
        limit = CHECK_SECONDS + (0 if self.pool else self._options.statement_timeout)
        timer = loop.call_later(limit, hang_up, connection)
        try:
            await self._configure(connection)
            if self.pool is None:
                await self._fit_size(connection)
                if self._options.prepare is not None:
                    timer.cancel()
                    timer = loop.call_later(PREPARE_SECONDS, hang_up, connection)
                    await self._options.prepare(connection)
        finally:
            timer.cancel()
            await connection.close()

    async def _configure(self, connection: Connection) -> None:
        # a statement, not a startup option: PgBouncer refuses those
        await connection.execute(
            "select set_config('statement_timeout', %s, false)",
            (str(max(1, int(self._options.statement_timeout * 1000))),),
        )

    async def _fit_size(self, connection: Connection) -> None:
        """Bring the pool below what the server gives to ordinary users, with one warning."""
        cursor = await connection.execute(
            "select current_setting('max_connections')::int"
            " - current_setting('superuser_reserved_connections')::int"
            " - coalesce(current_setting('reserved_connections', true), '0')::int as free"
        )
        row: Any = await cursor.fetchone()
        share = max(1, row["free"] // self._options.workers)
        if share < self._options.max_size and not self._capped:
            self._capped = True
            logger.warning(
                "database %s: gives %d connections, the pool may have %d: a worker takes %d",
                self.place,
                row["free"],
                self._options.max_size * self._options.workers,
                share,
            )
        self._max_size = min(self._options.max_size, share)
        self._min_size = min(self._options.min_size, self._max_size)

    async def _new_pool(self) -> Pool:
        options = self._options
        pool: Pool = AsyncConnectionPool(
            self._conninfo,
            connection_class=Connection,
            kwargs={"autocommit": True, "row_factory": dict_row},
            min_size=self._min_size,
            max_size=self._max_size,
            timeout=options.timeout,
            max_waiting=max(1, options.max_waiting),  # 0 would mean "without bound"
            max_lifetime=options.lifetime,
            max_idle=options.idle,
            configure=self._configure,
            reconnect_timeout=RECONNECT_SECONDS,
            open=False,
        )
        await pool.open()
        return pool

    def _retire_pool(self) -> None:
        """Take the pool out of use now; closing it may take a while and goes on behind."""
        pool, self.pool = self.pool, None
        if pool is None:
            return
        stats = pool.get_stats()
        self._totals.update({key: stats.get(key, 0) for key in COUNTERS})
        task = asyncio.create_task(pool.close(timeout=CHECK_SECONDS))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
