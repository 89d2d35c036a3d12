"""Bodies in pieces, both ways, over real connections: bounds, order, ends, permits.

``serving`` ends every test with the same question: are all shared words 0, and do the counters
add up?
"""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from fluxor_fast import (
    App,
    BodySender,
    BodyWriter,
    ClientDisconnected,
    EventStream,
    HTTPError,
    Request,
    StreamingResponse,
)
from fluxor_fast.errors import RouteError
from fluxor_fast.server.common import Timeouts
from fluxor_fast.server.heads import Limits
from fluxor_fast.server.streaming import (
    AT_A_TURN,
    BUFFER,
    GRACE,
    HIGH,
    PIECES,
    REST,
    YIELD,
    AnswerWriter,
    BodyStream,
)
from tests.support.gates import Gates, assert_fails_alone
from tests.support.inprocess import Client, head, in_loop, post, serving, turns, until
from tests.support.seeds import cut, seeded, single

ONE_READ = 256 * 1024
"""The most that uvloop hands over at once."""
PIECE = b"x" * 16 * 1024


class Stage(Gates):
    """What handlers have done, and gates for them to wait at."""

    def __init__(self) -> None:
        super().__init__()
        self.given = 0  # bytes handed out by the endless stream
        self.closed = 0  # streams whose end was reached, whatever the end was


async def pieces(stage: Stage, *given: bytes | str, gate: str = "") -> AsyncIterator[bytes | str]:
    try:
        for number, piece in enumerate(given):
            if gate and number:
                await stage.wait(gate)
            yield piece
    finally:
        stage.closed += 1


def make_app() -> tuple[App, Stage]:
    app, stage = App(), Stage()

    @app.get("/n/{n:int}")
    def number(request: Request, n: int) -> dict[str, int]:
        return {"n": n}

    @app.get("/wait/{name}")
    async def wait(request: Request, name: str) -> dict[str, str]:
        await stage.wait(name)
        return {"waited": name}

    @app.post("/echo")
    async def echo(request: Request) -> bytes:
        return b"".join([piece async for piece in request.stream()])

    # answers

    @app.get("/three")
    async def three(request: Request) -> StreamingResponse:
        return StreamingResponse(pieces(stage, b"one,", "", "zwö,", b"three"), 201, {"X-A": "b"})

    @app.get("/sync")
    def sync(request: Request) -> StreamingResponse:
        return StreamingResponse(pieces(stage, b"one,", b"two"), content_type="text/css")

    @app.get("/blocking", blocking=True)
    def blocking(request: Request) -> StreamingResponse:
        return StreamingResponse(pieces(stage, b"one,", b"two"))

    @app.get("/empty")
    async def empty(request: Request) -> StreamingResponse:
        return StreamingResponse(pieces(stage))

    @app.get("/length/{said:int}")
    async def length(request: Request, said: int) -> StreamingResponse:
        return StreamingResponse(pieces(stage, b"12345", b"67890"), length=said)

    @app.get("/status/{status:int}")
    async def status(request: Request, status: int) -> tuple[int, StreamingResponse]:
        return status, StreamingResponse(pieces(stage, b"body"))

    @app.get("/gated/{name}")
    async def gated(request: Request, name: str) -> StreamingResponse:
        return StreamingResponse(pieces(stage, b"first,", b"last", gate=name))

    @app.get("/endless")
    async def endless(request: Request) -> StreamingResponse:
        async def forever() -> AsyncIterator[bytes]:
            try:
                while True:
                    stage.given += len(PIECE)
                    yield PIECE
            finally:
                stage.closed += 1

        return StreamingResponse(forever())

    @app.get("/fails/{after:int}")
    async def fails(request: Request, after: int) -> StreamingResponse:
        async def failing() -> AsyncIterator[bytes]:
            for _ in range(after):
                yield b"good"
            raise RuntimeError("secret detail")

        return StreamingResponse(failing())

    @app.get("/type")
    async def bad_type(request: Request) -> StreamingResponse:
        return StreamingResponse(pieces(stage, b"body"), content_type="a/b\r\nX-B: b")

    @app.get("/header/{name}")
    async def bad_header(request: Request, name: str) -> StreamingResponse:
        return StreamingResponse(pieces(stage, b"body"), headers={name: "gzip"})

    @app.get("/number")
    async def no_bytes(request: Request) -> StreamingResponse:
        bad: Any = pieces(stage, 4711)  # type: ignore[arg-type]
        return StreamingResponse(bad)

    @app.get("/cancelled/{after:int}")
    async def cancelled(request: Request, after: int) -> StreamingResponse:
        async def cancelling() -> AsyncIterator[bytes]:
            for _ in range(after):
                yield b"good"
            raise asyncio.CancelledError

        return StreamingResponse(cancelling())

    @app.get("/events")
    async def events(request: Request) -> EventStream:
        return EventStream(pieces(stage, "first", "last", gate="events"))

    # requests

    @app.post("/up", stream=True)
    async def up(request: Request) -> dict[str, Any]:
        stage.log.append("up")
        got = []
        try:
            async for piece in request.stream():
                got.append(piece)
                stage.given += len(piece)
        except HTTPError as error:
            stage.log.append(error)
            raise
        return {"length": sum(map(len, got)), "pieces": len(got)}

    @app.post("/first/{name}", stream=True)
    async def first(request: Request, name: str) -> dict[str, int]:
        """Take one piece, wait, take the rest."""
        size = 0
        async for piece in request.stream():
            size = len(piece)
            break
        await stage.wait(name)
        async for piece in request.stream():
            size += len(piece)
        return {"length": size}

    @app.post("/unread", stream=True)
    async def unread(request: Request) -> dict[str, bool]:
        stage.log.append("unread")
        return {"read": False}

    @app.post("/unread/{name}", stream=True)
    async def unread_late(request: Request, name: str) -> dict[str, bool]:
        await stage.wait(name)
        return {"read": False}

    @app.post("/caught", stream=True)
    async def caught(request: Request) -> dict[str, int]:
        try:
            return {"length": len(await request.read())}
        except HTTPError as error:
            return {"caught": error.status}

    @app.post("/read", stream=True, max_body=100)
    async def read(request: Request) -> Any:
        body = await request.read()
        assert body == request.body == await request.read()
        assert [piece async for piece in request.stream()] == ([body] if body else [])
        return request.json()

    @app.post("/body", stream=True)
    async def body(request: Request) -> bytes:
        return request.body

    @app.post("/back", stream=True)
    async def back(request: Request) -> StreamingResponse:
        return StreamingResponse(request.stream())

    @app.post("/both", stream=True)
    async def both(request: Request) -> StreamingResponse:
        """Begin to answer before the body is asked for."""

        async def answer() -> AsyncIterator[bytes]:
            yield b"begun,"
            async for piece in request.stream():
                yield piece

        return StreamingResponse(answer())

    return app, stage


def chunked(path: str, *chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """Return the bytes of a POST in chunks."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head(path, "Transfer-Encoding: chunked", method="POST") + body + end


async def have(client: Client, mark: bytes) -> None:
    while mark not in client.buffer:
        assert await client._more(), f"the end instead of {mark!r}: {client.buffer!r}"


async def opened(client: Client, status: int = 200) -> dict[str, str]:
    """Read a head; return its fields."""
    await have(client, b"\r\n\r\n")
    raw, _, client.buffer = client.buffer.partition(b"\r\n\r\n")
    line, *lines = raw.decode().split("\r\n")
    assert line.startswith(f"HTTP/1.1 {status} "), raw
    return {name.lower(): value for name, value in (one.split(": ", 1) for one in lines)}


async def chunk(client: Client) -> bytes:
    """Read one chunk; the last one is empty."""
    await have(client, b"\r\n")
    size, _, client.buffer = client.buffer.partition(b"\r\n")
    assert re.fullmatch(rb"[0-9a-f]+", size), size
    length = int(size, 16)
    while len(client.buffer) < length + 2:
        assert await client._more(), "the end in the middle of a chunk"
    data, client.buffer = client.buffer[:length], client.buffer[length:]
    assert client.buffer.startswith(b"\r\n")
    client.buffer = client.buffer[2:]
    return data


async def chunks(client: Client) -> list[bytes]:
    """Read all chunks up to the last one."""
    got = []
    while piece := await chunk(client):
        got.append(piece)
    return got


async def cut_off(client: Client) -> bytes:
    """Read until the connection ends, however it does; return what came."""
    try:
        while await client._more():
            pass
    except ConnectionResetError:
        pass
    return client.buffer


# answers: framing


@pytest.mark.parametrize("path", ["/sync", "/blocking"])
@in_loop
async def test_an_answer_without_a_length_comes_in_chunks_and_the_connection_stays(
    path: str,
) -> None:
    app, stage = make_app()
    async with serving(app) as server:
        client = await server.connect()
        for _ in range(3):
            await client.send(head(path))
            fields = await opened(client)
            assert fields["transfer-encoding"] == "chunked"
            assert "content-length" not in fields and "connection" not in fields
            assert await chunks(client) == [b"one,", b"two"]
        assert stage.closed == 3
        assert (await client.get("/n/1")).status == 200
        assert len(server.service.open) == 1


@in_loop
async def test_empty_chunks_are_skipped_text_is_utf_8_and_the_head_is_the_responses() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        await client.send(head("/three"))
        fields = await opened(client, 201)
        assert fields["x-a"] == "b"
        assert fields["content-type"] == "application/octet-stream"
        assert re.fullmatch("[0-9a-f]{32}", fields["x-request-id"])
        assert await chunks(client) == [b"one,", "zwö,".encode(), b"three"]


@in_loop
async def test_a_stream_of_nothing_is_an_empty_body() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        for _ in range(2):
            await client.send(head("/empty"))
            await opened(client)
            assert await chunks(client) == []


@in_loop
async def test_an_answer_with_a_length_says_and_keeps_it() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        for _ in range(2):
            answer = await client.get("/length/10")
            assert (answer.headers["content-length"], answer.body) == ("10", b"1234567890")
            assert "transfer-encoding" not in answer.headers


@pytest.mark.parametrize(("said", "sent"), [(11, b"1234567890"), (9, b"12345"), (5, b"12345")])
@in_loop
async def test_too_little_or_too_much_ends_the_connection_and_never_exceeds_the_length(
    said: int, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    app, stage = make_app()
    async with serving(app) as server:
        client = await server.connect()
        await client.send(head(f"/length/{said}") + head("/n/1"))
        came = await cut_off(client)
        assert came.endswith(b"\r\n\r\n" + sent)
        await until(lambda: stage.closed == 1, "the iterator is closed")
        (record,) = caplog.records
        assert "length" in str(record.exc_info)
        await until(lambda: server.counters()["aborted"] == 1, "it is counted")


@pytest.mark.parametrize("said", [0, 4])
@in_loop
async def test_too_much_at_once_is_500(said: int, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(make_app()[0]) as server:
        await assert_fails_alone(server, f"/length/{said}", caplog.records)


@in_loop
async def test_http_1_0_ends_the_body_with_the_connection() -> None:
    async with serving(make_app()[0]) as server:
        for lines in ((), ("Connection: keep-alive",)):
            client = await server.connect()
            await client.send(head("/three", *lines, version="1.0"))
            fields = await opened(client, 201)
            assert fields["connection"] == "close"
            assert "transfer-encoding" not in fields and "content-length" not in fields
            assert await cut_off(client) == "one,zwö,three".encode()


@in_loop
async def test_http_1_0_with_a_length_may_keep_the_connection() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        for _ in range(2):
            await client.send(head("/length/10", "Connection: keep-alive", version="1.0"))
            answer = await client.answer()
            assert (answer.headers["connection"], answer.body) == ("keep-alive", b"1234567890")


@in_loop
async def test_behind_a_request_in_http_1_0_none_is_taken_in_that_could_not_be_answered() -> None:
    app, stage = make_app()
    async with serving(app) as server:
        client = await server.connect()
        keep = "Connection: keep-alive"
        await client.send(head("/n/1", keep, version="1.0"))
        await client.send(head("/gated/a", keep, version="1.0") + head("/n/2"))
        assert (await client.answer()).json() == {"n": 1}
        await until(lambda: stage.log, "it streams")
        stage.open("a")
        assert (await opened(client))["connection"] == "close"
        assert await cut_off(client) == b"first,last"
        assert server.counters()["offered"] == 2


@in_loop
async def test_many_requests_in_http_1_0_at_once_are_answered_one_by_one() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        await client.send(head("/n/1", "Connection: keep-alive", version="1.0") * 20)
        for _ in range(20):
            assert (await client.answer()).json() == {"n": 1}
        assert (await client.get("/n/2")).json() == {"n": 2}


@pytest.mark.parametrize("path", ["/three", "/sync", "/length/10", "/endless"])
@in_loop
async def test_head_has_no_body_and_never_starts_the_iterator_but_closes_it(path: str) -> None:
    app, stage = make_app()
    async with serving(app) as server:
        client = await server.connect()
        for _ in range(2):
            answer = await client.get(path, method="HEAD")
            assert answer.status in (200, 201)
            assert answer.headers.get("content-length") == ("10" if "10" in path else None)
        assert (await client.get("/n/1")).status == 200
        assert stage.given == stage.closed == 0  # not even its first line ran


@pytest.mark.parametrize("status", [204, 304])
@in_loop
async def test_a_status_without_a_body_has_no_framing_either(status: int) -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        answer = await client.get(f"/status/{status}")
        assert answer.status == status
        assert not {"content-length", "transfer-encoding"} & set(answer.headers)
        assert (await client.get("/n/1")).status == 200


@pytest.mark.parametrize("path", ["/header/Transfer-Encoding", "/header/content-length", "/type"])
@in_loop
async def test_headers_of_a_stream_are_checked_as_all_are(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(make_app()[0]) as server:
        await assert_fails_alone(server, path, caplog.records)


# answers: order, back-pressure


@in_loop
async def test_a_stream_waits_for_the_answers_before_it_and_those_behind_for_its_end() -> None:
    app, stage = make_app()
    async with serving(app) as server:
        client = await server.connect()
        await client.send(head("/n/1") + head("/wait/a") + head("/gated/b") + head("/n/2"))
        await client.send(head("/sync") + head("/n/3"))
        assert (await client.answer()).json() == {"n": 1}
        await until(lambda: stage.log == ["a"], "the first waits")
        assert await client.silent()
        stage.open("a")
        assert (await client.answer()).json() == {"waited": "a"}
        await opened(client)
        assert await chunk(client) == b"first,"
        assert await client.silent()
        stage.open("b")
        assert await chunks(client) == [b"last"]
        assert (await client.answer()).json() == {"n": 2}
        await opened(client)
        assert await chunks(client) == [b"one,", b"two"]
        assert (await client.answer()).json() == {"n": 3}


@in_loop
async def test_streams_and_answers_in_random_order_leave_in_the_order_of_requests() -> None:
    rng = seeded("pipelined streams")
    app, stage = make_app()
    async with serving(app) as server:
        client = await server.connect()
        for _ in range(10):
            paths = rng.choices(["/n/1", "/sync", "/three", "/length/10", "/wait/open"], k=25)
            stage.open("open")
            await client.send_pieces(cut(b"".join(map(head, paths)), rng))
            for path in paths:
                if path in ("/n/1", "/length/10", "/wait/open"):
                    assert (await client.answer()).status == 200
                else:
                    await opened(client, 201 if path == "/three" else 200)
                    assert len(await chunks(client)) == (3 if path == "/three" else 2)


@in_loop
async def test_a_slow_reader_holds_up_its_iterator_and_keeps_permit_and_slot() -> None:
    """What is handed out and not with the client stays within the buffers on the way."""
    app, stage = make_app()
    async with serving(app) as server:
        client, protocol = await server.stuck(head("/endless"), receive_buffer=32 * 1024)
        await turns()
        given = stage.given
        await turns()
        assert stage.given == given
        assert protocol.transport.get_write_buffer_size() <= BUFFER + len(PIECE) + 100  # its frame
        assert (server.permits, server.memory.slots.tolist()) == (1, [1, 0])
        taken = 0
        while taken < given + 1_000_000:
            taken += len(await asyncio.get_running_loop().sock_recv(client.sock, 32 * 1024))
            assert stage.given - taken < given + 4 * HIGH
        assert stage.given > given
        client.reset()
        await until(lambda: server.permits == 0, "the permit is back")
        assert stage.closed == 1


@in_loop
async def test_the_small_buffer_of_a_stream_is_its_own_and_not_the_next_answers() -> None:
    app, stage = make_app()
    async with serving(app) as server:
        client, protocol = await server.pair()
        before = protocol.transport.get_write_buffer_limits()[1]
        await client.send(head("/gated/a"))
        await opened(client)
        assert await chunk(client) == b"first,"
        assert protocol.transport.get_write_buffer_limits()[1] == BUFFER < before
        stage.open("a")
        assert await chunks(client) == [b"last"]
        assert protocol.transport.get_write_buffer_limits()[1] == before


@in_loop
async def test_a_stream_to_a_fast_reader_lets_others_run() -> None:
    async with serving(make_app()[0]) as server:
        client, other = await server.connect(), await server.connect()
        await client.send(head("/endless"))

        async def read() -> None:
            while await client._more():
                client.buffer = b""

        reading = asyncio.ensure_future(read())
        for n in range(100):
            assert (await other.get(f"/n/{n}")).json() == {"n": n}
        reading.cancel()
        await asyncio.wait([reading])


@in_loop
async def test_streams_that_began_together_held_up_the_loop_for_seconds() -> None:
    """Each wrote its share in every turn of the loop: with thousands others got no turn."""
    app, stage = make_app()
    async with serving(app) as server:
        clients = [await server.connect() for _ in range(40)]
        for client in clients:
            await client.send(head("/endless"))
        await until(lambda: stage.given > 40 * YIELD, "all have begun")
        most = 0
        for _ in range(60):
            before = stage.given
            await asyncio.sleep(0)
            most = max(most, stage.given - before)
        # a share, the piece with which it is full, and the one behind it; not those of all
        assert 0 < most <= AT_A_TURN * (YIELD + 2 * len(PIECE)) < 10 * YIELD
        for client in clients[:20]:  # who leaves while it waits for its turn takes nobody else's
            client.reset()
        before = stage.given
        await until(lambda: stage.given > before + 20 * YIELD, "the others go on")


@in_loop
async def test_a_client_that_takes_in_nothing_is_dropped_after_the_write_timeout() -> None:
    app, stage = make_app()
    async with serving(app) as server:
        await server.stuck(head("/endless"))
        server.check(30)
        await turns()
        assert stage.closed == 0
        server.check(1)
        await until(lambda: server.permits == 0, "it is gone")
        assert stage.closed == 1


# answers: ends


@in_loop
async def test_an_iterator_that_fails_midway_ends_the_connection_without_the_last_chunk(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        await client.send(head("/fails/2"))
        came = await cut_off(client)
        assert came.count(b"HTTP/1.1") == 1
        assert came.endswith(b"4\r\ngood\r\n4\r\ngood\r\n")
        (record,) = caplog.records
        assert record.exc_info
        await until(lambda: server.counters()["aborted"] == 1, "it is counted")


@in_loop
async def test_an_iterator_whose_own_wait_was_cancelled_fails_as_any() -> None:
    """The 500 must not stand in the middle of the body, nor the client be left without one."""
    app, _stage = make_app()
    async with serving(app) as server:
        client = await server.connect()
        assert (await client.get("/cancelled/0")).status == 500
        await client.send(head("/cancelled/1"))
        got = await cut_off(client)
        assert got.endswith(b"4\r\ngood\r\n") and got.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("path", ["/fails/0", "/number"])
@in_loop
async def test_an_iterator_that_fails_before_anything_was_sent_is_500(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(make_app()[0]) as server:
        await assert_fails_alone(server, path, caplog.records)


@in_loop
async def test_a_client_that_goes_while_nothing_comes_ends_the_iterator(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app, stage = make_app()
    async with serving(app) as server:
        client = await server.connect()
        await client.send(head("/gated/never") + head("/sync"))
        await until(lambda: stage.log, "it streams")
        client.reset()
        await until(lambda: server.permits == 0, "the permits are back")
        assert stage.closed == 2
        await until(lambda: server.counters()["aborted"] == 2, "they are counted")
        assert server.memory.slots.tolist() == [0, 0]
        assert caplog.records == []


@in_loop
async def test_a_client_that_has_ended_its_side_gets_the_whole_stream() -> None:
    app, stage = make_app()
    async with serving(app) as server:
        client = await server.connect()
        await client.send(head("/gated/a"))
        await until(lambda: stage.log, "it streams")
        client.shut()
        await turns()
        stage.open("a")
        await opened(client)
        assert await chunks(client) == [b"first,", b"last"]
        assert await client.at_end()


@in_loop
async def test_draining_lets_a_stream_end_and_cuts_one_that_does_not() -> None:
    app, stage = make_app()
    async with serving(app) as server:
        one, other = await server.connect(), await server.connect()
        await one.send(head("/gated/a"))
        await other.send(head("/gated/never"))
        await until(lambda: len(stage.log) == 2, "both stream")
        server.runner.draining = True
        finishing = asyncio.ensure_future(server.runner.finish(1.0))
        stage.open("a")
        await opened(one)
        assert await chunks(one) == [b"first,", b"last"]
        assert await one.at_end()
        assert await finishing == 1
        assert not (await cut_off(other)).endswith(b"0\r\n\r\n")
        assert stage.closed == 2
        assert server.permits == 0


@in_loop
async def test_the_time_of_a_stream_is_that_to_its_first_byte() -> None:
    """Its whole length would look like a slow service."""
    app, stage = make_app()
    async with serving(app) as server:
        client = await server.connect()
        asked = time.monotonic()
        await client.send(head("/gated/a"))
        await until(lambda: stage.log, "it streams")
        await opened(client)
        streaming = time.monotonic()
        await asyncio.sleep(0.2)
        stage.open("a")
        await chunks(client)
        await until(lambda: server.counters()["completed"] == 1, "it is counted")
        assert 0 < server.runner.counters._duration <= streaming - asked


# answers: bodies of other kinds


class Told(BodySender):
    """Sends in other ways than ``write``, as a file does."""

    def __init__(self, act: Callable[[BodyWriter], Awaitable[None]], length: int | None) -> None:
        super().__init__(length=length)
        self.act = act
        self.closed = 0

    async def send(self, writer: BodyWriter) -> None:
        await self.act(writer)

    async def close(self) -> None:
        self.closed += 1
        raise RuntimeError("cannot be closed")


def telling_app(
    act: Callable[[BodyWriter], Awaitable[None]], length: int
) -> tuple[App, list[Told]]:
    app, made = App(), []

    @app.get("/")
    def told(request: Request) -> Told:
        made.append(Told(act, length))
        return made[-1]

    return app, made


@in_loop
async def test_a_body_may_leave_in_another_way_when_all_before_is_with_the_kernel(
    caplog: pytest.LogCaptureFixture,
) -> None:
    body = b"y" * 1_000_000

    async def act(writer: BodyWriter) -> None:
        assert not writer.tls
        await writer.write(body)
        await writer.drained()
        assert writer.transport.get_write_buffer_size() == 0
        writer.transport.write(b"other")
        writer.sent(5)
        await writer.write(b"end")

    app, made = telling_app(act, len(body) + 8)
    async with serving(app) as server:
        client = await server.connect()
        for _ in range(2):
            assert (await client.get("/")).body == body + b"otherend"
        assert [one.closed for one in made] == [1, 1]
        assert len(caplog.records) == 2  # a close that fails is told, and nothing else


@in_loop
async def test_waiting_for_the_socket_counts_as_a_client_that_takes_in_nothing() -> None:
    async def act(writer: BodyWriter) -> None:
        await writer.begin()
        await writer.blocked(asyncio.get_running_loop().create_future())

    app, made = telling_app(act, 5)
    async with serving(app) as server:
        client, protocol = await server.pair()
        await client.send(head())
        await have(client, b"\r\n\r\n")
        await until(lambda: protocol.write_paused, "it waits")
        server.check(31)
        await until(lambda: server.permits == 0, "it is gone")
        assert made[0].closed == 1


@in_loop
async def test_streams_that_wait_behind_another_keep_no_slots() -> None:
    """A few connections could hold the slots of all, each with a pipeline behind an endless one."""
    app, stage = make_app()
    async with serving(app, slots=3) as server:
        hog, other = await server.connect(), await server.connect()
        await hog.send(head("/gated/hog") + head("/three") * 10)
        await until(lambda: stage.log == ["hog"], "the first has begun")
        await turns()
        assert sum(server.memory.slots) == 1
        assert server.permits == 11
        stage.open("other")
        await other.send(head("/wait/other"))
        assert (await other.answer()).json() == {"waited": "other"}
        stage.open("hog")
        await opened(hog)
        assert await chunks(hog) == [b"first,", b"last"]
        for _ in range(10):
            await opened(hog, 201)
            assert len(await chunks(hog)) == 3


# events


@in_loop
async def test_who_listens_to_events_takes_no_slot() -> None:
    """As many listeners as there are slots stopped all other coroutines for good."""
    app, stage = make_app()
    async with serving(app, slots=2) as server:
        listeners = [await server.connect() for _ in range(5)]
        for client in listeners:
            await client.send(head("/events"))
            await opened(client)
            assert await chunk(client) == b"data: first\n\n"
        assert sum(server.memory.slots) == 0
        assert server.permits == 5  # they are in the system
        stage.open("other")
        assert (await (await server.connect()).get("/wait/other")).status == 200
        stage.open("events")
        for client in listeners:
            assert await chunks(client) == [b"data: last\n\n"]


@in_loop
async def test_events_begin_at_once_and_a_comment_is_sent_when_none_comes() -> None:
    app, stage = make_app()
    async with serving(app) as server:
        client = await server.connect()
        await client.send(head("/events"))
        fields = await opened(client)
        assert fields["content-type"] == "text/event-stream"
        assert fields["cache-control"] == "no-cache"
        assert await chunk(client) == b"data: first\n\n"
        server.check(14)
        assert await client.silent()
        server.check(1)
        assert await chunk(client) == b":\n\n"
        server.check(14)
        assert await client.silent()
        server.check(1)
        assert await chunk(client) == b":\n\n"
        stage.open("events")
        assert await chunks(client) == [b"data: last\n\n"]
        assert (await client.get("/n/1")).status == 200
        assert stage.closed == 1


@in_loop
async def test_no_comment_before_its_turn_nor_to_a_client_that_takes_in_nothing() -> None:
    app, stage = make_app()
    async with serving(app) as server:
        client, protocol = await server.pair()
        await client.send(head("/wait/a") + head("/events"))
        await until(lambda: stage.log == ["a"], "the first waits")
        server.check(20)
        assert await client.silent()
        stage.open("a")
        assert (await client.answer()).status == 200
        await opened(client)
        assert await chunk(client) == b"data: first\n\n"
        protocol.pause_writing()
        server.check(20)
        assert await client.silent()
        protocol.resume_writing()
        client.reset()
        await until(lambda: server.permits == 0, "the permit is back")


# requests


@pytest.mark.parametrize("how", [single, lambda data: cut(data, seeded("pieces")), lambda d: [d]])
@in_loop
async def test_a_body_is_read_as_it_comes_however_it_is_framed_and_cut(
    how: Callable[[bytes], list[bytes]],
) -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        for wire in (
            post("/up", b"0123456789" * 5),
            chunked("/up", b"0123456789" * 3, b"x" * 19, b"y", end=b"0;a=b\r\nX: y\r\n\r\n"),
        ):
            await client.send_pieces(how(wire + head("/n/1")))
            assert (await client.answer()).json()["length"] == 50
            assert (await client.answer()).json() == {"n": 1}


@in_loop
async def test_the_handler_runs_before_the_body_is_there() -> None:
    app, stage = make_app()
    async with serving(app) as server:
        client = await server.connect()
        wire = post("/up", b"0123456789")
        await client.send(wire[:-10])
        await until(lambda: stage.log == ["up"], "it runs")
        for size in (1, 4, 9):
            await client.send(wire[-10:][stage.given : size])
            await until(lambda size=size: stage.given == size, "the piece is there")  # type: ignore[misc]
        await client.send(wire[-1:])
        assert (await client.answer()).json() == {"length": 10, "pieces": 4}


@pytest.mark.parametrize("body", [b"", b'{"a":1}'])
@in_loop
async def test_a_body_without_a_stream_is_one_piece(body: bytes) -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        assert (await _answer(client, post("/echo", body))).body == body
        assert (await _answer(client, post("/up", b""))).json() == {"length": 0, "pieces": 0}


async def _answer(client: Client, wire: bytes) -> Any:
    await client.send(wire)
    return await client.answer()


@in_loop
async def test_the_whole_body_is_there_once_it_is_read(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        assert (await _answer(client, post("/read", b'{"a":1}'))).json() == {"a": 1}
        assert (await _answer(client, post("/read", b"no json"))).status == 400
        assert (await _answer(client, post("/read", b""))).status == 400
        assert caplog.records == []
        assert (await _answer(client, post("/body", b"x"))).status == 500
        assert "request.stream()" in str(caplog.records[0].exc_info)


def test_only_a_coroutine_function_streams() -> None:
    app = App()
    for options in ({}, {"blocking": True}):
        with pytest.raises(RouteError, match="only a coroutine function"):
            app.post("/", stream=True, **options)(lambda request: None)
    assert app.routes == ()


@pytest.mark.parametrize("framing", ["length", "chunked"])
@in_loop
async def test_a_handler_that_does_not_read_holds_up_its_client(framing: str) -> None:
    """The socket is not read beyond the mark, so what waits here is bounded."""
    app, stage = make_app()
    size = 16_000_000
    async with serving(app, limits=Limits(body=size)) as server:
        client, protocol = await server.pair()
        body = b"z" * size
        if framing == "length":
            wire = post("/first/a", body)
        else:
            wire = chunked("/first/a", *[body[:10_000]] * (size // 10_000))
        sending = asyncio.ensure_future(client.send(wire))
        await until(lambda: stage.log == ["a"] and protocol.paused, "it is held up")
        await turns()
        (source,) = protocol.streams
        assert HIGH < source.buffered <= HIGH + ONE_READ  # type: ignore[union-attr]
        assert not protocol.transport.is_reading()
        assert not sending.done()
        stage.open("a")
        assert (await client.answer()).json() == {"length": size}
        await sending
        assert (await client.get("/n/1")).status == 200


@in_loop
async def test_reading_goes_on_below_half_of_the_mark() -> None:
    app, stage = make_app()
    steps: list[tuple[int, bool]] = []

    @app.post("/steps", stream=True)
    async def steps_of(request: Request) -> dict[str, int]:
        await stage.wait("steps")
        source: Any = request.source
        size = 0
        async for piece in request.stream():
            size += len(piece)
            steps.append((source.buffered, source.full))
        return {"length": size}

    async with serving(app) as server:
        client, protocol = await server.pair()
        wire = post("/steps", b"z" * 200_000)
        sent = 0
        while not protocol.paused:
            await client.send(wire[sent : sent + 8192])
            sent += 8192
            await turns(2)
        stage.open("steps")
        await client.send(wire[sent:])
        assert (await client.answer()).json() == {"length": 200_000}
        assert steps[0][1]
        assert all(left > HIGH // 2 for left, full in steps if full)
        assert any(not full and 0 < left <= HIGH // 2 for left, full in steps)


@in_loop
async def test_many_small_pieces_that_nobody_takes_hold_up_the_client_too() -> None:
    """A piece takes more memory than it has bytes."""
    app, stage = make_app()
    async with serving(app) as server:
        client, protocol = await server.pair()
        size = 3 * PIECES
        await client.send(head("/first/a", f"Content-Length: {size}", method="POST"))
        await until(lambda: protocol.streams, "its head is there")
        left = size
        while not protocol.paused:
            protocol.data_received(b"z")
            left -= 1
        assert left >= size - PIECES - 2
        stage.open("a")
        await client.send(b"z" * left)
        assert (await client.answer()).json() == {"length": size}


# requests: what is not read


@pytest.mark.parametrize("framing", ["length", "chunked"])
@in_loop
async def test_a_little_that_was_not_read_is_dropped_and_the_connection_stays(
    framing: str,
) -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        for _ in range(3):
            body = b"z" * 1000
            wire = post("/unread", body) if framing == "length" else chunked("/unread", body)
            await client.send(wire + head("/n/1"))
            answer = await client.answer()
            assert answer.json() == {"read": False}
            assert "connection" not in answer.headers
            assert (await client.answer()).json() == {"n": 1}


@in_loop
async def test_a_little_that_has_not_come_yet_is_dropped_when_it_does() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        wire = post("/unread", head("/n/666") * (REST // len(head("/n/666"))))
        body = wire.index(b"\r\n\r\n") + 4
        await client.send(wire[:body])
        assert (await client.answer()).json() == {"read": False}
        await client.send_pieces(cut(wire[body:] + head("/n/1"), seeded("dropped"), 20))
        assert (await client.answer()).json() == {"n": 1}
        assert server.counters()["offered"] == 2


@pytest.mark.parametrize("path", ["/unread", "/unread/late"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@in_loop
async def test_much_that_was_not_read_ends_the_connection_with_the_answer(
    framing: str, path: str
) -> None:
    app, stage = make_app()
    stage.open("late")
    async with serving(app) as server:
        client, protocol = await server.pair()
        if framing == "length":
            wire = post(path, head("/n/666") * 20_000)
        else:
            wire = chunked(path, head("/n/666") * 10, end=b"")
        await client.send(wire[:1000])
        answers = await client.rest()
        assert [(one.status, one.headers["connection"]) for one in answers] == [(200, "close")]
        await client.send(head("/n/666") * 3)  # it lingers: no reset, and no request either
        await turns()
        assert server.counters()["offered"] == 1
        assert protocol in server.service.open
        server.check(3)
        await until(lambda: not server.service.open, "it is gone")


@in_loop
async def test_what_is_dropped_has_its_time_too_and_no_second_answer() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        await client.send(post("/unread", b"z" * 1000)[:-10])
        assert (await client.answer()).status == 200
        server.check(30)
        assert await client.silent()
        server.check(1)
        assert await client.at_end()


@pytest.mark.parametrize("expect", [(), ("Expect: 100-continue",)])
@in_loop
async def test_a_refused_request_with_its_body_unread_is_told_and_closed(
    expect: tuple[str, ...],
) -> None:
    app, stage = make_app()
    async with serving(app, max_ccu=1) as server:
        holder = await server.connect()
        await holder.send(head("/wait/a"))
        await until(lambda: server.permits == 1, "all is taken")
        client = await server.connect()
        await client.send(head("/up", "Content-Length: 500000", *expect, method="POST"))
        answers = await client.rest()
        assert [(one.status, one.headers["connection"]) for one in answers] == [(503, "close")]
        assert client.interim == []
        assert stage.log == ["a"]  # the handler did not run
        if not expect:
            small = await server.connect()  # what is known to be little need not end it
            await small.send(post("/up", b"0123456789") * 2)
            assert [(await small.answer()).status for _ in range(2)] == [503, 503]
        stage.open("a")
        assert (await holder.answer()).status == 200


# requests: what goes wrong on the way


@in_loop
async def test_a_client_that_goes_midway_is_told_to_the_handler(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app, stage = make_app()
    async with serving(app) as server:
        client = await server.connect()
        await client.send(post("/up", b"0123456789")[:-5])
        await until(lambda: stage.given == 5, "some is read")
        client.reset()
        await until(lambda: server.permits == 0, "the permit is back")
        assert isinstance(stage.log[-1], ClientDisconnected)
        await until(lambda: server.counters()["aborted"] == 1, "it is counted")
        assert caplog.records == []


@in_loop
async def test_a_client_that_ends_its_side_midway_is_told_too() -> None:
    app, stage = make_app()
    async with serving(app) as server:
        client = await server.connect()
        await client.send(post("/up", b"0123456789")[:-5])
        await until(lambda: stage.given == 5, "some is read")
        client.shut()
        (answer,) = await client.rest()
        assert isinstance(stage.log[-1], ClientDisconnected)
        assert (answer.status, answer.json()["code"]) == (400, "CLIENT_DISCONNECTED")
        assert answer.headers["connection"] == "close"


@in_loop
async def test_a_client_that_goes_while_its_request_waits_for_a_slot_frees_its_place() -> None:
    app, stage = make_app()
    async with serving(app, slots=1) as server:
        holder = await server.connect()
        await holder.send(head("/wait/a"))
        await until(lambda: stage.log, "the slot is taken")
        client = await server.connect()
        await client.send(post("/up", b"0123456789")[:-5])
        await until(lambda: server.permits == 2, "it waits")
        client.reset()
        await until(lambda: server.permits == 1, "its permit is back")
        stage.open("a")
        assert (await holder.answer()).status == 200
        await turns()
        assert stage.log == ["a"]


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (chunked("/up", b"good", end=b"zz\r\n"), 400),
        (chunked("/up", b"good", end=b"4\r\ngood!!"), 400),
        (chunked("/up", b"good", end=b"0\r\nno field\r\n\r\n"), 400),
        (chunked("/up", *[b"z" * 600] * 3), 413),
        (head("/up", "Content-Length: 1001", method="POST"), 413),
    ],
)
@pytest.mark.parametrize("how", [single, lambda data: [data]])
@in_loop
async def test_a_body_that_breaks_the_rules_is_told_to_the_handler_and_ends_the_connection(
    wire: bytes, status: int, how: Callable[[bytes], list[bytes]]
) -> None:
    app, stage = make_app()
    async with serving(app, limits=Limits(body=1000)) as server:
        client = await server.connect()
        await client.send_pieces(how(wire + head("/n/1")))
        answers = await client.rest()
        assert [(a.status, a.headers["connection"]) for a in answers] == [(status, "close")]
        if b"chunked" in wire:
            assert stage.log[-1].status == status
        else:
            assert stage.log == []  # known before: the handler need not run
        assert server.counters()["offered"] <= 1


@in_loop
async def test_a_handler_that_goes_on_after_a_broken_body_answers_and_that_is_the_end() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        await client.send(chunked("/caught", b"good", end=b"zz\r\n") + head("/n/1"))
        (answer,) = await client.rest()
        assert (answer.json(), answer.headers["connection"]) == ({"caught": 400}, "close")


@in_loop
async def test_a_body_that_takes_too_long_is_408_in_the_handler() -> None:
    app, stage = make_app()
    async with serving(app) as server:
        client = await server.connect()
        await client.send(post("/up", b"0123456789")[:-5])
        await until(lambda: stage.given == 5, "some is read")
        server.check(20)
        await client.send(b"5")  # trickling does not help
        await turns()
        server.check(10)
        assert await client.silent()
        server.check(1)
        (answer,) = await client.rest()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert stage.log[-1].status == 408


@pytest.mark.parametrize("framing", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
@in_loop
async def test_a_body_that_is_read_as_it_comes_must_come_at_the_least_rate(framing: str) -> None:
    app, stage = make_app()
    rates = Timeouts(head=10, body=30, keep_alive=75, write=30, body_rate=256)

    def piece(size: int) -> bytes:
        body = b"z" * size
        return body if "Length" in framing else b"%x;%b\r\n%b\r\n" % (size, b"x" * 300, body)

    async with serving(app, timeouts=rates) as server:
        slow, fast = await server.connect(), await server.connect()
        for client in (slow, fast):
            await client.send(head("/up", framing, method="POST"))
        for _ in range(GRACE + 1):
            assert await slow.silent()
            await slow.send(piece(200))
            await fast.send(piece(256))
            await turns()
            server.check(1)
        (answer,) = await slow.rest()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert "too slowly" in answer.json()["message"]
        assert stage.log[-1].status == 408
        assert await fast.silent()
        server.check(1)
        (answer,) = await fast.rest()
        assert "too slowly" in answer.json()["message"]


@in_loop
async def test_a_handler_that_does_not_read_makes_its_client_neither_late_nor_slow() -> None:
    app, stage = make_app()
    rates = Timeouts(head=10, body=30, keep_alive=75, write=30, body_rate=100_000)
    async with serving(app, timeouts=rates) as server:
        client, protocol = await server.pair()
        sending = asyncio.ensure_future(client.send(post("/first/a", b"z" * 1_000_000)))
        await until(lambda: protocol.paused, "it is held up")
        for _ in range(20):
            server.check(1)
        stage.open("a")
        assert (await client.answer()).json() == {"length": 1_000_000}
        await sending


@in_loop
async def test_the_time_for_which_the_handler_holds_up_its_client_does_not_count() -> None:
    app, stage = make_app()
    async with serving(app) as server:
        client, protocol = await server.pair()
        sending = asyncio.ensure_future(client.send(post("/first/a", b"z" * 1_000_000)))
        await until(lambda: protocol.paused, "it is held up")
        for _ in range(5):
            server.check(20)
        stage.open("a")
        assert (await client.answer()).json() == {"length": 1_000_000}
        await sending


# requests: Expect


@pytest.mark.parametrize("framing", ["Content-Length: 4", "Transfer-Encoding: chunked"])
@in_loop
async def test_100_continue_is_sent_when_the_handler_first_reads(framing: str) -> None:
    app, stage = make_app()

    @app.post("/later", stream=True)
    async def later(request: Request) -> bytes:
        await stage.wait("later")
        return await request.read()

    async with serving(app) as server:
        client = await server.connect()
        for count in (1, 2):
            await client.send(head("/later", framing, "Expect: 100-continue", method="POST"))
            if count == 1:
                await until(lambda: stage.log, "it runs")
                assert await client.silent()
                server.check(100)  # nobody can send what was not asked for
                stage.open("later")
            await client.interim_answer()
            await client.send(b"body" if framing.startswith("C") else b"4\r\nbody\r\n0\r\n\r\n")
            assert (await client.answer()).body == b"body"
            assert client.interim == [100] * count


@in_loop
async def test_no_100_when_the_body_is_not_wanted_and_the_connection_ends() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        lines = ("Content-Length: 4", "Expect: 100-continue")
        await client.send(head("/unread", *lines, method="POST"))
        (answer,) = await client.rest()
        assert (answer.status, answer.headers["connection"], client.interim) == (200, "close", [])


@in_loop
async def test_no_100_for_a_stream_when_the_body_comes_at_once() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        await client.send(post("/up", b"body", "Expect: 100-continue") + head("/n/1"))
        assert (await client.answer()).json()["length"] == 4
        assert (await client.answer()).json() == {"n": 1}
        assert client.interim == []


@in_loop
async def test_100_for_a_stream_stands_behind_the_answers_owed() -> None:
    app, stage = make_app()
    async with serving(app) as server:
        client = await server.connect()
        lines = ("Content-Length: 4", "Expect: 100-continue")
        await client.send(head("/wait/a") + head("/up", *lines, method="POST"))
        await until(lambda: sorted(stage.log) == ["a", "up"], "both run")
        assert await client.silent()
        stage.open("a")
        assert (await client.answer()).status == 200
        await client.interim_answer()
        await client.send(b"body")
        assert (await client.answer()).json()["length"] == 4
        assert client.interim == [100]


@in_loop
async def test_no_100_once_the_answer_has_begun() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        lines = ("Content-Length: 4", "Expect: 100-continue")
        await client.send(head("/both", *lines, method="POST"))
        await opened(client)
        assert await chunk(client) == b"begun,"
        assert await client.silent()
        await client.send(b"body")  # it may send all the same
        assert await chunks(client) == [b"body"]
        assert (await client.get("/n/1")).status == 200


@pytest.mark.parametrize(
    ("path", "status"), [("/nowhere", 404), ("/n/1", 405), ("/echo?", 413), ("/up?", 413)]
)
@in_loop
async def test_what_is_sure_to_fail_is_told_at_once_and_its_body_is_no_request(
    path: str, status: int
) -> None:
    app, _ = make_app()
    async with serving(app, limits=Limits(body=100)) as server:
        client = await server.connect()
        body = head("/n/666")
        size = 101 if status == 413 else len(body)
        lines = (f"Content-Length: {size}", "Expect: 100-continue")
        await client.send(head(path, *lines, method="POST"))
        (answer,) = await client.rest()
        assert (answer.status, answer.headers["connection"], client.interim) == (
            status,
            "close",
            [],
        )
        await client.send(body)
        await turns()
        assert server.counters()["offered"] <= 1


@in_loop
async def test_a_body_that_came_without_being_asked_for_does_not_end_a_404() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        await client.send(post("/nowhere", b"body", "Expect: 100-continue") + head("/n/1"))
        assert (await client.answer()).status == 404
        assert (await client.answer()).json() == {"n": 1}


# both ways


@pytest.mark.parametrize("keep", [True, False])
@in_loop
async def test_pipelined_requests_stay_in_order_around_bodies_and_streams(keep: bool) -> None:
    rng = seeded("both ways")
    app, _ = make_app()
    async with serving(app) as server:
        client = await server.connect()
        sizes = [rng.choice([1, 100, 70_000, 150_000]) for _ in range(20)]
        wire = b""
        for size in sizes:
            body = rng.randbytes(size)
            wire += head("/sync") + post("/up", body) + chunked("/back", body) + head("/n/1")
            wire += post("/unread", body[:1000])
        if not keep:
            wire += post("/up", b"last", "Connection: close")
        sending = asyncio.ensure_future(client.send(wire))
        for size in sizes:
            await opened(client)
            assert b"".join(await chunks(client)) == b"one,two"
            assert (await client.answer()).json()["length"] == size
            await opened(client)
            assert len(b"".join(await chunks(client))) == size
            assert (await client.answer()).json() == {"n": 1}
            assert (await client.answer()).json() == {"read": False}
        await sending
        if not keep:
            answer = await client.answer()
            assert (answer.json()["length"], answer.headers["connection"]) == (4, "close")
            assert await client.at_end()


@in_loop
async def test_a_body_can_be_sent_back_while_it_comes() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        wire = chunked("/back", end=b"")
        await client.send(wire)
        for n, piece in enumerate((b"one", b"two", b"three")):
            await client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            if n == 0:
                await opened(client)
            assert await chunk(client) == piece
        await client.send(b"0\r\n\r\n" + head("/n/1"))
        assert await chunk(client) == b""
        assert (await client.answer()).json() == {"n": 1}


@in_loop
async def test_a_broken_body_breaks_the_answer_that_is_made_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        await client.send(chunked("/back", b"good", end=b""))
        await opened(client)
        assert await chunk(client) == b"good"
        await client.send(b"zz\r\n")
        assert await cut_off(client) == b""
        await until(lambda: server.permits == 0, "the permit is back")
        (record,) = caplog.records  # the client's doing: a line, but no traceback
        assert (record.levelno, record.exc_info) == (logging.WARNING, None)


@in_loop
async def test_clients_that_go_at_random_points_leave_nothing_behind() -> None:
    rng = seeded("random ends")
    app, stage = make_app()
    wires = [
        post("/up", b"z" * 100_000),
        chunked("/back", b"z" * 50_000, b"z" * 50_000),
        post("/first/never", b"z" * 100_000, "Expect: 100-continue"),
        post("/unread", b"z" * 100_000) + head("/three"),
        head("/endless") + post("/up", b"zz"),
        head("/gated/never") + chunked("/up", b"zz"),
        head("/events") + head("/three"),
        head("/wait/never") + head("/three") + post("/up", b"z" * 100_000),
    ]
    async with serving(app, slots=8) as server:
        for _ in range(150):
            wire = rng.choice(wires)
            client = await server.connect()
            client_sends = wire[: rng.randint(1, len(wire))]
            try:
                async with asyncio.timeout(0.02):
                    await client.send(client_sends)
            except (TimeoutError, ConnectionResetError, BrokenPipeError):
                pass
            await turns(rng.randint(0, 3))
            client.read_some()
            rng.choice([client.reset, client.close])()
        stage.open("never")

        def gone() -> bool:
            server.check(15)  # the events' comments find that nobody is there
            return server.permits == 0

        await until(gone, "all permits are back")
        await until(lambda: not server.service.open, "all connections are gone")


@pytest.mark.parametrize("wire", [post("/up", b"0123456789")[:-5], head("/gated/never")])
@in_loop
async def test_streams_whose_client_went_away_held_themselves(wire: bytes) -> None:
    """By the exception that ended them: with tens of thousands the memory grew by 80 MB."""
    app, stage = make_app()
    async with serving(app) as server:
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)  # what only the collector frees is kept, to be seen
        gc.disable()
        try:
            client = await server.connect()
            await client.send(wire)
            await until(lambda: stage.given or stage.log, "it streams")
            client.reset()
            await until(lambda: server.runner.busy == 0, "it is over")
            stage.log.clear()  # the handler's own exception
            await turns()
            gc.collect()
            found = [one for one in gc.garbage if isinstance(one, AnswerWriter | BodyStream)]
        finally:
            gc.set_debug(0)
            gc.enable()
            gc.garbage.clear()
        assert found == []
