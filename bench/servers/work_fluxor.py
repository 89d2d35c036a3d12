"""The comparison's application for fluxor-fast, with all that is on by default."""

from __future__ import annotations

from typing import Any

import work
from pooled import with_database

from fluxor_fast.app import App
from fluxor_fast.http.request import Request

app = App()
with_database(app)


@app.get("/health", priority="exempt")
def health(request: Request) -> dict[str, Any]:
    """Answer JSON."""
    return work.health()


@app.get("/plaintext")
def plaintext(request: Request) -> str:
    """Answer text."""
    return work.HELLO


@app.post("/echo")
def echo(request: Request) -> Any:
    """Answer what was sent."""
    return request.json()


def _items(route: int) -> None:
    @app.get(f"/r{route}/items/{{number:int}}")
    def item(request: Request, number: int) -> dict[str, int]:
        """Answer the parameter."""
        return work.item(route, number)


for _route in range(work.ROUTES):
    _items(_route)


@app.get("/db")
async def db(request: Request) -> dict[str, Any]:
    """Answer one row."""
    row = await app.state.database.fetch_one(work.SQL, work.key())
    return {"id": row["id"], "number": row["number"]}


@app.get("/queries")
async def queries(request: Request) -> list[dict[str, Any]]:
    """Answer 20 rows, read one after the other."""
    rows = [await app.state.database.fetch_one(work.SQL, work.key()) for _ in range(20)]
    return [{"id": row["id"], "number": row["number"]} for row in rows]
