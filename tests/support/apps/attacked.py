"""What is attacked from outside: an application by itself, and the reference service with more.

``more`` are the kinds of routes that the reference service does not have: answers and bodies in
pieces, handlers that wait, handlers in threads. A client can go away in the midst of each.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from fluxor_fast import App, Request, Response, StreamingResponse
from fluxor_fast.observability.metrics import PROMETHEUS_TYPE
from fluxor_fast.service import build

PIECE = b"x" * 16_384
PIECES = 512
"""8 MiB: more than any kernel here keeps for a client that does not read."""


def more(app: App) -> None:
    """Register them on ``app``."""

    @app.get("/attacked/large")
    def large(request: Request) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(PIECES):
                yield PIECE

        return StreamingResponse(pieces())

    @app.get("/attacked/slow-stream")
    def slow_stream(request: Request) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(10):
                yield b"a line of it\n" * 50
                await asyncio.sleep(0.002)

        return StreamingResponse(pieces())

    @app.post("/attacked/upload", stream=True)
    async def upload(request: Request) -> dict[str, int]:
        size = 0
        async for piece in request.stream():
            size += len(piece)
        return {"size": size}

    @app.get("/attacked/waits")
    async def waits(request: Request) -> dict[str, bool]:
        await asyncio.sleep(0.003)
        return {"waited": True}

    @app.get("/attacked/blocks", blocking=True)
    def blocks(request: Request) -> dict[str, bool]:
        time.sleep(0.001)
        return {"blocked": True}


app = App()
more(app)


@app.get("/")
def home(request: Request) -> dict[str, str]:
    return {"request_id": request.id}


@app.get("/health", priority="exempt")
def health(request: Request) -> dict[str, str]:
    return {"status": "healthy"}


@app.get("/metrics", priority="exempt")
def metrics(request: Request) -> Response:
    return Response(request.app.metrics.prometheus(), content_type=PROMETHEUS_TYPE)


@app.post("/api/echo")
def echo(request: Request) -> Any:
    return {"received": request.json()}


service = build()
more(service)
