"""The contestants' application for sanic, as a script: its command line has no backlog."""

from __future__ import annotations

import click
from answers import documents
from sanic import HTTPResponse, Request, Sanic
from sanic.response import raw

app = Sanic("bench", configure_logging=False)


@app.get("/health", name="health")
@app.get("/", name="home")
async def answer(request: Request) -> HTTPResponse:
    """Answer ``/health`` and ``/``."""
    return raw(documents(request.path), content_type="application/json")


@click.command()
@click.option("--port", type=int, required=True)
@click.option("--workers", type=int, default=1)
def main(port: int, workers: int) -> None:
    """Serve."""
    app.run(
        "127.0.0.1",
        port,
        workers=workers,
        single_process=workers == 1,
        access_log=False,
        motd=False,
        backlog=4096,
    )


if __name__ == "__main__":
    main()
