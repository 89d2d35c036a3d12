"""Transactions on a real server: whole or not at all, whoever fails, is cancelled or goes away."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

import psycopg
import pytest

from fluxor_fast.db.embedded import EmbeddedPostgres
from fluxor_fast.db.pool import TRIES, Database, Transaction
from fluxor_fast.errors import DatabaseBusy
from tests.support.pure import run
from tests.support.seeds import seeded
from tests.test_database import opened

Test = Callable[[Database], Awaitable[None]]


@pytest.fixture
def on_words(empty_database: str) -> Callable[[Test], None]:
    """Run a test on a database with an empty table ``words``."""

    def start(test: Test) -> None:
        async def main() -> None:
            async with opened(empty_database) as database:
                await database.execute("create table words (id int primary key, word text)")
                await test(database)
                await nothing_is_left(database)

        run(main())

    return start


async def nothing_is_left(database: Database) -> None:
    """Every connection of the pool can be lent, and none comes in the middle of something."""
    await database._lanes.close()  # they borrow too
    assert not database._keeper.lent
    most = database._keeper.most
    lent = [database._lend(2.0) for _ in range(most)]
    connections = [await context.__aenter__() for context in lent]
    try:
        assert len(set(connections)) == most
        for connection in connections:
            status = connection.info.transaction_status
            assert status == psycopg.pq.TransactionStatus.IDLE
            cursor = await connection.execute("select current_setting('transaction_isolation') i")
            assert await cursor.fetchone() == {"i": "read committed"}
        cursor = await connections[0].execute(
            "select count(*) as n from pg_stat_activity where state like 'idle in transaction%'"
            " and datname = current_database()"
        )
        assert await cursor.fetchone() == {"n": 0}
    finally:
        for context in lent:
            await context.__aexit__(None, None, None)


async def words(database: Database) -> list[int]:
    rows = await database.fetch_all("select id from words order by id")
    return [row["id"] for row in rows]


# what a transaction is


def test_its_words_are_those_of_the_database(on_words: Callable[[Test], None]) -> None:
    async def test(database: Database) -> None:
        async with database.transaction() as tx:
            assert await tx.execute("insert into words values (1, %s), (2, %s)", "a", "b") == 2
            assert await tx.fetch_one("select word from words where id = %s", 2) == {"word": "b"}
            assert await tx.fetch_one("select 1 from words where id = %s", 3) is None
            assert await tx.fetch_all("select id from words order by id") == [{"id": 1}, {"id": 2}]
            assert await words(database) == []  # nobody else sees it yet
            async with (
                tx.connection.cursor() as cursor,
                cursor.copy("copy words from stdin") as copy,
            ):
                await copy.write_row((3, "c"))
        assert await words(database) == [1, 2, 3]

    on_words(test)


def test_a_savepoint_undoes_its_own_and_no_more(on_words: Callable[[Test], None]) -> None:
    async def test(database: Database) -> None:
        async with database.transaction() as tx:
            await tx.execute("insert into words values (1)")
            with pytest.raises(psycopg.errors.UniqueViolation):
                async with tx.transaction():
                    await tx.execute("insert into words values (2)")
                    await tx.execute("insert into words values (1)")
            async with tx.transaction() as inner, inner.transaction():
                await inner.execute("insert into words values (3)")
        assert await words(database) == [1, 3]

    on_words(test)


def test_an_error_that_the_block_swallowed_is_told_at_its_end(
    on_words: Callable[[Test], None],
) -> None:
    """PostgreSQL answers such a commit with a rollback, and psycopg says nothing."""

    async def test(database: Database) -> None:
        with pytest.raises(psycopg.errors.InFailedSqlTransaction, match="nothing of it is stored"):
            async with database.transaction() as tx:
                await tx.execute("insert into words values (1)")
                with pytest.raises(psycopg.errors.UndefinedTable):
                    await tx.execute("select * from nowhere")
        async with database.transaction() as tx:
            await tx.execute("insert into words values (2)")
            with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                async with tx.transaction():
                    with pytest.raises(psycopg.errors.UndefinedTable):
                        await tx.execute("select * from nowhere")
        assert await words(database) == [2]

    on_words(test)


def test_nothing_can_be_asked_of_it_after_its_end(on_words: Callable[[Test], None]) -> None:
    async def test(database: Database) -> None:
        left: list[asyncio.Task[int]] = []
        go = asyncio.Event()

        async def later(tx: Transaction) -> int:
            await go.wait()
            return await tx.execute("insert into words values (1)")

        async with database.transaction() as tx:
            left.append(asyncio.create_task(later(tx)))
        go.set()
        with pytest.raises(RuntimeError, match="has ended"):
            await left[0]
        with pytest.raises(RuntimeError, match="has ended"):
            await tx.fetch_one("select 1")
        with pytest.raises(RuntimeError, match="has ended"):
            async with tx.transaction():
                pass
        assert await words(database) == []

    on_words(test)


def test_modes_hold_for_the_transaction_and_no_longer(on_words: Callable[[Test], None]) -> None:
    async def test(database: Database) -> None:
        async with database.transaction(isolation="serializable", read_only=True) as tx:
            row = await tx.fetch_one(
                "select current_setting('transaction_isolation') as i,"
                " current_setting('transaction_read_only') as r"
            )
            assert row == {"i": "serializable", "r": "on"}
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            async with database.transaction(read_only=True) as tx:
                await tx.execute("insert into words values (1)")

    on_words(test)


# others in the way


def test_concurrent_increments_are_all_counted(on_words: Callable[[Test], None]) -> None:
    async def test(database: Database) -> None:
        await database.execute("insert into words values (0, '0')")

        async def increment(tx: Transaction) -> None:
            row = await tx.fetch_one("select word::int as n from words where id = 0")
            assert row is not None
            await tx.execute("update words set word = %s where id = 0", str(row["n"] + 1))

        async def some() -> None:
            for _ in range(10):
                await database.retry(increment, isolation="repeatable read")

        await asyncio.gather(*(some() for _ in range(2)))
        assert await database.fetch_one("select word from words") == {"word": "20"}

    on_words(test)


def test_a_deadlock_is_tried_again(on_words: Callable[[Test], None]) -> None:
    async def test(database: Database) -> None:
        await database.execute("insert into words values (1, ''), (2, '')")
        met = asyncio.Barrier(2)
        runs = 0

        async def both(tx: Transaction, first: int) -> None:
            nonlocal runs
            runs += 1
            add = "update words set word = word || 'x' where id = %s"
            await tx.execute("set local deadlock_timeout = '50ms'")
            await tx.execute(add, first)
            if runs <= 2:
                await met.wait()
            await tx.execute(add, 3 - first)

        await asyncio.gather(
            database.retry(lambda tx: both(tx, 1)), database.retry(lambda tx: both(tx, 2))
        )
        assert runs == 3
        assert [row["word"] for row in await database.fetch_all("select word from words")] == [
            "xx",
            "xx",
        ]

    on_words(test)


def test_tries_have_an_end_and_are_for_conflicts_alone(on_words: Callable[[Test], None]) -> None:
    async def test(database: Database) -> None:
        runs = 0

        async def conflict(tx: Transaction) -> None:
            nonlocal runs
            runs += 1
            await tx.execute("do $$ begin raise exception using errcode = '40001'; end $$")

        async def fault(tx: Transaction) -> None:
            nonlocal runs
            runs += 1
            await tx.execute("select * from nowhere")

        with pytest.raises(DatabaseBusy):
            await database.retry(conflict)
        assert runs == TRIES
        with pytest.raises(psycopg.errors.UndefinedTable):
            await database.retry(fault)
        assert runs == TRIES + 1

    on_words(test)


# cancelled, failed, gone


def test_cancelled_again_and_again_no_connection_is_lost_and_nothing_is_half(
    on_words: Callable[[Test], None],
) -> None:
    """Each transaction writes two rows; cancels come anywhere, also on the way back."""
    rng = seeded("cancelled transactions")

    async def test(database: Database) -> None:
        async def pair(number: int) -> None:
            async with database.transaction() as tx:
                await tx.execute("insert into words values (%s)", 2 * number)
                if number % 3 == 0:
                    async with tx.transaction():
                        await tx.fetch_one("select pg_sleep(0.002)")
                await tx.execute("insert into words values (%s)", 2 * number + 1)

        async def cancelled(number: int) -> None:
            task = asyncio.create_task(pair(number))
            for _ in range(rng.randint(0, 3)):
                await pause(rng)
                task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and task.exception() is not None:
                # who was cancelled twice may have had its connection closed
                assert isinstance(task.exception(), DatabaseBusy)

        for start in range(0, 240, 8):
            await asyncio.gather(*(cancelled(number) for number in range(start, start + 8)))
        stored = await words(database)
        assert 0 < len(stored) < 480
        assert {number ^ 1 for number in stored} == set(stored)

    on_words(test)


async def pause(rng: random.Random) -> None:
    if rng.random() < 0.5:
        for _ in range(rng.randint(0, 5)):
            await asyncio.sleep(0)
    else:
        await asyncio.sleep(rng.random() * 0.004)


def test_a_timeout_undoes_and_gives_back(on_words: Callable[[Test], None]) -> None:
    async def test(database: Database) -> None:
        for _ in range(8):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02), database.transaction() as tx:
                    await tx.execute("insert into words values (1)")
                    await tx.execute("select pg_sleep(10)")
        assert await words(database) == []

    on_words(test)


def test_a_connection_left_within_a_transaction_reaches_nobody(
    on_words: Callable[[Test], None],
) -> None:
    async def test(database: Database) -> None:
        left = set()
        for sql in ("begin", "begin; select 1 / 0"):
            with pytest.raises(RuntimeError):
                async with database._lend(1.0) as connection:
                    left.add(connection.info.backend_pid)
                    with suppress(psycopg.errors.DivisionByZero):
                        await connection.execute(sql.encode())
                    raise RuntimeError
        for _ in range(8):
            row = await database.fetch_one("select pg_backend_pid() as pid, txid_current()")
            assert row is not None
            assert row["pid"] not in left

    on_words(test)


def test_a_backend_that_is_ended_takes_the_transaction_with_it(
    on_words: Callable[[Test], None],
) -> None:
    async def test(database: Database) -> None:
        with pytest.raises(DatabaseBusy, match="lost"):
            async with database.transaction() as tx:
                await tx.execute("insert into words values (1)")
                await database.execute(
                    "select pg_terminate_backend(%s, 5000)", tx.connection.info.backend_pid
                )
                await tx.execute("insert into words values (2)")
        assert await words(database) == []

    on_words(test)


def test_a_server_killed_in_the_middle_has_stored_nothing(own: EmbeddedPostgres) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with opened(own.url) as database:
            await database.execute("create table words (id int primary key, word text)")
            with pytest.raises(DatabaseBusy):
                async with database.transaction() as tx:
                    await tx.execute("insert into words values (1)")
                    # the postmaster takes the death of a backend for a crash of all
                    os.kill(tx.connection.info.backend_pid, signal.SIGKILL)
                    await tx.execute("insert into words values (2)")

            async def stored() -> list[int]:
                while True:
                    try:
                        return await words(database)
                    except DatabaseBusy:
                        await asyncio.sleep(0.05)

            assert await asyncio.wait_for(stored(), 30) == []
            with pytest.raises(DatabaseBusy):
                async with database.transaction() as tx:
                    await tx.execute("insert into words values (1)")
                    await loop.run_in_executor(None, own.stop, "immediate")
            await loop.run_in_executor(None, own.start)
            assert await asyncio.wait_for(stored(), 30) == []
            await nothing_is_left(database)

    run(main())
