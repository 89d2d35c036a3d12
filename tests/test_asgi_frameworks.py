"""What Starlette and FastAPI promise, over sockets, and the same as under uvicorn.

Each request is sent to this server and, where uvicorn is installed, to that: status, header fields
and body must be the same, but for what is each server's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from fluxor_fast import App, HTTPError, Request, StreamingResponse
from fluxor_fast.asgi.serve import AsgiApp
from tests.support.apps import asgi_broad
from tests.support.apps.asgi_broad import DONE, fastapi_app, starlette_app
from tests.support.inprocess import in_loop, serving, until

uvicorn: Any = None
with contextlib.suppress(ModuleNotFoundError):
    import uvicorn

OWN = {"date", "server", "x-request-id", "connection", "transfer-encoding"}
SIGNED = re.compile(r"(?<==)\.[^;]*").sub  # with the time
RAW = {"content-type": "application/octet-stream"}
COOKIES = {"cookie": "a=1; b=two"}
ORIGIN = {"origin": "https://a.example"}

STARLETTE: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/echo?a=1&a=2&b=%20%C3%BC", {"headers": COOKIES}),
    ("POST", "/echo", {"content": bytes(range(256)), "headers": RAW}),
    ("PUT", "/echo", {"json": {"a": [1, 2]}}),
    ("PATCH", "/echo", {}),
    ("DELETE", "/echo", {}),
    ("OPTIONS", "/echo", {}),
    ("REPORT", "/echo", {}),
    ("HEAD", "/echo", {}),
    ("HEAD", "/whole", {}),
    ("HEAD", "/stream", {}),
    ("GET", "/echo/7/a%2Fb/%C3%BC//c", {}),
    ("GET", "/echo/x/y", {}),
    ("POST", "/form", {"data": {"a": "1", "b": "ü&="}}),
    ("POST", "/form", {"data": {"a": "1"}, "files": {"f": ("n.txt", b"x" * 100_000)}}),
    ("POST", "/count", {"content": b"x" * 500_000}),
    ("GET", "/visits", {}),
    ("GET", "/cookies", {}),
    ("GET", "/state", {}),
    ("GET", "/stream", {}),
    ("GET", "/stream", {"headers": {"accept-encoding": "identity"}}),
    ("GET", "/teapot", {}),
    ("GET", "/boom", {}),
    ("GET", "/odd", {}),
    ("GET", "/threaded", {}),
    ("GET", "/whole", {}),
    ("GET", "/whole", {"headers": {"accept-encoding": "identity"}}),
    ("GET", "/nothing", {}),
    ("GET", "/moved", {}),
    ("GET", "/slash?x=1", {}),
    ("GET", "/nowhere", {}),
    ("GET", "/whole", {"headers": ORIGIN}),
    ("OPTIONS", "/whole", {"headers": {**ORIGIN, "access-control-request-method": "GET"}}),
    ("GET", "/host", {"headers": {"host": "other.example"}}),
    ("GET", "/file", {}),
    ("GET", "/file", {"headers": {"range": "bytes=2-5"}}),
    ("GET", "/file", {"headers": {"range": "bytes=900-"}}),
    ("GET", "/static/page.html", {}),
    ("HEAD", "/static/page.html", {}),
    ("GET", "/static/", {}),
    ("GET", "/static/large.bin", {}),
    ("GET", "/static/../page.html", {}),
    ("GET", "/mounted/twice/echo/a/b?c=d", {}),
    ("POST", "/mounted/twice/echo/a", {"content": b"body"}),
    ("GET", "/marked/", {}),
    ("GET", "/marked/stream", {}),
    ("GET", "/api/items/a%2Fb?q=1", {}),
    ("GET", "/api/stream", {}),
    ("POST", "/api/echo", {"content": b"x" * 1001}),
    ("POST", "/api/echo", {"content": b"x" * 1000}),
    ("GET", "/api/nowhere", {}),
    ("GET", "/api/teapot", {}),
]
FASTAPI: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/items/3?q=abc", {"headers": {"x-agent": "me"}}),
    ("GET", "/items/three", {}),
    ("GET", "/items/3?q=a", {}),
    ("POST", "/items", {"json": {"name": "a", "price": 10, "tags": ["x"]}}),
    ("POST", "/items", {"json": {"name": "a" * 21, "price": -1}}),
    ("POST", "/items", {"content": b"{not json"}),
    ("POST", "/items", {}),
    ("GET", "/items", {}),
    ("POST", "/login", {"data": {"name": "ann", "password": "pw"}}),
    ("POST", "/login", {"data": {"name": "ann"}}),
    ("POST", "/upload", {"files": {"file": ("a.bin", b"x" * 300_000)}, "data": {"note": "n"}}),
    ("POST", "/bytes", {"files": {"file": b"x" * 10}}),
    ("POST", "/token", {"data": {"username": "ann", "password": "right"}}),
    ("POST", "/token", {"data": {"username": "ann", "password": "wrong"}}),
    ("GET", "/me", {}),
    ("GET", "/me", {"headers": {"authorization": "Bearer good"}}),
    ("GET", "/me", {"headers": {"authorization": "Bearer bad"}}),
    ("GET", "/resource", {}),
    ("POST", "/later", {}),
    ("GET", "/stream", {}),
    ("GET", "/boom", {}),
    ("GET", "/openapi.json", {}),
    ("GET", "/docs", {}),
]


def native() -> App:
    app = App()

    @app.get("/items/{name}")
    def item(request: Request, name: str) -> dict[str, Any]:
        return {"name": name, "query": request.query, "path": request.path}

    @app.get("/stream")
    def stream(request: Request) -> StreamingResponse:
        return StreamingResponse(asgi_broad.numbers())

    @app.post("/echo", max_body=1000)
    async def echo(request: Request) -> bytes:
        return request.body

    @app.get("/teapot")
    def teapot(request: Request) -> None:
        raise HTTPError(418, "no coffee", headers={"X-Pot": "tea"})

    return app


@contextlib.asynccontextmanager
async def ours(application: Any) -> AsyncIterator[int]:
    app = AsgiApp(application)
    await app.start()
    async with serving(app) as server:
        yield server.port
    await app.stop()


@contextlib.asynccontextmanager
async def theirs(application: Any) -> AsyncIterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            application, log_config=None, ws="websockets-sansio", ws_per_message_deflate=False
        )
    )
    task = asyncio.ensure_future(server.serve([listener]))
    await until(lambda: server.started, "uvicorn serves")
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def ask(port: int, request: tuple[str, str, dict[str, Any]]) -> tuple[Any, ...]:
    """Return status, header fields and body of an answer."""
    method, path, options = request
    # made anew, as multipart bodies have a boundary of their own
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
        answer = await client.request(method, path, **options)
    fields = [pair for pair in answer.headers.multi_items() if pair[0] not in OWN]
    own = f"127.0.0.1:{port}"
    return (
        answer.status_code,
        sorted((name, SIGNED("", value.replace(own, "HOST"))) for name, value in fields),
        answer.content.replace(own.encode(), b"HOST"),
    )


def folder(path: Path) -> Path:
    (path / "page.html").write_text("<p>page</p>")
    (path / "index.html").write_text("<p>index</p>")
    (path / "large.bin").write_bytes(bytes(range(256)) * 2000)
    return path


async def compare(
    make: Callable[[], Any], requests: list[tuple[str, str, dict[str, Any]]]
) -> dict[str, tuple[Any, ...]]:
    async with ours(make()) as port:
        mine = [await ask(port, request) for request in requests]
    if uvicorn is not None:
        async with theirs(make()) as port:
            other = [await ask(port, request) for request in requests]
        differ = [pair for pair in zip(requests, mine, other, strict=True) if pair[1] != pair[2]]
        assert differ == []
    return {
        f"{method} {path}": answer for (method, path, _), answer in zip(requests, mine, strict=True)
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@in_loop
async def test_starlette_answers_as_under_uvicorn(tmp_path: Path) -> None:
    place = folder(tmp_path)
    found = await compare(lambda: starlette_app(place, native()), STARLETTE)
    assert found["GET /boom"][0] == 500 and b"secret" not in found["GET /boom"][2]
    assert found["GET /odd"][0] == 409
    assert b'"root":"/mounted/twice"' in found["GET /mounted/twice/echo/a/b?c=d"][2]
    assert found["GET /api/items/a%2Fb?q=1"][2] == (
        b'{"name":"a/b","query":{"q":"1"},"path":"/items/a%2Fb"}'
    )
    assert found["GET /api/stream"][2] == b"0,1,2,3,4,"
    assert found["POST /api/echo"][0] == 200
    assert found["GET /api/nowhere"][0] == 404
    assert found["GET /api/teapot"][0] == 418


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@in_loop
async def test_fastapi_answers_as_under_uvicorn() -> None:
    found = await compare(fastapi_app, FASTAPI)
    assert found["POST /upload"][2] == b'{"name":"a.bin","size":300000,"note":"n"}'
    assert found["GET /items/three"][0] == 422
    assert found["GET /resource"][2] == b'"resource"' and "released" in DONE


@in_loop
async def test_background_tasks_run_behind_the_answer(tmp_path: Path) -> None:
    DONE.clear()
    async with ours(starlette_app(folder(tmp_path), native())) as port:
        assert (await ask(port, ("GET", "/later", {})))[0] == 200
        await until(lambda: DONE == ["first", "second"], "both have run")


@in_loop
async def test_a_session_goes_on_over_requests(tmp_path: Path) -> None:
    async with (
        ours(starlette_app(folder(tmp_path), native())) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        for visit in (1, 2, 3):
            assert (await client.get("/visits")).json() == {"visits": visit}


@in_loop
async def test_what_is_unchanged_is_not_sent_again(tmp_path: Path) -> None:
    async with (
        ours(starlette_app(folder(tmp_path), native())) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        etag = (await client.get("/static/page.html")).headers["etag"]
        again = await client.get("/static/page.html", headers={"if-none-match": etag})
        assert (again.status_code, again.content) == (304, b"")


async def talk(port: int, path: str) -> list[Any]:
    """Return all that is said, and how it ends."""
    async with connect(
        f"ws://127.0.0.1:{port}{path}",
        subprotocols=["chat", "x"],
        compression=None,  # type: ignore[list-item]
    ) as client:
        said: list[Any] = [client.subprotocol, await client.recv()]
        await client.send('{"a": [1, "ü"]}')
        said.append(await client.recv())
        await client.send(bytes(range(256)))
        said.append(await client.recv())
        with pytest.raises(ConnectionClosed) as caught:
            await client.recv()
        assert caught.value.rcvd is not None
        return [*said, caught.value.rcvd.code, caught.value.rcvd.reason]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@in_loop
async def test_starlettes_websockets_talk_as_under_uvicorn(tmp_path: Path) -> None:
    place = folder(tmp_path)

    def make() -> Any:
        return starlette_app(place, native())

    async with ours(make()) as port:
        mine = [await talk(port, path) for path in ("/talk", "/mounted/talk")]
        for path in ("/api/items/a", "/nowhere"):
            with pytest.raises(InvalidStatus) as caught:
                await talk(port, path)
            assert caught.value.response.status_code == 403
    assert mine[0][-2:] == [4000, "done"]
    assert '"root":"/mounted"' in mine[1][1]
    if uvicorn is not None:
        async with theirs(make()) as port:
            assert [await talk(port, path) for path in ("/talk", "/mounted/talk")] == mine


@in_loop
async def test_fastapis_websockets() -> None:
    DONE.clear()
    async with ours(fastapi_app()) as port:
        async with connect(f"ws://127.0.0.1:{port}/ws/7?token=good", compression=None) as client:
            await client.send("hello")
            assert await client.recv() == "7: hello"
        await until(lambda: DONE == ["left"], "it is told")
        for path in ("/ws/7", "/ws/seven?token=good"):
            with pytest.raises(InvalidStatus) as caught:
                await connect(f"ws://127.0.0.1:{port}{path}", compression=None)
            assert caught.value.response.status_code == 403


@in_loop
async def test_django_answers_in_pieces() -> None:
    pytest.importorskip("django")
    from django.conf import settings
    from django.core.asgi import get_asgi_application

    settings.configure(ROOT_URLCONF="tests.support.apps.django_urls", ALLOWED_HOSTS=["*"])
    async with ours(get_asgi_application()) as port:
        assert (await ask(port, ("GET", "/stream", {})))[2] == b"0,1,2,3,4,"
        status, _, body = await ask(port, ("POST", "/echo?a=1", {"data": {"b": "\u00fc"}}))
        assert (status, body) == (200, '{"a": "1", "b": "\u00fc"}'.encode())
        assert (await ask(port, ("GET", "/threaded", {})))[2] == b"from a thread"
        assert (await ask(port, ("GET", "/nowhere", {})))[0] == 404
