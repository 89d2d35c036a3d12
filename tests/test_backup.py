"""Backup and restore on real servers: the same rows elsewhere, or a refusal in one line."""

from __future__ import annotations

import json
import stat
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fluxor_fast.db import backup as module
from fluxor_fast.db.backup import backup, manifest_of, restore
from fluxor_fast.db.embedded import EmbeddedPostgres, embedded_postgres
from fluxor_fast.db.migrations import LOCK
from fluxor_fast.errors import BackupError, FluxorError
from tests.conftest import a_database
from tests.support.command import command
from tests.support.server import eventually

# every kind of value whose text depends on a setting, and what pg_dump treats apart
ROWS = """
create schema other;
create table words (
    id bigint generated always as identity primary key, word text, at timestamptz, span interval,
    share double precision, raw bytea, tags text[], document jsonb, amount numeric, kind regclass
);
insert into words (word, at, span, share, raw, tags, document, amount, kind)
select case when n % 7 = 0 then null else chr(256 + n) || e'\\n\\t\\'"' end,
    timestamptz '2024-03-31 00:30+00' + n * interval '61 minutes', n * interval '1 day 7 seconds',
    n / 3.0, decode(lpad(to_hex(n), 4, '0'), 'hex'), array['a', null, 'b' || n],
    jsonb_build_object('n', n), n * 1.10, 'pg_class'::regclass
from generate_series(1, 500) n;
create table other."Odd name" (id int, at date) partition by range (id);
create table other.low partition of other."Odd name" for values from (0) to (100);
create table other.high partition of other."Odd name" for values from (100) to (1000);
insert into other."Odd name" select n, date '2024-01-01' + n from generate_series(0, 199) n;
create table twice (t int);
insert into twice select 1 from generate_series(1, 10);
create table empty ();
create index on words (lower(word));
"""


@pytest.fixture
def source(empty_database: str) -> str:
    execute(empty_database, ROWS)
    return empty_database


@pytest.fixture
def target(postgres: EmbeddedPostgres) -> Iterator[str]:
    with a_database(postgres) as url:
        yield url


def execute(url: str, sql: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.encode())


def rows(url: str, table: str) -> list[Any]:
    with psycopg.connect(url, options="-c timezone=UTC -c datestyle=ISO") as connection:
        return sorted(map(repr, connection.execute(f"select * from {table}".encode())))


def quiet(_: str) -> None:
    pass


TABLES = ("words", 'other."Odd name"', "other.low", "other.high", "twice", "empty")


def test_a_restore_elsewhere_has_the_same_rows(source: str, target: str, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    # what a value looks like as text is another on the other side
    name = source.rpartition("/")[2].partition("?")[0]
    execute(source, f"alter database {name} set timezone = 'Asia/Kathmandu'")
    execute(source, f"alter database {name} set datestyle = 'SQL, DMY'")
    lines: list[str] = []
    made = backup(source, file, lines.append)
    assert "public.words: 500 rows" in lines
    assert made.tables["public.twice"].rows == 10
    assert set(made.tables) == {
        *("other.high", "other.low", "public.empty", "public.twice", "public.words")
    }
    assert restore(target, file, clean=False, told=quiet) == made
    for table in TABLES:
        assert rows(target, table) == rows(source, table)
    # and the numbers go on where they were
    execute(target, "insert into words (word) values ('next')")
    assert len(rows(target, "words")) == 501


def test_it_is_for_its_owner_alone_and_nothing_else_is_left(source: str, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    backup(source, file, quiet)
    assert sorted(tmp_path.iterdir()) == [file, manifest_of(file)]
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_exists_is_not_written_over(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "backup"
    file.write_text("precious")
    with pytest.raises(BackupError, match="is not written over"):
        backup(source, file, quiet)
    # nor one that appears meanwhile
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path != file and exists(path))
    with pytest.raises(BackupError, match="is not written over"):
        backup(source, file, quiet)
    assert file.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [file]


def test_a_backup_that_fails_leaves_nothing(source: str, tmp_path: Path) -> None:
    with pytest.raises(FluxorError, match="No such file"):
        backup(source, tmp_path / "nowhere" / "backup", quiet)
    with pytest.raises(psycopg.OperationalError):
        backup("postgresql://u:hunter2@127.0.0.1:1/x", tmp_path / "backup", quiet)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spoil", ["flip", "cut", "longer", "empty", "gone"])
def test_a_spoiled_file_is_refused_before_anything_is_done(
    source: str, target: str, tmp_path: Path, spoil: str
) -> None:
    file = tmp_path / "backup"
    backup(source, file, quiet)
    data = file.read_bytes()
    middle = len(data) // 2
    file.write_bytes(
        {
            "flip": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "cut": data[:-1],
            "longer": data + b"\0",
        }.get(spoil, b"")
    )
    if spoil == "gone":
        file.unlink()
    with pytest.raises(BackupError, match=r"is not what was written|is not there"):
        restore(target, file, clean=False, told=quiet)
    with psycopg.connect(target) as connection:
        assert connection.execute("select to_regclass('words')").fetchone() == (None,)


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"format": 2, "tables": {}}', "\x00"])
def test_a_spoiled_manifest_is_refused(
    source: str, target: str, tmp_path: Path, text: str | None
) -> None:
    file = tmp_path / "backup"
    backup(source, file, quiet)
    manifest_of(file).unlink()
    if text is not None:
        manifest_of(file).write_text(text)
    with pytest.raises(BackupError, match="manifest"):
        restore(target, file, clean=False, told=quiet)


def test_contents_that_differ_from_the_manifest_are_told(
    source: str, target: str, tmp_path: Path
) -> None:
    file = tmp_path / "backup"
    backup(source, file, quiet)
    document = json.loads(manifest_of(file).read_bytes())
    document["tables"]["public.twice"]["rows"] = 11
    manifest_of(file).write_text(json.dumps(document))
    with pytest.raises(BackupError, match=r"other than in the backup: public.twice"):
        restore(target, file, clean=False, told=quiet)


def test_a_database_with_tables_wants_a_choice(source: str, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    made = backup(source, file, quiet)
    execute(source, "delete from words where id < 100; update twice set t = 2")
    with pytest.raises(BackupError, match=r"is not empty \(other.high\): --clean"):
        restore(source, file, clean=False, told=quiet)
    assert restore(source, file, clean=True, told=quiet) == made
    assert len(rows(source, "words")) == 500
    execute(source, "create table later ()")
    with pytest.raises(BackupError, match=r"has tables that the backup has not \(public.later\)"):
        restore(source, file, clean=True, told=quiet)


def test_a_restore_that_fails_changes_nothing(source: str, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    backup(source, file, quiet)
    execute(source, "delete from twice; create view needs as select word from words")
    with pytest.raises(FluxorError, match=r"needs|depend"):
        restore(source, file, clean=True, told=quiet)
    assert len(rows(source, "words")) == 500
    assert rows(source, "twice") == []


def test_not_under_a_service_or_a_migration(source: str, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    backup(source, file, quiet)
    with (
        psycopg.connect(source, autocommit=True, application_name="fluxor-fast"),
        pytest.raises(BackupError, match="stop the service first"),
    ):
        restore(source, file, clean=True, told=quiet)
    with psycopg.connect(source, autocommit=True) as other:
        held = "select from pg_locks where locktype = 'advisory'"
        eventually(lambda: not other.execute(held).fetchall(), "who has hung up is gone")
        other.execute("select pg_advisory_lock(%s)", (LOCK,))
        with pytest.raises(BackupError, match="somebody migrates"):
            restore(source, file, clean=True, told=quiet)


def test_a_backup_under_load_is_of_one_moment(source: str, target: str, tmp_path: Path) -> None:
    """Each transaction writes to two tables: a backup has both halves or none."""
    execute(source, "create table a (id int); create table b (id int)")
    stop = threading.Event()

    def write() -> None:
        with psycopg.connect(source) as connection:
            number = 0
            while not stop.is_set():
                number += 1
                connection.execute("insert into a values (%s)", (number,))
                connection.execute("insert into b values (%s)", (number,))
                connection.execute("update twice set t = t + 1")
                connection.commit()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        made = backup(source, tmp_path / "backup", quiet)
    finally:
        stop.set()
        writer.join()
    restore(target, tmp_path / "backup", clean=False, told=quiet)  # compares each sum
    assert rows(target, "a") == rows(target, "b")
    assert made.tables["public.a"].rows < len(rows(source, "a"))


def test_programs_that_are_too_old_are_not_used(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_version", lambda program: 9)
    with pytest.raises(BackupError, match=r"no pg_dump for PostgreSQL \d+: install"):
        backup(source, tmp_path / "backup", quiet)


def test_a_backup_of_a_newer_server_is_refused(source: str, target: str, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    backup(source, file, quiet)
    document = json.loads(manifest_of(file).read_bytes())
    manifest_of(file).write_text(json.dumps({**document, "server": 99}))
    with pytest.raises(BackupError, match="the backup is of PostgreSQL 99"):
        restore(target, file, clean=False, told=quiet)


def test_the_password_is_in_no_command_line(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, Any]] = []
    original = subprocess.run

    def run(arguments: Any, **options: Any) -> Any:
        calls.append((arguments, options.get("env")))
        return original(arguments, **options)

    monkeypatch.setattr(subprocess, "run", run)
    backup(source.replace("postgres@", "postgres:hunter2@"), tmp_path / "backup", quiet)
    assert not any("hunter2" in str(arguments) for arguments, _ in calls)
    assert any(env and env.get("PGPASSWORD") == "hunter2" for _, env in calls)


# the commands


def test_the_commands_and_their_codes(source: str, target: str, tmp_path: Path) -> None:
    file = str(tmp_path / "backup")
    done = command("backup", file, DATABASE_URL=source)
    assert done.returncode == 0, done.stderr
    for arguments, url, code in (
        (["backup", file], source, 3),
        (["backup", file], None, 2),
        (["restore", file, "--clean"], target, 0),
        (["backup", f"{file}.2"], "postgresql://u:hunter2@127.0.0.1:1/x", 1),
    ):
        done = command(*arguments, **({} if url is None else {"DATABASE_URL": url}))
        assert done.returncode == code, done.stderr
        assert "hunter2" not in done.stderr
        assert "Traceback" not in done.stderr
    assert rows(target, "words") == rows(source, "words")


def test_an_embedded_server_is_reached_running_or_not(
    postgres_folder: Path, tmp_path: Path
) -> None:
    folder = postgres_folder / uuid.uuid4().hex[:8]
    flag = f"--database-embedded={folder}"
    with embedded_postgres(folder, 20) as url:
        execute(url, "create table words (word text); insert into words values ('here')")
        done = command("backup", str(tmp_path / "running"), flag)
        assert done.returncode == 0, done.stderr
    done = command("backup", str(tmp_path / "stopped"), flag)
    assert done.returncode == 0, done.stderr
    one, two = (
        json.loads(manifest_of(tmp_path / name).read_bytes())["tables"]
        for name in ("running", "stopped")
    )
    assert one == two
    assert one["public.words"]["rows"] == 1
