"""The application of ``bench/asgi.py``: Starlette, the same under every server."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

PIECES = 16
PIECE = b"x" * 1024


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


async def health(request: Request) -> Response:
    return _json({"status": "healthy", "service": "starlette", "timestamp": int(time.time())})


async def item(request: Request) -> Response:
    return _json({"id": request.path_params["id"], "query": dict(request.query_params)})


async def echo(request: Request) -> Response:
    return _json(orjson.loads(await request.body()))


async def _pieces() -> AsyncIterator[bytes]:
    for _ in range(PIECES):
        yield PIECE


async def stream(request: Request) -> Response:
    return StreamingResponse(_pieces(), media_type="application/octet-stream")


app = Starlette(
    routes=[
        Route("/health", health),
        Route("/items/{id:int}", item),
        Route("/echo", echo, methods=["POST"]),
        Route("/stream", stream),
    ]
)
