"""Statements that share connections: as good as on connections of their own, on a real server."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import random
import select
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from fluxor_fast.db.lane import DEPTH, SLOW, Lane
from fluxor_fast.db.pool import Database
from fluxor_fast.db.prepared import PREPARED, numbered
from fluxor_fast.errors import DatabaseBusy
from tests.support.inprocess import until
from tests.support.pure import run
from tests.test_database import opened

ECHO = "select %s::int as n"


def lanes_of(database: Database) -> list[Lane]:
    return [lane for lane, _ in database._lanes._lanes if not lane.closed]


def known(database: Database, sql: Any) -> None:
    """Have ``sql`` known as quick, whatever the machine did meanwhile."""
    form = numbered(sql)
    assert form is not None
    database._lanes._quick.add(form[0])


async def know(database: Database, sql: Any, *args: object) -> None:
    """Run ``sql``, and have it known as quick."""
    await database.fetch_all(sql, *args)
    known(database, sql)


@asynccontextmanager
async def laned(url: str, **options: Any) -> AsyncIterator[Database]:
    """A database whose lanes are open, as many as there may be."""
    async with opened(url, **options) as database:
        await know(database, ECHO, 1)
        most = database._keeper.most // 2
        while len(lanes_of(database)) < most:
            await asyncio.gather(*(database.fetch_one(ECHO, n) for n in range(8)))
            await know(database, ECHO, 1)
        yield database


def count(database: Database) -> list[int]:
    """What each lane has been asked, so that a test can tell that it was."""
    sent = [0]

    def counted(lane: Lane) -> None:
        original = lane.send

        def send(query: bytes, arguments: tuple[object, ...], future: Any) -> None:
            sent[0] += 1
            original(query, arguments, future)

        lane.send = send  # type: ignore[method-assign]

    for lane in lanes_of(database):
        counted(lane)
    return sent


VALUES: list[tuple[str, object]] = [
    ("int", 5), ("int", 40_000), ("bigint", 2**40), ("int", None), ("text", "ä %s $1 '"),
    ("text", ""), ("bool", True), ("float8", 1.5), ("float8", float("inf")),
    ("numeric", decimal.Decimal("12.340")), ("bytea", b"\0\xff"),
    ("date", datetime.date(2024, 2, 29)),
    ("timestamptz", datetime.datetime(2024, 5, 1, 12, 0, 1, 5, datetime.UTC)),
    ("uuid", uuid.UUID(int=7)), ("jsonb", Jsonb({"a": [1, None, "ü"]})), ("int[]", [1, 2, None]),
    ("text[]", ["a,b", '"']), ("interval", datetime.timedelta(days=1, seconds=2)),
]  # fmt: skip


def test_values_go_and_come_as_with_psycopgs_own_cursor(database_url: str) -> None:
    async def test() -> None:
        async with (
            laned(database_url) as database,
            await psycopg.AsyncConnection.connect(database_url, row_factory=dict_row) as plain,
        ):
            for kind, value in VALUES:
                sql: Any = f"select %s::{kind} as value, 'a%%b' as percent"
                await know(database, sql, value)
                sent = count(database)
                for _ in range(3):  # prepared, and then by name
                    known(database, sql)
                    got = await database.fetch_all(sql, value)
                    cursor = await plain.execute(sql, (value,))
                    assert got == await cursor.fetchall()
                    assert type(got[0]["value"]) is not str or kind == "text"
                assert sent[0] == 3

    run(test())


def test_many_readers_share_few_connections_and_each_gets_its_own_answer(database_url: str) -> None:
    seed = 20_261_124
    print(f"seed {seed}")
    shuffled = random.Random(seed)

    async def test() -> None:
        async with laned(database_url, max_size=4) as database:
            sent = count(database)

            async def reader() -> None:
                for _ in range(20):
                    n = shuffled.randrange(1_000_000)
                    assert await database.fetch_one(ECHO, n) == {"n": n}

            await asyncio.gather(*(reader() for _ in range(100)))
            assert sent[0] > 1000
            assert len(lanes_of(database)) == 2

    run(test())


def test_the_failure_of_one_is_nobody_elses(database_url: str) -> None:
    async def test() -> None:
        async with laned(database_url, max_size=2) as database:
            sql: Any = "select 10 / %s as q"
            await know(database, sql, 1)
            sent = count(database)
            found = await asyncio.gather(
                *(database.fetch_one(sql, n) for n in (1, 0, 2, 0, 5)), return_exceptions=True
            )
            assert sent[0] == 5
            assert [f["q"] if isinstance(f, dict) else type(f) for f in found] == [
                10, psycopg.errors.DivisionByZero, 5, psycopg.errors.DivisionByZero, 2,
            ]  # fmt: skip
            made = "select count(*) as n from pg_prepared_statements where statement like %s"
            await know(database, made, "x")
            assert await database.fetch_one(made, "select 10 /%") == {"n": 1}

    run(test())


def test_each_is_a_transaction_of_its_own(database_url: str) -> None:
    async def test() -> None:
        async with laned(database_url, max_size=2) as database:
            await database.execute("drop table if exists lane_writes")
            await database.execute("create table lane_writes (n int check (n < 10))")
            sql: Any = "insert into lane_writes values (%s) returning n"
            await know(database, sql, 0)
            sent = count(database)
            await asyncio.gather(
                *(database.fetch_one(sql, n) for n in (1, 2, 99, 3)), return_exceptions=True
            )
            assert sent[0] == 4
            rows = await database.fetch_all("select n from lane_writes order by n")
            assert [row["n"] for row in rows] == [0, 1, 2, 3]
            await database.execute("drop table lane_writes")

    run(test())


def test_who_is_cancelled_disturbs_nobody(database_url: str) -> None:
    async def test() -> None:
        async with laned(database_url, max_size=2) as database:
            tasks = [asyncio.create_task(database.fetch_one(ECHO, n)) for n in range(10)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert [f["n"] if isinstance(f, dict) else None for f in found] == [
                None, 1, None, 3, None, 5, None, 7, None, 9,
            ]  # fmt: skip

    run(test())


def test_a_lane_that_is_ended_fails_who_is_on_it_and_nobody_after(database_url: str) -> None:
    async def test() -> None:
        async with laned(database_url, max_size=2) as database:
            (lane,) = lanes_of(database)
            pid = lane.connection.info.backend_pid
            slow: Any = "select pg_sleep(%s)::text as s"
            await know(database, slow, 0)
            waiting = asyncio.create_task(database.fetch_one(slow, 30))
            await until(lambda: len(lane) == 1, "it is under way")
            assert await database.fetch_one("select pg_terminate_backend(%s) as done", pid)
            with pytest.raises(DatabaseBusy):
                await waiting
            assert lane.closed
            for n in range(20):
                assert await database.fetch_one(ECHO, n) == {"n": n}

    run(test())


def test_a_lane_that_ended_while_idle_fails_nobody(database_url: str) -> None:
    async def test() -> None:
        async with laned(database_url, max_size=2) as database:
            (lane,) = lanes_of(database)
            pid = lane.connection.info.backend_pid
            with psycopg.connect(database_url, autocommit=True) as other:
                other.execute("select pg_terminate_backend(%s, 5000)", (pid,))
            found = await asyncio.gather(*(database.fetch_one(ECHO, n) for n in range(5)))
            assert found == [{"n": n} for n in range(5)]

    run(test())


def test_a_slow_statement_does_not_hold_up_the_quick(database_url: str) -> None:
    async def test() -> None:
        async with laned(database_url) as database:
            slow: Any = "select pg_sleep(%s)::text as s"
            await know(database, slow, 0)  # it was quick so far
            waiting = asyncio.create_task(database.fetch_one(slow, 1.5))
            await asyncio.sleep(2 * SLOW)  # the time in which it shows
            for n in range(50):
                assert await database.fetch_one(ECHO, n) == {"n": n}
            assert not waiting.done()
            await waiting
            form = numbered(slow)
            assert form is not None
            assert form[0] not in database._lanes._quick

    run(test())


def test_a_column_that_changes_is_no_error(database_url: str) -> None:
    async def test() -> None:
        async with laned(database_url) as database:
            await database.execute("drop table if exists lane_columns")
            await database.execute("create table lane_columns (a int)")
            await database.execute("insert into lane_columns values (1)")
            sql = "select * from lane_columns"
            await know(database, sql)
            for _ in range(3):
                assert await database.fetch_all(sql) == [{"a": 1}]
            await database.execute("alter table lane_columns add column b text default 'x'")
            for _ in range(3):
                assert await database.fetch_all(sql) == [{"a": 1, "b": "x"}]
            await database.execute("drop table lane_columns")

    run(test())


def test_prepared_statements_are_bounded(database_url: str) -> None:
    async def test() -> None:
        async with laned(database_url, max_size=2) as database:
            for n in range(150):
                sql: Any = f"select %s::int + {n} as n"
                await know(database, sql, 1)
                assert await database.fetch_one(sql, 1) == {"n": n + 1}
            # psycopg may have prepared some of its own before the connection became a lane
            made = "select count(*) as n from pg_prepared_statements where name like %s"
            await know(database, made, "")
            row = await database.fetch_one(made, "lane%")
            assert row is not None
            assert 50 < row["n"] <= 100

    run(test())


def test_a_pool_of_one_has_no_lane(database_url: str) -> None:
    async def test() -> None:
        async with opened(database_url, max_size=1) as database:
            for n in range(20):
                assert await database.fetch_one(ECHO, n) == {"n": n}
            assert not lanes_of(database)

    run(test())


def test_a_lane_takes_so_many_and_no_more(database_url: str) -> None:
    async def test() -> None:
        async with laned(database_url, max_size=2) as database:
            (lane,) = lanes_of(database)
            form = numbered(ECHO)
            assert form is not None
            loop = asyncio.get_running_loop()
            futures = [loop.create_future() for _ in range(DEPTH)]
            for n, future in enumerate(futures):
                lane.send(form[0], (n,), future)
            assert not lane.open
            assert [await f for f in futures] == [[{"n": n}] for n in range(DEPTH)]
            assert lane.open

    run(test())


def test_all_connections_go_back_at_the_end(database_url: str) -> None:
    async def test() -> None:
        async with laned(database_url) as database:
            await asyncio.gather(*(database.fetch_one(ECHO, n) for n in range(50)))
        assert not database._keeper.lent

    run(test())


@pytest.mark.parametrize(
    ("sql", "form"),
    [
        ("select %s, '%%', %s", (b"select $1, '%', $2", 2)),
        ("select 1", (b"select 1", 0)),
        ("select %(name)s", None),
        ("select %b", None),
        ("select 5 %", None),
    ],
)
def test_placeholders(sql: str, form: tuple[bytes, int] | None) -> None:
    assert numbered(sql) == form


@pytest.mark.parametrize(
    ("sql", "shared"),
    [
        ("select 1", True),
        (" SELECT a from t where b = %s", True),
        ("insert into t values (1) returning a", False),
        ("update t set a = 1 returning a", False),
        ("select a from t for no key update", False),
        ("select a\nfrom t\nFOR SHARE", False),
    ],
)
def test_what_may_wait_for_a_lock_has_a_connection_of_its_own(
    database_url: str, sql: str, shared: bool
) -> None:
    async def test() -> None:
        async with opened(database_url) as database:
            database._lanes.took(sql, (1,) * sql.count("%s"), 0.0)
            assert bool(database._lanes._quick) == shared

    run(test())


def test_who_finds_all_lanes_full_waits_in_line(database_url: str) -> None:
    async def test() -> None:
        async with laned(database_url, max_size=2) as database:
            count = 3 * DEPTH
            tasks = [asyncio.create_task(database.fetch_one(ECHO, n)) for n in range(count)]
            await asyncio.sleep(0)
            assert len(database._lanes._waiting) == count - DEPTH
            for task in tasks[DEPTH::2]:
                task.cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert [f["n"] for f in found if isinstance(f, dict)] == [
                n for n in range(count) if n < DEPTH or (n - DEPTH) % 2
            ]

    run(test())


def test_more_than_may_wait_are_refused(database_url: str) -> None:
    async def test() -> None:
        async with laned(database_url, max_size=2, max_waiting=10) as database:
            found = await asyncio.gather(
                *(database.fetch_one(ECHO, n) for n in range(DEPTH + 15)), return_exceptions=True
            )
            assert sum(isinstance(f, dict) for f in found) == DEPTH + 10
            refused = [f for f in found if isinstance(f, DatabaseBusy)]
            assert len(refused) == 5
            assert "too many requests wait" in str(refused[0])

    run(test())


def test_who_waits_in_line_goes_elsewhere_when_the_lane_is_held_up(database_url: str) -> None:
    async def test() -> None:
        async with laned(database_url, max_size=4) as database:
            slow: Any = "select pg_sleep(%s)::text as s"
            await know(database, slow, 0)
            lanes = len(lanes_of(database))
            held = [asyncio.create_task(database.fetch_one(slow, 2)) for _ in range(lanes)]
            behind = [
                asyncio.create_task(database.fetch_one(ECHO, n)) for n in range(lanes * DEPTH - 2)
            ]
            await asyncio.sleep(0)
            line = await asyncio.gather(*(database.fetch_one(ECHO, n) for n in range(10)))
            assert line == [{"n": n} for n in range(10)]
            assert not any(task.done() for task in held)
            await asyncio.gather(*held, *behind)

    run(test())


def test_the_statement_not_used_for_longest_makes_room(database_url: str) -> None:
    async def test() -> None:
        async with laned(database_url, max_size=2) as database:
            statements: list[Any] = [f"select %s::int + {n} as n" for n in range(PREPARED + 30)]
            for n, sql in enumerate(statements):
                await know(database, sql, 1)
                assert await database.fetch_one(sql, 1) == {"n": n + 1}
                assert await database.fetch_one(statements[0], 1) == {"n": 1}
            made: Any = (
                "select array_agg(statement) as all from pg_prepared_statements"
                " where name like 'lane%%' and %s"
            )
            await know(database, made, True)
            row = await database.fetch_one(made, True)
            assert row is not None
            assert len(row["all"]) == PREPARED
            assert "select $1::int + 0 as n" in row["all"]
            assert "select $1::int + 1 as n" not in row["all"]

    run(test())


def test_a_loop_that_is_late_is_not_a_slow_statement(database_url: str) -> None:
    async def test() -> None:
        async with laned(database_url, max_size=2) as database:
            (lane,) = lanes_of(database)
            form = numbered(ECHO)
            assert form is not None
            for n in range(5):
                task = asyncio.create_task(database.fetch_one(ECHO, n))
                await asyncio.sleep(0)
                assert len(lane) == 1
                answered = select.poll()
                answered.register(lane._fd, select.POLLIN)
                assert answered.poll(10_000)
                time.sleep(3 * SLOW)  # the loop is busy; the answer lies there
                assert await task == {"n": n}
                assert form[0] in database._lanes._quick

    run(test())
