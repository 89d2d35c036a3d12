"""What workers ask the database for of themselves: revoked sessions, API keys, and old rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fluxor_fast.auth.apikeys import ApiKey, StoredKey
from fluxor_fast.auth.tokens import Claims
from fluxor_fast.db.pool import Database

__all__ = ["fetch_key", "revoked_since", "sweep"]

KEPT_DAYS: Final = 30
"""How long a key that is revoked or has expired stays in the table."""
NEVER: Final = 253_402_300_799
"""When the claims of a key without end expire: the last second of the year 9999."""


async def revoked_since(database: Database, since: float) -> Iterable[tuple[str, float]]:
    """Return the sessions that were revoked since a Unix time, with theirs; oldest first."""
    rows = await database.fetch_all(
        "select id, extract(epoch from revoked_at)::float8 as revoked from sessions"
        " where revoked_at >= to_timestamp(%s) order by revoked_at",
        since,
    )
    return [(row["id"], row["revoked"]) for row in rows]


async def fetch_key(database: Database, prefix: str) -> StoredKey | None:
    """Return the key with this prefix, unless it is revoked, or its owner is gone."""
    row = await database.fetch_one(
        "select k.id, k.digest, k.name, k.tier, k.user_id, u.email,"
        " array(select unnest(k.roles) intersect select unnest(u.roles)) as roles,"
        " extract(epoch from k.created_at)::float8 as created,"
        " extract(epoch from k.expires_at)::float8 as expires"
        " from api_keys k join users u on u.id = k.user_id"
        " where k.prefix = %s and k.revoked_at is null",
        prefix,
    )
    if row is None:
        return None
    expires = row["expires"]
    user = Claims(
        row["user_id"],
        row["email"],
        tuple(sorted(row["roles"])),
        int(row["created"]),
        NEVER if expires is None else int(expires),
    )
    key = ApiKey(row["id"], prefix, row["name"], row["tier"], user, expires)
    return StoredKey(key, bytes(row["digest"]))


async def sweep(database: Database, token_seconds: int) -> None:
    """Delete what nobody can use any more: attempts, sessions, keys.

    :param token_seconds: life of an access token; a session stays known while one may be alive.
    """
    await database.execute("delete from login_attempts where until < now()")
    await database.execute(
        "delete from sessions where expires_at < now() - %s * interval '1 s'", token_seconds
    )
    await database.execute(
        "delete from api_keys where least(revoked_at, expires_at) < now() - %s * interval '1 day'",
        KEPT_DAYS,
    )
