"""The comparison's application with BlackSheep, for an ASGI server."""

from __future__ import annotations

from typing import Any

import orjson
import work
from blacksheep import (  # type: ignore[import-not-found,unused-ignore]
    Application,
    Content,
    Request,
    Response,
)

app = Application()


def _json(document: Any) -> Response:
    return Response(200, content=Content(b"application/json", orjson.dumps(document)))


@app.router.get("/health")
async def health() -> Response:
    """Answer JSON."""
    return _json(work.health())


@app.router.get("/plaintext")
async def plaintext() -> Response:
    """Answer text."""
    return Response(200, content=Content(b"text/plain", work.HELLO.encode()))


@app.router.post("/echo")
async def echo(request: Request) -> Response:
    """Answer what was sent."""
    return _json(orjson.loads(await request.read()))


def _items(route: int) -> None:
    @app.router.get(f"/r{route}/items/:number")
    async def item(number: int) -> Response:
        """Answer the parameter."""
        return _json(work.item(route, number))


for _route in range(work.ROUTES):
    _items(_route)
