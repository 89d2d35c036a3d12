"""What is composed around handlers: order, kinds, groups, and answers where nothing is."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fluxor_fast import App, HTTPError, Json, Request, StreamingResponse
from fluxor_fast.asgi.serve import AsgiApp
from fluxor_fast.composition import Layer
from fluxor_fast.errors import RouteError
from fluxor_fast.http.response import Response, header_line
from fluxor_fast.middleware.body_limit import BodyLimit
from fluxor_fast.middleware.compression import Compression
from fluxor_fast.middleware.cors import CORS
from fluxor_fast.middleware.security_headers import SecurityHeaders
from fluxor_fast.middleware.trusted_hosts import TrustedHosts
from fluxor_fast.routing import Kind
from tests.support.inprocess import head, in_loop, post, serving
from tests.support.pure import make_request


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


class Lined(Layer):
    """Has lines, by head; notes for which it was asked."""

    def __init__(self, name: str, value: str = "", *, by_scheme: bool = False) -> None:
        self.name = name
        self.value = value
        self.by_scheme = by_scheme
        self.asked: list[str] = []

    def lines(self, request: Request) -> bytes:
        self.asked.append(request.path)
        value = request.scheme if self.by_scheme else self.value or request.path
        return header_line(self.name, value)


@in_loop
async def test_lines_are_asked_for_once_for_each_head_and_are_on_every_answer() -> None:
    app = App()
    outer, inner = Lined("X-Outer"), Lined("X-Inner")
    app.add_middleware(outer)
    app.add_middleware(Mark("Mark"))
    app.add_middleware(inner)
    add_routes(app)
    async with serving(app) as server:
        client = await server.connect()
        for _ in range(3):
            for path, status in ANSWERS.items():
                answer = await client.get(path)
                assert answer.status == status
                names = [answer.headers[name] for name in ("x-outer", "x-inner", "x-mark")]
                assert names == [path, path, "1"]
    assert outer.asked == inner.asked == [*ANSWERS]


@in_loop
async def test_lines_of_inner_layers_are_on_what_an_outer_one_answers() -> None:
    app = App()
    app.add_middleware(TrustedHosts(["elsewhere"]))
    app.add_middleware(SecurityHeaders(hsts=None))
    app.get("/")(lambda request: {})
    async with serving(app) as server:
        answer = await (await server.connect()).get("/")
    assert answer.status == 400
    assert answer.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("path", [*ANSWERS])
@in_loop
async def test_what_an_answer_says_itself_takes_the_place_of_lines(path: str) -> None:
    """Of every kind, ``Vary`` alone is joined; and the next answer has the lines again."""
    app = App()
    app.add_middleware(Lined("X-Own", "1"))
    app.add_middleware(Lined("X-Owner", "1"))
    app.add_middleware(Lined("Vary", "Origin"))
    own = {"x-oWN": "2", "Vary": "Accept"}
    wants = False

    def says(call_next: Any, route: Any) -> Any:
        """Give every answer, of whatever kind, headers of its own."""

        def with_own(value: Any) -> Any:
            if wants:
                value.headers.clear()
                value.headers.update(own)
            return value

        async def later(request: Request) -> Any:
            try:
                return with_own(await call_next(request))
            except HTTPError as error:
                raise with_own(error) from None

        def now(request: Request) -> Any:
            try:
                return with_own(call_next(request))
            except HTTPError as error:
                raise with_own(error) from None

        return later if route.kind is Kind.ASYNC else now

    app.add_middleware(says)
    add_routes(app)
    failing = ANSWERS[path] == 500  # these are the server's own
    async with serving(app) as server:
        client = await server.connect()
        for wants in (True, False, True):
            answer = await client.get(path)
            assert answer.status == ANSWERS[path]
            lines = answer.raw_head.decode().split("\r\n")[1:]
            fields = [
                (name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)
            ]
            told = [pair for pair in fields if pair[0] in ("x-own", "x-owner", "vary")]
            if wants and not failing:
                expected = [
                    ("vary", "Accept"),
                    ("vary", "Origin"),
                    ("x-own", "2"),
                    ("x-owner", "1"),
                ]
            elif path == "/error":
                expected = [("vary", "Origin"), ("x-own", "2"), ("x-owner", "1")]
            else:
                expected = [("vary", "Origin"), ("x-own", "1"), ("x-owner", "1")]
            assert sorted(told) == expected


def test_lines_that_differ_by_scheme_are_remembered_for_each() -> None:
    app = App()
    layer, other = Lined("X-Scheme", by_scheme=True), Lined("X-Other", "1")
    app.add_middleware(layer)
    app.add_middleware(other)
    app.get("/")(lambda request: {})
    route, _ = app.router().match("GET", "/")
    request = make_request("GET", "/", route=route)
    for scheme in ("http", "https", "http", "https"):
        request.connection.scheme_of = lambda head, scheme=scheme: scheme  # type: ignore
        route.call(request)
        assert request.fields == f"X-Scheme: {scheme}\r\nX-Other: 1\r\n".encode()
    assert layer.asked == ["/", "/"]


@in_loop
async def test_a_layer_whose_lines_fail_is_a_500_and_leaves_nothing_behind() -> None:
    class Broken(Layer):
        def lines(self, request: Request) -> bytes:
            raise ZeroDivisionError

    app = App()
    app.add_middleware(Lined("X-Own", "1"))
    app.get("/", middleware=[Broken()])(lambda request: {})
    app.get("/good")(lambda request: {})
    async with serving(app) as server:
        client = await server.connect()
        statuses = [(await client.get(path)).status for path in ("/", "/", "/good")]
        assert server.service.runner.limit.held == 0
    assert statuses == [500, 500, 200]


@pytest.mark.parametrize("middleware", [(), (SecurityHeaders(),), (Compression(codings=["gzip"]),)])
@in_loop
async def test_json_that_is_ready_goes_as_it_is_on_every_kind_of_route(middleware: Any) -> None:
    app = App()
    small, large = Json(b'{"a": 1}'), Json(b'["' + 5000 * b"a" + b'"]')

    @app.get("/sync/{size}", middleware=middleware)
    def sync(request: Request, size: str) -> Json:
        return large if size == "large" else small

    @app.get("/async/{size}", middleware=middleware)
    async def coroutine(request: Request, size: str) -> Json:
        return large if size == "large" else small

    @app.get("/blocking/{size}", middleware=middleware, blocking=True)
    def blocking(request: Request, size: str) -> Json:
        return large if size == "large" else small

    async with serving(app) as server:
        client = await server.connect()
        for kind in ("sync", "async", "blocking"):
            for size, body in (("small", small), ("large", large)):
                for fields in ((), ("Accept-Encoding: gzip",)):
                    answer = await client.get(f"/{kind}/{size}", *fields)
                    assert (answer.status, answer.headers["content-type"]) == (
                        200,
                        "application/json",
                    )
                    if "content-encoding" in answer.headers:
                        assert (size, len(fields), middleware != ()) == ("large", 1, True)
                        assert gzip.decompress(answer.body) == body
                    else:
                        assert answer.body == body
                head = await client.get(f"/{kind}/{size}", method="HEAD")
                assert head.headers["content-length"] == str(len(body))


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


async def framed(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application that says itself where it may be framed."""
    more = scope["path"] == "/stream"
    fields = [(b"x-frame-options", b"SAMEORIGIN"), (b"content-length", b"4")]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": b"do", "more_body": True} if more else
               {"type": "http.response.body", "body": b"done"})  # fmt: skip
    if more:
        await send({"type": "http.response.body", "body": b"ne"})


def watched(call_next: Any, route: Any) -> Any:
    async def around(request: Request) -> Any:
        return await call_next(request)

    return around


@pytest.mark.parametrize("path", ["/", "/stream"])
@pytest.mark.parametrize("middleware", [CORS(["*"]), watched])
@in_loop
async def test_an_asgi_application_with_middleware_is_served(middleware: Any, path: str) -> None:
    app = AsgiApp(framed)
    app.add_middleware(middleware)
    async with serving(app) as server:
        answer = await (await server.connect()).get(path)
        assert (answer.status, answer.body) == (200, b"done")


@pytest.mark.parametrize("path", ["/", "/stream"])
@in_loop
async def test_what_an_asgi_application_says_takes_the_place_of_lines(path: str) -> None:
    app = AsgiApp(framed)
    app.add_middleware(SecurityHeaders())
    async with serving(app) as server:
        answer = await (await server.connect()).get(path)  # a field that comes twice fails there
        assert answer.status == 200
        assert answer.headers["x-frame-options"] == "SAMEORIGIN"
        assert answer.headers["x-content-type-options"] == "nosniff"


class Session(Layer):
    def begin(self, request: Request) -> Any:
        request.fields += header_line("Set-Cookie", "session=1; HttpOnly")


@in_loop
async def test_a_cookie_of_a_layer_is_there_beside_one_of_the_answer() -> None:
    app = App()
    app.add_middleware(Session())
    app.get("/")(lambda request: Response("x", headers={"Set-Cookie": "theme=dark"}))
    async with serving(app) as server:
        client = await server.connect()
        await client.send(head())
        while b"\r\n\r\nx" not in client.buffer:
            assert await client._more()
    assert client.buffer.count(b"Set-Cookie: theme=dark\r\n") == 1
    assert client.buffer.count(b"Set-Cookie: session=1; HttpOnly\r\n") == 1


@pytest.mark.parametrize("middleware", [(), (SecurityHeaders(),)])
@in_loop
async def test_a_stream_whose_headers_cannot_be_sent_is_closed(middleware: Any) -> None:
    closed: list[bool] = []

    class Pieces:
        def __aiter__(self) -> AsyncIterator[bytes]:
            return self

        async def __anext__(self) -> bytes:
            raise StopAsyncIteration

        async def aclose(self) -> None:
            closed.append(True)

    app = App()

    @app.get("/", middleware=middleware)
    async def stream(request: Request) -> StreamingResponse:
        return StreamingResponse(Pieces(), headers={"X-\u2603": "1"})

    async with serving(app) as server:
        assert (await (await server.connect()).get()).status == 500
    assert closed == [True]


class Inside(CORS):
    """As ``TrustedHosts`` does it: not on some routes."""

    def __call__(self, call_next: Any, route: Any) -> Any:
        return call_next if route.path.startswith("/internal") else super().__call__(
            call_next, route
        )  # fmt: skip


@in_loop
async def test_a_layer_that_declines_a_route_adds_no_lines_there() -> None:
    app = App()
    app.add_middleware(Inside(["https://a.example"], credentials=True))
    app.get("/internal")(lambda request: {})
    app.get("/public")(lambda request: {})
    async with serving(app) as server:
        client = await server.connect()
        answers = [
            await client.get(path, "Origin: https://a.example") for path in ("/public", "/internal")
        ]
    there = ["access-control-allow-origin" in answer.headers for answer in answers]
    assert there == [True, False]
