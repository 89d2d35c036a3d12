"""The application of the overload benchmark for ASGI servers: no framework in between.

What a careful application does about its pool is done here too: a bounded wait for a connection,
a bounded number of waiters, and 503 beyond.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson
from overload_work import POOL, SQL, WAIT_SECONDS, burn, database_url
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

_pool: AsyncConnectionPool[Any] | None = None


async def _answer(path: str) -> tuple[int, dict[str, Any]]:
    if path == "/health":
        return 200, {"status": "healthy", "timestamp": int(time.time())}
    if path == "/cpu":
        burn()
        return 200, {"done": "cpu"}
    if path == "/wait":
        await asyncio.sleep(WAIT_SECONDS)
        return 200, {"done": "wait"}
    if path == "/db" and _pool is not None:
        try:
            async with _pool.connection() as connection:
                await (await connection.execute(SQL)).fetchone()
        except (PoolTimeout, TooManyRequests):
            return 503, {"error": "database busy"}
        return 200, {"done": "db"}
    return 404, {}


async def _lifespan(receive: Any, send: Any) -> None:
    global _pool
    await receive()
    url = database_url()
    if url is not None:
        _pool = AsyncConnectionPool(url, open=False, kwargs={"autocommit": True}, **POOL)
        await _pool.open(wait=True)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    if _pool is not None:
        await _pool.close()
    await send({"type": "lifespan.shutdown.complete"})


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer ``/health``, ``/cpu``, ``/wait`` and ``/db``."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    if scope["type"] != "http":
        return
    status, document = await _answer(scope["path"])
    body = orjson.dumps(document)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
