"""The tables of the reference service: the numbered files in ``migrations``.

Each worker runs one of these when the database appears: the first to come makes what is missing
while the others wait (``db.migrations``).
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

from fluxor_fast.db.connection import Connection
from fluxor_fast.db.migrations import Migration, check, migrate, read_folder

__all__ = ["check_schema", "ensure_schema", "migrations"]

PATIENCE: Final = 3.0
"""Seconds to wait for another worker that migrates; then the keeper tries again."""


@cache
def migrations() -> list[Migration]:
    """Return the service's own files, as this process first found them."""
    return read_folder(files("fluxor_fast.service") / "migrations")


async def ensure_schema(connection: Connection) -> None:
    """Apply what has not been applied; ``connection`` is in autocommit mode."""
    await migrate(connection, migrations(), patience=PATIENCE)


async def check_schema(connection: Connection) -> None:
    """See that all has been applied, and apply nothing."""
    await check(connection, migrations())
