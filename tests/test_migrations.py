"""Migrations on a real server: all or nothing, once, one at a time, nothing but the files."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from fluxor_fast.config import AuthSettings, DatabaseSettings, Settings
from fluxor_fast.db.connection import Connection
from fluxor_fast.db.migrations import (
    LOCK,
    Migration,
    check,
    migrate,
    read_folder,
    status,
)
from fluxor_fast.errors import BootError, MigrationError
from fluxor_fast.service import build
from fluxor_fast.service.schema import ensure_schema, migrations
from tests.support.command import command
from tests.support.pure import FakeMetrics, run
from tests.support.server import LiveServer, eventually, get

# what the service made before there were numbered files
OLD_SCHEMA = """
create table if not exists users (
    id bigint generated always as identity primary key,
    email text not null,
    name text,
    password_hash text,
    roles text[] not null default '{user}',
    created_at timestamptz not null default now()
);
create unique index if not exists users_email_key on users (lower(email));
"""


@pytest.fixture
def url(empty_database: str) -> str:
    return empty_database


async def connected(url: str) -> Connection:
    return await Connection.connect(url, autocommit=True, row_factory=dict_row)


def write(folder: Path, **files: str) -> list[Migration]:
    """Write ``_0001_name="sql"`` as files, and read the folder."""
    for name, sql in files.items():
        (folder / f"{name.removeprefix('_')}.sql").write_text(sql)
    return read_folder(folder)


def up(url: str, found: list[Migration], patience: float = 5.0) -> list[str]:
    async def main() -> list[str]:
        async with await connected(url) as connection:
            return [m.name for m in await migrate(connection, found, patience=patience)]

    return run(main())


def rows(url: str, sql: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(sql.encode()).fetchall()


# the files


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["0001_a.sql", "0001_b.sql"], "0001_a.sql and 0001_b.sql have the same number"),
        (["0001_a.sql", "0003_b.sql"], "no file has the number 0002"),
        (["0002_a.sql"], "no file has the number 0001"),
        (["0000_a.sql"], "0000_a.sql: must be named"),
        (["1_a.sql"], "1_a.sql: must be named"),
        (["0001_A-b.sql"], "must be named"),
        (["README.md"], "no file"),
        ([], "no file"),
    ],
)
def test_a_folder_that_is_not_in_order(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(MigrationError, match=words):
        read_folder(tmp_path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="No such file"):
        read_folder(tmp_path / "nowhere")


def test_line_ends_do_not_change_a_file(tmp_path: Path) -> None:
    one = tmp_path / "0001_a.sql"
    one.write_bytes(b"select 1;\nselect 2;\n")
    before = read_folder(tmp_path)[0].checksum
    one.write_bytes(b"select 1;\r\nselect 2;\r\n")
    assert read_folder(tmp_path)[0].checksum == before


# applying


def test_files_are_applied_in_order_and_once(url: str, tmp_path: Path) -> None:
    found = write(
        tmp_path,
        _0001_a="create table a (id int); insert into a values (1); -- 100%",
        _0002_b="insert into a values (2)",
    )
    assert up(url, found) == ["0001_a.sql", "0002_b.sql"]
    assert up(url, found) == []
    found = write(tmp_path, _0003_c="insert into a values (3)")
    assert up(url, found) == ["0003_c.sql"]
    assert rows(url, "select id from a order by id") == [(1,), (2,), (3,)]
    assert rows(url, "select version, name, checksum from fluxor_migrations order by 1") == [
        (m.version, m.name, m.checksum) for m in found
    ]


def test_a_file_that_fails_leaves_nothing_of_it_and_all_before(url: str, tmp_path: Path) -> None:
    found = write(
        tmp_path,
        _0001_a="create table a (id int);",
        _0002_b="insert into a values (1);\n\nselect * from nowhere;",
    )
    for _ in range(2):
        with pytest.raises(MigrationError, match=r"0002_b.sql: line 3: .*nowhere.* not exist"):
            up(url, found)
        assert rows(url, "select * from a") == []
        assert rows(url, "select name from fluxor_migrations") == [("0001_a.sql",)]
    # and it can be mended, as it was never applied
    assert up(url, write(tmp_path, _0002_b="insert into a values (1)")) == ["0002_b.sql"]


@pytest.mark.parametrize("end", ["commit", "commit; begin", "rollback"])
def test_a_file_that_ends_its_transaction_is_not_noted(url: str, tmp_path: Path, end: str) -> None:
    with pytest.raises(MigrationError, match="ends the transaction"):
        up(url, write(tmp_path, _0001_a=f"create table a (); {end}; select 1"))
    assert rows(url, "select * from fluxor_migrations") == []


def test_a_search_path_set_by_a_file_ends_with_it(url: str, tmp_path: Path) -> None:
    """pg_dump's output begins so, and then our own table was not found."""
    found = write(
        tmp_path,
        _0001_a="select set_config('search_path', '', false); create table public.a (id int)",
        _0002_b="insert into a values (1)",
    )
    assert len(up(url, found)) == 2


# files and database that do not agree


def test_a_changed_file_is_an_error(url: str, tmp_path: Path) -> None:
    up(url, write(tmp_path, _0001_a="create table a ()"))
    found = write(tmp_path, _0001_a="create table a (id int)", _0002_b="create table b ()")
    with pytest.raises(MigrationError, match=r"0001_a.sql is not what was applied"):
        up(url, found)
    assert rows(url, "select to_regclass('b')") == [(None,)]


def test_a_file_applied_out_of_order_is_an_error(url: str, tmp_path: Path) -> None:
    found = write(tmp_path, _0001_a="select 1", _0002_b="select 2", _0003_c="select 3")
    up(url, found)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("delete from fluxor_migrations where version = 2")
    with pytest.raises(MigrationError, match=r"0002_b.sql was never applied.*out of order"):
        up(url, found)


def test_a_database_that_is_ahead_is_told_of_and_served(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While instances are replaced one by one, workers of the old ones start too."""
    found = write(tmp_path, _0001_a="select 1", _0002_b="select 2")
    up(url, found)
    assert up(url, found[:1]) == []
    assert "ahead of this program, by 0002_b.sql" in caplog.text


def test_check_refuses_what_is_pending_and_applies_nothing(url: str, tmp_path: Path) -> None:
    found = write(tmp_path, _0001_a="create table a ()")

    async def main() -> None:
        async with await connected(url) as connection:
            with pytest.raises(MigrationError, match=r"0001_a.sql has not .* migrate up"):
                await check(connection, found)
            assert [m.name for m in (await status(connection, found)).pending] == ["0001_a.sql"]
            await migrate(connection, found, patience=1.0)
            await check(connection, found)

    run(main())


def test_where_nothing_is_to_be_done_nothing_is_written(url: str, tmp_path: Path) -> None:
    found = write(tmp_path, _0001_a="create table a ()")
    up(url, found)

    async def main() -> None:
        async with await connected(url) as connection:
            await connection.execute("set default_transaction_read_only = on")
            assert await migrate(connection, found, patience=1.0) == []
            with pytest.raises(MigrationError, match="read-only"):
                await migrate(connection, write(tmp_path, _0002_b="select 1"), patience=1.0)

    run(main())


# at once


def test_many_start_at_once_and_each_file_runs_once(url: str, tmp_path: Path) -> None:
    """One of the files waits for every snapshot: who waits for the lock must hold none."""
    found = write(
        tmp_path,
        _0001_a="create table a (id int); select pg_sleep(0.2)",
        _0002_b="-- no transaction\ncreate index concurrently if not exists a_id on a (id)",
        _0003_c="insert into a values (1)",
    )

    async def one() -> int:
        async with await connected(url) as connection:
            return len(await migrate(connection, found, patience=20.0))

    async def main() -> list[int]:
        return await asyncio.gather(*(one() for _ in range(12)))

    assert sorted(run(main())) == [0] * 11 + [3]
    assert rows(url, "select * from a") == [(1,)]


def test_the_wait_for_another_who_migrates_is_bounded(url: str, tmp_path: Path) -> None:
    found = write(tmp_path, _0001_a="select 1")
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("select pg_advisory_lock(%s)", (LOCK,))
        started = time.monotonic()
        with pytest.raises(psycopg.errors.LockNotAvailable, match=r"more than 0.2 s"):
            up(url, found, patience=0.2)
        assert time.monotonic() - started < 3
    assert up(url, found) == ["0001_a.sql"]


def test_the_wait_for_a_locked_table_is_bounded(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluxor_fast.db.migrations.TABLE_SECONDS", 1)
    up(url, write(tmp_path, _0001_a="create table a ()"))
    found = write(tmp_path, _0002_b="alter table a add column id int")
    with psycopg.connect(url) as other:
        other.execute("select * from a")  # in a transaction, which keeps its lock
        with pytest.raises(psycopg.errors.LockNotAvailable, match=r"0002_b.sql: a table"):
            up(url, found)
    assert up(url, found) == ["0002_b.sql"]


def test_one_cut_off_in_the_middle_leaves_no_lock_and_nothing_half(
    url: str, tmp_path: Path
) -> None:
    found = write(tmp_path, _0001_a="create table a (); select pg_sleep(60)")

    async def main() -> None:
        async with await connected(url) as connection:
            pid = connection.info.backend_pid
            task = asyncio.create_task(migrate(connection, found, patience=1.0))
            deadline = time.monotonic() + 5
            with psycopg.connect(url, autocommit=True) as admin:
                busy = "select 1 from pg_stat_activity where pid = %s and wait_event = 'PgSleep'"
                while admin.execute(busy, (pid,)).fetchone() is None:
                    assert time.monotonic() < deadline, "the file runs"
                    await asyncio.sleep(0.01)
                admin.execute("select pg_terminate_backend(%s, 5000)", (pid,))
            with pytest.raises(psycopg.OperationalError):
                await task

    run(main())
    assert rows(url, "select to_regclass('a')") == [(None,)]
    found = [Migration(1, "0001_a.sql", b"create table a ()")]
    assert up(url, found) == ["0001_a.sql"]


def test_one_that_is_cancelled_gives_the_lock_back(url: str, tmp_path: Path) -> None:
    found = write(tmp_path, _0001_a="create table a (); select pg_sleep(60)")

    async def main() -> None:
        async with await connected(url) as connection:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(migrate(connection, found, patience=1.0), 0.3)
            again = [Migration(1, "0001_a.sql", b"create table a ()")]
            async with await connected(url) as another:
                assert await migrate(another, again, patience=1.0)

    run(main())


# what cannot run in a transaction


def test_a_concurrent_index_needs_the_mark(url: str, tmp_path: Path) -> None:
    up(url, write(tmp_path, _0001_a="create table a (id int)"))
    sql = "create index concurrently if not exists a_id on a (id);\n"
    with pytest.raises(MigrationError, match="cannot run inside a transaction"):
        up(url, write(tmp_path, _0002_b=sql))
    assert up(url, write(tmp_path, _0002_b=f"-- No transaction\n{sql}")) == ["0002_b.sql"]


def test_an_index_left_invalid_is_not_taken_for_made(url: str, tmp_path: Path) -> None:
    up(url, write(tmp_path, _0001_a="create table a (id int); insert into a values (1), (1)"))
    found = write(
        tmp_path,
        _0002_b="-- no transaction\ncreate unique index concurrently if not exists a_id on a (id)",
    )
    with pytest.raises(MigrationError, match="could not create unique index"):
        up(url, found)
    with pytest.raises(MigrationError, match="the index a_id is invalid"):
        up(url, found)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop index a_id")
        connection.execute("truncate a")
    assert up(url, found) == ["0002_b.sql"]


# the reference service


def test_a_database_from_before_is_taken_over_with_its_rows(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(OLD_SCHEMA)
        connection.execute("insert into users (email, roles) values ('A@x.org', '{admin}')")

    async def main() -> None:
        async with await connected(url) as connection:
            for _ in range(2):
                await ensure_schema(connection)

    run(main())
    assert rows(url, "select version from fluxor_migrations where version = 1") == [(1,)]
    assert rows(url, "select email, roles from users") == [("A@x.org", ["admin"])]


def test_a_new_database_gets_what_an_old_one_had(url: str) -> None:
    columns = (
        "select column_name, data_type, is_nullable, column_default from information_schema.columns"
        " where table_name = 'users' order by ordinal_position"
    )
    indexes = "select indexdef from pg_indexes where tablename = 'users' order by 1"
    up(url, migrations()[:1])
    new = rows(url, columns), rows(url, indexes)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop table users")
        connection.execute(OLD_SCHEMA)
    assert (rows(url, columns), rows(url, indexes)) == new


# the command


def test_the_command_tells_and_applies(url: str) -> None:
    done = command("migrate", "status", DATABASE_URL=url)
    assert (done.returncode, done.stderr) == (4, "")
    assert done.stdout.splitlines()[0] == "pending  0001_users.sql"
    done = command("migrate", "up", "--dry-run", f"--database-url={url}")
    assert done.stdout.splitlines()[0] == "would apply 0001_users.sql"
    assert rows(url, "select to_regclass('fluxor_migrations')") == [(None,)]
    done = command("migrate", "up", DATABASE_URL=url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("applied 0001_users.sql in ")
    assert command("migrate", "up", DATABASE_URL=url).stdout == "nothing to apply\n"
    done = command("migrate", "status", DATABASE_URL=url)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "applied  0001_users.sql")


def test_the_command_fails_in_one_line_and_with_a_code(url: str, tmp_path: Path) -> None:
    folder = f"--folder={tmp_path}"
    write(tmp_path, _0001_a="select * from nowhere")
    for arguments, env, code in (
        (["up"], {}, 2),
        (["up", folder], {"DATABASE_URL": url}, 3),
        (["status", "--folder=/nowhere"], {"DATABASE_URL": url}, 3),
        (["up", folder], {"DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/x"}, 1),
    ):
        done = command("migrate", *arguments, **env)
        assert done.returncode == code, done.stderr
        assert done.stderr.count("\n") == 1
        assert "hunter2" not in done.stderr


# the start of the service


@pytest.mark.parametrize("migrate_at_start", [True, False])
def test_the_service_migrates_at_its_start_or_refuses_old_tables(
    url: str, migrate_at_start: bool
) -> None:
    async def main() -> None:
        app = build()
        app.metrics = FakeMetrics()
        app.settings = Settings(
            database=DatabaseSettings(url=url, migrate=migrate_at_start),  # type: ignore[arg-type]
            auth=AuthSettings(jwt_secret="s" * 32),  # type: ignore[arg-type]
        )
        if migrate_at_start:
            await app.start()
        else:
            with pytest.raises(BootError, match=r"0001_users.sql .* run fluxor-fast migrate up"):
                await app.start()
        await app.stop()
        assert len(asyncio.all_tasks()) == 1

    run(main())
    assert (rows(url, "select to_regclass('users')") != [(None,)]) is migrate_at_start


def test_instances_that_start_at_once_on_an_empty_database(url: str) -> None:
    env = {"DATABASE_URL": url, "JWT_SECRET": "s" * 32}
    servers = [
        LiveServer("fluxor_fast.service:app", "--workers=2", env=env, wait=False) for _ in range(2)
    ]
    with servers[0], servers[1]:
        for server in servers:
            port = eventually(server._announced, "announced", 30)
            eventually(lambda port=port: get(port, "/ready").status == 200, "ready")
    assert rows(url, "select name from fluxor_migrations order by version") == [
        (migration.name,) for migration in migrations()
    ]
