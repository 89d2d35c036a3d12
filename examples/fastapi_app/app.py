"""A FastAPI application as it would be under any ASGI server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field


class Item(BaseModel):
    name: str = Field(min_length=1, max_length=100)
    price: float = Field(gt=0)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.items = {1: Item(name="pen", price=1.5), 2: Item(name="ink", price=4)}
    yield
    app.state.items.clear()


app = FastAPI(title="items", lifespan=lifespan)


@app.get("/items/{number}")
async def item(request: Request, number: int) -> Item:
    found: Item | None = request.app.state.items.get(number)
    if found is None:
        raise HTTPException(404, "no such item")
    return found


@app.put("/items/{number}")
async def put(request: Request, number: int, item: Item) -> Item:
    request.app.state.items[number] = item
    return item


@app.get("/count")
async def count() -> StreamingResponse:
    async def numbers() -> AsyncIterator[str]:
        for number in range(3):
            yield f"{number}\n"
            await asyncio.sleep(0)

    return StreamingResponse(numbers(), media_type="text/plain")
