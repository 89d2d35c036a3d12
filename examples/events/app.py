"""Whoever listens gets what anybody says, and what was missed since the last event seen.

An event stream holds no slot; ``max_in_flight`` bounds how many listen. Who does not read is ended
by the server's write timeout, and has missed at most ``KEPT`` events by then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path

from pydantic import BaseModel, Field

from fluxor_fast import App, Event, EventStream, Request, Response

KEPT = 100

app = App(title="events")


class Board:
    """The last things that were said, numbered from 1."""

    def __init__(self) -> None:
        self.last = 0
        self._kept: deque[tuple[int, str]] = deque(maxlen=KEPT)
        self._news = asyncio.Event()

    def say(self, text: str) -> int:
        self.last += 1
        self._kept.append((self.last, text))
        news, self._news = self._news, asyncio.Event()
        news.set()
        return self.last

    async def since(self, seen: int) -> AsyncIterator[tuple[int, str]]:
        while True:
            news = self._news
            for number, text in list(self._kept):
                if number > seen:
                    seen = number
                    yield number, text
            if seen >= self.last:
                await news.wait()


@app.on_startup
def start() -> None:
    app.state.board = Board()


@app.get("/events", max_in_flight=1000)
async def events(request: Request) -> EventStream:
    board: Board = app.state.board
    last = request.headers.get("last-event-id", "")  # a browser that comes back says so
    seen = int(last) if last.isascii() and last.isdecimal() else board.last

    async def said() -> AsyncIterator[Event]:
        async for number, text in board.since(seen):
            yield Event({"text": text}, event="said", id=str(number))

    return EventStream(said())


class Said(BaseModel):
    text: str = Field(min_length=1, max_length=500)


@app.post("/say", max_body=4096)
def say(request: Request, body: Said) -> tuple[int, dict[str, int]]:
    return 202, {"id": app.state.board.say(body.text)}


@app.get("/")
def page(request: Request) -> Response:
    return Response(PAGE, content_type="text/html; charset=utf-8")


PAGE = (Path(__file__).parent / "page.html").read_bytes()
