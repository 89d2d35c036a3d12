"""An application of many kinds of handlers, some of which wait until the test lets them go on."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from fluxor_fast import App, HTTPError, Request, Response
from tests.support.inprocess import Client, Server

BIG = 8 * 1024 * 1024


class Gates:
    """Handlers that wait until the test lets them go on."""

    def __init__(self) -> None:
        self.events: dict[str, asyncio.Event] = {}
        self.log: list[Any] = []

    async def wait(self, name: str) -> None:
        self.log.append(name)
        await self.events.setdefault(name, asyncio.Event()).wait()

    def open(self, name: str) -> None:
        self.events.setdefault(name, asyncio.Event()).set()


class Nothing:
    """What JSON cannot hold."""


def make_app() -> tuple[App, Gates]:
    app, gates = App(), Gates()
    app.state.served = []

    @app.get("/")
    def home(request: Request) -> dict[str, Any]:
        app.state.served.append("/")
        return {"home": True}

    @app.get("/n/{n:int}")
    def number(request: Request, n: int) -> dict[str, int]:
        app.state.served.append(f"/n/{n}")
        return {"n": n}

    @app.post("/echo")
    def echo(request: Request) -> bytes:
        return request.body

    @app.get("/wait/{name}")
    async def wait(request: Request, name: str) -> dict[str, str]:
        await gates.wait(name)
        return {"waited": name}

    @app.get("/critical/{name}", priority="critical")
    async def critical(request: Request, name: str) -> dict[str, str]:
        await gates.wait(name)
        return {"critical": name}

    @app.get("/health", priority="exempt")
    def health(request: Request) -> dict[str, str]:
        return {"status": "healthy"}

    @app.get("/health/deep", priority="exempt")
    async def deep(request: Request) -> dict[str, str]:
        await asyncio.sleep(0)
        return {"status": "healthy"}

    @app.get("/big")
    def big(request: Request) -> bytes:
        return b"x" * BIG

    @app.get("/blocking", blocking=True)
    def blocking(request: Request) -> dict[str, bool]:
        return {"blocking": True}

    @app.get("/client")
    def client(request: Request) -> dict[str, str]:
        return {"client": request.client}

    @app.get("/nothing")
    def nothing(request: Request) -> None:
        return None

    @app.get("/fails")
    def fails(request: Request) -> None:
        raise RuntimeError("secret detail")

    @app.get("/fails/async")
    async def fails_async(request: Request) -> None:
        raise RuntimeError("secret detail")

    @app.get("/teapot")
    def teapot(request: Request) -> None:
        raise HTTPError(409, "short and stout", headers={"X-Pot": "tea"}, details={"a": 1})

    @app.get("/value")
    def value(request: Request) -> Any:
        return {"it": Nothing()}

    @app.get("/bad/header")
    def bad_header(request: Request) -> Response:
        return Response("x", headers={"X-A": "a\r\nX-B: b"})

    @app.get("/bad/error/header")
    def bad_error_header(request: Request) -> None:
        raise HTTPError(400, "no", headers={"X-A": "a\r\nX-B: b"})

    @app.get("/bad/error/details")
    async def bad_error_details(request: Request) -> None:
        raise HTTPError(400, "no", details=Nothing())

    return app, gates


async def statuses(client: Client, count: int) -> list[int]:
    return [(await client.answer()).status for _ in range(count)]


def assert_refused(answer: Any, reason: str) -> None:
    assert answer.status == 503
    assert answer.headers["retry-after"] in ("1", "2")
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert document["code"] == "BACKPRESSURE"
    assert document["reason"] == reason
    assert document["error"] == "capacity_exceeded"


async def assert_fails_alone(server: Server, path: str, logged: list[logging.LogRecord]) -> None:
    """What a handler does wrong is a 500 that tells nothing, is logged once, and ends nothing."""
    client = await server.connect()
    answer = await client.get(path)
    assert answer.status == 500
    assert answer.json()["code"] == "INTERNAL_SERVER_ERROR"
    assert b"secret" not in answer.body and b"Traceback" not in answer.body
    assert "x-b" not in answer.headers
    assert (await client.get("/n/1")).status == 200
    assert [answer.headers["x-request-id"] in record.getMessage() for record in logged] == [True]
    assert logged[0].exc_info
