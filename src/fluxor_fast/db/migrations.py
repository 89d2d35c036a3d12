"""Numbered SQL files that bring a database's tables to what an application expects.

A folder holds ``0001_name.sql``, ``0002_name.sql`` …; the table ``fluxor_migrations`` of the
database tells which have been applied. Rules kept here:

1. A file is applied in one transaction together with its row in the table: both or neither.
2. One applies, the others wait: an advisory lock of the session. It is asked for again and again,
   as a statement that waits holds a snapshot, and ``create index concurrently`` waits for those.
3. Nothing waits without bound: for the advisory lock ``patience``, for a table ``TABLE_SECONDS``,
   since whoever comes behind a waiting ``alter table`` waits too.
4. Numbers begin at 1 and have no gaps. What has been applied must be there, unchanged. Files
   beyond that are applied in order. Whatever is otherwise is an error, before anything is done.
5. A database that is ahead of the files is none: while instances are replaced one by one, and
   after a step back, old code meets new tables. It is told as a warning.
6. Where nothing is to be done nothing is written or locked: a read-only standby passes.
7. A file whose first line is ``-- no transaction`` holds one statement that the server refuses to
   run in one (``create index concurrently``). Ended halfway it is not in the table, and is run
   again; so it says ``if not exists``. An index that was left invalid is an error then.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Final

import psycopg

from fluxor_fast.db.connection import Connection, reason
from fluxor_fast.errors import MigrationError

__all__ = [
    "LOCK",
    "Migration",
    "Status",
    "check",
    "migrate",
    "read_folder",
    "status",
]

logger = logging.getLogger(__name__)

LOCK: Final = 0x666C_7578_6F72
"""The advisory lock: "fluxor"; any number nobody else takes will do."""
TABLE_SECONDS: Final = 3
"""Longest wait for a lock on a table."""
AGAIN_SECONDS: Final = 0.05
"""Time between two tries for the advisory lock."""

_NAME = re.compile(r"(?!0000)([0-9]{4})_[a-z0-9_]+\.sql")
_NO_TRANSACTION: Final = b"-- no transaction"

_TABLE = """
create table if not exists fluxor_migrations (
    version int primary key,
    name text not null,
    checksum text not null,
    applied_at timestamptz not null default now()
)
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file."""

    version: int
    name: str
    sql: bytes

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, whatever its line ends have become on their way here."""
        return hashlib.sha256(self.sql).hexdigest()

    @property
    def in_transaction(self) -> bool:
        """Whether it runs in a transaction (rule 7)."""
        return self.sql.partition(b"\n")[0].strip().lower() != _NO_TRANSACTION


@dataclass(frozen=True, slots=True)
class Status:
    """What a database has, beside the files."""

    applied: list[str]
    """Names of the files that have been applied, in order."""
    pending: list[Migration]
    """Files that have not."""
    ahead: list[str]
    """Names of what was applied after the last of our files."""


def read_folder(folder: Traversable) -> list[Migration]:
    """Return the migrations of a folder, or of a package's (``importlib.resources.files``).

    Files with another ending than ``.sql`` are none.

    :raises MigrationError: for a name that is not ``NNNN_name.sql``, a number that is there twice
        or left out, or no file at all.
    """
    found = []
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise MigrationError(f"migrations: {folder}: {error.strerror}") from None
    for entry in entries:
        if not entry.name.endswith(".sql"):
            continue
        name = _NAME.fullmatch(entry.name)
        if name is None:
            raise MigrationError(
                f"migrations: {entry.name}: must be named NNNN_name.sql, from 0001 on"
            )
        sql = entry.read_bytes().replace(b"\r\n", b"\n")
        found.append(Migration(int(name[1]), entry.name, sql))
    if not found:
        raise MigrationError(f"migrations: no file NNNN_name.sql in {folder}")
    for number, migration in enumerate(found, 1):
        if migration.version < number:
            raise MigrationError(
                f"migrations: {found[number - 2].name} and {migration.name} have the same number"
            )
        if migration.version > number:
            raise MigrationError(f"migrations: no file has the number {number:04}")
    return found


async def status(connection: Connection, migrations: Sequence[Migration]) -> Status:
    """Compare the database with the files (rule 4); it is only read.

    :raises MigrationError: if they do not agree.
    """
    rows = []
    cursor = await connection.execute(
        "select to_regclass('fluxor_migrations') is not null as there"
    )
    there = await cursor.fetchone()
    if there is not None and there["there"]:
        cursor = await connection.execute(
            "select version, name, checksum from fluxor_migrations order by version"
        )
        rows = await cursor.fetchall()
    done = {row["version"]: row for row in rows}
    last = max(done, default=0)
    for migration in migrations:
        row = done.get(migration.version)
        if row is None:
            if migration.version < last:
                raise MigrationError(
                    f"migrations: {migration.name} was never applied, but later ones were:"
                    " out of order"
                )
        elif row["checksum"] != migration.checksum:
            raise MigrationError(
                f"migrations: {migration.name} is not what was applied as {row['name']}:"
                " an applied file must stay as it is, changes go into a new one"
            )
    return Status(
        applied=[row["name"] for row in rows],
        pending=[migration for migration in migrations if migration.version > last],
        ahead=[row["name"] for row in rows if row["version"] > len(migrations)],
    )


async def check(connection: Connection, migrations: Sequence[Migration]) -> None:
    """See that nothing is to be done, and do nothing.

    :raises MigrationError: if something is, or they do not agree.
    """
    found = await status(connection, migrations)
    if found.pending:
        raise MigrationError(
            f"migrations: {found.pending[0].name} has not been applied"
            f" ({len(found.pending)} in all): run fluxor-fast migrate up"
        )
    _tell_ahead(found)


async def migrate(
    connection: Connection,
    migrations: Sequence[Migration],
    *,
    patience: float,
    told: Callable[[Migration, float], None] | None = None,
) -> list[Migration]:
    """Apply what has not been applied, and return it.

    :param connection: in autocommit, with rows as dicts, and not through a pooler that lends a
        server's session to others between two transactions.
    :param patience: seconds to wait while another one migrates.
    :param told: called after each file with the seconds it took.
    :raises MigrationError: if files and database do not agree, or a file fails; those before it
        stay applied.
    :raises psycopg.OperationalError: if another one migrates for longer, a table stays locked, or
        the connection is lost; another try may succeed.
    """
    found = await status(connection, migrations)
    if not found.pending:
        _tell_ahead(found)
        return []
    await _lock(connection, patience)
    try:
        pending = (await status(connection, migrations)).pending
        for migration in pending:
            started = time.monotonic()
            await _apply(connection, migration)
            if told is not None:
                told(migration, time.monotonic() - started)
        return pending
    finally:
        with suppress(psycopg.Error):  # of a lost connection, and then it is free
            await connection.execute("select pg_advisory_unlock(%s)", (LOCK,))


def _tell_ahead(found: Status) -> None:
    if found.ahead:
        logger.warning(
            "migrations: the database is ahead of this program, by %s", ", ".join(found.ahead)
        )


async def _lock(connection: Connection, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        cursor = await connection.execute("select pg_try_advisory_lock(%s) as ours", (LOCK,))
        row = await cursor.fetchone()
        if row is not None and row["ours"]:
            return
        if time.monotonic() >= deadline:
            raise psycopg.errors.LockNotAvailable(
                f"migrations: another one has migrated for more than {patience:g} s"
            )
        await asyncio.sleep(AGAIN_SECONDS)


async def _apply(connection: Connection, migration: Migration) -> None:
    try:
        await connection.execute(
            "select set_config('lock_timeout', %s, false)", (f"{TABLE_SECONDS}s",)
        )
        await connection.execute(_TABLE)
        if migration.in_transaction:
            async with connection.transaction():
                await _run(connection, migration)
        else:
            await _run(connection, migration)
    except psycopg.errors.QueryCanceled:
        raise MigrationError(
            f"migrations: {migration.name}: takes longer than a statement may:"
            " run fluxor-fast migrate up, before the start"
        ) from None
    except psycopg.errors.LockNotAvailable:
        raise psycopg.errors.LockNotAvailable(
            f"migrations: {migration.name}: a table was locked for more than {TABLE_SECONDS} s"
        ) from None
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        raise MigrationError(f"migrations: {migration.name}: {_where(error, migration)}") from None


async def _run(connection: Connection, migration: Migration) -> None:
    """Run the file and note it; what it set for the session (pg_dump does) is for it alone."""
    before = await _session(connection)
    await connection.execute(migration.sql)
    await connection.execute("select set_config('search_path', %s, false)", (before["path"],))
    if migration.in_transaction:
        if (await _session(connection))["transaction"] != before["transaction"]:
            raise MigrationError(
                f"migrations: {migration.name}: ends the transaction that it is run in;"
                " what it did before stays done"
            )
    else:
        await _no_invalid_index(connection, migration)
    await connection.execute(
        "insert into fluxor_migrations (version, name, checksum) values (%s, %s, %s)",
        (migration.version, migration.name, migration.checksum),
    )


async def _session(connection: Connection) -> dict[str, str]:
    cursor = await connection.execute(
        "select current_setting('search_path') as path, txid_current()::text as transaction"
    )
    row = await cursor.fetchone()
    assert row is not None
    return row


async def _no_invalid_index(connection: Connection, migration: Migration) -> None:
    cursor = await connection.execute(
        "select indexrelid::regclass::text as name from pg_index where not indisvalid"
    )
    row = await cursor.fetchone()
    if row is not None:
        raise MigrationError(
            f"migrations: {migration.name}: the index {row['name']} is invalid, as a try to make"
            " it has failed: drop it and try again"
        )


def _where(error: psycopg.Error, migration: Migration) -> str:
    """Return what is wrong, and in which line if the server tells."""
    position = error.diag.statement_position
    if position is None:
        return reason(error)
    text = migration.sql.decode(errors="replace")[: int(position) - 1]
    return f"line {text.count(chr(10)) + 1}: {reason(error)}"
