"""The comparison's application for socketify, as a script; without ``/echo``.

With 64 connections its coroutines that await a body (0.0.31) ended nearly every connection
without an answer.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import orjson
import work
from socketify import App, AppListenOptions  # type: ignore[import-not-found,unused-ignore]

app = App()


def _respond(response: Any, kind: str, body: bytes) -> None:
    response.write_header("content-type", kind)
    response.end(body)


def health(response: Any, request: Any) -> None:
    """Answer JSON."""
    _respond(response, work.JSON, orjson.dumps(work.health()))


def plaintext(response: Any, request: Any) -> None:
    """Answer text."""
    _respond(response, work.TEXT, work.HELLO.encode())


def _items(route: int) -> None:
    def item(response: Any, request: Any) -> None:
        """Answer the parameter."""
        number = int(request.get_parameter(0))
        _respond(response, work.JSON, orjson.dumps(work.item(route, number)))

    app.get(f"/r{route}/items/:number", item)


app.get("/health", health)
app.get("/plaintext", plaintext)
for _route in range(work.ROUTES):
    _items(_route)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    asked = parser.parse_args()
    for _ in range(asked.workers - 1):
        if os.fork() == 0:
            break
    app.listen(AppListenOptions(port=asked.port, host="127.0.0.1"))
    app.run()
