"""The comparison's application for ASGI servers: no framework between server and answer."""

from __future__ import annotations

import os
from typing import Any

import orjson
import work

URL = os.environ.get("COMPARE_DATABASE", "")
DRIVER = os.environ.get("COMPARE_DRIVER", "psycopg")
CONNECTIONS = int(os.environ.get("COMPARE_POOL", "10"))
pool: Any = None


async def _open() -> None:
    global pool
    if DRIVER == "asyncpg":
        import asyncpg  # type: ignore[import-not-found,unused-ignore]

        pool = await asyncpg.create_pool(URL, min_size=CONNECTIONS, max_size=CONNECTIONS)
    else:
        from psycopg_pool import AsyncConnectionPool

        pool = AsyncConnectionPool(
            URL, min_size=CONNECTIONS, max_size=CONNECTIONS, open=False,
            kwargs={"autocommit": True},
        )  # fmt: skip
        await pool.open(wait=True)


async def _read() -> dict[str, int]:
    async with pool.connection() as connection:
        row = await (await connection.execute(work.SQL, (work.key(),))).fetchone()
    return {"id": row[0], "number": row[1]}


async def _read_asyncpg() -> dict[str, int]:
    row = await pool.fetchrow(work.SQL_NUMBERED, work.key())
    return {"id": row[0], "number": row[1]}


read = _read_asyncpg if DRIVER == "asyncpg" else _read


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer."""
    if scope["type"] == "lifespan":
        await receive()
        if URL:
            await _open()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if URL:
            await pool.close()
        await send({"type": "lifespan.shutdown.complete"})
        return
    path, body = scope["path"], b""
    if scope["method"] == "POST":
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
    if path == "/db":
        found: tuple[str, bytes] | None = work.JSON, orjson.dumps(await read())
    elif path == "/queries":
        found = work.JSON, orjson.dumps([await read() for _ in range(20)])
    else:
        found = work.answer(path, body)
    status, (kind, body) = (404, (work.TEXT, b"")) if found is None else (200, found)
    headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
