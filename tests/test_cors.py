"""Cross-origin requests, with Starlette's middleware as referee."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.middleware.cors import CORSMiddleware

from fluxor_fast import App, HTTPError, Request
from fluxor_fast.auth.roles import require_role
from fluxor_fast.middleware.compression import Compression
from fluxor_fast.middleware.cors import CORS
from tests.support.inprocess import Client, in_loop, serving
from tests.support.seeds import seeded

APP = "https://app.example.com"


def preflight(origin: str, method: str = "PUT", *headers: str) -> tuple[str, ...]:
    lines = [f"Origin: {origin}", f"Access-Control-Request-Method: {method}"]
    if headers:
        lines.append(f"Access-Control-Request-Headers: {', '.join(headers)}")
    return tuple(lines)


def make(cors: CORS) -> App:
    app = App()
    app.add_middleware(cors)
    app.get("/a")(lambda request: {"a": 1})

    @app.put("/a")
    async def put(request: Request) -> dict[str, int]:
        raise HTTPError(409, "no")

    return app


@in_loop
async def test_a_preflight_is_answered_for_routes_without_options_and_before_who_is_inside() -> (
    None
):
    cors = CORS([APP], credentials=True, max_age=60)
    app = make(cors)
    app.add_middleware(require_role("admin"))  # refuses everyone here
    async with serving(app) as server:
        client = await server.connect()
        answer = await client.get("/a", *preflight(APP, "PUT", "content-type"), method="OPTIONS")
        assert answer.status == 204
        headers = answer.headers
        assert headers["access-control-allow-origin"] == APP
        assert headers["access-control-allow-credentials"] == "true"
        assert "PUT" in headers["access-control-allow-methods"]
        assert "Content-Type" in headers["access-control-allow-headers"]
        assert headers["access-control-max-age"] == "60"
        assert headers["vary"].startswith("Origin, Access-Control-Request-Method")
        # an OPTIONS that is no preflight is not for us
        assert (await client.get("/a", f"Origin: {APP}", method="OPTIONS")).status == 401


@in_loop
async def test_what_a_preflight_may_not_is_refused_without_any_of_the_headers() -> None:
    async with serving(make(CORS([APP], methods=["GET", "PUT"]))) as server:
        client = await server.connect()
        for lines in (
            preflight("https://evil.example"),
            preflight("null"),
            preflight(APP, "DELETE"),
            preflight(APP, "PUT", "X-Other"),
            preflight(APP, "put"),  # methods have capitals
            preflight(f"{APP}, {APP}"),
        ):
            answer = await client.get("/a", *lines, method="OPTIONS")
            assert answer.status == 403, lines
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert "Origin" in answer.headers["vary"]


@in_loop
async def test_the_headers_are_on_every_answer_errors_too() -> None:
    app = make(CORS([APP], credentials=True))
    app.add_middleware(Compression())
    async with serving(app) as server:
        client = await server.connect()
        for method, path, status in (("GET", "/a", 200), ("HEAD", "/a", 200), ("PUT", "/a", 409),
                                     ("GET", "/b", 404), ("DELETE", "/a", 405)):  # fmt: skip
            answer = await client.get(path, f"Origin: {APP}", method=method)
            assert answer.status == status
            assert answer.headers["access-control-allow-origin"] == APP
            assert answer.headers["access-control-allow-credentials"] == "true"
            assert answer.headers["access-control-expose-headers"] == "X-Request-ID"
            assert answer.headers["vary"] == "Origin, Accept-Encoding"
            for lines in ([], ["Origin: https://evil.example"]):
                other = await client.get(path, *lines, method=method)
                assert other.status == status
                assert "access-control-allow-origin" not in other.headers
                assert "Origin" in other.headers["vary"]


@in_loop
async def test_one_route_may_have_its_own() -> None:
    app = App()
    app.put("/a", middleware=[CORS([APP])])(lambda request: {})
    app.put("/b")(lambda request: {})
    async with serving(app) as server:
        client = await server.connect()
        good = await client.get("/a", *preflight(APP), method="OPTIONS")
        assert good.headers["access-control-allow-origin"] == APP
        other = await client.get("/b", *preflight(APP), method="OPTIONS")
        assert "access-control-allow-origin" not in other.headers


@in_loop
async def test_everyone_may_read_with_a_star_and_caches_need_not_care() -> None:
    async with serving(make(CORS(["*"], headers="*"))) as server:
        client = await server.connect()
        for lines in ([], [f"Origin: {APP}"]):
            answer = await client.get("/a", *lines)
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "vary" not in answer.headers
        asked = await client.get(
            "/a", *preflight(APP, "PUT", "X-Any", "Authorization"), method="OPTIONS"
        )
        assert asked.headers["access-control-allow-headers"] == "x-any, authorization"
        bad = await client.get("/a", *preflight(APP, "PUT", "X Any"), method="OPTIONS")
        assert bad.status == 403


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        ("https://*.example.com", "https://a.example.com", True),
        ("https://*.example.com", "https://a.b.example.com", True),
        ("https://*.example.com", "HTTPS://A.EXAMPLE.COM", True),
        ("https://*.example.com", "https://example.com", False),
        ("https://*.example.com", "https://.example.com", False),
        ("https://*.example.com", "https://evilexample.com", False),
        ("https://*.example.com", "https://a.example.com.evil.net", False),
        ("https://*.example.com", "https://evil.net/.example.com", False),
        ("https://*.example.com", "https://evil.net#.example.com", False),
        ("https://*.example.com", "https://u@a.example.com", False),
        ("https://*.example.com", "http://a.example.com", False),
        ("https://*.example.com", "https://a.example.com:8443", False),
        ("https://*.example.com:8443", "https://a.example.com:8443", True),
        ("https://a.example.com", "https://axexample.com", False),
        ("http://[::1]:3000", "http://[::1]:3000", True),
        ("http://localhost:3000", "http://localhost:3000", True),
    ],
)
def test_origins_are_compared_whole(origins: str, origin: str, allowed: bool) -> None:
    assert CORS([origins])._allowed(origin) is allowed


@pytest.mark.parametrize(
    "origins",
    ["https://app.example.com", ["https://a.example.com/"], ["null"], ["example.com"], ["https://*"],
     ["https://*.com"], ["https://a.*.com"], ["https://a.example.com\r\nX: 1"]],
)  # fmt: skip
def test_what_is_no_origin_is_refused_at_start(origins: Any) -> None:
    with pytest.raises(ValueError):
        CORS(origins)


def test_a_star_and_credentials_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="credentials"):
        CORS(["*"], credentials=True)


async def referee(middleware: Any, method: str, lines: tuple[str, ...]) -> dict[str, str]:
    """What Starlette's middleware answers: its status under ``:status``, and its headers."""
    pairs = [line.split(": ", 1) for line in lines]
    sent: dict[str, str] = {}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            sent[":status"] = str(message["status"])
            sent.update((n.decode().lower(), v.decode()) for n, v in message["headers"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "method": method, "path": "/a", "query_string": b"",
             "headers": [(n.lower().encode(), v.encode()) for n, v in pairs]}  # fmt: skip
    await middleware(scope, receive, send)
    return sent


@in_loop
async def test_browsers_see_what_starlette_would_have_them_see() -> None:
    """Whether a page may read, and send, is decided alike for random requests."""
    rng = seeded("cors")

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def compare(client: Client, theirs: Any) -> None:
        origin = rng.choice([None, APP, "https://b.example.com", "https://evil.net", "null"])
        method = rng.choice(["GET", "OPTIONS"])
        lines = [] if origin is None else [f"Origin: {origin}"]
        if method == "OPTIONS":
            lines.append(f"Access-Control-Request-Method: {rng.choice(['GET', 'PUT', 'DELETE'])}")
            if rng.random() < 0.5:
                names = rng.sample(["X-Ours", "Content-Type", "X-Other"], rng.randint(1, 2))
                lines.append(f"Access-Control-Request-Headers: {', '.join(names)}")
        if method == "OPTIONS" and origin is None:
            return  # no cross-origin request
        expected = await referee(theirs, method, tuple(lines))
        answer = await client.get("/a", *lines, method=method)
        good = int(expected[":status"]) < 300
        assert (answer.status < 300) is good, lines
        if good and method == "OPTIONS":
            assert answer.headers["access-control-max-age"] == expected["access-control-max-age"]
        if good:
            readable = expected.get("access-control-allow-origin")
            assert answer.headers.get("access-control-allow-origin") == readable, lines
            if readable is not None:
                name = "access-control-allow-credentials"
                assert answer.headers.get(name) == expected.get(name), lines

    for credentials in (False, True):
        ours = CORS([APP, "https://b.example.com"], methods=["GET", "PUT"], headers=["X-Ours"],
                    credentials=credentials)  # fmt: skip
        theirs = CORSMiddleware(
            inner, allow_origins=[APP, "https://b.example.com"], allow_methods=["GET", "PUT"],
            allow_headers=["X-Ours"], allow_credentials=credentials,
        )  # fmt: skip
        async with serving(make(ours)) as server:
            client = await server.connect()
            for _ in range(150):
                await compare(client, theirs)
                await asyncio.sleep(0)
