"""The application of the overload benchmark for fluxor-fast."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from overload_work import SQL, WAIT_SECONDS, burn
from pooled import with_database

from fluxor_fast.app import App
from fluxor_fast.http.request import Request
from fluxor_fast.server.batch import BatchRunner

app = App()
with_database(app)

# How long after it was read a request is refused: what clients see holds the time in which the
# server leaves them unread, too. Milliseconds, the last for all that is longer.
told = [0] * 1001
refuse = BatchRunner._refuse


def timed(self: BatchRunner, request: Request, reason: str) -> None:
    """Refuse, and note when."""
    refuse(self, request, reason)
    told[min(int((time.monotonic() - request.arrived) * 1000), 1000)] += 1


BatchRunner._refuse = timed  # type: ignore[method-assign]


@app.get("/health", priority="exempt")
def health(request: Request) -> dict[str, Any]:
    """Answer at once; never refused."""
    return {"status": "healthy", "timestamp": int(time.time())}


@app.get("/told", priority="exempt")
def told_after(request: Request) -> dict[str, Any]:
    """Return the P99 of the milliseconds, rounded up, from reading to refusing; starts anew."""
    beyond, total = 0, sum(told)
    p99 = None
    for at in reversed(range(len(told))):
        beyond += told[at]
        if total and beyond * 100 > total:
            p99 = at + 1
            break
    told[:] = [0] * len(told)
    return {"refused": total, "p99_ms": p99}


@app.get("/cpu")
def cpu(request: Request) -> dict[str, Any]:
    """Use the processor."""
    burn()
    return {"done": "cpu"}


@app.get("/wait")
async def wait(request: Request) -> dict[str, Any]:
    """Wait for something that costs nothing here."""
    await asyncio.sleep(WAIT_SECONDS)
    return {"done": "wait"}


@app.get("/db")
async def db(request: Request) -> dict[str, Any]:
    """Wait for the database."""
    await app.state.database.fetch_one(SQL)
    return {"done": "db"}
