"""The comparison's application with falcon, for an ASGI server."""

from __future__ import annotations

from typing import Any

import falcon.asgi  # type: ignore[import-not-found,unused-ignore]
import orjson
import work

app = falcon.asgi.App()


class Health:
    """``/health``."""

    async def on_get(self, request: Any, response: Any) -> None:
        response.content_type = work.JSON
        response.data = orjson.dumps(work.health())


class Plaintext:
    """``/plaintext``."""

    async def on_get(self, request: Any, response: Any) -> None:
        response.content_type = work.TEXT
        response.text = work.HELLO


class Echo:
    """``/echo``."""

    async def on_post(self, request: Any, response: Any) -> None:
        response.content_type = work.JSON
        response.data = orjson.dumps(orjson.loads(await request.stream.read()))


class Item:
    """One of the routes with a parameter."""

    def __init__(self, route: int) -> None:
        self.route = route

    async def on_get(self, request: Any, response: Any, number: int) -> None:
        response.content_type = work.JSON
        response.data = orjson.dumps(work.item(self.route, number))


app.add_route("/health", Health())
app.add_route("/plaintext", Plaintext())
app.add_route("/echo", Echo())
for _route in range(work.ROUTES):
    app.add_route(f"/r{_route}/items/{{number:int}}", Item(_route))
