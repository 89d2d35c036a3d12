"""A FastAPI application, and others that cannot be served."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import Depends, FastAPI, HTTPException, Request, WebSocket
from pydantic import BaseModel
from starlette.responses import StreamingResponse


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, int]]:
    if "ASGI_FAILS" in os.environ:
        raise RuntimeError("the frobnicator is not configured")
    yield {"pid": os.getpid()}
    if "ASGI_STOPPED" in os.environ:
        Path(os.environ["ASGI_STOPPED"]).write_text("stopped")


app = FastAPI(lifespan=lifespan)


class Item(BaseModel):
    name: str
    price: float


def tax() -> float:
    return 0.2


@app.get("/pid")
async def pid(request: Request) -> dict[str, int]:
    return {"pid": request.state.pid}


@app.post("/items", status_code=201)
def create(item: Item, rate: float = Depends(tax)) -> dict[str, object]:
    return {"name": item.name, "total": item.price * (1 + rate)}


@app.get("/missing")
async def missing() -> None:
    raise HTTPException(404, "no such thing")


@app.get("/stream")
async def stream() -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(3):
            yield b"%d" % number

    return StreamingResponse(pieces(), headers={"Content-Length": "3"})


@app.websocket("/ws")
async def ws(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_json({"pid": socket.state.pid})
    async for text in socket.iter_text():
        await socket.send_text(text)


def not_recognised(scope: object, receive: object, send: object) -> object:
    return app(scope, receive, send)  # type: ignore[arg-type]
