"""The pool on a real server: shares, bounds, and a server that comes and goes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import psycopg
import pytest

from fluxor_fast.arbiter.shared import SharedMemory
from fluxor_fast.config import DatabaseSettings, ServerSettings, Settings
from fluxor_fast.db.connection import conninfo, needs_a_person, place
from fluxor_fast.db.embedded import EmbeddedPostgres
from fluxor_fast.db.pool import Connection, Database
from fluxor_fast.errors import BootError, DatabaseBusy
from fluxor_fast.observability.metrics import InstanceMetrics
from tests.support import docs
from tests.support.pure import run

SIZES: dict[str, Any] = {
    "min_size": 1,
    "max_size": 4,
    "timeout": 2.0,
    "max_waiting": 100,
    "lifetime": 1800.0,
    "idle": 300.0,
    "statement_timeout": 5.0,
    "connect_timeout": 2.0,
}


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[Database]:
    database = Database(url, **(SIZES | options))
    await database.open()
    try:
        assert await database.first_contact()
        yield database
    finally:
        await database.close()


@contextmanager
def silenced(*pids: int) -> Iterator[None]:
    """Stop processes: their sockets stay open, and nobody answers."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def until(check: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        await asyncio.sleep(0.01)


# queries


def test_rows_are_dicts_and_execute_counts(database_url: str) -> None:
    async def main() -> None:
        async with opened(database_url) as database:
            assert await database.execute("create table t (id int primary key, word text)") == -1
            assert await database.execute("insert into t values (1, %s), (2, %s)", "a", "b") == 2
            assert await database.fetch_all("select * from t order by id") == [
                {"id": 1, "word": "a"},
                {"id": 2, "word": "b"},
            ]
            assert await database.fetch_one("select word from t where id = %s", 2) == {"word": "b"}
            assert await database.fetch_one("select 1 from t where id = %s", 3) is None
            assert await database.fetch_one("select '100%' as words") == {"words": "100%"}
            await database.check()

    run(main())


def test_a_transaction_is_all_or_nothing(database_url: str) -> None:
    async def main() -> None:
        async with opened(database_url) as database:
            await database.execute("create table whole (id int primary key)")
            with pytest.raises(psycopg.errors.UniqueViolation):
                async with database.transaction() as tx:
                    await tx.execute("insert into whole values (1)")
                    await tx.execute("insert into whole values (1)")
            assert await database.fetch_all("select * from whole") == []
            async with database.transaction() as tx:
                await tx.execute("insert into whole values (1)")
            assert await database.fetch_all("select * from whole") == [{"id": 1}]

    run(main())


def test_faults_of_a_statement_pass_through(database_url: str) -> None:
    async def main() -> None:
        async with opened(database_url) as database:
            with pytest.raises(psycopg.errors.UndefinedTable):
                await database.fetch_one("select * from nowhere")
            with pytest.raises(psycopg.errors.DivisionByZero):
                await database.fetch_one("select 1 / 0")
            figures = database.statistics
            await until(
                lambda: figures()["pool_available"] == figures()["pool_size"], "all returned", 2
            )
            assert not database._keeper.lent

    run(main())


# bounds


def test_a_slow_statement_is_ended_by_the_server(database_url: str) -> None:
    async def main() -> None:
        async with opened(database_url, statement_timeout=0.5) as database:
            with pytest.raises(DatabaseBusy, match="too long"):
                await database.fetch_one("select pg_sleep(10)")
            assert await database.fetch_one("select 1 as one") == {"one": 1}

    run(main())


def test_an_exhausted_pool_answers_in_time_and_refuses_more_waiters(database_url: str) -> None:
    async def main() -> None:
        async with opened(database_url, max_size=1, timeout=0.1, max_waiting=1) as database:
            await until(lambda: database.statistics()["pool_available"] == 1, "connected", 5)
            async with database.transaction():
                results = await asyncio.gather(
                    *(database.fetch_one("select 1") for _ in range(3)), return_exceptions=True
                )
                assert all(isinstance(result, DatabaseBusy) for result in results)
                assert sorted(str(result) for result in results) == [
                    "503 no database connection became free in time, try again",
                    "503 too many requests wait for the database, try again",
                    "503 too many requests wait for the database, try again",
                ]
                # busy is not away: the keeper asks by a connection of its own
                database._keeper.doubt()
                await asyncio.sleep(0.2)
                assert database.ready
            assert await database.fetch_one("select 1 as one") == {"one": 1}

    run(main())


def test_many_at_once_share_few_connections(database_url: str) -> None:
    async def main() -> None:
        async with opened(database_url, max_size=3) as database:
            rows = await asyncio.gather(
                *(database.fetch_one("select pg_backend_pid() as pid") for _ in range(100))
            )
            assert len({row["pid"] for row in rows if row}) <= 3
            assert database.statistics()["pool_size"] <= 3

    run(main())


def test_a_cancelled_request_gives_its_connection_back(database_url: str) -> None:
    async def main() -> None:
        async with opened(database_url, max_size=1) as database:
            for _ in range(5):
                task = asyncio.create_task(database.fetch_one("select pg_sleep(10)"))
                await until(lambda: bool(database._keeper.lent), "the query runs", 2)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert await database.fetch_one("select 1 as one") == {"one": 1}
            assert not database._keeper.lent

    run(main())


# sizes


def shares(workers: int, pool_min: int, pool_max: int, waiting: int = 1000) -> tuple[int, ...]:
    settings = Settings(
        server=ServerSettings(workers=workers),
        database=DatabaseSettings(
            url="postgresql://u:secret@db/x",  # type: ignore[arg-type]
            pool_min=pool_min,
            pool_max=pool_max,
            max_waiting=waiting,
        ),
    )
    options = Database.from_settings(settings)._keeper._options
    return options.min_size, options.max_size, options.max_waiting


def test_the_shares_never_exceed_the_whole() -> None:
    assert shares(4, 10, 100) == (2, 25, 250)
    assert shares(3, 10, 100) == (3, 33, 333)
    assert shares(8, 4, 10, 4) == (0, 1, 1)
    assert shares(8, 4, 4, 0) == (0, 1, 1)
    for workers in range(1, 20):
        for total in range(workers, 60):
            assert shares(workers, 0, total)[1] * workers <= total


def test_the_documented_sizes_are_those_of_the_code() -> None:
    rows = []
    for load, least, most in (
        ("below 3,000", 1, 2999),
        ("3,000 to 10,000", 3000, 10_000),
        ("above 10,000", 10_001, 1_000_000),
    ):
        low, high = DatabaseSettings().pool_sizes(least)
        assert DatabaseSettings().pool_sizes(most) == (low, high)
        rows.append([load, str(high), str(low)])
    docs.check("DATABASE.md", "pool sizes", docs.table("| `max_ccu` | most | kept open |", rows))


def test_a_small_server_caps_the_pool_with_one_warning(
    own: EmbeddedPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        # 20 connections, 3 of them reserved: 17 for 4 workers
        async with opened(own.url, min_size=10, max_size=25, workers=4) as database:
            assert database.statistics()["pool_max"] == 4
            assert database.statistics()["pool_min"] == 4

    run(main())
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "gives 17 connections, the pool may have 100" in warnings[0].getMessage()


# the server comes and goes


def test_without_a_server_all_is_refused_at_once_and_the_start_goes_on() -> None:
    async def main() -> None:
        with socket.socket() as closed:  # bound, not listening: connections are refused
            closed.bind(("127.0.0.1", 0))
            url = f"postgresql://user:hunter2@127.0.0.1:{closed.getsockname()[1]}/x"
            database = Database(url, **SIZES)
            await database.open()
            assert not await database.first_contact()
            assert not database.ready
            for call in (database.fetch_one("select 1"), database.check()):
                with pytest.raises(DatabaseBusy, match="away"):
                    await asyncio.wait_for(call, 0.5)
            assert database.statistics()["pool_size"] == 0
            await asyncio.wait_for(database.close(), 2)

    run(main())


def test_a_server_that_restarts_fails_only_who_was_on_it(own: EmbeddedPostgres) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with opened(own.url, min_size=4) as database:
            await until(lambda: database.statistics()["pool_available"] == 4, "a full pool", 5)
            on_it = asyncio.create_task(database.fetch_one("select pg_sleep(10)"))
            await until(lambda: bool(database._keeper.lent), "the query runs", 2)
            await loop.run_in_executor(None, lambda: (own.stop(), own.start()))
            with pytest.raises(DatabaseBusy):
                await on_it
            await until(lambda: database.ready, "ready", 2)
            # as many as there were connections, and more: none meets one that has ended
            rows = await asyncio.gather(*(database.fetch_one("select 1 as a") for _ in range(20)))
            assert rows == [{"a": 1}] * 20

    run(main())


def test_away_for_a_while_and_back_within_two_seconds(
    own: EmbeddedPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = 0

    async def prepare(connection: Connection) -> None:
        nonlocal prepared
        prepared += 1

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with opened(own.url, prepare=prepare) as database:
            await database.fetch_one("select 1")
            for mode in ("fast", "immediate"):
                running = asyncio.create_task(database.fetch_one("select pg_sleep(10)"))
                await until(lambda: bool(database._keeper.lent), "the query runs", 2)
                await loop.run_in_executor(None, own.stop, mode)
                with pytest.raises(DatabaseBusy):
                    await asyncio.wait_for(running, 1)
                await until(lambda: not database.ready, "not ready", 2.5)
                started = time.monotonic()
                with pytest.raises(DatabaseBusy, match="away"):
                    await database.fetch_one("select 1")
                assert time.monotonic() - started < 0.1
                # long enough that psycopg_pool's own tries would be seconds apart
                await until(lambda s=started: time.monotonic() > s + 3, "3 s", 4)
                await loop.run_in_executor(None, own.start)
                await until(lambda: database.ready, "back", 2)
                assert await database.fetch_one("select 1 as a") == {"a": 1}
        assert prepared == 3

    caplog.set_level(logging.INFO)
    run(main())
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("fluxor_fast")]
    assert [line.split(": ")[1] for line in lines] == ["connected"] + ["away", "connected"] * 2
    assert not any(record.exc_info for record in caplog.records)
    assert not any("\n" in line for line in lines)


def test_a_server_that_falls_silent_is_hung_up_on(own: EmbeddedPostgres) -> None:
    postmaster = int((own._data / "postmaster.pid").read_text().split()[0])

    async def main() -> None:
        async with opened(own.url, max_size=1, timeout=1.0, statement_timeout=60.0) as database:
            await database.check()
            rows = await database.fetch_all("select pid from pg_stat_activity")
            task = asyncio.create_task(database.fetch_one("select pg_sleep(50)"))
            await until(lambda: bool(database._keeper.lent), "the query runs", 2)
            with silenced(postmaster, *(row["pid"] for row in rows)):
                with pytest.raises(DatabaseBusy, match="lost"):
                    await asyncio.wait_for(task, 8)
                await until(lambda: not database.ready, "not ready", 8)
                with pytest.raises(DatabaseBusy):
                    await asyncio.wait_for(database.check(), 3)
            await until(lambda: database.ready, "back", 4)

    run(main())


def test_one_silent_connection_is_hung_up_on_after_the_statement_timeout(
    database_url: str,
) -> None:
    async def main() -> None:
        async with opened(database_url, statement_timeout=0.3) as database:
            pid = 0

            async def transaction() -> None:
                nonlocal pid
                async with database.transaction() as tx:
                    pid = tx.connection.info.backend_pid
                    os.kill(pid, signal.SIGSTOP)
                    await tx.execute("select 1")

            try:
                with pytest.raises(DatabaseBusy, match="lost"):
                    await asyncio.wait_for(transaction(), 6)
            finally:
                os.kill(pid, signal.SIGCONT)
            assert database.ready
            await database.check()

    run(main())


def test_a_connection_ended_by_an_administrator_costs_nobody_else(database_url: str) -> None:
    async def main() -> None:
        async with opened(database_url, min_size=2) as database:
            await until(lambda: database.statistics()["pool_available"] == 2, "a full pool", 5)
            with psycopg.connect(database_url, autocommit=True) as admin:
                admin.execute(
                    "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                    " where datname = current_database() and pid <> pg_backend_pid()"
                )
            rows = await asyncio.gather(*(database.fetch_one("select 1 as a") for _ in range(8)))
            assert rows == [{"a": 1}] * 8
            assert database.ready

    run(main())


def test_prepare_that_fails_leaves_the_database_unready(database_url: str) -> None:
    async def refuse(connection: Connection) -> None:
        await connection.execute("select * from not_there_yet")

    async def main() -> None:
        database = Database(database_url, **SIZES, prepare=refuse)
        await database.open()
        assert not await database.first_contact()
        with psycopg.connect(database_url, autocommit=True) as admin:
            admin.execute("create table not_there_yet ()")
        await until(lambda: database.ready, "ready once it succeeds", 2)
        await database.close()

    run(main())


def test_figures_are_published_each_round(database_url: str) -> None:
    async def main() -> None:
        published: list[tuple[int, int, int]] = []
        async with opened(
            database_url, publish=lambda *figures: published.append(figures)
        ) as database:
            await until(lambda: (1, 1, 0) in published, "the pool's figures", 3)
            figures = database.statistics()
            assert figures["pool_max"] == 4
            assert figures["connections_num"] >= 1

    run(main())


def test_figures_of_all_workers_meet_in_shared_memory(database_url: str) -> None:
    memory = SharedMemory(2)
    capacity = Settings().server.capacity
    workers = [InstanceMetrics(memory, capacity, memory.region(index)) for index in range(2)]

    def told(name: str) -> float:
        lines = workers[0].prometheus().decode().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))

    async def main() -> None:
        async with (
            opened(database_url, min_size=2, publish=workers[0].publish_pool) as one,
            opened(database_url, min_size=2, publish=workers[1].publish_pool) as two,
        ):
            await until(lambda: told("database_connections") == 4, "both pools", 5)
            async with one.transaction(), two.transaction(), two.transaction():
                await until(lambda: told("database_connections_active") == 3, "those lent", 5)
            await until(lambda: told("database_connections_active") == 0, "none lent", 5)

    run(main())


# lifetime and idle time


def test_lifetime_and_idle_time_are_half_an_hour_and_five_minutes() -> None:
    settings = Settings(
        server=ServerSettings(workers=2),
        database=DatabaseSettings(url="postgresql://u@db/x"),  # type: ignore[arg-type]
    )
    options = Database.from_settings(settings)._keeper._options
    assert (options.lifetime, options.idle) == (30 * 60, 5 * 60)


def test_a_connection_is_replaced_after_its_lifetime(database_url: str) -> None:
    async def main() -> None:
        async with opened(database_url, max_size=1, lifetime=0.3) as database:
            pids = set()
            deadline = time.monotonic() + 5
            while len(pids) < 3:
                assert time.monotonic() < deadline, f"not replaced: {pids}"
                async with database.transaction() as tx:
                    pids.add(tx.connection.info.backend_pid)
                    await asyncio.sleep(0.01)

    run(main())


def test_what_is_above_the_least_closes_when_it_is_idle(database_url: str) -> None:
    async def main() -> None:
        async with opened(database_url, idle=0.3) as database:
            async with AsyncExitStack() as stack:
                for _ in range(4):
                    await stack.enter_async_context(database.transaction())
                assert database.statistics()["pool_size"] == 4
            await until(lambda: database.statistics()["pool_size"] == 1, "one is left", 5)
            await database.check()

    run(main())


# what a person must put right


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda url: url.replace("/postgres?", "/nowhere?"), 'database "nowhere" does not exist'),
        (lambda url: url.replace("//postgres@", "//nobody@"), 'role "nobody" does not exist'),
    ],
)
def test_wrong_names_end_the_start(
    postgres: EmbeddedPostgres, change: Callable[[str], str], words: str
) -> None:
    async def main() -> None:
        database = Database(change(postgres.url), **SIZES)
        await database.open()
        try:
            with pytest.raises(BootError) as caught:
                await database.first_contact()
        finally:
            await database.close()
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    run(main())


def test_a_wrong_password_ends_the_start_and_is_not_shown(own: EmbeddedPostgres) -> None:
    hba = own._data / "pg_hba.conf"
    hba.write_text("local all all scram-sha-256\n")
    own.stop()
    own.start()

    async def main() -> None:
        for url in (own.url, own.url.replace("postgres@", "postgres:hunter2@")):
            database = Database(url, **SIZES)
            await database.open()
            try:
                with pytest.raises(BootError) as caught:
                    await database.first_contact()
            finally:
                await database.close()
            assert "hunter2" not in str(caught.value)

    run(main())


@pytest.mark.parametrize(
    "url",
    [
        "postgre://u:hunter2@h/d",
        "postgresql://u:hunter2@h/d?nonsense=1",
        "hunter2",
        "host='hunter2",
    ],
)
def test_a_url_that_libpq_does_not_take_is_not_repeated(url: str) -> None:
    with pytest.raises(BootError) as caught:
        Database(url, **SIZES)
    assert "hunter2" not in str(caught.value)


def test_what_is_shown_of_a_url() -> None:
    assert place("postgresql://u:hunter2@db.example:5433/app") == "db.example:5433/app"
    assert place("postgresql:///app?host=/run/pg") == "/run/pg:5432/app"
    assert place("postgresql://u@/") == "localhost:5432/u"


def test_what_the_url_sets_itself_stays() -> None:
    given = psycopg.conninfo.conninfo_to_dict(
        conninfo("postgresql://h/d?connect_timeout=9&keepalives_idle=1", 3.0)
    )
    assert (given["connect_timeout"], given["keepalives_idle"]) == ("9", "1")
    given = psycopg.conninfo.conninfo_to_dict(conninfo("postgresql://h/d", 2.5))
    assert (given["connect_timeout"], given["tcp_user_timeout"]) == ("3", "10000")


def test_which_errors_need_a_person() -> None:
    assert needs_a_person(psycopg.errors.InvalidPassword("x"))
    assert needs_a_person(psycopg.errors.InsufficientPrivilege("x"))
    assert not needs_a_person(psycopg.errors.CannotConnectNow("x"))
    assert not needs_a_person(psycopg.OperationalError("connection refused"))
    assert not needs_a_person(ConnectionRefusedError())
