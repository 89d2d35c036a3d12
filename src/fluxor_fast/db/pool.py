"""A pool of PostgreSQL connections that outlives its server.

``psycopg_pool`` lends the connections, and ``db.keeper`` watches the server; this module is
what handlers use. Rules kept here:

1. Nothing waits without bound: for a connection ``timeout`` and ``max_waiting``, for a
   statement ``statement_timeout`` (kept by the server, and for one that has gone silent by the
   keeper, which hangs up on it within some seconds more).
2. Whatever keeps the database from answering now is ``DatabaseBusy`` (503); what is wrong with
   a statement or its data passes through as psycopg's own error.
3. A connection is looked at before it is lent (``is_stale``), so a restart of the server fails
   only the requests that were on it at the time, not one per idle connection afterwards.
   Nothing is ever sent twice.
4. What is read outside a transaction shares connections, if it is known to be quick (see
   ``lanes``); it is a transaction of its own either way. Writes never do.
5. A connection goes back idle or closed, never within a transaction, and it goes back even if
   whoever lent it is cancelled again on the way: psycopg_pool then waits where others meet.
6. Sizes are per worker: their sum over the workers never exceeds the instance's, nor what the
   server's ``max_connections`` leaves to ordinary users.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, LiteralString, Self, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import PoolTimeout, TooManyRequests

from fluxor_fast.db.connection import Connection, Row, hang_up, is_stale
from fluxor_fast.db.keeper import CHECK_SECONDS, Keeper, Options, Pool
from fluxor_fast.db.lane import STALE
from fluxor_fast.db.lanes import Elsewhere, Lanes
from fluxor_fast.db.transaction import CONFLICTS, Isolation, Transaction, begun
from fluxor_fast.db.uninterrupted import uninterrupted
from fluxor_fast.errors import BootError, DatabaseBusy

if TYPE_CHECKING:
    from fluxor_fast.config import Settings

__all__ = ["Connection", "Database", "Row", "Transaction"]

T = TypeVar("T")

TRIES: Final = 5
"""How often ``retry`` runs a transaction at most."""
PAUSE_SECONDS: Final = 0.02
"""Longest pause before the second try; it doubles with each."""


class Database:
    """The database of one worker.

    :param url: PostgreSQL URL or libpq connection string.
    :param min_size: connections kept open by this worker.
    :param max_size: most connections of this worker.
    :param timeout: seconds to wait for a connection.
    :param max_waiting: requests of this worker that may wait for one, at least 1.
    :param lifetime: seconds after which a connection is replaced.
    :param idle: seconds after which an idle connection above ``min_size`` is closed.
    :param statement_timeout: seconds a statement may run.
    :param connect_timeout: seconds to reach the server.
    :param workers: workers that share the server's ``max_connections``.
    :param prepare: run on a fresh connection each time the server appears, before ``ready``.
    :param publish: called each second with the connections made, those not lent, and the
        requests that wait.
    :raises BootError: when libpq does not take the URL.
    """

    def __init__(
        self,
        url: str,
        *,
        min_size: int,
        max_size: int,
        timeout: float,
        max_waiting: int,
        lifetime: float,
        idle: float,
        statement_timeout: float,
        connect_timeout: float,
        workers: int = 1,
        prepare: Callable[[Connection], Awaitable[None]] | None = None,
        publish: Callable[[int, int, int], None] | None = None,
    ) -> None:
        self._timeout = timeout
        self._keeper = Keeper(
            url,
            Options(
                min_size=min_size,
                max_size=max_size,
                timeout=timeout,
                max_waiting=max_waiting,
                lifetime=lifetime,
                idle=idle,
                statement_timeout=statement_timeout,
                connect_timeout=connect_timeout,
                workers=workers,
                prepare=prepare,
                publish=publish,
            ),
        )
        self._lanes = Lanes(self._keeper, lifetime, timeout, max(1, max_waiting))

    @classmethod
    def from_settings(cls, settings: Settings, **options: Any) -> Self:
        """Return this worker's share of the instance's pool; ``options`` as for the class.

        Each worker gets the whole part of the totals divided by the workers, of connections
        and waiters at least 1: only a total below the number of workers is exceeded.
        """
        database = settings.database
        url = database.effective_url
        if url is None:
            raise BootError("no database is configured")
        workers = settings.server.worker_count
        low, high = database.pool_sizes(settings.server.max_ccu)
        return cls(
            url,
            min_size=low // workers,
            max_size=max(1, high // workers),
            timeout=database.pool_timeout,
            max_waiting=max(1, database.max_waiting // workers),
            lifetime=database.lifetime,
            idle=database.idle,
            statement_timeout=database.statement_timeout,
            connect_timeout=database.connect_timeout,
            workers=workers,
            **options,
        )

    @property
    def ready(self) -> bool:
        """Whether the database answered at the keeper's last look."""
        return self._keeper.pool is not None

    async def open(self) -> None:
        """Start the keeper, which connects in the background; returns at once."""
        # the keeper tells each change in one line; psycopg would add one per connection
        for name in ("psycopg", "psycopg.pool"):
            psycopg_logger = logging.getLogger(name)
            if psycopg_logger.level in (logging.NOTSET, logging.WARNING):  # not set by a person
                psycopg_logger.setLevel(logging.ERROR)
        self._keeper.start()

    async def first_contact(self) -> bool:
        """Wait until the database was tried once, and return whether it is ready.

        :raises BootError: when no further try could succeed: authentication failed, the
            database or role does not exist, privileges are missing, or ``prepare`` raised it.
        """
        return await self._keeper.first_look()

    async def close(self) -> None:
        """Stop the keeper and close every idle connection; lent ones close on return."""
        await self._lanes.close()
        await self._keeper.stop()

    async def fetch_one(self, sql: LiteralString, *args: object) -> Row | None:
        """Return the first row as a dict, or ``None``; errors as for ``transaction``."""
        rows = await self._fetch(sql, args)
        return rows[0] if rows else None

    async def fetch_all(self, sql: LiteralString, *args: object) -> list[Row]:
        """Return every row as a dict; errors as for ``transaction``."""
        return await self._fetch(sql, args)

    async def _fetch(self, sql: LiteralString, args: tuple[object, ...]) -> list[Row]:
        try:
            sent = self._lanes.send(sql, args)
            if sent is not None:
                rows = await sent
                self._keeper.served += 1
                return rows
        except (*STALE, Elsewhere):
            pass  # it has not run
        except (PoolTimeout, TooManyRequests) as error:
            raise _no_room(error) from None
        except psycopg.OperationalError as error:
            # what the server itself says has a state; 57P is what it says as it hangs up
            raise self._busy(error, (error.sqlstate or "57P").startswith("57P")) from error
        async with self._lend(self._timeout) as connection:
            started = time.monotonic()
            cursor = await connection.execute(sql, args or None)
            rows = await cursor.fetchall()
            self._lanes.took(sql, args, time.monotonic() - started)
            return rows

    async def execute(self, sql: LiteralString, *args: object) -> int:
        """Run a statement and return the number of rows it touched; errors as above."""
        async with self._lend(self._timeout) as connection:
            return (await connection.execute(sql, args or None)).rowcount

    @asynccontextmanager
    async def transaction(
        self, *, isolation: Isolation | None = None, read_only: bool = False
    ) -> AsyncIterator[Transaction]:
        """Begin a transaction: committed at the end of the block, undone on any error.

        :param isolation: by default the server's, which is ``read committed``.
        :raises DatabaseBusy: no connection in time, too many waiting, statement timeout,
            connection lost, database away. If the connection is lost during the commit, nobody
            can tell whether it took place.
        """
        async with (
            self._lend(self._timeout) as connection,
            begun(connection, isolation, read_only) as transaction,
        ):
            yield transaction

    async def retry(
        self,
        work: Callable[[Transaction], Awaitable[T]],
        *,
        isolation: Isolation | None = None,
    ) -> T:
        """Run ``work`` in a transaction and return its result; anew while others get in its way.

        That is a deadlock, or with ``repeatable read`` and ``serializable`` a conflict; at most
        ``TRIES`` times, with pauses of random length. Nothing else is tried again. As ``work``
        may run several times, it should do nothing beside the transaction.

        :raises DatabaseBusy: as for ``transaction``, and when the last try met another too.
        """
        tries = 0
        while True:
            try:
                async with self.transaction(isolation=isolation) as transaction:
                    return await work(transaction)
            except DatabaseBusy as error:
                tries += 1
                if tries == TRIES or not isinstance(error.__cause__, CONFLICTS):
                    raise
            await asyncio.sleep(random.random() * PAUSE_SECONDS * 2 ** (tries - 1))

    async def check(self) -> None:
        """Ask the server for ``select 1``; no answer within about a second is an error.

        :raises DatabaseBusy: as for ``transaction``.
        """
        async with self._lend(CHECK_SECONDS) as connection:
            timer = asyncio.get_running_loop().call_later(CHECK_SECONDS, hang_up, connection)
            try:
                await connection.execute("select 1")
            finally:
                timer.cancel()

    def statistics(self) -> dict[str, int]:
        """Return psycopg_pool's figures for this worker; counters cover its whole life.

        ``pool_min``, ``pool_max``, ``pool_size``, ``pool_available``, ``requests_waiting``, then
        the counters, of which those in ``_ms`` are milliseconds.
        """
        return self._keeper.statistics()

    @asynccontextmanager
    async def _lend(self, timeout: float) -> AsyncIterator[Connection]:
        keeper = self._keeper
        pool, connection = await self._acquire(timeout)
        keeper.lent.add(connection)
        try:
            yield connection
        except psycopg.Error as error:
            if connection.closed or isinstance(error, psycopg.OperationalError):
                raise self._busy(error, connection.closed) from error
            raise
        else:
            keeper.served += 1
        finally:
            keeper.lent.discard(connection)
            if connection.pgconn.transaction_status != TransactionStatus.IDLE:
                await connection.close()
            await uninterrupted(pool.putconn(connection))

    def _busy(self, error: psycopg.Error, lost: bool) -> DatabaseBusy:
        """Return what a request is told when the database could not do it now."""
        if isinstance(error, psycopg.errors.QueryCanceled):
            return DatabaseBusy("the database took too long, try again")
        if lost:
            self._keeper.doubt()
            return DatabaseBusy("the connection to the database was lost, try again")
        return DatabaseBusy("the database cannot do this now, try again")

    async def _acquire(self, timeout: float) -> tuple[Pool, Connection]:
        pool = self._keeper.pool
        if pool is None:
            raise DatabaseBusy("the database is away, try again")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        try:
            while True:
                connection = await pool.getconn(deadline - loop.time())
                if not is_stale(connection):
                    return pool, connection
                # closing does not suspend, so the connection cannot get lost between the two;
                # the pool makes another one in its place
                await connection.close()
                await pool.putconn(connection)
                self._keeper.doubt()
        except (PoolTimeout, TooManyRequests) as error:
            raise _no_room(error) from None
        except psycopg.OperationalError:  # PoolClosed: the keeper found the database away
            raise DatabaseBusy("the database is away, try again") from None


def _no_room(error: Exception) -> DatabaseBusy:
    """Return what a request is told that waited too long, or among too many."""
    if isinstance(error, PoolTimeout):
        return DatabaseBusy("no database connection became free in time, try again")
    return DatabaseBusy("too many requests wait for the database, try again")
