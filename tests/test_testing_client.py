"""The clients for tests: the real path in memory, and errors that say something."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from httpx_sse import connect_sse

from fluxor_fast import App, Event, EventStream, HTTPError, Request, Response, StreamingResponse
from fluxor_fast.errors import ConfigError
from fluxor_fast.middleware.recovery import Recovery
from fluxor_fast.testing import AsyncClient, TestClient
from tests.support.inprocess import in_loop
from tests.support.server import eventually

FIELD: ContextVar[str] = ContextVar("FIELD", default="unset")


def make() -> App:
    app = App()

    @app.get("/hello")
    def hello(request: Request) -> dict[str, Any]:
        return {
            "query": request.query,
            "client": request.client,
            "host": request.host,
            "scheme": request.scheme,
            "agent": request.headers.get("x-agent"),
            "cookie": request.headers.get("cookie"),
        }

    @app.post("/echo")
    async def echo(request: Request) -> Response:
        return Response(request.body, content_type=request.headers.get("content-type", "none"))

    @app.get("/in")
    def login(request: Request) -> Response:
        return Response("in", headers={"Set-Cookie": "session=1; Path=/; HttpOnly"})

    @app.get("/old")
    def old(request: Request) -> Response:
        return Response(status=302, headers={"Location": "/hello?from=old"})

    @app.get("/missing")
    def missing(request: Request) -> None:
        raise HTTPError(404, "no such thing")

    @app.get("/fails")
    async def fails(request: Request) -> None:
        raise ZeroDivisionError("on purpose")

    @app.get("/fails/now")
    def fails_now(request: Request) -> None:
        raise ZeroDivisionError("on purpose")

    @app.get("/fails/thread", blocking=True)
    def fails_thread(request: Request) -> None:
        raise ZeroDivisionError("on purpose")

    @app.get("/fails/late")
    async def fails_late(request: Request) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"a" * 1000
            raise ZeroDivisionError("on purpose")

        return StreamingResponse(pieces())

    @app.get("/context")
    async def context(request: Request) -> str:
        return FIELD.get()

    return app


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(make()) as made:
        yield made


def test_headers_and_params_reach_the_handler(client: TestClient) -> None:
    answer = client.get("/hello", params={"a": "ü b"}, headers={"X-Agent": "me"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.headers["x-request-id"]) == 32
    assert answer.json() == {
        "query": {"a": "ü b"},
        "client": "127.0.0.1",
        "host": "testserver",
        "scheme": "http",
        "agent": "me",
        "cookie": None,
    }


def test_bodies_of_every_kind_reach_the_handler(client: TestClient) -> None:
    assert client.post("/echo", json={"a": [1]}).json() == {"a": [1]}
    form = client.post("/echo", data={"a": "1 2"})
    assert (form.text, form.headers["content-type"]) == (
        "a=1+2",
        "application/x-www-form-urlencoded",
    )
    files = client.post("/echo", files={"f": ("a.txt", b"content", "text/plain")})
    assert files.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert b'filename="a.txt"' in files.content and b"content" in files.content
    assert client.post("/echo", content=b"\x00" * 500_000).content == b"\x00" * 500_000
    chunks = client.post("/echo", content=iter([b"a" * 70_000, b"b" * 300_000]))
    assert chunks.content == b"a" * 70_000 + b"b" * 300_000


def test_cookies_are_kept_and_redirects_followed_on_request() -> None:
    with TestClient(make()) as client:
        client.get("/in")
        assert client.get("/hello").json()["cookie"] == "session=1"
        assert client.get("/old").status_code == 302
        followed = client.get("/old", follow_redirects=True)
        assert followed.json()["query"] == {"from": "old"}
        assert [one.status_code for one in followed.history] == [302]


def test_another_client_of_the_same_application_has_an_address_of_its_own() -> None:
    with TestClient(make(), address="2001:db8::1") as client:
        client.get("/in")
        with client.from_address("203.0.113.9") as other:
            seen = other.get("/hello").json()
            assert (seen["client"], seen["cookie"]) == ("203.0.113.9", None)
        seen = client.get("/hello").json()
        assert (seen["client"], seen["cookie"]) == ("2001:db8::1", "session=1")


def test_https_is_seen_as_such(client: TestClient) -> None:
    assert client.get("https://testserver/hello").json()["scheme"] == "https"


# what is an answer on the wire is one here


def test_refusals_of_the_protocol_are_the_real_ones() -> None:
    settings = {"server.max_body": 10, "server.max_headers": 8}
    with TestClient(make(), settings=settings) as client:
        large = client.post("/echo", content=b"a" * 11)
        assert (large.status_code, large.json()["code"]) == (413, "CONTENT_TOO_LARGE")
        assert client.get("/hello", headers={f"a{n}": "b" for n in range(9)}).status_code == 431
        assert client.get("/nowhere").status_code == 404
        assert client.delete("/echo").headers["allow"] == "OPTIONS, POST"
        assert client.head("/hello").content == b""
        with pytest.raises(httpx.LocalProtocolError):  # as by httpx on the wire
            client.get("/hello", headers={"X Y": "a"})


def test_admission_refuses_what_is_beyond_the_limit_and_counts_it() -> None:
    app = make()
    release = threading.Event()

    @app.get("/wait")
    async def wait(request: Request) -> str:
        await asyncio.to_thread(release.wait, 10)
        return "done"

    statuses: list[int] = []
    limits = {"server.max_ccu": 1, "server.utilization": 100, "server.max_connections": 2}
    with TestClient(app, settings=limits) as client:
        first = threading.Thread(target=lambda: statuses.append(client.get("/wait").status_code))
        first.start()
        eventually(lambda: app.metrics.snapshot().ccu == 1, "the first is in")
        refused = client.get("/hello")
        release.set()
        first.join(10)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["reason"] == "capacity"
        assert statuses == [200]
        now = app.metrics.snapshot()
        assert (now.offered, now.completed, now.ccu) == (2, 1, 0)
        assert now.shed["capacity"] == 1


def test_connections_are_kept_alive() -> None:
    app = make()
    with TestClient(app) as client:
        for _ in range(3):
            client.get("/hello")
        assert app.metrics.snapshot().connections == 1


def test_hooks_run_around_the_test() -> None:
    app = make()
    seen: list[str] = []
    app.on_startup(lambda: seen.append("start"))
    app.on_shutdown(lambda: seen.append("stop"))
    with TestClient(app) as client:
        assert seen == ["start"]
        assert client.get("/hello").status_code == 200
    assert seen == ["start", "stop"]
    with TestClient(app):  # and again, with another client
        assert seen == ["start", "stop", "start"]


def test_a_startup_hook_that_fails_fails_the_test() -> None:
    app = make()

    @app.on_startup
    def start() -> None:
        raise ZeroDivisionError("on purpose")

    with pytest.raises(ZeroDivisionError, match="on purpose"), TestClient(app):
        raise AssertionError("it must not get here")


def test_it_must_be_entered() -> None:
    client = TestClient(make())
    with pytest.raises(RuntimeError, match="with TestClient"):
        client.get("/hello")


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="must be greater than or equal to 1"):
        TestClient(make(), settings={"server.max_ccu": 0})
    with pytest.raises(ConfigError, match="no such setting"):
        TestClient(make(), settings={"server.max_cuc": 1})


def test_the_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXOR_MAX_BODY", "1")
    with TestClient(make()) as client:
        assert client.post("/echo", content=b"long").status_code == 200


def test_what_is_no_application_is_refused() -> None:
    with pytest.raises(TypeError, match="neither an App"):
        TestClient(3)


def test_an_asgi_application_is_served_too() -> None:
    api = FastAPI()

    @api.get("/items/{n}")
    async def item(n: int) -> dict[str, int]:
        return {"n": n}

    @api.get("/fails")
    async def fails() -> None:
        raise ZeroDivisionError("on purpose")

    with TestClient(api) as client:
        assert client.get("/items/3").json() == {"n": 3}
        assert client.get("/items/x").status_code == 422
        with pytest.raises(ZeroDivisionError):
            client.get("/fails")


# what handlers raise


@pytest.mark.parametrize("path", ["/fails", "/fails/now", "/fails/thread"])
def test_what_a_handler_raises_is_raised_in_the_test(client: TestClient, path: str) -> None:
    with pytest.raises(ZeroDivisionError, match="on purpose") as caught:
        client.get(path)
    assert caught.traceback[-1].name.startswith("fails")  # where it was raised
    assert client.get("/hello").status_code == 200  # and it goes on


def test_what_middleware_has_made_an_answer_is_raised_all_the_same() -> None:
    app = make()
    app.add_middleware(Recovery())
    with TestClient(app) as client, pytest.raises(ZeroDivisionError):
        client.get("/fails/now")


def test_an_error_on_purpose_is_an_answer(client: TestClient) -> None:
    answer = client.get("/missing")
    assert (answer.status_code, answer.json()["message"]) == (404, "no such thing")


def test_without_raising_there_is_the_answer_of_the_wire() -> None:
    with TestClient(make(), raise_server_exceptions=False) as client:
        answer = client.get("/fails")
        assert answer.status_code == 500
        assert set(answer.json()) == {"error", "message", "code"}
        with pytest.raises(httpx.RemoteProtocolError):
            client.get("/fails/late")


def test_what_breaks_an_answer_off_is_raised_where_it_is_read(client: TestClient) -> None:
    with pytest.raises(ZeroDivisionError), client.stream("GET", "/fails/late") as answer:
        assert answer.status_code == 200
        answer.read()


def test_what_nobody_awaited_is_raised_at_the_end() -> None:
    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})
            raise ZeroDivisionError("after the answer")
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    with pytest.raises(ZeroDivisionError, match="after the answer"), TestClient(asgi) as client:
        assert client.get("/").status_code == 204
        # its error may be known before the answer is read, or after
        client.get("/")


def test_failures_of_another_application_are_its_own(client: TestClient) -> None:
    with TestClient(make()) as other:
        with pytest.raises(ZeroDivisionError):
            client.get("/fails")
        assert other.get("/hello").status_code == 200


def test_an_error_that_is_logged_and_borne_is_none_of_the_request() -> None:
    app = App()

    @app.get("/")
    async def bears(request: Request) -> str:
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            logging.getLogger("fluxor_fast.db").exception("borne")
            logging.getLogger("mine").exception("borne")
        return "well"

    with TestClient(app) as client:
        assert client.get("/").text == "well"


def test_no_handler_of_the_log_is_left_over() -> None:
    before = list(logging.getLogger("fluxor_fast.server").handlers)
    with TestClient(make()) as client:
        assert logging.getLogger("fluxor_fast.server").handlers != before
        client.get("/hello")
    assert logging.getLogger("fluxor_fast.server").handlers == before


# streams


def test_events_are_read_as_they_come() -> None:
    app = App()
    gone = threading.Event()

    @app.get("/events")
    async def events(request: Request) -> EventStream:
        async def numbers() -> AsyncIterator[Event]:
            n = 0
            try:
                while True:  # as long as somebody listens
                    yield Event({"n": n}, event="number", id=str(n))
                    n += 1
                    await asyncio.sleep(0)
            finally:
                gone.set()

        return EventStream(numbers())

    with TestClient(app) as client:
        with connect_sse(client, "GET", "/events") as source:
            found = [event for event, _ in zip(source.iter_sse(), range(3), strict=False)]
        assert [(one.event, one.id, one.json()) for one in found] == [
            ("number", str(n), {"n": n}) for n in range(3)
        ]
        assert gone.wait(5), "the stream must end with its client"


def test_a_client_that_does_not_read_holds_the_answer_up() -> None:
    app = App()
    sent = 0

    @app.get("/")
    async def endless(request: Request) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            nonlocal sent
            while True:
                sent += 1
                yield b"a" * 10_000

        return StreamingResponse(pieces())

    with TestClient(app) as client, client.stream("GET", "/") as answer:
        piece = answer.iter_raw(5000)
        next(piece)
        eventually(lambda: sent > 6, "the buffer fills")
        time.sleep(0.02)  # more would come now
        assert sent < 30  # the buffer, and what the client has read ahead
        for _ in range(400):
            next(piece)
        eventually(lambda: sent > 150, "it goes on")


def test_a_body_may_be_sent_in_pieces_to_who_reads_it_so() -> None:
    app = App()
    sizes: list[int] = []

    @app.post("/", stream=True, max_body=10**9)
    async def upload(request: Request) -> dict[str, int]:
        sizes.extend([len(piece) async for piece in request.stream()])
        return {"size": sum(sizes)}

    with TestClient(app) as client:
        body = (b"a" * 100_000 for _ in range(30))
        assert client.post("/", content=body).json() == {"size": 3_000_000}
        assert len(sizes) > 1


# what hangs

BRIEF = httpx.Timeout(5, read=0.3)


def test_a_handler_that_waits_for_ever_fails_with_its_stack() -> None:
    app = App()

    @app.get("/")
    async def hangs(request: Request) -> None:
        await asyncio.Event().wait()

    with (
        TestClient(app, settings={"server.graceful_timeout": 0}) as client,
        pytest.raises(httpx.ReadTimeout) as caught,
    ):
        client.get("/", timeout=BRIEF)
    assert "no answer in time" in str(caught.value)
    assert "await asyncio.Event().wait()" in str(caught.value)
    assert "keep_sweeping" not in str(caught.value)  # that is ours


@pytest.mark.parametrize(
    ("blocking", "told"), [(False, "The loop is held up by"), (True, "A thread is at")]
)
def test_a_handler_that_hangs_fails_with_its_stack(blocking: bool, told: str) -> None:
    app = App()
    release = threading.Event()

    @app.get("/", blocking=blocking)
    def blocks(request: Request) -> None:
        release.wait(10)

    with TestClient(app) as client:
        with pytest.raises(httpx.ReadTimeout, match=told) as caught:
            client.get("/", timeout=BRIEF)
        assert "release.wait(10)" in str(caught.value)
        release.set()


@pytest.mark.parametrize("path", ["/wait", "/block"])
def test_a_startup_hook_that_hangs_fails_and_shows_where(path: str) -> None:
    app = App()
    release = threading.Event()

    @app.on_startup
    async def start() -> None:
        if path == "/block":
            release.wait(10)
        await asyncio.Event().wait()

    settings = {"server.boot_timeout": 0.05}
    with pytest.MonkeyPatch.context() as patch:
        if path == "/block":
            patch.setattr("fluxor_fast.testing.threaded.MARGIN", 0.3)
        with pytest.raises(TimeoutError) as caught, TestClient(app, settings=settings):
            raise AssertionError("it must not get here")
    release.set()
    shown = "".join(traceback.format_exception(caught.value))
    if path == "/block":
        assert "the application does not start" in shown and "release.wait(10)" in shown
    else:
        assert "the startup hooks take longer than 0.05 s" in shown
        assert "await asyncio.Event().wait()" in shown


def test_an_application_that_does_not_stop_fails_and_shows_where() -> None:
    app = App()
    release = threading.Event()

    @app.on_shutdown
    def stop() -> None:
        release.wait(10)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fluxor_fast.testing.threaded.MARGIN", 0.3)
        patch.setattr("fluxor_fast.testing.threaded.STOP_SECONDS", 0.0)
        limits = {"server.graceful_timeout": 0}
        client = TestClient(app, settings=limits)
        client.__enter__()
        with pytest.raises(TimeoutError, match="does not stop") as caught:
            client.__exit__()
        assert "release.wait(10)" in str(caught.value)
        # the failure of the test itself says more
        with pytest.raises(ZeroDivisionError), TestClient(app, settings=limits):
            raise ZeroDivisionError
    release.set()


def test_a_process_ends_though_a_blocking_handler_never_does(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import threading, httpx\nfrom fluxor_fast import App\n"
        "from fluxor_fast.testing import TestClient\n"
        "app = App()\n"
        "app.get('/', blocking=True)(lambda request: threading.Event().wait())\n"
        "try:\n"
        "    with TestClient(app, settings={'server.graceful_timeout': 0}) as client:\n"
        "        client.get('/', timeout=httpx.Timeout(5, read=0.3))\n"
        "except httpx.ReadTimeout:\n"
        "    print('told')\n"
    )
    done = subprocess.run([sys.executable, program], timeout=30, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("told\n", 0), done.stderr


# in the loop of the test


@in_loop
async def test_the_asynchronous_client_shares_the_loop_of_the_test() -> None:
    app = make()
    go = asyncio.Event()

    @app.get("/wait")
    async def wait(request: Request) -> str:
        await go.wait()
        return "gone on"

    async with AsyncClient(app) as client:
        waiting = asyncio.create_task(client.get("/wait"))
        assert (await client.get("/hello")).status_code == 200
        assert not waiting.done()
        go.set()
        assert (await waiting).text == "gone on"
        async with client.from_address("203.0.113.9") as other:
            assert (await other.get("/hello")).json()["client"] == "203.0.113.9"


@in_loop
async def test_what_a_handler_raises_is_raised_in_a_coroutine_too() -> None:
    async with AsyncClient(make()) as client:
        with pytest.raises(ZeroDivisionError):
            await client.get("/fails")
        with pytest.raises(ZeroDivisionError):
            await client.get("/fails/late")
        assert (await client.get("/hello")).status_code == 200


@in_loop
async def test_a_coroutine_that_waits_for_ever_fails_with_its_stack() -> None:
    app = App()

    @app.get("/")
    async def hangs(request: Request) -> None:
        await asyncio.Event().wait()

    async with AsyncClient(app, settings={"server.graceful_timeout": 0}) as client:
        with pytest.raises(httpx.ReadTimeout, match=r"await asyncio.Event\(\).wait\(\)"):
            await client.get("/", timeout=BRIEF)


@in_loop
async def test_context_of_the_test_does_not_reach_handlers_but_that_of_hooks_does() -> None:
    app = make()
    async with AsyncClient(app) as client:
        FIELD.set("of the test")
        assert (await client.get("/context")).text == "unset"
    app.on_startup(lambda: FIELD.set("of a hook") and None)  # type: ignore[func-returns-value]
    async with AsyncClient(app) as client:
        assert (await client.get("/context")).text == "of a hook"


@in_loop
async def test_many_requests_at_once_leave_nothing_behind() -> None:
    app = make()
    async with AsyncClient(app) as client:
        answers = await asyncio.gather(*(client.get("/hello") for _ in range(100)))
        assert {one.status_code for one in answers} == {200}
        now = app.metrics.snapshot()
        assert (now.ccu, now.offered) == (0, 100)
