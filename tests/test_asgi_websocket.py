"""WebSockets of ASGI applications, over real connections of a real protocol.

``serving`` ends every test with the same question: are all shared words 0, and do the counters
add up?
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from fluxor_fast.arbiter.shared import Word
from fluxor_fast.asgi import websocket
from fluxor_fast.asgi.serve import AsgiApp
from fluxor_fast.config import Settings, TlsSettings
from fluxor_fast.middleware.access_log import AccessLog
from fluxor_fast.observability.metrics import InstanceMetrics
from fluxor_fast.server.common import Timeouts
from fluxor_fast.server.tls import Certificates
from tests.support.certificates import Authority
from tests.support.frames import frame
from tests.support.inprocess import Client, Server, head, in_loop, serving, turns, until
from tests.support.seeds import cut, seeded, single

KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
OFFER = ("Connection: Upgrade", "Upgrade: websocket", KEY, "Sec-WebSocket-Version: 13")


class Stage:
    """An application, and what happened to it."""

    def __init__(self, **server: Any) -> None:
        self.log: list[Any] = []
        self.gate = asyncio.Event()
        self.app = AsgiApp(
            Starlette(
                routes=[
                    WebSocketRoute("/echo", self.echo),
                    WebSocketRoute("/greet", self.greet),
                    WebSocketRoute("/flood", self.flood),
                    WebSocketRoute("/deaf", self.deaf),
                    WebSocketRoute("/note", self.note),
                    WebSocketRoute("/boom", self.boom),
                    WebSocketRoute("/returns", self.returns),
                    WebSocketRoute("/late", self.late),
                    WebSocketRoute("/deny", self.deny),
                    WebSocketRoute("/deny/stream", self.deny_in_pieces),
                    Route("/", lambda request: PlainTextResponse("http")),
                ]
            )
        )
        self.app.settings = Settings(server=server)

    async def echo(self, socket: WebSocket) -> None:
        await socket.accept()
        try:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    self.log.append((message["code"], message["reason"]))
                    return
                if message.get("text") is not None:
                    await socket.send_text(message["text"])
                else:
                    await socket.send_bytes(message["bytes"])
        except WebSocketDisconnect as error:
            self.log.append(("send", error.code))

    async def greet(self, socket: WebSocket) -> None:
        self.log.append((socket["subprotocols"], socket.url.scheme, socket.query_params.get("q")))
        await socket.accept("b", headers=[(b"x-greeting", b"hello"), (b"x-request-id", b"mine")])
        await socket.send_text("welcome")
        await socket.close(3001, "enough")

    async def flood(self, socket: WebSocket) -> None:
        await socket.accept()
        try:
            while True:
                await socket.send_bytes(b"x" * 16 * 1024)
                self.log.append("sent")
        except WebSocketDisconnect:
            self.log.append("told")

    async def deaf(self, socket: WebSocket) -> None:
        await socket.accept()
        await self.gate.wait()
        async for text in socket.iter_text():
            self.log.append(text)

    async def note(self, socket: WebSocket) -> None:
        await socket.accept()
        while (message := await socket.receive())["type"] == "websocket.receive":
            self.log.append(message.get("text") or message.get("bytes"))
        self.log.append((message["code"], message["reason"]))

    async def boom(self, socket: WebSocket) -> None:
        await socket.accept()
        raise RuntimeError("secret detail")

    async def returns(self, socket: WebSocket) -> None:
        await socket.accept()

    async def late(self, socket: WebSocket) -> None:
        await self.gate.wait()
        await socket.accept()
        self.log.append((await socket.receive())["type"])

    async def deny(self, socket: WebSocket) -> None:
        await socket.send_denial_response(JSONResponse({"why": "no"}, 418))

    async def deny_in_pieces(self, socket: WebSocket) -> None:
        async def pieces() -> Any:
            for number in range(3):
                yield b"%d," % number

        await socket.send_denial_response(StreamingResponse(pieces(), 401))


def raw(*messages: dict[str, Any]) -> AsgiApp:
    """Return an application that sends these messages to whoever asks."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    return AsgiApp(application)


ACCEPT = {"type": "websocket.accept"}


def dial(server: Server, path: str = "/echo", **options: Any) -> Any:
    options.setdefault("compression", None)
    return connect(f"ws://127.0.0.1:{server.port}{path}", **options)


BYE = frame(Opcode.CLOSE, b"\x03\xe8")


async def opened(client: Client, path: str = "/echo", *, behind: bytes = b"") -> bytes:
    """Ask for a WebSocket; return the head of the answer."""
    await client.send(head(path, *OFFER) + behind)
    return await head_of(client)


async def head_of(client: Client) -> bytes:
    while b"\r\n\r\n" not in client.buffer:
        assert await client._more()
    top, _, client.buffer = client.buffer.partition(b"\r\n\r\n")
    return top


async def until_something(client: Client) -> None:
    while not client.buffer:
        assert await client._more()


async def frames(client: Client) -> list[tuple[int, bytes]]:
    """Return all frames up to the end of the stream: first byte, and data."""
    try:
        while await client._more():
            pass
    except ConnectionResetError:
        pass
    data, found = client.buffer, []
    while data:
        length, at = data[1], 2
        if length >= 126:
            size = 2 if length == 126 else 8
            length, at = int.from_bytes(data[2 : 2 + size], "big"), 2 + size
        found.append((data[0], data[at : at + length]))
        data = data[at + length :]
    return found


def open_sockets(server: Server) -> int:
    return server.memory.region(0)[Word.WEBSOCKETS]


# the handshake


@in_loop
async def test_messages_come_back_and_it_closes_both_ways() -> None:
    stage = Stage()
    async with serving(stage.app) as server:
        async with dial(server) as client:
            for message in ("grüße", "", b"\x00\xff", b"", "x" * 100_000):
                await client.send(message)
                assert await client.recv() == message
            assert open_sockets(server) == 1
            metrics = InstanceMetrics(server.memory, stage.app.settings.server.capacity)
            assert b"\nhttp_websockets 1.0\n" in metrics.prometheus()
            assert server.permits == 1
            assert server.memory.slots.tolist() == [0, 0]
            assert await asyncio.wait_for(await client.ping(), 5) < 5
            await client.close(3000, "done")
        await until(lambda: stage.log, "the application is told")
        assert stage.log == [(3000, "done")]
        await until(lambda: server.counters()["completed"] == 1, "it is counted")
        assert open_sockets(server) == 0


@in_loop
async def test_the_application_closes() -> None:
    stage = Stage()
    async with serving(stage.app) as server:
        async with dial(server, "/greet?q=1", subprotocols=["a", "b"]) as client:
            assert client.subprotocol == "b"
            assert client.response.headers["x-greeting"] == "hello"
            assert client.response.headers.get_all("x-request-id") == ["mine"]
            assert client.response.headers["Date"]
            assert await client.recv() == "welcome"
            with pytest.raises(ConnectionClosed) as caught:
                await client.recv()
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (3001, "enough")
        assert stage.log == [(["a", "b"], "ws", "1")]
        await until(lambda: server.counters()["completed"] == 1, "it is counted")


@in_loop
async def test_an_application_that_returns_closes_and_one_that_fails_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = Stage()
    async with serving(stage.app) as server:
        for path, code in (("/returns", 1000), ("/boom", 1011)):
            async with dial(server, path) as client:
                with pytest.raises(ConnectionClosed) as caught:
                    await client.recv()
            assert caught.value.rcvd is not None and caught.value.rcvd.code == code
            assert "secret" not in caught.value.rcvd.reason
    (record,) = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert "/boom" in record.getMessage() and record.exc_info


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/nowhere", 403, b'"message":"the WebSocket is refused"'),
        ("/deny", 418, b'{"why":"no"}'),
        ("/deny/stream", 401, b"0,1,2,"),
    ],
)
@in_loop
async def test_the_application_refuses(path: str, status: int, body: bytes) -> None:
    async with serving(Stage().app) as server:
        with pytest.raises(InvalidStatus) as caught:
            await dial(server, path)
        assert caught.value.response.status_code == status
        assert body in caught.value.response.body
        assert open_sockets(server) == 0


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"type": "websocket.send", "text": "too soon"}],
        [{"type": "http.response.start", "status": 200}],
        [{**ACCEPT, "headers": [(b"sec-websocket-accept", b"x")]}],
        [{**ACCEPT, "headers": [(b"x", b"a\r\nb: c")]}],
        [{**ACCEPT, "subprotocol": "a\r\nb: c"}],
    ],
)
@in_loop
async def test_an_application_that_breaks_the_protocol_before_is_a_500(
    messages: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(raw(*messages)) as server:
        client = await server.connect()
        await client.send(head("/", *OFFER))
        answer = await client.answer()
        assert answer.status == 500 and answer.headers["connection"] == "close"
        assert await client.at_end()
    assert caplog.records


@pytest.mark.parametrize(
    "messages",
    [
        [ACCEPT, ACCEPT],
        [ACCEPT, {"type": "websocket.send"}],
        [ACCEPT, {"type": "websocket.close", "code": 1005}],
    ],
)
@in_loop
async def test_an_application_that_breaks_the_protocol_after_is_a_1011(
    messages: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(raw(*messages)) as server:
        client = await server.connect()
        await opened(client)
        await until_something(client)
        await client.send(BYE)
        assert (await frames(client))[-1] == (0x88, b"\x03\xf3")
    assert caplog.records


@pytest.mark.parametrize(
    ("status", "lines", "method", "body"),
    [
        (400, (*OFFER[:2], OFFER[3]), "GET", b""),
        (426, (*OFFER[:3], "Sec-WebSocket-Version: 8"), "GET", b""),
        (400, OFFER, "PUT", b""),
        (400, (*OFFER, "Content-Length: 5"), "GET", b"a" * 5),
        (400, (*OFFER, "Transfer-Encoding: chunked"), "GET", b"1\r\na\r\n0\r\n\r\n"),
    ],
)
@in_loop
async def test_nothing_behind_a_failed_handshake_is_read_as_a_request(
    status: int, lines: tuple[str, ...], method: str, body: bytes
) -> None:
    stage = Stage()
    async with serving(stage.app) as server:
        client = await server.connect()
        await client.send(head("/echo", *lines, method=method) + body + head("/smuggled"))
        answer = await client.answer()
        assert answer.status == status and answer.headers["connection"] == "close"
        assert "message" in answer.json()
        assert answer.headers.get("sec-websocket-version") == ("13" if status == 426 else None)
        assert await client.at_end()
        assert server.counters()["offered"] == 1


@in_loop
async def test_nothing_behind_a_refused_or_accepted_one_is_read_as_a_request() -> None:
    stage = Stage()
    async with serving(stage.app) as server:
        client = await server.connect()
        await client.send(head("/deny", *OFFER) + head("/"))
        assert (await client.answer()).status == 418
        assert await client.at_end()
        client = await server.connect()
        assert (await opened(client, behind=head("/"))).startswith(b"HTTP/1.1 101 ")
        assert [data[:2] for _, data in await frames(client)] == [b"\x03\xea"]  # 1002
        assert server.counters()["offered"] == 2


@in_loop
async def test_an_offer_in_http_1_0_and_one_of_another_protocol_are_ignored() -> None:
    async with serving(Stage().app) as server:
        client = await server.connect()
        old = head("/", *OFFER[1:], "Connection: Upgrade, keep-alive")
        for offer in (
            old.replace(b"HTTP/1.1", b"HTTP/1.0"),
            head("/", "Connection: Upgrade", "Upgrade: h2c"),
            head("/", *OFFER[1:]),
        ):
            await client.send(offer)
            assert (await client.answer()).body == b"http"


@in_loop
async def test_an_offer_pipelined_behind_a_request_is_refused_behind_its_answer() -> None:
    async with serving(Stage().app) as server:
        client = await server.connect()
        await client.send(head("/") + head("/echo", *OFFER))
        assert [one.status for one in await client.rest()] == [200, 400]
        client = await server.connect()
        assert (await client.get("/")).status == 200
        await opened(client, behind=BYE)
        assert await frames(client) == [(0x88, b"\x03\xe8")]


@in_loop
async def test_without_the_library_the_client_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(Stage().app) as server:
        monkeypatch.delitem(sys.modules, "fluxor_fast.asgi.websocket")
        monkeypatch.delitem(sys.modules, "fluxor_fast.asgi.wire", raising=False)
        monkeypatch.setitem(sys.modules, "websockets.datastructures", None)
        client = await server.connect()
        await client.send(head("/echo", *OFFER))
        answer = await client.answer()
        assert answer.status == 501 and answer.json()["message"]
        client = await server.connect()
        assert (await client.get("/")).body == b"http"


# bytes


@in_loop
async def test_a_conversation_is_the_same_however_its_bytes_are_cut() -> None:
    stage = Stage()
    talk = b"".join(
        [
            frame(Opcode.TEXT, b"one"),
            frame(Opcode.TEXT, b"tw", fin=False),
            frame(Opcode.PING, b"?"),
            frame(Opcode.CONT, b"o"),
            frame(Opcode.BINARY, b"three"),
            BYE,
        ]
    )
    stream = head("/note", *OFFER) + talk
    rng = seeded("cuts of a WebSocket")
    async with serving(stage.app) as server:
        for pieces in [
            [stream],
            single(stream),
            [stream[: -len(talk)], talk],
            *(cut(stream, rng, rng.randint(2, 12)) for _ in range(40)),
        ]:
            client = await server.connect()
            await client.send_pieces(pieces)
            assert (await head_of(client)).startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
            assert await frames(client) == [(0x8A, b"?"), (0x88, b"\x03\xe8")]
            await until(lambda: len(stage.log) == 4, "the application is told")
            assert stage.log == ["one", "two", b"three", (1000, "")]
            stage.log.clear()
            client.close()


@pytest.mark.parametrize(
    ("code", "stream"),
    [
        (1002, Frame(Opcode.TEXT, b"no mask").serialize(mask=False)),
        (1007, frame(Opcode.TEXT, b"\xff")),
        (1009, frame(Opcode.BINARY, b"x" * 2000)),
    ],
)
@in_loop
async def test_a_client_that_breaks_the_protocol_is_told_and_so_is_the_application(
    code: int, stream: bytes
) -> None:
    stage = Stage(websocket_max_message=1000)
    async with serving(stage.app) as server:
        client = await server.connect()
        await opened(client, "/note", behind=frame(Opcode.TEXT, b"good") + stream)
        await client.send(b"x" * 1000)  # is not read
        *_, (opcode, data) = await frames(client)
        assert opcode == 0x88 and int.from_bytes(data[:2], "big") == code
        await until(lambda: len(stage.log) == 2, "the application is told")
        assert stage.log[0] == "good" and stage.log[1][0] == code


@in_loop
async def test_compression_by_choice() -> None:
    stage = Stage(websocket_compression=True)
    async with serving(stage.app) as server, dial(server, compression="deflate") as client:
        assert "permessage-deflate" in client.response.headers["Sec-WebSocket-Extensions"]
        for _ in range(3):
            await client.send("x" * 100_000)
            assert await client.recv() == "x" * 100_000
    async with serving(Stage().app) as server, dial(server, compression="deflate") as client:
        assert "Sec-WebSocket-Extensions" not in client.response.headers


# back-pressure


@in_loop
async def test_an_application_that_floods_waits_for_a_slow_reader_and_lets_others_run() -> None:
    stage = Stage()
    async with serving(stage.app) as server:
        client, protocol = await server.pair(receive_buffer=4096)
        await client.send(head("/flood", *OFFER))
        await until(lambda: protocol.write_paused, "the buffers are full")
        other = await server.connect()
        assert (await other.get("/")).body == b"http"
        sent = len(stage.log)
        held = protocol.transport.get_write_buffer_size()
        await turns()
        assert len(stage.log) == sent
        assert held < 64 * 1024 + 65 * 16 * 1024
        while len(stage.log) < sent + 20:
            client.read_some()
            client.buffer = b""
            await asyncio.sleep(0)
        client.reset()
        await until(lambda: stage.log[-1] == "told", "send fails")


@in_loop
async def test_what_the_application_does_not_take_stays_in_the_kernel() -> None:
    stage = Stage()
    async with serving(stage.app) as server:
        client, protocol = await server.pair()
        await opened(client, "/deaf")
        message = frame(Opcode.TEXT, b"x" * 1000)
        sent = 0
        with pytest.raises(TimeoutError):
            while True:
                # before it pauses, a while is only the machine's
                async with asyncio.timeout(0.5 if protocol.paused else 10):
                    await asyncio.get_running_loop().sock_sendall(client.sock, message)
                    sent += 1
        assert protocol.paused
        assert sent > 200
        server.check(3600)  # what cannot be heard is not held against it
        await turns()
        assert not protocol.closed
        stage.gate.set()
        await until(lambda: len(stage.log) >= sent, "all of it is taken")
        assert set(stage.log) == {"x" * 1000}


@in_loop
async def test_many_tiny_messages_let_others_run() -> None:
    stage = Stage()
    async with serving(stage.app) as server:
        client, other = await server.connect(), await server.connect()
        await opened(client, "/deaf")
        stage.gate.set()
        await client.send(frame(Opcode.TEXT, b"") * 20_000)
        assert (await other.get("/")).body == b"http"
        before = len(stage.log)
        await until(lambda: len(stage.log) == 20_000, "all of them come")
        assert before < 20_000


@in_loop
async def test_a_client_that_does_not_read_is_dropped_after_the_write_timeout() -> None:
    stage = Stage()
    times = Timeouts(head=10, body=30, keep_alive=75, write=30)
    async with serving(stage.app, timeouts=times) as server:
        client, protocol = await server.pair(receive_buffer=4096)
        await client.send(head("/flood", *OFFER))
        await until(lambda: protocol.write_paused, "the buffers are full")
        server.check(31)
        await until(lambda: stage.log[-1] == "told", "it is dropped")


# time


@in_loop
async def test_the_time_limits_of_http_do_not_end_it() -> None:
    stage = Stage(websocket_ping_interval=0)
    times = Timeouts(head=10, body=30, keep_alive=75, write=30, age=100)
    async with (
        serving(stage.app, timeouts=times) as server,
        dial(server, ping_interval=None) as client,
    ):
        for _ in range(5):
            server.check(1000)
        await client.send("still")
        assert await client.recv() == "still"


@in_loop
async def test_a_client_that_answers_pings_is_kept_and_one_that_vanished_is_dropped() -> None:
    stage = Stage(websocket_ping_interval=20, websocket_ping_timeout=10)
    async with serving(stage.app) as server:
        client, protocol = await server.pair()
        await opened(client)
        server.check(19)
        assert await client.silent()
        server.check(1)
        await until_something(client)
        assert client.buffer == b"\x89\x00"
        server.check(10)
        await client.send(frame(Opcode.PONG))
        await until(lambda: not protocol.streams[0]._pinged, "the pong is heard")  # type: ignore[attr-defined]
        server.check(11)
        await turns()
        assert not protocol.closed
        server.check(20)
        server.check(11)
        await until(lambda: stage.log, "the application is told")
        assert stage.log == [(1006, "")]
        await until(lambda: server.counters()["aborted"] == 1, "it is counted")


@in_loop
async def test_a_client_that_does_not_answer_a_close_is_not_waited_for_for_ever() -> None:
    async with serving(Stage().app) as server:
        client = await server.connect()
        await opened(client, "/returns")
        await until_something(client)
        server.check(websocket.CLOSING + 1)
        assert (await frames(client))[-1] == (0x88, b"\x03\xe8")


# the end


@pytest.mark.parametrize("how", ["reset", "shut"])
@in_loop
async def test_a_client_that_goes_away_is_a_disconnect(how: str) -> None:
    stage = Stage()
    async with serving(stage.app) as server:
        client = await server.connect()
        await opened(client)
        getattr(client, how)()
        await until(lambda: stage.log, "the application is told")
        assert stage.log == [(1006, "")]
        await until(lambda: server.runner.busy == 0, "it ends")
        assert server.counters()["aborted"] == 1


@pytest.mark.parametrize("how", ["reset", "shut"])
@in_loop
async def test_a_client_that_goes_away_before_it_is_accepted_is_a_disconnect(how: str) -> None:
    stage = Stage()
    async with serving(stage.app) as server:
        client = await server.connect()
        await client.send(head("/late", *OFFER))
        await until(lambda: server.runner.busy, "it came")
        getattr(client, how)()
        await turns()
        stage.gate.set()
        await until(lambda: stage.log, "the application is told")
        assert stage.log == ["websocket.disconnect"]


@in_loop
async def test_when_the_worker_stops_all_are_told() -> None:
    stage = Stage()
    async with serving(stage.app) as server:
        clients = [await dial(server) for _ in range(10)]
        late = await server.connect()
        await late.send(head("/late", *OFFER))
        await until(lambda: server.runner.busy == 11, "they are open")
        server.runner.draining = True
        server.runner.dismiss(1012)
        for client in clients:
            with pytest.raises(ConnectionClosed) as caught:
                await client.recv()
            assert caught.value.rcvd is not None and caught.value.rcvd.code == 1012
        assert stage.log == [(1012, "")] * 10
        stage.gate.set()
        await head_of(late)
        await late.send(frame(Opcode.CLOSE, b"\x03\xf4"))
        assert await frames(late) == [(0x88, b"\x03\xf4")]
        assert await server.runner.finish(5) == 0


@in_loop
async def test_one_that_does_not_end_is_cancelled_at_the_end_of_the_drain() -> None:
    stage = Stage()
    async with serving(stage.app) as server:
        client = await server.connect()
        await opened(client, "/deaf")
        server.runner.dismiss(1001)
        assert await server.runner.finish(0.05) == 1
        assert server.counters()["aborted"] == 1
        assert await frames(client) == [(0x88, b"\x03\xe9")]


@in_loop
async def test_a_thousand_sockets_leave_nothing() -> None:
    stage = Stage()
    rng = seeded("a thousand sockets")
    async with serving(stage.app, max_ccu=1000, slots=10, max_queue=1000) as server:
        for _ in range(5):
            clients = [await server.connect() for _ in range(200)]
            await asyncio.gather(*(opened(client) for client in clients))
            assert open_sockets(server) == server.permits == 200
            for client in clients:
                what = rng.choice(("close", "reset", "shut", "bye", "garbage"))
                if what in ("bye", "garbage"):
                    await client.send(BYE if what == "bye" else b"\xff" * 20)
                    await frames(client)
                    client.close()
                else:
                    getattr(client, what)()
            await until(lambda: server.runner.busy == 0, "all have ended")
            assert open_sockets(server) == server.permits == 0
        assert len(stage.log) == 1000


# admission, the log, TLS


@in_loop
async def test_open_sockets_are_users_and_hold_no_slot() -> None:
    stage = Stage()
    async with serving(stage.app, max_ccu=5, slots=1, pause=0.0) as server:
        clients = [await server.connect() for _ in range(5)]
        for client in clients:
            assert (await opened(client)).startswith(b"HTTP/1.1 101 ")
        client = await server.connect()
        await client.send(head("/echo", *OFFER))
        answer = await client.answer()
        assert answer.status == 503 and await client.at_end()
        clients[0].close()
        await until(lambda: server.permits == 4, "its permit is back")
        client = await server.connect()
        assert (await client.get("/")).body == b"http"


@in_loop
async def test_the_access_log_has_a_line_at_its_end() -> None:
    stage = Stage()
    lines: list[str] = []
    async with serving(stage.app) as server:
        AccessLog(lines.append).watch(server.app.routes)
        async with dial(server, "/echo?token=secret"):
            await turns()
            assert lines == []
        await until(lambda: lines, "it is logged")
        (line,) = lines
        assert " GET /echo 101 " in line and "secret" not in line


@in_loop
async def test_over_tls(tmp_path: Path) -> None:
    stage = Stage()
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    certificates = Certificates(TlsSettings(certificate=certificate, key=key))
    context = authority.client()
    async with serving(stage.app, tls=(certificates, context)) as server:
        url = f"wss://localhost:{server.port}/echo"
        async with connect(url, ssl=context, host="127.0.0.1", compression=None) as client:
            await client.send("x" * 300_000)
            assert await client.recv() == "x" * 300_000
        await until(lambda: stage.log, "the application is told")
        assert stage.log == [(1000, "")]
