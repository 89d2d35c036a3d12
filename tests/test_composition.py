"""What is composed around handlers: order, kinds, groups, and answers where nothing is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fluxor_fast import App, HTTPError, Request, StreamingResponse
from fluxor_fast.composition import Layer
from fluxor_fast.errors import RouteError
from fluxor_fast.http.response import Response
from fluxor_fast.middleware.body_limit import BodyLimit
from fluxor_fast.middleware.security_headers import SecurityHeaders
from fluxor_fast.middleware.trusted_hosts import TrustedHosts
from tests.support.inprocess import in_loop, post, serving


class Mark(Layer):
    """Adds a line with its name, and notes what it sees."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: list[Any] = []

    def begin(self, request: Request) -> Any:
        request.fields += f"X-{self.name}: 1\r\n".encode()

    def finish(self, request: Request, value: Any) -> Any:
        self.seen.append(value)
        return value


class Other(Mark):
    pass


def add_routes(app: Any, **options: Any) -> None:
    """One route of each kind and each kind of answer."""

    @app.get("/sync", **options)
    def sync(request: Request) -> dict[str, int]:
        return {"a": 1}

    @app.get("/async", **options)
    async def coroutine(request: Request) -> dict[str, int]:
        await asyncio.sleep(0)
        return {"a": 1}

    @app.get("/blocking", blocking=True, **options)
    def blocking(request: Request) -> dict[str, int]:
        return {"a": 1}

    @app.get("/error", **options)
    def error(request: Request) -> None:
        raise HTTPError(418, headers={"X-Own": "2"})

    @app.get("/late", **options)
    async def late(request: Request) -> None:
        raise HTTPError(418)

    @app.get("/broken", **options)
    def broken(request: Request) -> None:
        raise ZeroDivisionError

    @app.get("/unencodable", **options)
    def unencodable(request: Request) -> dict[str, object]:
        return {"a": object()}

    @app.get("/stream", **options)
    async def stream(request: Request) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"ab"
            yield b"c"

        return StreamingResponse(pieces(), length=3)

    @app.get("/items/{id:int}", **options)
    def item(request: Request, id: int) -> dict[str, int]:
        return {"id": id}


ANSWERS = {
    "/items/7": 200,
    "/sync": 200,
    "/async": 200,
    "/blocking": 200,
    "/error": 418,
    "/late": 418,
    "/broken": 500,
    "/unencodable": 500,
    "/stream": 200,
    "/nowhere": 404,
}


@in_loop
async def test_every_answer_has_what_middleware_adds() -> None:
    app = App()
    app.add_middleware(SecurityHeaders(hsts=None))
    app.add_middleware(TrustedHosts(["test"]))
    add_routes(app)
    async with serving(app) as server:
        client = await server.connect()
        for _ in range(2):  # the second time the head is known
            for path, status in ANSWERS.items():
                for method in ("GET", "HEAD"):
                    answer = await client.get(path, method=method)
                    assert answer.status == status, path
                    assert answer.headers["x-frame-options"] == "DENY", path
                    assert "strict-transport-security" not in answer.headers
            assert (await client.get("/error")).headers["x-own"] == "2"
            for path in ("/sync", "/items/7"):
                for method, status in (("POST", 405), ("OPTIONS", 204)):
                    answer = await client.get(path, method=method)
                    assert answer.status == status
                    assert answer.headers["x-frame-options"] == "DENY"
                    assert answer.headers["allow"] == "GET, HEAD, OPTIONS"


@in_loop
async def test_a_dict_stays_one_until_someone_needs_a_response() -> None:
    app = App()
    inner, outer = Mark("Inner"), Other("Outer")
    app.add_middleware(outer)

    def plain(call_next: Any, route: Any) -> Any:
        return lambda request: call_next(request)

    app.get("/a", middleware=[inner])(lambda request: {"a": 1})
    app.get("/b", middleware=[plain, inner])(lambda request: {"a": 1})
    async with serving(app) as server:
        client = await server.connect()
        first, second = await client.get("/a"), await client.get("/b")
    assert first.body == second.body == b'{"a":1}'
    assert first.headers["x-inner"] == first.headers["x-outer"] == second.headers["x-inner"] == "1"
    assert inner.seen == [{"a": 1}, {"a": 1}]
    assert outer.seen[0] == {"a": 1}
    assert isinstance(outer.seen[1], Response)


@in_loop
async def test_of_several_layers_of_a_class_the_innermost_counts() -> None:
    app = App()
    app.add_middleware(SecurityHeaders())
    group = app.group("/pages", middleware=[SecurityHeaders(policy="default-src 'self'")])
    group.get("/a")(lambda request: {})
    group.get("/b", middleware=[SecurityHeaders(policy="b")])(lambda request: {})
    own = Response("x", headers={"content-security-policy": "own"})
    group.get("/own")(lambda request: own)
    app.get("/c")(lambda request: {})
    async with serving(app) as server:
        client = await server.connect()
        policies = [
            (await client.get(path)).headers["content-security-policy"]
            for path in ("/pages/a", "/pages/b", "/pages/own", "/c", "/nowhere")
        ]
        denied = await client.get("/pages/a", method="PUT")
    api = "default-src 'none'; frame-ancestors 'none'"
    assert policies == ["default-src 'self'", "b", "own", api, api]
    assert denied.headers["content-security-policy"] == "default-src 'self'"


@in_loop
async def test_groups_join_prefixes_middleware_and_options() -> None:
    app = App()
    outer = app.group("/api", middleware=[Mark("A")], max_body=10)
    inner = outer.group("/v1", middleware=[Other("B")])

    @inner.post("/things/{id:int}")
    def thing(request: Request, id: int) -> dict[str, int]:
        return {"id": id}

    @outer.post("", max_body=20)
    def root(request: Request) -> dict[str, int]:
        return {}

    async with serving(app) as server:
        client = await server.connect()
        await client.send(post("/api/v1/things/7", b"0123456789"))
        answer = await client.answer()
        assert (answer.body, answer.headers["x-a"], answer.headers["x-b"]) == (
            b'{"id":7}',
            "1",
            "1",
        )
        await client.send(post("/api", b"0123456789ab"))
        assert (await client.answer()).status == 200
        await client.send(post("/api/v1/things/7", b"0123456789a"))
        assert (await client.answer()).status == 413


@in_loop
async def test_a_body_limit_is_the_servers_own_and_a_routes_max_body_comes_first() -> None:
    app = App()
    app.add_middleware(BodyLimit(5))
    app.post("/a")(lambda request: {})
    app.post("/b", max_body=9)(lambda request: {})
    app.post("/c", middleware=[BodyLimit(7)])(lambda request: {})
    app.router()
    assert [route.max_body for route in app.routes] == [5, 9, 7]
    assert not any(route.wrapped for route in app.routes)
    async with serving(app) as server:
        client = await server.connect()
        await client.send(post("/a", b"012345"))
        assert (await client.answer()).status == 413
    with pytest.raises(ValueError, match="-1"):
        BodyLimit(-1)


@pytest.mark.parametrize("prefix", ["api", "/", "/api/", ""])
def test_a_prefix_begins_with_a_slash_and_ends_without(prefix: str) -> None:
    with pytest.raises(RouteError):
        App().group(prefix)
