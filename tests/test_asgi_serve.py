"""ASGI applications served as an ``App``, over real connections of a real protocol.

``serving`` ends every test with the same question: are all shared words 0, and do the counters
add up?
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from fluxor_fast.asgi.serve import AsgiApp, is_asgi
from fluxor_fast.errors import BootError
from fluxor_fast.server.heads import Limits
from tests.support.inprocess import Client, head, in_loop, post, serving, until
from tests.support.seeds import cut, seeded

OK = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
END = {"type": "http.response.body", "body": b"done"}


def raw(*messages: dict[str, Any], before: Any = None) -> AsgiApp:
    """Return an application that sends these messages to whoever asks."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    return AsgiApp(application)


async def chunks(client: Client) -> tuple[bytes, bytes, bool]:
    """Return head and body of a chunked answer, and whether it was complete."""
    while b"\r\n\r\n" not in client.buffer:
        assert await client._more()
    top, _, client.buffer = client.buffer.partition(b"\r\n\r\n")
    body = b""
    while True:
        while b"\r\n" not in client.buffer:
            if not await client._more():
                return top, body, False
        size, _, client.buffer = client.buffer.partition(b"\r\n")
        wanted = int(size, 16) + 2
        while len(client.buffer) < wanted:
            if not await client._more():
                return top, body, False
        piece, client.buffer = client.buffer[: wanted - 2], client.buffer[wanted:]
        if not piece:
            return top, body, True
        body += piece


# what Starlette's users rely on


class Stage:
    def __init__(self) -> None:
        self.log: list[Any] = []
        self.gate = asyncio.Event()


def starlette(stage: Stage, **options: Any) -> AsgiApp:
    async def home(request: Request) -> Response:
        return JSONResponse({"path": request.url.path, "query": request.url.query})

    async def item(request: Request) -> Response:
        return PlainTextResponse(f"{request.path_params['name']}")

    def threaded(request: Request) -> Response:
        return PlainTextResponse("from a thread")

    async def echo(request: Request) -> Response:
        return Response(await request.body(), media_type="application/octet-stream")

    async def count(request: Request) -> Response:
        pieces = [piece async for piece in request.stream()]
        return PlainTextResponse(str(sum(map(len, pieces))))

    async def numbers() -> AsyncIterator[bytes]:
        for number in range(3):
            yield b"%d," % number

    async def stream(request: Request) -> Response:
        return StreamingResponse(numbers())

    async def forever() -> AsyncIterator[bytes]:
        try:
            while True:
                stage.log.append("piece")
                yield b"x" * 16 * 1024
        finally:
            stage.log.append("closed")

    async def endless(request: Request) -> Response:
        return StreamingResponse(forever())

    async def broken() -> AsyncIterator[bytes]:
        yield b"good"
        raise RuntimeError("secret detail")

    async def breaks(request: Request) -> Response:
        return StreamingResponse(broken())

    async def boom(request: Request) -> Response:
        raise RuntimeError("secret detail")

    async def later() -> None:
        stage.log.append("began")
        await stage.gate.wait()
        stage.log.append("ended")

    async def background(request: Request) -> Response:
        return PlainTextResponse("answered", background=BackgroundTask(later))

    async def state(request: Request) -> Response:
        request.state.own = True
        return JSONResponse({"value": request.state.value})

    async def waits(request: Request) -> Response:
        stage.log.append("waits")
        while not await request.is_disconnected():
            await asyncio.sleep(0.001)
        stage.log.append("disconnected")
        return PlainTextResponse("to nobody")

    async def client(request: Request) -> Response:
        assert request.client is not None
        return JSONResponse([request.client.host, request.client.port, request.url.scheme])

    return AsgiApp(
        Starlette(
            routes=[
                Route("/", home),
                Route("/items/{name}", item, methods=["GET", "DELETE", "PURGE"]),
                Route("/threaded", threaded),
                Route("/echo", echo, methods=["POST"]),
                Route("/count", count, methods=["POST"]),
                Route("/stream", stream),
                Route("/endless", endless),
                Route("/breaks", breaks),
                Route("/boom", boom),
                Route("/background", background),
                Route("/state", state),
                Route("/waits", waits),
                Route("/client", client),
            ],
            **options,
        )
    )


@in_loop
async def test_routing_is_the_applications() -> None:
    async with serving(starlette(Stage())) as server:
        client = await server.connect()
        answer = await client.get("/?a=%20b")
        assert answer.json() == {"path": "/", "query": "a=%20b"}
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-request-id"].startswith("0123456789abcdef")
        assert "date" in answer.headers
        assert (await client.get("/items/a%20%C3%BC")).body.decode() == "a ü"
        assert (await client.get("/items/x", method="DELETE")).body == b"x"
        assert (await client.get("/items/x", method="PURGE")).body == b"x"
        assert (await client.get("/items/x", method="POST")).status == 405
        assert (await client.get("/nothing")).status == 404
        assert (await client.get("/threaded")).body == b"from a thread"


@in_loop
async def test_head_has_the_fields_of_get_and_no_body() -> None:
    async with serving(starlette(Stage())) as server:
        client = await server.connect()
        answer = await client.get("/items/abc", method="HEAD")
        assert (answer.status, answer.headers["content-length"], answer.body) == (200, "3", b"")
        await client.send(head("/stream", method="HEAD"))
        assert (await client.answer(head=True)).status == 200
        assert (await client.get("/items/x")).body == b"x"  # nothing was left on the wire


@in_loop
async def test_bodies_come_whole_however_they_were_cut() -> None:
    random = seeded("asgi bodies")
    async with serving(starlette(Stage())) as server:
        client = await server.connect()
        for size in (0, 1, 1000, 70_000, 300_000):
            body = random.randbytes(size)
            await client.send_pieces(cut(post("/echo", body), random))
            assert (await client.answer()).body == body
        await client.send(head("/count", "Transfer-Encoding: chunked", method="POST"))
        await client.send(b"5\r\nhello\r\n3\r\nabc\r\n0\r\n\r\n")
        assert (await client.answer()).body == b"8"


@in_loop
async def test_a_body_is_asked_for_when_the_application_wants_it() -> None:
    async with serving(starlette(Stage())) as server:
        client = await server.connect()
        fields = ("Expect: 100-continue", "Content-Length: 3")
        await client.send(head("/echo", *fields, method="POST"))
        await client.interim_answer()
        await client.send(b"abc")
        assert (await client.answer()).body == b"abc"


@in_loop
async def test_a_body_that_is_too_long_is_413_and_not_the_applications_500() -> None:
    async with serving(starlette(Stage()), limits=Limits(body=1000)) as server:
        client = await server.connect()
        await client.send(head("/echo", "Transfer-Encoding: chunked", method="POST"))
        await client.send(b"3e8\r\n" + b"x" * 1000 + b"\r\n5\r\nhello\r\n")
        answer = await client.answer()
        assert (answer.status, answer.json()["code"]) == (413, "CONTENT_TOO_LARGE")
        assert await client.at_end()


@in_loop
async def test_an_answer_in_pieces_leaves_in_chunks() -> None:
    async with serving(starlette(Stage())) as server:
        client = await server.connect()
        await client.send(head("/stream"))
        top, body, complete = await chunks(client)
        assert (body, complete) == (b"0,1,2,", True)
        assert b"Transfer-Encoding: chunked" in top
        assert (await client.get("/")).status == 200


@in_loop
async def test_pipelined_answers_keep_their_order() -> None:
    async with serving(starlette(Stage())) as server:
        client = await server.connect()
        await client.send(head("/stream") + head("/threaded") + head("/items/last"))
        assert (await chunks(client))[1:] == (b"0,1,2,", True)
        assert (await client.answer()).body == b"from a thread"
        assert (await client.answer()).body == b"last"


@in_loop
async def test_a_slow_reader_holds_up_the_application_and_going_away_ends_it() -> None:
    stage = Stage()
    async with serving(starlette(stage)) as server:
        client = await server.connect(receive_buffer=4096)
        await client.send(head("/endless"))
        await until(lambda: "piece" in stage.log, "it writes")
        while True:
            before = len(stage.log)
            await asyncio.sleep(0.05)
            if len(stage.log) == before:
                break
        assert before * 16 * 1024 < 16 * 2**20, "it wrote without regard to the reader"
        assert server.permits == 1
        client.reset()
        await until(lambda: stage.log[-1] == "closed", "the generator is closed")


@in_loop
async def test_an_exception_is_500_without_its_text_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(starlette(Stage())) as server:
        client = await server.connect()
        answer = await client.get("/boom")
        assert answer.status == 500
        assert b"secret" not in answer.body and b"Traceback" not in answer.body
        assert "RuntimeError: secret detail" in caplog.text
        await client.send(head("/breaks"))
        assert (await chunks(client))[1:] == (b"good", False)  # never looks complete


@in_loop
async def test_background_tasks_run_after_the_answer_and_keep_a_slot() -> None:
    stage = Stage()
    async with serving(starlette(stage), slots=2) as server:
        client = await server.connect()
        assert (await client.get("/background")).body == b"answered"
        await until(lambda: stage.log == ["began"], "it begins")
        assert (await client.get("/items/x")).body == b"x"  # the connection is free
        assert server.runner.slots.total() == 1
        assert server.permits == 0
        stage.gate.set()
        await until(lambda: stage.log == ["began", "ended"], "it ends")


@in_loop
async def test_who_waits_for_a_disconnect_is_told() -> None:
    stage = Stage()
    async with serving(starlette(stage)) as server:
        client = await server.connect()
        await client.send(head("/waits"))
        await until(lambda: stage.log == ["waits"], "it waits")
        client.reset()
        await until(lambda: stage.log == ["waits", "disconnected"], "it is told")


@in_loop
async def test_an_upload_that_breaks_off_is_a_disconnect() -> None:
    seen: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        try:
            await Request(scope, receive).body()
        except ClientDisconnect:
            seen.append("disconnect")

    async with serving(AsgiApp(application)) as server:
        client = await server.connect()
        await client.send(post("/", b"x" * 100)[:-50])
        await until(lambda: server.runner.busy, "it is handled")
        client.reset()
        await until(lambda: seen, "it is told")


@in_loop
async def test_middleware_that_starts_tasks_works() -> None:
    async def add(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["X-Added"] = "yes"
        return response

    app = starlette(Stage(), middleware=[Middleware(BaseHTTPMiddleware, dispatch=add)])
    async with serving(app) as server:
        client = await server.connect()
        await client.send(head("/items/x") + post("/echo", b"abc"))
        for body in (b"x", b"abc"):
            answer = await client.answer()
            assert (answer.body, answer.headers["x-added"]) == (body, "yes")


@in_loop
async def test_the_client_is_who_a_trusted_proxy_says() -> None:
    async with serving(starlette(Stage()), trusted_proxies=("127.0.0.0/8",)) as server:
        client = await server.connect()
        assert (await client.get("/client")).json() == ["127.0.0.1", client.port, "http"]
        said = ("X-Forwarded-For: 192.0.2.7", "X-Forwarded-Proto: https")
        assert (await client.get("/client", *said)).json() == ["192.0.2.7", 0, "https"]
    async with serving(starlette(Stage())) as server:
        client = await server.connect()
        assert (await client.get("/client", *said)).json() == ["127.0.0.1", client.port, "http"]


# the life of an application


@in_loop
async def test_the_state_of_the_lifespan_is_each_requests_own_copy() -> None:
    log: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
        log.append("started")
        yield {"value": 42}
        log.append("stopped")

    app = starlette(Stage(), lifespan=lifespan)
    await app.start()
    async with serving(app) as server:
        client = await server.connect()
        for _ in range(2):
            assert (await client.get("/state")).json() == {"value": 42}
    assert app._lifespan.state == {"value": 42}
    await app.stop()
    assert log == ["started", "stopped"]


@in_loop
async def test_an_application_that_cannot_start_is_a_boot_error() -> None:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        raise RuntimeError("no database")
        yield

    with pytest.raises(BootError, match="no database"):
        await starlette(Stage(), lifespan=lifespan).start()


@in_loop
async def test_an_application_without_a_lifespan_is_served() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        assert "state" not in scope
        await send(OK)
        await send(END)

    app = AsgiApp(application)
    await app.start()
    async with serving(app) as server:
        assert (await (await server.connect()).get("/")).body == b"done"
    await app.stop()


# applications that break the protocol


@in_loop
async def test_a_start_that_was_refused_can_be_followed_by_another() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(ValueError, match="not a header"):
            await send({**OK, "headers": [(b"a", b"c\r\nd: e")]})
        await send(OK)
        await send(END)

    async with serving(AsgiApp(application)) as server:
        assert (await (await server.connect()).get("/")).body == b"done"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ((), "without a complete answer"),
        ((OK,), "without a complete answer"),
        ((OK, OK), "a second time"),
        ((END,), "before http.response.start"),
        (({"type": "websocket.accept"},), "has no place here"),
        (({**OK, "status": 99}, END), "not a status"),
        (({**OK, "headers": [(b"a\r\nb", b"c")]}, END), "not a header"),
        (({**OK, "headers": [(b"a", b"c\r\nd: e")]}, END), "not a header"),
        (({**OK, "headers": [(b"content-length", b"3")]}, END), "not its length"),
        (({**OK, "headers": [(b"content-length", b"x")]}, END), "not a length"),
    ],
)
@in_loop
async def test_who_breaks_the_protocol_before_the_answer_gets_500_and_a_log_line(
    messages: tuple[Any, ...], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(raw(*messages)) as server:
        client = await server.connect()
        answer = await client.get("/")
        assert (answer.status, answer.json()["error"]) == (500, "internal_server_error")
        assert (await client.get("/")).status == 500  # the connection goes on
    assert said in caplog.text


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ((OK, {**END, "more_body": True}), "without a complete answer"),
        ((OK, {**END, "more_body": True}, OK), "a second time"),
        (
            ({**OK, "headers": [(b"content-length", b"9")]}, {**END, "more_body": True},
             {**END, "more_body": False}),
            "shorter than its length",
        ),
        (
            ({**OK, "headers": [(b"content-length", b"5")]}, {**END, "more_body": True},
             {**END, "more_body": False}),
            "longer than its length",
        ),
    ],
)  # fmt: skip
@in_loop
async def test_who_breaks_the_protocol_in_the_answer_loses_the_connection(
    messages: tuple[Any, ...], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(raw(*messages)) as server:
        client = await server.connect()
        await client.send(head("/"))
        await until(lambda: not server.service.open, "the connection ends")
        await until(lambda: said in caplog.text, "it is logged")


@in_loop
async def test_a_message_after_the_end_is_logged_and_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(raw(OK, END, END)) as server:
        client = await server.connect()
        assert (await client.get("/")).body == b"done"
        assert (await client.get("/")).body == b"done"
    assert "after the end of the answer" in caplog.text


@in_loop
async def test_framing_is_the_servers() -> None:
    fields = [
        (b"date", b"yesterday"), (b"transfer-encoding", b"chunked"), (b"connection", b"close"),
        (b"X-Request-ID", b"mine"), (b"set-cookie", b"a=b"), (b"set-cookie", b"c=d"),
    ]  # fmt: skip
    async with serving(raw({**OK, "headers": fields}, END)) as server:
        client = await server.connect()
        await client.send(head("/"))
        while await client._more():
            pass
        top, _, body = client.buffer.partition(b"\r\n\r\n")
        assert body == b"done"
        assert b"chunked" not in top and b"yesterday" not in top
        assert top.count(b"set-cookie: ") == 2
        assert b"X-Request-ID: mine" in top and b"Connection: close" in top


@in_loop
async def test_an_answer_without_a_body_has_no_length() -> None:
    async with serving(raw({**OK, "status": 204}, {**END, "body": b""})) as server:
        client = await server.connect()
        answer = await client.get("/")
        assert (answer.status, answer.headers.get("content-length")) == (204, None)
        assert (await client.get("/")).status == 204


def test_what_is_an_asgi_application() -> None:
    async def function(scope: Any, receive: Any, send: Any) -> None: ...

    async def handler(request: Any) -> None: ...

    assert is_asgi(function)
    assert is_asgi(Starlette())
    for other in (handler, Starlette, lambda scope, receive, send: None, {}, 3):
        assert not is_asgi(other)


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
