"""Coroutines that begin together, in one turn of a worker.

Invariant, asked at the end of each test: whatever one of a group does, every other has its answer,
no permit and no slot is held, and the counters add up.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from typing import Any

import pytest
import uvloop

from fluxor_fast import App, HTTPError, Request, Response
from fluxor_fast.arbiter.shared import SharedMemory
from fluxor_fast.asgi.serve import AsgiApp
from fluxor_fast.cache import Cache
from fluxor_fast.composition import Layer, offer
from fluxor_fast.http.request import CURRENT, Head
from fluxor_fast.http.streaming import StreamingResponse
from fluxor_fast.middleware.security_headers import SecurityHeaders
from fluxor_fast.routing import Kind, Route
from fluxor_fast.server import running
from fluxor_fast.server.admission import KernelLock, SharedLimit, full_fence
from fluxor_fast.server.protocol import HttpProtocol
from tests.support.inprocess import head, in_loop, post, until
from tests.support.turns import Bench, HandLoop, asked, body, outside, statuses


@pytest.mark.parametrize("count", [2, running.GROUP, running.GROUP + 1, 3 * running.GROUP + 5])
@in_loop
async def test_all_are_answered_also_beside_those_that_fail_or_wait(count: int) -> None:
    app, gate, tasks = App(), asyncio.Event(), set()

    @app.get("/{number:int}")
    async def each(request: Request, number: int) -> Any:
        assert request.path == f"/{number}"
        tasks.add(asyncio.current_task())
        match number % 6:
            case 0:
                return {"number": number}
            case 1:
                raise HTTPError(418, "no")
            case 2:
                return {"number": object()}  # cannot be encoded
            case 3:
                await gate.wait()
            case 4:
                return Response(b"", 200, {"X-Bad": "a\nb"}) if number % 4 else Response(b"", 304)
            case 5:
                raise asyncio.CancelledError
        return {"number": number}

    bench, transports = asked(app, *(head(f"/{number}") for number in range(count)))
    await outside(bench)
    assert len(tasks) == count  # each has a task of its own
    gate.set()
    await until(lambda: not bench.runner.busy, "all have ended")
    bench.loop.run()
    wanted = [[[200], [418], [500], [200], [304], [500]][number % 6] for number in range(count)]
    for number in range(4, count, 6):
        wanted[number] = [500] if number % 4 else [304]
    assert statuses(transports) == wanted
    bench.assert_empty()
    assert bench.memory.slots.tolist() == [0, 0]


@in_loop
async def test_an_answer_is_what_its_handler_returned_whatever_the_next_does_with_it() -> None:
    app, shared = App(), {"count": 0}

    @app.get("/")
    async def count(request: Request) -> Any:
        shared["count"] += 1
        return shared

    bench, transports = asked(app, *[head()] * 5)
    await outside(bench)
    assert [body(transport)["count"] for transport in transports] == [1, 2, 3, 4, 5]
    bench.assert_empty()


@in_loop
async def test_one_that_is_cancelled_before_it_began_leaves_nothing_behind() -> None:
    app = App()

    @app.get("/")
    async def quick(request: Request) -> Any:
        return {}

    @app.get("/murder")
    async def murder(request: Request) -> Any:
        for task in asyncio.all_tasks():
            if task.get_name() == "request" and task is not asyncio.current_task():
                task.cancel()
        return {}

    bench, transports = asked(app, head(), head("/murder"), head(), head())
    await outside(bench)
    assert statuses(transports) == [[200], [200], [], []]
    assert [transport.closing for transport in transports] == [False, False, True, True]
    assert bench.memory.permits.tolist() == bench.memory.slots.tolist() == [0, 0]
    figures = bench.figures()
    assert (figures["accepted"], figures["completed"], figures["aborted"]) == (4, 2, 2)


@in_loop
async def test_a_route_with_a_limit_of_its_own_gets_its_permits_back() -> None:
    app = App()

    @app.get("/", max_in_flight=3)
    async def few(request: Request) -> Any:
        return {}

    memory = SharedMemory(2)
    words = memory.routes[0]
    limit = SharedLimit(words, 0, full_fence(), KernelLock(memory.fd, 3))
    (route,) = app.routes
    bench = Bench(app, HandLoop(), memory=memory, slots=100, routes={route: limit})
    protocols = [bench.connect() for _ in range(5)]
    for protocol in protocols:
        protocol.data_received(head())
    await outside(bench)
    assert sorted(statuses([one.transport for one in protocols])) == [[200]] * 3 + [[503]] * 2
    bench.assert_empty()
    assert words.tolist() == [0, 0]


@in_loop
async def test_pipelined_answers_keep_their_order() -> None:
    app, gate = App(), asyncio.Event()

    @app.get("/{number:int}")
    async def each(request: Request, number: int) -> Any:
        if number == 1:
            await gate.wait()
        return {"number": number}

    bench = Bench(app, HandLoop(), slots=100)
    protocol = bench.connect()
    transport: Any = protocol.transport
    protocol.data_received(b"".join(head(f"/{number}") for number in range(3)))
    await outside(bench)
    assert b"".join(transport.written).count(b"HTTP/1.1") == 1
    gate.set()
    await until(lambda: not bench.runner.busy, "all have ended")
    bench.loop.run()
    text = b"".join(transport.written)
    places = [text.index(b'{"number":%d}' % number) for number in range(3)]
    assert places == sorted(places)
    bench.assert_empty()


@in_loop
async def test_who_came_first_begins_first_also_beside_answers_that_are_known() -> None:
    app, log = App(), []

    @app.get("/a")
    async def a(request: Request) -> Any:
        log.append("a")
        return {}

    async def b(request: Request) -> Any:
        raise AssertionError("its answer is known")

    def known(request: Request) -> Any:
        log.append("b")
        return {}

    offer(b, known)
    app.get("/b")(b)
    bench, transports = asked(app, *(head(f"/{one}") for one in "abaabba"))
    await outside(bench)
    assert "".join(log) == "abaabba"
    assert statuses(transports) == [[200]] * 7
    bench.assert_empty()


@in_loop
async def test_a_response_that_requests_share_is_to_each_what_it_was_when_returned() -> None:
    """Middleware that sets a cookie on it would else give one client the other's."""
    app, shared = App(), Response("")

    def cookie(call_next: Any, route: Any) -> Any:
        async def call(request: Request) -> Any:
            response = await call_next(request)
            response.headers["Set-Cookie"] = f"user={request.headers['x-user']}"
            return response

        return call

    app.add_middleware(cookie)

    @app.get("/{number:int}")
    async def one(request: Request, number: int) -> Any:
        shared.body = b"for %d" % number
        return number, shared

    numbers = (200, 404, 201, 503)
    bench, transports = asked(app, *(head(f"/{n}", f"X-User: u{n}") for n in numbers))
    await outside(bench)
    for number, transport in zip(numbers, transports, strict=True):
        text = b"".join(transport.written)
        assert text.startswith(b"HTTP/1.1 %d " % number)
        assert text.endswith(b"for %d" % number)
        assert b"user=u%d\r\n" % number in text
    bench.assert_empty()


@in_loop
async def test_an_answer_that_cannot_be_sent_is_logged_with_its_request() -> None:
    app, seen = App(), []

    class Look(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(CURRENT.get())

    @app.get("/")
    async def bad(request: Request) -> Any:
        return Response("x", headers={"X": "a\nb"})

    log, look = logging.getLogger("fluxor_fast.server"), Look()
    log.addHandler(look)
    try:
        bench, transports = asked(app, head(), head())
        await outside(bench)
    finally:
        log.removeHandler(look)
    assert statuses(transports) == [[500]] * 2
    assert len(set(seen)) == 2 and None not in seen
    bench.assert_empty()


@in_loop
async def test_a_status_that_is_none_harms_no_other() -> None:
    app = App()

    @app.get("/bad")
    async def bad(request: Request) -> Any:
        response = Response("x")
        response.status = 600
        return response

    @app.get("/")
    async def good(request: Request) -> Any:
        return {}

    bench, transports = asked(app, head(), head("/bad"), head(), head())
    await outside(bench)
    assert [statuses(transports)[at] for at in (0, 2, 3)] == [[200]] * 3
    assert bench.memory.permits.tolist() == bench.memory.slots.tolist() == [0, 0]


@pytest.mark.parametrize("what", [GeneratorExit, BaseException])
@in_loop
async def test_whatever_a_handler_raises_gives_its_slot_and_permit_back(what: Any) -> None:
    app = App()

    @app.get("/bad")
    async def bad(request: Request) -> Any:
        raise what

    @app.get("/")
    async def good(request: Request) -> Any:
        return {}

    for requests in ([head("/bad")], [head(), head("/bad"), head()]):
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        bench, transports = asked(app, *requests)
        await outside(bench)
        expected = [[] if b"/bad" in request else [200] for request in requests]
        assert statuses(transports) == expected
        bench.assert_empty()


@pytest.mark.parametrize("what", [SystemExit, KeyboardInterrupt])
def test_what_ends_the_loop_leaves_the_others_of_its_group_as_they_were(what: Any) -> None:
    """A loop that is run again, or in its last turns, serves them."""
    app = App()

    @app.get("/exit")
    async def bad(request: Request) -> Any:
        raise what

    @app.get("/")
    async def good(request: Request) -> Any:
        return {}

    loop = uvloop.new_event_loop()
    bench = Bench(app, loop)
    protocols = [bench.connect() for _ in range(4)]
    bench.runner.fresh = 0

    def arrive() -> None:
        for at, protocol in enumerate(protocols):
            protocol.data_received(head("/exit" if at == 1 else "/"))

    loop.call_soon(arrive)
    with pytest.raises(what):
        loop.run_until_complete(asyncio.sleep(1))
    transports: list[Any] = [protocol.transport for protocol in protocols]
    assert transports[0].statuses == [200]  # it was ready
    loop.run_until_complete(asyncio.sleep(0.01))
    assert statuses(transports) == [[200], [], [200], [200]]
    bench.assert_empty()
    loop.close()


@pytest.mark.parametrize("standing", [False, True])
@in_loop
async def test_what_ends_the_loop_leaves_those_waiting_who_have_not_begun(standing: bool) -> None:
    """Known answers behind one, and coroutines behind those, would have held permit and slot."""
    app, cache = App(), Cache()

    class Ends(Layer):
        def begin(self, request: Request) -> Any:
            if "x-end" in request.headers:
                raise GeneratorExit

    @app.get("/known", middleware=[Ends()])
    @cache.cached(ttl=60, key=lambda request: 1)
    async def known(request: Request) -> dict[str, int]:
        return {"a": 1}

    @app.get("/")
    async def good(request: Request) -> Any:
        return {}

    await known(None)
    requests = [head(), head("/known"), head("/known", "X-End: 1"), head("/known"), head(), head()]
    bench, transports = asked(app, *requests)
    bench.runner._waiting.standing = standing
    bench.runner._waiting.target = 60.0  # nobody is too late
    with pytest.raises(GeneratorExit):
        await outside(bench)
    assert transports[2].closing
    bench.runner.counters.publish()
    bench.assert_adds_up()
    assert bench.memory.slots[0] == 0
    bench.runner.schedule()
    await outside(bench)
    assert statuses(transports) == [[200], [200], [], [200], [200], [200]]
    bench.assert_empty()


@pytest.mark.parametrize("wrapped", [False, True])
@in_loop
async def test_a_plain_handler_that_raises_anything_gives_its_permit_back(wrapped: bool) -> None:
    app = App()
    if wrapped:
        app.add_middleware(SecurityHeaders())

    @app.get("/bad")
    def bad(request: Request) -> Any:
        raise GeneratorExit

    @app.get("/")
    def good(request: Request) -> Any:
        return {}

    bench, transports = asked(app, head(), head("/bad"), head(), head())
    with pytest.raises(GeneratorExit):
        await outside(bench)
    assert statuses(transports)[:2] == [[200], []]
    assert transports[1].closing
    bench.runner.schedule()
    await outside(bench)
    assert statuses(transports) == [[200], [], [200], [200]]
    bench.assert_empty()


@in_loop
async def test_what_middleware_has_changed_leaves_behind_what_it_has_not_in_the_same_turn() -> None:
    app = App()

    @app.get("/plain")
    def plain(request: Request) -> Any:
        return {"plain": True}

    @app.get("/wrapped", middleware=[SecurityHeaders()])
    def wrapped(request: Request) -> Any:
        return {"plain": False}

    bench, transports = asked(app, *map(head, ("/wrapped", "/plain") * 3), head("/") * 2)
    await outside(bench)
    assert statuses(transports) == [[200]] * 6 + [[404, 404]]
    assert [body(transport)["plain"] for transport in transports[:6]] == [False, True] * 3
    for at in range(6):
        assert (b"X-Frame-Options" in transports[at].written[0]) == (at % 2 == 0)
    bench.assert_empty()


@in_loop
async def test_a_stream_behind_an_answer_of_the_same_turn_keeps_its_slot() -> None:
    app, gate = App(), asyncio.Event()

    @app.get("/quick")
    async def quick(request: Request) -> Any:
        return {}

    async def pieces() -> Any:
        yield b"a"
        await gate.wait()
        yield b"b"

    @app.get("/stream")
    async def stream(request: Request) -> Any:
        return StreamingResponse(pieces())

    bench = Bench(app, asyncio.get_running_loop())
    protocol = bench.connect()
    bench.runner.fresh = 0
    protocol.data_received(head("/quick") + head("/stream"))
    transport: Any = protocol.transport
    await until(lambda: b"\r\na\r\n" in b"".join(transport.written), "the first piece")
    assert bench.memory.slots.tolist() == [1, 0]
    gate.set()
    await until(lambda: not bench.runner.busy, "it has ended")
    bench.assert_empty()


@pytest.mark.parametrize("draining", [False, True])
@in_loop
async def test_answers_of_every_kind_add_up_also_when_connections_are_lost(draining: bool) -> None:
    app, protocols = App(), list[HttpProtocol]()

    @app.get("/lose/{number:int}")
    async def lose(request: Request, number: int) -> Any:
        protocols[number].connection_lost(None)
        return {}

    @app.get("/status/{number:int}")
    async def status(request: Request, number: int) -> Any:
        return number, Response("y" * 70_000 if number == 299 else "x")

    @app.get("/error")
    async def error(request: Request) -> Any:
        raise ValueError

    bench = Bench(app, HandLoop(), slots=100)
    bench.runner.draining = draining
    requests = [
        *map(head, ("/status/200", "/lose/0", "/lose/3", "/status/200", "/status/204")),
        *map(head, ("/status/304", "/status/299", "/status/500", "/error", "/lose/9", "/lose/9")),
        head("/status/200", method="HEAD"),
        head("/status/200", version="1.0"),
        head("/status/200", "Connection: close"),
    ]
    protocols.extend(bench.connect() for _ in requests)
    bench.runner.fresh = 0
    for protocol, request in zip(protocols, requests, strict=True):
        protocol.data_received(request)
    await outside(bench)
    got = statuses([protocol.transport for protocol in protocols])
    assert [got[at] for at in (1, 4, 5, 6, 7, 8, 11, 12, 13)] == [
        [200], [204], [304], [299], [500], [500], [200], [200], [200],
    ]  # fmt: skip
    for protocol in protocols:
        if not protocol.closed:
            protocol.connection_lost(None)
    bench.loop.run()
    bench.assert_empty()


# ASGI


def scrubbed(protocol: HttpProtocol) -> bytes:
    """Return what was written, without the server's own request ids."""
    transport: Any = protocol.transport
    return re.sub(rb"0123456789abcdef[0-9a-f]{16}", b"", b"".join(transport.written))


@in_loop
async def test_asgi_answers_are_alike_alone_and_in_groups() -> None:
    bodies: dict[str, Any] = {
        "bytes": b"done", "array": bytearray(b"done"), "view": memoryview(b"d.o.n.e.")[::2],
        "text": "done", "none": None, "number": 4, "long": b"too long",
    }  # fmt: skip

    async def application(scope: Any, receive: Any, send: Any) -> None:
        _, kind, status, length, more = scope["path"].split("/")
        headers = [(b"content-length", length.encode())] if length != "-" else []
        headers += {
            "close": [(b"connection", b"close")],
            "id": [(b"x-request-id", b"mine")],
            "again": [],
        }[more]
        start = {"type": "http.response.start", "status": int(status), "headers": headers}
        await send(start)
        start["status"] = 600  # it was told: this changes nothing
        try:
            await send({"type": "http.response.body", "body": bodies[kind]})
        except ValueError:
            if more == "again":
                await send({"type": "http.response.body", "body": b"dono"})
            raise

    requests = [
        head(f"/{kind}/{status}/{length}/{more}", method=method, version=version)
        for kind in bodies
        for status in (200, 204, 304, 404)
        for length in ("-", "4")
        for more in ("close", "id", "again")
        for method in ("GET", "HEAD")
        for version in ("1.1", "1.0")
    ]
    bench = Bench(AsgiApp(application), HandLoop(), slots=100)

    async def answers(requests: list[bytes]) -> list[Any]:
        protocols = [bench.connect() for _ in requests]
        bench.runner.fresh = 0
        for protocol, request in zip(protocols, requests, strict=True):
            protocol.data_received(request)
        await outside(bench)
        found = [(scrubbed(protocol), protocol.transport.closing) for protocol in protocols]
        for protocol in protocols:
            protocol.connection_lost(None)
        bench.loop.run()
        return found

    alone = [(await answers([request]))[0] for request in requests]
    for at in range(0, len(requests), 96):
        some = slice(at, at + 96)
        assert await answers(requests[some]) == alone[some]
    bench.assert_empty()


@in_loop
async def test_who_is_answered_before_its_body_gets_no_100() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"no"})
        await receive()

    request = head("/", "Content-Length: 5", "Expect: 100-continue", method="POST")
    bench, transports = asked(AsgiApp(application), request, request)
    await outside(bench)
    for transport in transports:
        text = b"".join(transport.written)
        assert b"100 Continue" not in text and b"Connection: close" in text
        transport.protocol.connection_lost(None)
    await until(lambda: not bench.runner.busy, "they have ended")
    bench.loop.run()
    bench.assert_empty()


# a body that came with its head


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer how many messages it took, and the body."""
    messages = [await receive()]
    while messages[-1].get("more_body"):
        messages.append(await receive())
    text = b"%d " % len(messages) + b"".join(message["body"] for message in messages)
    headers = [(b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


@in_loop
async def test_an_asgi_application_gets_a_body_that_came_with_its_head_in_one_message() -> None:
    bench = Bench(AsgiApp(echo), HandLoop(), slots=100)
    protocol = bench.connect()
    transport: Any = protocol.transport
    request = post("/", b"hello")
    for _ in range(3):  # from the second time on the head is known
        protocol.data_received(request)
        await outside(bench)
    protocol.data_received(request[:-2])
    protocol.data_received(request[-2:])
    await outside(bench)
    bodies = [one.partition(b"\r\n\r\n")[2] for one in transport.written]
    assert bodies[1:3] == [b"1 hello"] * 2
    assert [one[1:] for one in (bodies[0], bodies[3])] == [b" hello"] * 2
    bench.assert_empty()


@pytest.mark.parametrize("stream", [False, True])
@in_loop
async def test_a_known_head_does_not_get_a_body_past_its_limit(stream: bool) -> None:
    app = App()

    @app.post("/", max_body=4, stream=stream)
    async def small(request: Request) -> Any:
        return {"length": len(await request.read())}

    bench, transports = asked(app, *[post("/", b"hello")] * 2, *[post("/", b"four")] * 2)
    await outside(bench)
    assert statuses(transports) == [[413], [413], [200], [200]]
    bench.assert_empty()


@in_loop
async def test_a_route_that_streams_is_never_given_its_body_whole() -> None:
    app = App()

    @app.post("/", stream=True)
    async def streams(request: Request) -> Any:
        with pytest.raises(RuntimeError, match="this route streams"):
            _ = request.body
        return {"length": len(await request.read())}

    bench = Bench(app, HandLoop(), slots=100)
    protocol = bench.connect()
    transport: Any = protocol.transport
    for _ in range(3):
        protocol.data_received(post("/", b"hello"))
        await outside(bench)
    assert transport.statuses == [200] * 3
    bench.assert_empty()


@in_loop
async def test_behind_a_whole_body_nothing_is_lost() -> None:
    app = App()

    @app.post("/")
    async def take(request: Request) -> Any:
        return {"body": request.body.decode()}

    bench = Bench(app, HandLoop(), slots=100)
    protocol = bench.connect()
    transport: Any = protocol.transport
    one, two = post("/", b"one"), post("/", b"two")
    for data in (one, one + two, one + two[:10], two[10:], one):
        protocol.data_received(data)
        await outside(bench)
    said = [json.loads(b"{" + part.partition(b"{")[2])["body"]
            for part in b"".join(transport.written).split(b"HTTP/1.1 ")[1:]]  # fmt: skip
    assert said == ["one", "one", "two", "one", "two", "one"]
    bench.assert_empty()


def test_a_head_that_closes_has_no_other_form_that_does_not() -> None:
    route = Route("*", "/*", lambda _: None, kind=Kind.ASYNC, stream=True, buffered=True)
    one = Head("POST", "/", b"", True, (), 5, True, route)
    assert one.gathered is not None and not one.gathered.streams
    assert one.closing().gathered is None


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("method", ["POST", "PUT", "HEAD"])
@pytest.mark.parametrize("kind", ["asgi", "plain"])
@in_loop
async def test_whole_new_and_cut_it_is_the_same_request(
    kind: str, method: str, version: str
) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        seen = [scope[one] for one in ("method", "path", "headers", "http_version")]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": repr((seen, body)).encode()})

    app = App()

    @app.post("/")
    async def plain(request: Request) -> Any:
        return repr((request.method, request.headers.get("x-a"), request.body, request.id))

    bodies = [
        b"hello", b"", b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"x" * (1 << 20), b"y" * ((1 << 20) + 1),
    ]  # fmt: skip
    fields = [
        (), ("X-A: 1",), ("Connection: close",), ("X-Request-ID: abc",),
        ("X-Request-Timeout-Ms: 500",), ("Expect: 100-continue",),
    ]  # fmt: skip
    served = AsgiApp(application) if kind == "asgi" else app
    for text in bodies:
        for lines in fields:
            length = f"Content-Length: {len(text)}"
            request = head("/", length, *lines, method=method, version=version) + text
            got = []
            bench = Bench(served, HandLoop(), slots=100)
            for cuts in ((0,), (0,), (0, 20)):  # new, known and whole, cut
                protocol = bench.connect()
                bench.runner.fresh = 0
                for begin, end in zip(cuts, (*cuts[1:], len(request)), strict=True):
                    protocol.data_received(request[begin:end])
                await outside(bench)
                got.append((scrubbed(protocol), protocol.transport.closing, protocol.current))
                if not protocol.closed:
                    protocol.connection_lost(None)
            await until(lambda bench=bench: not bench.runner.busy, "it has ended")  # type: ignore[misc]
            bench.loop.run()
            bench.assert_empty()
            assert got[0] == got[1] == got[2], (text[:30], lines)
