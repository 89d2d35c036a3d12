"""Rows that are files of the folder ROWS, answered from the cache; each reading leaves a line."""

import asyncio
import os
from pathlib import Path
from typing import Any

from fluxor_fast import App, Request, Response
from fluxor_fast.cache import Cache
from fluxor_fast.redis import Redis

ROWS = Path(os.environ["ROWS"])
app = App()
cache = Cache()


@app.on_startup
async def start() -> None:
    app.state.redis = Redis.from_settings(app.settings)
    if app.state.redis is not None:
        await app.state.redis.open()
    await cache.start(app, app.state.redis)


@app.on_shutdown
async def stop() -> None:
    await cache.stop()
    if app.state.redis is not None:
        await app.state.redis.close()


@app.get("/row/{id:int}")
@cache.cached(ttl=600, key=lambda request, id: id)
async def row(request: Request, id: int) -> dict[str, Any]:
    text = (ROWS / str(id)).read_text()
    with open(ROWS / "readings", "a") as file:
        file.write(f"{id}\n")
    await asyncio.sleep(0.02)
    return {"text": text, "pid": os.getpid()}


@app.put("/row/{id:int}")
async def change(request: Request, id: int) -> Response:
    (ROWS / str(id)).write_bytes(request.body)
    await row.forget(id)  # type: ignore[attr-defined]
    return Response(status=204)


@app.get("/who")
def who(request: Request) -> dict[str, int]:
    return {"pid": os.getpid()}


@app.get("/metrics")
def metrics(request: Request) -> Response:
    return Response(request.app.metrics.prometheus())
