"""The comparison's application for robyn, as a script."""

from __future__ import annotations

import sys

import orjson
import work
from robyn import Headers, Request, Response, Robyn  # type: ignore[import-not-found,unused-ignore]

_port, _workers = int(sys.argv[1]), int(sys.argv[2])
sys.argv[1:] = ["--processes", str(_workers), "--workers", "1", "--log-level", "ERROR"]
app = Robyn(__file__)


def _respond(kind: str, body: bytes) -> Response:
    return Response(200, Headers({"content-type": kind}), body)


@app.get("/health")
def health(request: Request) -> Response:
    """Answer JSON."""
    return _respond(work.JSON, orjson.dumps(work.health()))


@app.get("/plaintext")
def plaintext(request: Request) -> Response:
    """Answer text."""
    return _respond(work.TEXT, work.HELLO.encode())


@app.post("/echo")
def echo(request: Request) -> Response:
    """Answer what was sent."""
    return _respond(work.JSON, orjson.dumps(orjson.loads(request.body)))


def _items(route: int) -> None:
    @app.get(f"/r{route}/items/:number")
    def item(request: Request) -> Response:
        """Answer the parameter."""
        number = int(dict(request.path_params)["number"])
        return _respond(work.JSON, orjson.dumps(work.item(route, number)))


for _route in range(work.ROUTES):
    _items(_route)


if __name__ == "__main__":
    app.start(host="127.0.0.1", port=_port)
