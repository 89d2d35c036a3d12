"""``fluxor-fast migrate``: what is done to a database from outside the service.

Exit codes: 0 it is done, 1 the database cannot be asked or is busy, 2 for settings or usage, 3
files and database do not agree, or a file fails; ``migrate status``: 4 if a file is not applied.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import psycopg
from psycopg.rows import dict_row

from fluxor_fast.config import load
from fluxor_fast.db.connection import Connection, conninfo, place, reason
from fluxor_fast.db.migrations import Migration, read_folder, status
from fluxor_fast.db.migrations import migrate as apply
from fluxor_fast.errors import ConfigError, FluxorError

__all__ = ["migrate"]

T = TypeVar("T")

PATIENCE: Final = 60.0
"""Seconds to wait while another one migrates."""
PENDING: Final = 4
"""Exit code of ``status`` when something is to be done."""


def _database_options(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--database-url", metavar="URL", help="Default: DATABASE_URL.")(command)
    return click.option("--config", type=click.Path(path_type=Path), help="YAML file of settings.")(
        command
    )


def _folder_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--folder",
        type=click.Path(path_type=Path),
        help="Folder of NNNN_name.sql.  [default: the reference service's]",
    )(command)


def _url(config: Path | None, url: str | None) -> str:
    settings = load(config, flags={"database.url": url})
    found = settings.database.effective_url
    if found is None:
        raise ConfigError(["which database? --database-url, DATABASE_URL or database.url"])
    return found


def _migrations(folder: Path | None) -> list[Migration]:
    if folder is not None:
        return read_folder(folder)
    from fluxor_fast.service.schema import migrations  # an application like any other

    return migrations()


def _connected(url: str, work: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
    """Run ``work`` on a connection of its own; what keeps the database from it ends in code 1."""

    async def main() -> T:
        connection = await Connection.connect(
            conninfo(url, 10.0), autocommit=True, row_factory=dict_row
        )
        async with connection:
            return await work(connection)

    try:
        return asyncio.run(main())
    except psycopg.Error as error:
        raise FluxorError(f"database {place(url)}: {reason(error)}") from None


@click.group()
def migrate() -> None:
    """Bring a database's tables up to date, by numbered SQL files."""


@migrate.command("status")
@_database_options
@_folder_option
def show_status(config: Path | None, database_url: str | None, folder: Path | None) -> None:
    """Tell which files are applied; exit code 4 if not all are."""
    migrations = _migrations(folder)
    found = _connected(_url(config, database_url), lambda c: status(c, migrations))
    for name in found.applied:
        click.echo(f"{'ahead' if name in found.ahead else 'applied':8} {name}")
    for migration in found.pending:
        click.echo(f"{'pending':8} {migration.name}")
    sys.exit(PENDING if found.pending else 0)


@migrate.command()
@_database_options
@_folder_option
@click.option("--dry-run", is_flag=True, help="Tell what would be applied, and apply nothing.")
def up(config: Path | None, database_url: str | None, folder: Path | None, dry_run: bool) -> None:
    """Apply what has not been applied."""
    migrations = _migrations(folder)
    url = _url(config, database_url)
    if dry_run:
        pending = _connected(url, lambda c: status(c, migrations)).pending
        for migration in pending:
            click.echo(f"would apply {migration.name}")
    else:
        pending = _connected(
            url, lambda c: apply(c, migrations, patience=PATIENCE, told=_tell_applied)
        )
    if not pending:
        click.echo("nothing to apply")


def _tell_applied(migration: Migration, seconds: float) -> None:
    click.echo(f"applied {migration.name} in {seconds:.2f} s")
