"""The tables of the reference service.

Every worker runs ``ensure_schema`` when the database appears. An advisory lock lets one of them
make the tables while the others wait; all of it is one transaction, so there is never half a
schema, and the index made last tells that all is there. Then nothing is written: a read-only
standby passes.
"""

from __future__ import annotations

from fluxor_fast.db.connection import Connection

__all__ = ["ensure_schema"]

LOCK = 0x666C_7578_6F72  # "fluxor"; any number nobody else takes will do

_USERS = """
create table if not exists users (
    id bigint generated always as identity primary key,
    email text not null,
    name text,
    password_hash text,
    roles text[] not null default '{user}',
    created_at timestamptz not null default now()
)
"""
# without regard to case, as mail hosts treat addresses
_USERS_EMAIL = "create unique index if not exists users_email_key on users (lower(email))"
_THERE = "select to_regclass('users') is not null and to_regclass('users_email_key') is not null"


async def ensure_schema(connection: Connection) -> None:
    """Make what tables are missing; ``connection`` is in autocommit mode."""
    if await _is_there(connection):
        return
    async with connection.transaction():
        await connection.execute("select pg_advisory_xact_lock(%s)", (LOCK,))
        if not await _is_there(connection):
            await connection.execute(_USERS)
            await connection.execute(_USERS_EMAIL)


async def _is_there(connection: Connection) -> bool:
    cursor = await connection.execute(f"{_THERE} as there")
    row = await cursor.fetchone()
    return row is not None and row["there"] is True
