"""``App`` under other servers: through httpx, Starlette's mounts, and messages by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from fluxor_fast import App, HTTPError, Request, Response, StreamingResponse
from fluxor_fast.middleware.rate_limit import RateLimit
from fluxor_fast.middleware.security_headers import SecurityHeaders
from tests.support.inprocess import in_loop, until


def make_app(folder: Path | None = None) -> tuple[App, list[str]]:
    app, log = App(), []

    @app.get("/items/{name}")
    def item(request: Request, name: str) -> dict[str, Any]:
        return {"name": name, "query": request.query, "id": request.id, "client": request.client}

    @app.get("/blocking", blocking=True)
    def blocking(request: Request) -> str:
        return "from a thread"

    @app.post("/echo", max_body=1000)
    async def echo(request: Request) -> bytes:
        return request.body

    @app.post("/count", stream=True)
    async def count(request: Request) -> dict[str, int]:
        return {"bytes": sum([len(piece) async for piece in request.stream()])}

    async def numbers() -> AsyncIterator[bytes]:
        try:
            for number in range(3):
                yield b"%d," % number
        finally:
            log.append("closed")

    @app.get("/stream")
    def stream(request: Request) -> StreamingResponse:
        return StreamingResponse(numbers())

    async def forever() -> AsyncIterator[bytes]:
        try:
            log.append("began")
            yield b"x"
            await asyncio.sleep(60)
        finally:
            log.append("closed")

    @app.get("/forever")
    def endless(request: Request) -> StreamingResponse:
        return StreamingResponse(forever())

    @app.get("/short")
    def short(request: Request) -> StreamingResponse:
        return StreamingResponse(numbers(), length=100)

    @app.get("/teapot")
    def teapot(request: Request) -> None:
        raise HTTPError(418, "no coffee", headers={"X-Pot": "tea"})

    @app.get("/boom")
    async def boom(request: Request) -> None:
        raise RuntimeError("secret detail")

    if folder is not None:
        app.files("/static", folder)
    return app, log


def client_of(app: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, client=("192.0.2.7", 1))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


@in_loop
async def test_the_same_dispatch_bodies_and_errors() -> None:
    app, log = make_app()
    async with client_of(app) as client:
        answer = await client.get("/items/a%2Fb", params={"x": "1"})
        found = answer.json()
        assert found.pop("id") == answer.headers["x-request-id"]
        assert found == {"name": "a/b", "query": {"x": "1"}, "client": "192.0.2.7"}
        assert (await client.get("/blocking")).text == "from a thread"
        assert (await client.post("/echo", content=b"x" * 1000)).content == b"x" * 1000
        assert (await client.post("/echo", content=b"x" * 1001)).status_code == 413
        assert (await client.post("/count", content=b"x" * 70_000)).json() == {"bytes": 70_000}
        assert (await client.get("/stream")).text == "0,1,2,"
        assert log == ["closed"]
        head = await client.head("/items/a", headers={"X-Request-ID": "mine"})
        assert (head.status_code, head.content, head.headers["x-request-id"]) == (200, b"", "mine")
        assert int(head.headers["content-length"]) > 0
        teapot = await client.get("/teapot")
        assert (teapot.status_code, teapot.headers["x-pot"]) == (418, "tea")
        assert (await client.get("/nothing")).json()["code"] == "NOT_FOUND"
        denied = await client.delete("/items/a")
        assert (denied.status_code, denied.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


@in_loop
async def test_an_exception_is_500_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    async with client_of(make_app()[0]) as client:
        answer = await client.get("/boom")
        assert (answer.status_code, answer.json()["error"]) == (500, "internal_server_error")
        assert "secret" not in answer.text
        assert "secret detail" in caplog.text
        with pytest.raises(ValueError, match="shorter than its length"):
            await client.get("/short")


@in_loop
async def test_files_are_sent(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 600_000)
    async with client_of(make_app(tmp_path)[0]) as client:
        answer = await client.get("/static/a.txt")
        assert answer.content == b"x" * 600_000
        part = await client.get("/static/a.txt", headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, b"x" * 10)


@in_loop
async def test_mounted_it_sees_the_path_below() -> None:
    outer = Starlette(routes=[Mount("/api/v 1", make_app()[0])])
    async with client_of(outer) as client:
        assert (await client.get("/api/v%201/items/x")).json()["name"] == "x"
        assert (await client.get("/items/x")).status_code == 404


@in_loop
async def test_hooks_are_the_lifespan() -> None:
    app, log = App(), []
    app.on_startup(lambda: log.append("up"))
    app.on_shutdown(lambda: log.append("down"))
    events, said = ["lifespan.startup", "lifespan.shutdown"], []

    async def receive() -> dict[str, Any]:
        return {"type": events.pop(0)}

    async def send(message: dict[str, Any]) -> None:
        said.append(message["type"])

    await app({"type": "lifespan"}, receive, send)
    assert log == ["up", "down"]
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@in_loop
async def test_a_client_that_goes_away_ends_an_answer_in_pieces() -> None:
    app, log = make_app()
    gone, sent = asyncio.Event(), []
    messages = [{"type": "http.request", "body": b""}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message["type"])

    scope = {"type": "http", "method": "GET", "path": "/forever", "headers": []}
    task = asyncio.ensure_future(app(scope, receive, send))
    await until(lambda: len(sent) == 2, "it begins")
    gone.set()
    await task
    assert log == ["began", "closed"]
    assert sent == ["http.response.start", "http.response.body"]


@in_loop
async def test_lines_of_middleware_are_on_answers_of_every_kind() -> None:
    app, _ = make_app()
    app.add_middleware(SecurityHeaders())
    app.add_middleware(RateLimit(1000))

    @app.get("/own")
    def own(request: Request) -> Response:
        return Response("x", headers={"X-Frame-Options": "SAMEORIGIN"})

    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
        for path, status in (
            ("/items/a", 200), ("/blocking", 200), ("/stream", 200), ("/teapot", 418),
            ("/boom", 500), ("/nothing", 404), ("/own", 200),
        ):  # fmt: skip
            answer = await client.get(path)
            assert answer.status_code == status
            frames = "SAMEORIGIN" if path == "/own" else "DENY"
            assert answer.headers.get_list("x-frame-options") == [frames], path
            assert "ratelimit" in answer.headers, path
