"""The comparison's application for sanic, as a script: its command line has no backlog."""

from __future__ import annotations

from typing import Any

import click
import orjson
import work
from sanic import HTTPResponse, Request, Sanic
from sanic.response import raw

app = Sanic("compare", configure_logging=False)


def _json(document: Any) -> HTTPResponse:
    return raw(orjson.dumps(document), content_type=work.JSON)


@app.get("/health")
async def health(request: Request) -> HTTPResponse:
    """Answer JSON."""
    return _json(work.health())


@app.get("/plaintext")
async def plaintext(request: Request) -> HTTPResponse:
    """Answer text."""
    return raw(work.HELLO.encode(), content_type=work.TEXT)


@app.post("/echo")
async def echo(request: Request) -> HTTPResponse:
    """Answer what was sent."""
    return _json(orjson.loads(request.body))


def _items(route: int) -> None:
    @app.get(f"/r{route}/items/<number:int>", name=f"r{route}")
    async def item(request: Request, number: int) -> HTTPResponse:
        """Answer the parameter."""
        return _json(work.item(route, number))


for _route in range(work.ROUTES):
    _items(_route)


@click.command()
@click.option("--port", type=int, required=True)
@click.option("--workers", type=int, default=1)
def main(port: int, workers: int) -> None:
    """Serve."""
    app.run(
        "127.0.0.1", port, workers=workers, single_process=workers == 1, access_log=False,
        motd=False, backlog=4096,
    )  # fmt: skip


if __name__ == "__main__":
    main()
