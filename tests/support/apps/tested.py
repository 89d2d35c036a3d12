"""Served by tests of the live server, and by those that compare it with the test client."""

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from fluxor_fast import App, EventStream, HTTPError, Request, Response, StreamingResponse

app = App()


@app.get("/")
def home(request: Request) -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "client": request.client,
        "most": request.app.settings.server.max_ccu,
        "secret": request.app.settings.auth.jwt_secret is not None,
        "mark": os.environ.get("MARK"),
    }


@app.get("/print")
def say(request: Request) -> None:
    print("said by a handler", file=sys.stderr, flush=True)


@app.post("/echo", max_body=100_000)
async def echo(request: Request) -> Response:
    return Response(request.body, content_type=request.headers.get("content-type", "none/none"))


@app.get("/users/{id:int}")
def user(request: Request, id: int) -> dict[str, object]:
    return {"id": id, "query": request.query, "host": request.host, "client": request.client}


@app.get("/teapot")
async def teapot(request: Request) -> None:
    raise HTTPError(418, "short and stout", headers={"X-Spout": "yes"}, details=[1])


@app.get("/fails")
def fails(request: Request) -> None:
    raise ZeroDivisionError


@app.get("/pieces")
async def pieces(request: Request) -> StreamingResponse:
    async def some() -> AsyncIterator[str]:
        for n in range(100):
            yield f"{n}\n" * 1000

    return StreamingResponse(some(), content_type="text/plain")


@app.get("/events")
async def events(request: Request) -> EventStream:
    async def some() -> AsyncIterator[str]:
        yield "one"
        yield "two"

    return EventStream(some())


@app.get("/large")
def large(request: Request) -> bytes:
    return b"x" * 1_000_000


@app.post("/upload", stream=True, max_body=10**7)
async def upload(request: Request) -> dict[str, int]:
    return {"size": sum([len(piece) async for piece in request.stream()])}


@app.post("/early", stream=True, max_body=10**7)
async def early(request: Request) -> str:
    return "not interested"


app.files("/files", Path(__file__).parent)
