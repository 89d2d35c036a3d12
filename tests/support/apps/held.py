"""An application whose routes hold until a file appears, to fill a server exactly."""

import asyncio
import os
import time
from pathlib import Path

from fluxor_fast import App, HTTPError, Request

app = App()
GATE = Path(os.environ.get("HELD_GATE", "/nonexistent"))


async def hold(request: Request) -> dict[str, int]:
    seconds = float(request.head.query or 60)
    until = time.monotonic() + seconds
    while not GATE.exists():
        if time.monotonic() > until:
            if request.head.query:
                break
            raise HTTPError(500, "nobody opened the gate")
        await asyncio.sleep(0.01)
    return {"pid": os.getpid()}


app.get("/hold")(hold)
app.get("/hold/critical", priority="critical")(hold)


@app.get("/who", priority="exempt")
def who(request: Request) -> dict[str, int]:
    return {"pid": os.getpid()}


@app.get("/")
def home(request: Request) -> dict[str, int]:
    return {"pid": os.getpid()}


@app.get("/blocking", blocking=True)
def blocking(request: Request) -> dict[str, int]:
    return {"pid": os.getpid()}


@app.get("/spin")
def spin(request: Request) -> dict[str, int]:
    """Block the event loop for good: what a handler must never do."""
    while not GATE.exists():
        time.sleep(0.01)
    return {}


@app.get("/fail")
def fail(request: Request) -> dict[str, int]:
    raise RuntimeError("a secret that is not for clients")


@app.get("/figures", priority="exempt")
def figures(request: Request) -> dict[str, object]:
    now = request.app.metrics.snapshot()
    return {
        "ccu": now.ccu,
        "running": now.running,
        "queued": now.queued,
        "connections": now.connections,
        "workers": now.workers,
        "offered": now.offered,
        "accepted": now.accepted,
        "completed": now.completed,
        "aborted": now.aborted,
        "lost": now.lost,
        "shed": now.shed,
        "responses": now.responses,
    }


app.get("/hold/seven", max_in_flight=7)(hold)


@app.get("/three", max_in_flight=3)
def three(request: Request) -> dict[str, int]:
    return {"pid": os.getpid()}


@app.get("/teapot")
async def teapot(request: Request) -> dict[str, int]:
    raise HTTPError(418, "short and stout")
