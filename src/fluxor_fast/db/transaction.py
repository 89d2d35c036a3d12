"""A transaction as handlers see it.

Rules kept here:

1. It ends with its block: what is asked of it afterwards, by a task that was left behind, is an
   error, as the connection is somebody else's by then.
2. A statement that fails spoils the transaction, and PostgreSQL answers ``commit`` with a quiet
   rollback. So a block that swallowed the error fails at its end. Who expects an error runs the
   statement in a savepoint: ``async with tx.transaction(): …``.
3. Only what the transaction itself is told is set, nothing of the session: the next one who
   borrows the connection gets it as it was.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal, LiteralString, Self

import psycopg
from psycopg.pq import TransactionStatus

from fluxor_fast.db.connection import Connection, Row

__all__ = ["CONFLICTS", "Isolation", "Transaction", "begun"]

Isolation = Literal["read committed", "repeatable read", "serializable"]

CONFLICTS = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)
"""What two transactions do to each other: the same again, alone, would have succeeded."""


class Transaction:
    """Statements that take effect together or not at all; see ``Database.transaction``."""

    __slots__ = ("_connection", "_ended")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._ended = False

    @property
    def connection(self) -> Connection:
        """psycopg's connection, for ``copy`` and cursors.

        :raises RuntimeError: after the end of the transaction.
        """
        if self._ended:
            raise RuntimeError("the transaction has ended, its connection is another's")
        return self._connection

    async def fetch_one(self, sql: LiteralString, *args: object) -> Row | None:
        """Return the first row as a dict, or ``None``."""
        cursor = await self.connection.execute(sql, args or None)
        return await cursor.fetchone()

    async def fetch_all(self, sql: LiteralString, *args: object) -> list[Row]:
        """Return every row as a dict."""
        cursor = await self.connection.execute(sql, args or None)
        return await cursor.fetchall()

    async def execute(self, sql: LiteralString, *args: object) -> int:
        """Run a statement and return the number of rows it touched."""
        return (await self.connection.execute(sql, args or None)).rowcount

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Self]:
        """A savepoint: an error that leaves the block undoes what was done in it, and no more."""
        async with self.connection.transaction():
            yield self
            self._check()

    def _check(self) -> None:
        if self._connection.pgconn.transaction_status == TransactionStatus.INERROR:
            raise psycopg.errors.InFailedSqlTransaction(
                "a statement failed in the transaction and nobody was told,"
                " so nothing of it is stored; put the statement into a savepoint"
            )


@asynccontextmanager
async def begun(
    connection: Connection, isolation: Isolation | None, read_only: bool
) -> AsyncIterator[Transaction]:
    """Begin a transaction on an idle connection; the end commits it, any error undoes it."""
    async with connection.transaction():
        modes = ([f"isolation level {isolation}"] if isolation else []) + (
            ["read only"] if read_only else []
        )
        if modes:
            await connection.execute(f"set transaction {', '.join(modes)}".encode())
        made = Transaction(connection)
        try:
            yield made
        finally:
            made._ended = True  # before the commit, behind which statements could wait
        made._check()
