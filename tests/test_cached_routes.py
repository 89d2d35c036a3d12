"""Cached handlers as routes: known answers need no task, and all else is as for any coroutine."""

from __future__ import annotations

import asyncio
import functools
import gzip
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fluxor_fast import App, HTTPError, Request, Response
from fluxor_fast.auth.apikeys import ApiKey, ApiKeys, StoredKey, bearer_or_key, new_key
from fluxor_fast.auth.tokens import Claims, Tokens
from fluxor_fast.cache import Cache
from fluxor_fast.composition import Layer
from fluxor_fast.config import Settings
from fluxor_fast.http.request import CURRENT
from fluxor_fast.middleware.access_log import AccessLog
from fluxor_fast.middleware.compression import Compression
from fluxor_fast.middleware.etag import ETag
from fluxor_fast.middleware.recovery import Recovery
from fluxor_fast.middleware.security_headers import SecurityHeaders
from tests.support.inprocess import head, in_loop, serving

PLEASE = "X-Word: please"

DOCUMENT = Path(__file__).parent.parent / "docs" / "CACHE.md"


class Door(Layer):
    """Lets in who says the word; notes in which tasks it sees answers."""

    def __init__(self) -> None:
        self.asked = 0
        self.tasks: list[Any] = []

    def begin(self, request: Request) -> Any:
        self.asked += 1
        if request.headers.get("x-word") != "please":
            raise HTTPError(403)

    def finish(self, request: Request, value: Any) -> Any:
        self.tasks.append(asyncio.current_task())
        return value


def plain(call_next: Any, route: Any) -> Any:
    """Middleware of a user's own."""

    async def around(request: Request) -> Any:
        response = await call_next(request)
        response.headers["X-Plain"] = "1"
        return response

    return around


class Profiles:
    """An application with one cached route, which counts what it computes."""

    def __init__(self, *middleware: Any, **options: Any) -> None:
        self.app = App()
        self.cache = Cache()
        self.computed = 0
        self.gate = asyncio.Event()
        self.gate.set()

        @self.app.get("/users/{id:int}", middleware=middleware, **options)
        @self.cache.cached(ttl=60, key=lambda request, id: id, name="users")
        async def user(request: Request, id: int) -> dict[str, Any]:
            self.computed += 1
            await self.gate.wait()
            if id == 404:
                raise HTTPError(404)
            if id == 500:
                raise ZeroDivisionError
            return {"id": id, "text": "x" * 2000}

        self.user: Any = user


@in_loop
async def test_a_known_answer_needs_no_task() -> None:
    door = Door()
    profiles = Profiles(door)
    async with serving(profiles.app) as server:
        client = await server.connect()
        answers = [await client.get("/users/7", PLEASE) for _ in range(3)]
        assert len({answer.body for answer in answers}) == 1
        assert answers[0].json()["id"] == 7
    assert profiles.computed == 1
    assert [task is None for task in door.tasks] == [False, True, True]


@in_loop
async def test_a_known_key_and_the_access_log_need_no_task_either() -> None:
    """Outcomes are logged alike: of what is computed, what is known, and what fails either way."""
    text, prefix, hashed = new_key()
    claims = Claims(1, "a@example.org", (), 0, 2**40)
    asked: list[str] = []

    async def stored(wanted: str) -> StoredKey | None:
        asked.append(wanted)
        return StoredKey(ApiKey(1, prefix, "x", "standard", claims, None), hashed)

    keys = ApiKeys(stored)
    tasks: list[Any] = []
    lines: list[str] = []

    def write(line: str) -> None:
        tasks.append(asyncio.current_task())
        lines.append(line)

    profiles = Profiles(bearer_or_key(lambda request: Tokens(b"k" * 32, 60), lambda request: keys))
    async with serving(profiles.app) as server:
        AccessLog(write, "json").watch(profiles.app.routes)
        client = await server.connect()
        with_key = f"X-API-Key: {text}"
        for path in ("/users/7", "/users/7", "/users/404", "/users/500", "/users/7"):
            await client.get(path, with_key)
        assert (await client.get("/users/7")).status == 401
    assert asked == [prefix]
    assert [task is None for task in tasks] == [False, True, False, False, True, True]
    assert [json.loads(line)["status"] for line in lines] == [200, 200, 404, 500, 200, 401]


@in_loop
async def test_who_may_not_see_it_is_not_answered_from_the_cache() -> None:
    door = Door()
    profiles = Profiles(door)
    async with serving(profiles.app) as server:
        client = await server.connect()
        assert (await client.get("/users/7", PLEASE)).status == 200
        refused = await client.get("/users/7")
        assert refused.status == 403
        assert b"xx" not in refused.body
        assert (await client.get("/users/7", PLEASE)).status == 200
    assert door.asked == 3  # once for each request, known or not


@pytest.mark.parametrize("middleware", [[], [plain]], ids=["layers", "and one of another kind"])
@in_loop
async def test_first_and_later_answers_do_not_differ(middleware: list[Any]) -> None:
    profiles = Profiles(*middleware, ETag(), Compression())
    profiles.app.add_middleware(Recovery())
    profiles.app.add_middleware(SecurityHeaders())
    async with serving(profiles.app) as server:
        client = await server.connect()
        for method in ("GET", "HEAD"):
            answers = [
                await client.get("/users/7", "Accept-Encoding: gzip", method=method)
                for _ in range(3)
            ]
            headers = [
                {k: v for k, v in answer.headers.items() if k not in ("date", "x-request-id")}
                for answer in answers
            ]
            assert headers[0] == headers[1] == headers[2]
            assert headers[0]["content-encoding"] == "gzip"
            assert "etag" in headers[0]
            assert "x-frame-options" in headers[0]
            assert ("x-plain" in headers[0]) == bool(middleware)
            assert len({answer.body for answer in answers}) == 1
            assert len({answer.headers["x-request-id"] for answer in answers}) == 3
    assert profiles.computed == 1


@in_loop
async def test_a_decorator_around_a_cached_handler_is_not_left_out() -> None:
    profiles = Profiles()

    @functools.wraps(profiles.user)  # which copies its attributes
    async def guarded(request: Request, id: int) -> Any:
        if request.headers.get("x-word") != "please":
            raise HTTPError(403)
        return await profiles.user(request, id)

    profiles.app.get("/guarded/{id:int}")(guarded)
    async with serving(profiles.app) as server:
        client = await server.connect()
        assert (await client.get("/users/1")).status == 200
        assert (await client.get("/guarded/1", PLEASE)).status == 200
        assert (await client.get("/guarded/1")).status == 403


@in_loop
async def test_errors_are_answered_and_computed_each_time() -> None:
    profiles = Profiles(Recovery())
    async with serving(profiles.app) as server:
        client = await server.connect()
        for status in (404, 500):
            for _ in range(2):
                assert (await client.get(f"/users/{status}")).status == status
    assert profiles.computed == 4


@in_loop
async def test_known_answers_do_not_wait_for_each_other_and_the_limit_holds() -> None:
    profiles = Profiles()
    async with serving(profiles.app, slots=2) as server:
        client = await server.connect()
        await client.get("/users/1")
        profiles.gate.clear()
        others = [await server.connect() for _ in range(3)]
        for number, other in enumerate(others):
            await other.send(b"GET /users/%d HTTP/1.1\r\nHost: test\r\n\r\n" % (number + 2))
        while profiles.computed < 3:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        assert profiles.computed == 3  # the third waits for a slot
        profiles.gate.set()
        for number, other in enumerate(others):
            assert (await other.answer()).json()["id"] == number + 2


@in_loop
async def test_pipelined_requests_are_answered_in_order_known_or_not() -> None:
    profiles = Profiles()
    async with serving(profiles.app) as server:
        client = await server.connect()
        await client.get("/users/1")
        order = [1, 2, 1, 404, 2, 1, 3]
        await client.send(
            b"".join(b"GET /users/%d HTTP/1.1\r\nHost: test\r\n\r\n" % each for each in order)
        )
        answers = [await client.answer() for _ in order]
        assert [answer.json().get("id", 404) for answer in answers] == order


@in_loop
async def test_an_exempt_route_may_be_cached() -> None:
    profiles = Profiles(priority="exempt")
    async with serving(profiles.app) as server:
        client = await server.connect()
        assert [(await client.get("/users/1")).status for _ in range(2)] == [200, 200]
    assert profiles.computed == 1


@in_loop
async def test_a_layer_that_answers_by_itself_is_believed() -> None:
    class Closed(Layer):
        def begin(self, request: Request) -> Any:
            return Response("closed", status=503)

    profiles = Profiles(Closed())
    async with serving(profiles.app) as server:
        answer = await (await server.connect()).get("/users/1")
        assert (answer.status, answer.body) == (503, b"closed")
    assert profiles.computed == 0


@in_loop
async def test_the_example_of_the_documentation_works() -> None:
    (source,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(source, DOCUMENT, "exec", dont_inherit=True), names)
    app, rows, read = names["app"], {1: "old"}, []

    async def reading(id: int) -> Any:
        read.append(id)
        return {"name": rows[id]}

    async def writing(id: int, value: Any) -> None:
        rows[id] = value

    app.settings = Settings()
    app.state.users = SimpleNamespace(read=reading, write=writing)
    await app.start()
    async with serving(app) as server:
        client = await server.connect()
        for name in ("old", "new"):
            for _ in range(2):
                assert (await client.get("/users/1")).json() == {"name": name}
            await client.send(
                b'PUT /users/1 HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\n"new"'
            )
            assert (await client.answer()).status == 204
    await app.stop()
    assert read == [1, 1]


VALUES: list[tuple[Any, str | None, bytes]] = [
    ({"a": [1, "ä"]}, "application/json", b'{"a":[1,"\xc3\xa4"]}'),
    ([1, {"b": None}], "application/json", b'[1,{"b":null}]'),
    ("text", "text/plain; charset=utf-8", b"text"),
    (7, "application/json", b"7"),
    (None, None, b""),
]


@pytest.mark.parametrize(("value", "content_type", "body"), VALUES)
@pytest.mark.parametrize("middleware", [(), (Compression(),), (ETag(),), (Recovery(), plain)])
@in_loop
async def test_what_is_known_is_answered_as_what_is_computed(
    value: Any, content_type: str | None, body: bytes, middleware: tuple[Any, ...]
) -> None:
    """The route has it as JSON, who calls the function as an object."""
    app, cache = App(), Cache()

    @app.get("/", middleware=middleware)
    @cache.cached(ttl=60, none_ttl=60, key=lambda request: 1)
    async def handler(request: Any) -> Any:
        return value

    async with serving(app) as server:
        client = await server.connect()
        answers = [await client.get("/", "Accept-Encoding: gzip") for _ in range(3)]
        heads = [await client.get("/", method="HEAD") for _ in range(2)]
    assert cache.figures.misses == 1
    assert await handler(None) == await handler(None) == value
    for answer in answers:
        assert answer.status == (204 if value is None else 200)
        assert (answer.headers.get("content-type"), answer.body) == (content_type, body)
    names = {"x-request-id", "date"}
    for some in (answers, heads):
        told = [{n: v for n, v in one.headers.items() if n not in names} for one in some]
        assert all(one == told[0] for one in told)


@in_loop
async def test_what_is_known_and_large_is_compressed() -> None:
    profiles = Profiles(Compression(codings=["gzip"]))
    async with serving(profiles.app) as server:
        client = await server.connect()
        plain_one = await client.get("/users/7")
        for _ in range(2):
            answer = await client.get("/users/7", "Accept-Encoding: gzip")
            assert answer.headers["content-encoding"] == "gzip"
            assert gzip.decompress(answer.body) == plain_one.body


class Stamped(Layer):
    """Adds to what the handler says, without changing it."""

    def finish(self, request: Request, value: Any) -> Any:
        return {**value, "for": request.path} if isinstance(value, dict) else value


@in_loop
async def test_a_layer_gets_what_is_known_as_it_gets_what_is_computed() -> None:
    app, cache = App(), Cache()

    @app.get("/", middleware=[Stamped()])
    @cache.cached(ttl=60, key=lambda request: 1)
    async def handler(request: Request) -> dict[str, int]:
        return {"a": 1}

    async with serving(app) as server:
        client = await server.connect()
        bodies = [(await client.get()).json() for _ in range(2)]
    assert bodies == [{"a": 1, "for": "/"}] * 2


@in_loop
async def test_no_request_is_the_current_one_in_a_turn_after_a_known_answer() -> None:
    """The log would have lines of synchronous handlers under the id of another request."""
    app, cache = App(), Cache()
    current: list[Any] = []

    @app.get("/known")
    @cache.cached(ttl=60, key=lambda request: 1)
    async def known(request: Request) -> dict[str, int]:
        return {"a": 1}

    gate = asyncio.Event()

    @app.get("/slow")
    async def slow(request: Request) -> dict[str, int]:
        await gate.wait()
        return {"a": 1}

    @app.get("/sync")
    def sync(request: Request) -> dict[str, int]:
        current.append(CURRENT.get())
        return {"a": 1}

    async with serving(app) as server:
        one, other = await server.connect(), await server.connect()
        await one.get("/known")
        await other.get("/sync")
        for turns in range(20):
            gate.clear()
            # the first is answered though another is owed behind it: that asks for a turn
            await one.send(head("/known") + head("/slow"))
            for _ in range(turns % 10):
                await asyncio.sleep(0)
            await other.send(head("/sync"))
            await other.answer()
            gate.set()
            await one.answer()
            await one.answer()
    assert current == [None] * 21
