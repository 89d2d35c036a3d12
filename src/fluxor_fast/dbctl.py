"""``fluxor-fast migrate | backup | restore``: what is done to a database from outside.

Exit codes: 0 it is done, 1 the database cannot be asked, is busy, or a program fails, 2 for
settings or usage, 3 it is refused (files and database do not agree, a file is there or is not what
it should be, a database is not empty); ``migrate status``: 4 if a file is not applied.

psycopg is imported where it is used: the same command line starts services without a database.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from fluxor_fast.config import load
from fluxor_fast.errors import ConfigError, FluxorError

if TYPE_CHECKING:
    from fluxor_fast.db.connection import Connection
    from fluxor_fast.db.migrations import Migration

__all__ = ["backup", "migrate", "restore"]

T = TypeVar("T")

PATIENCE: Final = 60.0
"""Seconds to wait while another one migrates."""
PENDING: Final = 4
"""Exit code of ``status`` when something is to be done."""


@contextmanager
def _database(config: Path | None, url: str | None, embedded: Path | None) -> Iterator[str]:
    """Yield the URL of the database that is meant; what keeps it from answering is code 1."""
    import psycopg

    from fluxor_fast.db.connection import place, reason

    settings = load(config, flags={"database.url": url, "database.embedded": embedded}).database
    found = settings.effective_url
    try:
        if found is not None:
            yield found
        elif settings.embedded is not None:
            from fluxor_fast.db.embedded import reached  # an extra, wanted only here

            with reached(settings.embedded, max_connections=20) as found:
                yield found
        else:
            raise ConfigError(
                ["which database? --database-url, DATABASE_URL or --database-embedded"]
            )
    except psycopg.Error as error:
        raise FluxorError(f"database {place(found or '')}: {reason(error)}") from None


def _database_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--database-embedded",
            type=click.Path(path_type=Path),
            help="Folder of an embedded PostgreSQL, running or not.",
        ),
        click.option("--database-url", metavar="URL", help="postgresql://…, or DATABASE_URL."),
        click.option("--config", type=click.Path(path_type=Path), help="YAML file of settings."),
    ):
        command = option(command)
    return command


def _folder_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--folder",
        type=click.Path(path_type=Path),
        help="Folder of NNNN_name.sql.  [default: the reference service's]",
    )(command)


def _files(folder: Path | None) -> list[Migration]:
    from fluxor_fast.db.migrations import read_folder

    if folder is not None:
        return read_folder(folder)
    from fluxor_fast.service import schema  # an application like any other

    return schema.migrations()


def _connected(url: str, work: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
    """Run ``work`` on a connection of its own."""
    from psycopg.rows import dict_row

    from fluxor_fast.db.connection import Connection, conninfo

    async def main() -> T:
        connection = await Connection.connect(
            conninfo(url, 10.0), autocommit=True, row_factory=dict_row
        )
        async with connection:
            await connection.execute("set statement_timeout = 0")
            return await work(connection)

    return asyncio.run(main())


@click.group()
def migrate() -> None:
    """Bring a database's tables up to date, by numbered SQL files."""


@migrate.command("status")
@_database_options
@_folder_option
def show_status(
    config: Path | None,
    database_url: str | None,
    database_embedded: Path | None,
    folder: Path | None,
) -> None:
    """Tell which files are applied; exit code 4 if not all are."""
    from fluxor_fast.db.migrations import status

    files = _files(folder)
    with _database(config, database_url, database_embedded) as url:
        found = _connected(url, lambda connection: status(connection, files))
    for name in found.applied:
        click.echo(f"{'ahead' if name in found.ahead else 'applied':8} {name}")
    for migration in found.pending:
        click.echo(f"{'pending':8} {migration.name}")
    sys.exit(PENDING if found.pending else 0)


@migrate.command()
@_database_options
@_folder_option
@click.option("--dry-run", is_flag=True, help="Tell what would be applied, and apply nothing.")
def up(
    config: Path | None,
    database_url: str | None,
    database_embedded: Path | None,
    folder: Path | None,
    dry_run: bool,
) -> None:
    """Apply what has not been applied."""
    from fluxor_fast.db import migrations

    files = _files(folder)

    async def work(connection: Connection) -> list[Migration]:
        if dry_run:
            return (await migrations.status(connection, files)).pending
        return await migrations.migrate(connection, files, patience=PATIENCE, told=_tell_applied)

    with _database(config, database_url, database_embedded) as url:
        done = _connected(url, work)
    if dry_run:
        for migration in done:
            click.echo(f"would apply {migration.name}")
    if not done:
        click.echo("nothing to apply")


def _tell_applied(migration: Migration, seconds: float) -> None:
    click.echo(f"applied {migration.name} in {seconds:.2f} s")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@_database_options
def backup(
    file: Path, config: Path | None, database_url: str | None, database_embedded: Path | None
) -> None:
    """Write the database to FILE and FILE.manifest; it may be in use meanwhile."""
    from fluxor_fast.db.backup import backup as write

    with _database(config, database_url, database_embedded) as url:
        write(url, file, _tell)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@_database_options
@click.option("--clean", is_flag=True, help="Put it in place of the same tables, which are lost.")
def restore(
    file: Path,
    config: Path | None,
    database_url: str | None,
    database_embedded: Path | None,
    clean: bool,
) -> None:
    """Bring the backup in FILE into an empty database, and compare them."""
    from fluxor_fast.db.backup import restore as bring_back

    with _database(config, database_url, database_embedded) as url:
        bring_back(url, file, clean=clean, told=_tell)


def _tell(line: str) -> None:
    click.echo(line, err=True)
