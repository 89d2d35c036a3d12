"""The protocol over real connections, in this process: order, bounds, timeouts, permits.

``serving`` ends every test with the same question: are all shared words 0, and do the counters
add up?
"""

from __future__ import annotations

import asyncio
import time

import pytest

from fluxor_fast import Request
from tests.support.gates import make_app, statuses
from tests.support.inprocess import head, in_loop, post, serving, turns, until

# keeping connections


@in_loop
async def test_a_connection_is_kept_and_no_field_says_so() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        for n in range(20):
            answer = await client.get(f"/n/{n % 3}")
            assert (answer.status, answer.json()) == (200, {"n": n % 3})
            assert "connection" not in answer.headers
        assert len(server.service.open) == 1


@in_loop
async def test_connection_close_is_answered_and_done() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        answer = await client.get("/", "Connection: close")
        assert answer.headers["connection"] == "close"
        assert await client.at_end()


@in_loop
async def test_http_1_0_closes_unless_it_asks_to_keep() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        for _ in range(3):
            await client.send(head("/", "Connection: keep-alive", version="1.0"))
            assert (await client.answer()).headers["connection"] == "keep-alive"
        await client.send(head("/", version="1.0"))
        assert (await client.answer()).headers["connection"] == "close"
        assert await client.at_end()


@in_loop
async def test_head_has_the_length_and_no_body() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        full = await client.get("/")
        bare = await client.get("/", method="HEAD")
        assert bare.headers["content-length"] == full.headers["content-length"]
        assert (await client.get("/")).status == 200  # nothing of a body was in between


@in_loop
async def test_no_content_has_neither_length_nor_body() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        answer = await client.get("/nothing")
        assert answer.status == 204
        assert "content-length" not in answer.headers
        assert (await client.get("/")).status == 200


@in_loop
async def test_a_blocking_handler_answers() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        assert (await client.get("/blocking")).json() == {"blocking": True}


# several requests at once


@in_loop
async def test_no_more_than_max_pipeline_requests_are_in_progress() -> None:
    """The rest waits in the kernel: the socket is not read."""
    app, gates = make_app()
    async with serving(app, max_pipeline=4) as server:
        client, protocol = await server.pair()
        rounds = 3000
        sending = asyncio.ensure_future(client.send(head("/wait/a") + head("/n/7") * rounds))
        await until(lambda: protocol.order is not None and len(protocol.order) == 4, "the cap")
        await turns()
        assert protocol.order is not None and len(protocol.order) == 4
        assert server.runner.counters.offered == 4
        assert not protocol.transport.is_reading()
        gates.open("a")
        assert (await client.answer()).json() == {"waited": "a"}
        for _ in range(rounds):
            assert (await client.answer()).body == b'{"n":7}'
            assert protocol.order is None or len(protocol.order) <= 4
        await sending


@pytest.mark.parametrize("cap", [1, 2, 3])
@in_loop
async def test_a_small_cap_is_kept_and_answers_all(cap: int) -> None:
    app, gates = make_app()
    async with serving(app, max_pipeline=cap) as server:
        client, _ = await server.pair()
        await client.send(head("/wait/a") + b"".join(head(f"/n/{n}") for n in range(10)))
        await until(lambda: gates.log, "the first runs")
        await turns()
        assert server.runner.counters.offered == cap
        gates.open("a")
        assert await statuses(client, 11) == [200] * 11
        await client.send(b"".join(head(f"/n/{n}") for n in range(10)))
        assert [(await client.answer()).json()["n"] for _ in range(10)] == list(range(10))


@pytest.mark.parametrize("cap", [1, 2, 32])
@in_loop
async def test_all_that_came_before_the_end_of_input_is_answered(cap: int) -> None:
    app, gates = make_app()
    async with serving(app, max_pipeline=cap) as server:
        client = await server.connect()
        await client.send(head("/wait/a") + b"".join(head(f"/n/{n}") for n in range(20)))
        await until(lambda: gates.log, "the first runs")
        client.shut()
        await turns()
        gates.open("a")
        assert [one.status for one in await client.rest()] == [200] * 21


# Expect


@pytest.mark.parametrize("framing", ["Content-Length: 4", "Transfer-Encoding: chunked"])
@in_loop
async def test_100_continue_is_sent_once_before_the_body(framing: str) -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        await client.send(head("/echo", framing, "Expect: 100-continue", method="POST"))
        await client.interim_answer()
        body = b"body" if framing.startswith("C") else b"4\r\nbody\r\n0\r\n\r\n"
        for at in range(len(body)):
            await client.send(body[at : at + 1])
            await turns(2)
        answer = await client.answer()
        assert (answer.status, answer.body, client.interim) == (200, b"body", [100])


@in_loop
async def test_no_100_when_the_body_comes_at_once() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        await client.send(post("/echo", b"body", "Expect: 100-continue") + head("/"))
        assert await statuses(client, 2) == [200, 200]
        assert client.interim == []


@in_loop
async def test_no_100_when_some_of_the_body_came_with_the_head() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        whole = post("/echo", b"body", "Expect: 100-continue")
        await client.send(whole[:-2])
        assert await client.silent()
        await client.send(whole[-2:])
        assert (await client.answer()).body == b"body"
        assert client.interim == []


@in_loop
async def test_no_100_for_http_1_0() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        lines = ("Content-Length: 4", "Expect: 100-continue")
        await client.send(head("/echo", *lines, method="POST", version="1.0"))
        assert await client.silent()
        await client.send(b"body")
        assert (await client.answer()).body == b"body"
        assert client.interim == []


@in_loop
async def test_no_100_but_413_for_a_body_that_is_too_long() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        lines = ("Content-Length: 99999999", "Expect: 100-continue")
        await client.send(head("/echo", *lines, method="POST"))
        assert [one.status for one in await client.rest()] == [413]
        assert client.interim == []


@pytest.mark.parametrize("before", ["/wait/a", "/n/1"])
@in_loop
async def test_100_continue_stands_behind_the_answers_owed(before: str) -> None:
    """An earlier request answered by the short way must not make the client wait for its 100."""
    app, gates = make_app()
    async with serving(app) as server:
        client = await server.connect()
        lines = ("Content-Length: 4", "Expect: 100-continue")
        await client.send(head(before) + head("/echo", *lines, method="POST"))
        gates.open("a")
        assert (await client.answer()).status == 200
        assert client.interim == []
        await client.interim_answer()
        await client.send(b"body")
        assert (await client.answer()).body == b"body"
        assert client.interim == [100]


@in_loop
async def test_every_expectation_gets_its_own_100() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        for count in (1, 2, 3):
            lines = ("Content-Length: 4", "Expect: 100-continue")
            await client.send(head("/echo", *lines, method="POST"))
            await client.interim_answer()
            await client.send(b"body")
            assert (await client.answer()).body == b"body"
            assert client.interim == [100] * count


# ends of connections


@in_loop
async def test_half_close_gets_its_answer_and_the_end() -> None:
    app, gates = make_app()
    async with serving(app) as server:
        client = await server.connect()
        await client.send(head("/wait/a"))
        await until(lambda: gates.log, "it runs")
        client.shut()
        await turns()
        gates.open("a")
        assert [one.status for one in await client.rest()] == [200]
        await until(lambda: not server.service.open, "the server lets it go")


@in_loop
async def test_half_close_at_once_after_a_request_is_answered() -> None:
    async with serving(make_app()[0]) as server:
        for path in ("/n/1", "/n/1", "/big"):  # first parsed, then from the cache
            client = await server.connect()
            await client.send(head(path))
            client.shut()
            assert [one.status for one in await client.rest()] == [200]
        await until(lambda: not server.service.open, "the server lets them go")


@in_loop
async def test_end_of_input_during_the_short_way_does_not_leave_the_connection_open() -> None:
    """The answer of the short way knows nothing of the end of input: it must not be taken."""
    async with serving(make_app()[0]) as server:
        client, protocol = await server.pair()
        await client.get("/")
        protocol.data_received(head("/"))
        assert protocol.eof_received()  # it has arrived, and is not waiting in a queue
        client.shut()
        assert [one.status for one in await client.rest()] == [200]
        await until(lambda: not server.service.open, "the server lets it go")


@in_loop
async def test_end_of_input_on_an_idle_connection_closes_it() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        await client.get("/")
        client.shut()
        assert await client.at_end()


@in_loop
async def test_end_of_input_in_the_middle_of_a_request_closes() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        await client.send(b"GET / HTTP/1.1\r\nHo")
        await turns()
        client.shut()
        assert await client.at_end()


@pytest.mark.parametrize("how", ["reset", "close", "shut"])
@in_loop
async def test_a_client_that_goes_while_it_waits_for_a_slot_frees_its_permits(how: str) -> None:
    app, gates = make_app()
    async with serving(app, slots=1) as server:
        running = await server.connect()
        await running.send(head("/wait/running"))
        await until(lambda: gates.log, "one runs")
        client = await server.connect()
        await client.send(head("/wait/x") * 3)
        await until(lambda: server.permits == 4, "three wait")
        getattr(client, how)()
        await until(lambda: server.permits == 1, "their permits are back")
        await until(lambda: server.counters()["aborted"] == 3, "they are counted")
        gates.open("running")
        assert (await running.answer()).status == 200
        await turns()
        assert gates.log == ["running"]  # no handler ran for nobody


@in_loop
async def test_a_client_that_goes_while_its_handler_runs_keeps_its_permit_till_the_end() -> None:
    app, gates = make_app()
    async with serving(app) as server:
        client, protocol = await server.pair()
        await client.send(head("/wait/a"))
        await until(lambda: gates.log, "it runs")
        client.reset()
        await until(lambda: protocol.closed, "the server knows")
        assert server.permits == 1
        gates.open("a")
        await until(lambda: server.permits == 0, "the permit is back")


@in_loop
async def test_a_client_that_goes_while_synchronous_requests_stand_in_the_backlog() -> None:
    """They leave once: not run, counted once as aborted, and not as still in the system."""
    app, _ = make_app()

    @app.get("/burn")
    def burn(request: Request) -> dict[str, bool]:
        app.state.served.append("/burn")
        until = time.monotonic() + 0.003
        while time.monotonic() < until:
            pass
        return {"burnt": True}

    async with serving(app) as server:
        client, protocol = await server.pair()
        stay, _ = await server.pair()
        await client.send(head("/burn") * 20)
        await until(lambda: app.state.served, "the first runs")
        await stay.send(head("/"))
        client.reset()
        await until(lambda: protocol.closed, "the server knows")
        assert (await stay.answer()).status == 200
        await turns()
        assert server.runner.busy == 0
        assert app.state.served.count("/burn") < 20
        figures = server.counters()
        assert figures["accepted"] == 21 == figures["completed"] + figures["aborted"]


# timeouts


@in_loop
async def test_a_head_that_takes_too_long_is_408() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        await client.send(b"GET / HTTP/1.1\r\n")
        await turns()
        server.check(10)
        assert await client.silent()
        await client.send(b"Host: a\r\n")  # trickling does not help
        await turns()
        server.check(1)
        (answer,) = await client.rest()
        assert (answer.status, answer.headers["connection"]) == (408, "close")


@in_loop
async def test_a_body_that_takes_too_long_is_408_counted_from_its_head() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        whole = post("/echo", b"body")
        await client.send(whole[:20])
        await turns()
        server.check(9)
        await client.send(whole[20:-2])
        await turns()
        server.check(30)
        assert await client.silent()
        server.check(1)
        (answer,) = await client.rest()
        assert (answer.status, answer.headers["connection"]) == (408, "close")


@in_loop
async def test_an_idle_connection_is_closed_without_a_word() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        await client.get("/")
        server.check(75)
        assert await client.silent()
        assert (await client.get("/")).status == 200
        server.check(76)
        assert await client.at_end()


@in_loop
async def test_empty_lines_do_not_keep_a_connection() -> None:
    """They are no request (RFC 9112, section 2.2), so they must not count as one."""
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        await client.get("/")
        for _ in range(4):
            server.check(25)
            await client.send(b"\r\n")
            await turns()
        assert await client.at_end()


@in_loop
async def test_no_timeout_while_a_request_is_in_progress() -> None:
    app, gates = make_app()
    async with serving(app) as server:
        client = await server.connect()
        await client.send(head("/wait/a") + b"GET / HT")
        await until(lambda: gates.log, "it runs")
        server.check(1000)
        gates.open("a")
        assert (await client.answer()).status == 200
        await turns()
        server.check(5)  # from now on the next head has its own time
        await client.send(b"TP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.answer()).status == 200


@in_loop
async def test_a_lingering_connection_is_dropped_after_its_time() -> None:
    async with serving(make_app()[0]) as server:
        client, protocol = await server.pair()
        await client.send(b"\0\r\n\r\n")
        assert (await client.answer()).status == 400
        assert await client.at_end()  # our side is shut, the other not yet
        assert protocol in server.service.open
        await until(lambda: not protocol.unsent(), "the client's kernel has it all")
        server.check(2)
        await turns()
        assert protocol in server.service.open
        server.check(1)
        await until(lambda: not server.service.open, "it is gone")


@in_loop
async def test_a_last_answer_that_is_slowly_read_has_longer_than_to_linger() -> None:
    """It was dropped after two seconds when our own buffer was empty and the kernel's was not."""
    app, _ = make_app()

    @app.get("/some")
    def some(request: Request) -> bytes:
        return b"x" * 60_000

    async with serving(app) as server:
        client, protocol = await server.pair(receive_buffer=4096)
        await client.send(head("/some") + b"\0\r\n\r\n")
        ours = protocol.transport.get_write_buffer_size
        await until(lambda: protocol.unsent() and not ours(), "the kernel has the answer")
        for _ in range(10):
            server.check(3)
        await turns()
        assert [answer.status for answer in await client.rest()] == [200, 400]


@in_loop
async def test_an_idle_connection_with_an_unread_answer_does_not_stay_for_ever() -> None:
    """A close waits for what is unread; a client that never reads must not hold a place."""
    app, _ = make_app()

    @app.get("/some")
    def some(request: Request) -> bytes:
        return b"x" * 40_000

    async with serving(app) as server:
        client, protocol = await server.pair()
        while not protocol.transport.get_write_buffer_size():
            await client.send(head("/some"))
            await turns(3)
        assert not protocol.write_paused
        for _ in range(5):
            server.check(76)
        await until(lambda: not server.service.open, "it is gone")


# draining


@in_loop
async def test_draining_answers_what_is_in_the_system_and_closes() -> None:
    app, gates = make_app()
    async with serving(app) as server:
        idle, busy = await server.connect(), await server.connect()
        await idle.get("/")
        await busy.send(head("/n/1") + head("/wait/a") + head("/n/2"))
        assert (await busy.answer()).status == 200
        await until(lambda: gates.log, "it runs")
        server.runner.draining = True
        for connection in list(server.service.open):
            connection.close_idle()
        assert await idle.at_end()
        gates.open("a")
        answers = await busy.rest()
        assert [one.status for one in answers] == [200, 200]
        # made before the drain, the last one says nothing; none before it may
        assert "connection" not in answers[0].headers
        assert await server.runner.finish(1.0) == 0


@in_loop
async def test_what_does_not_end_is_cancelled_and_gives_everything_back() -> None:
    app, gates = make_app()
    async with serving(app, slots=1) as server:
        client = await server.connect()
        await client.send(head("/wait/a") + head("/wait/b"))
        await until(lambda: gates.log and server.permits == 2, "one runs, one waits")
        server.runner.draining = True
        assert await server.runner.finish(0.01) >= 1
        assert await client.at_end()
        await until(lambda: server.permits == 0, "all permits are back")


@in_loop
async def test_what_comes_behind_the_last_request_while_it_runs_does_not_reset_its_answer() -> None:
    """It was thrown away, then forgotten: the close was at once, and more of it drew a reset."""
    app, gates = make_app()
    async with serving(app) as server:
        client, protocol = await server.pair()
        await client.send(head("/wait/a", "Connection: close"))
        await until(lambda: gates.log, "it runs")
        await client.send(b"more")
        await turns()
        gates.open("a")
        await until(lambda: protocol.current is None, "it is answered")
        for _ in range(3):
            await client.send(b"and more")
            await turns()
        assert not protocol.closed
        assert [one.status for one in await client.rest()] == [200]
        server.check(3)
        await until(lambda: protocol.closed, "it is dropped")


@in_loop
async def test_whatever_comes_behind_a_request_with_its_body_in_one_is_answered() -> None:
    """What comes next is not looked up as a head: it may be one all the same."""
    app, _ = make_app()

    @app.post("/back")
    def echo(request: Request) -> bytes:
        return request.body

    @app.get("/hello")
    def hello(request: Request) -> str:
        return "hello"

    get, whole = head("/hello"), post("/back", b"x" * 1000)
    new = (head("/hello", f"X-Number: {number}") for number in range(100))
    async with serving(app) as server:
        client, protocol = await server.pair()

        async def answered(data: bytes, *bodies: bytes) -> None:
            await client.send(data)
            assert [(await client.answer()).body for _ in bodies] == list(bodies)
            await until(lambda: protocol.current is None, "it is over")

        bodies = {get: b"hello", whole: b"x" * 1000}
        for first in (whole, get):
            for second in (get, whole):
                await answered(first, bodies[first])
                await answered(second, bodies[second])
        for data, expected in (
            (next(new), [b"hello"]),
            (get + get, [b"hello"] * 2),
            (get + next(new), [b"hello"] * 2),
            (whole + whole, [b"x" * 1000] * 2),
            (get + whole, [b"hello", b"x" * 1000]),
        ):
            await answered(whole, b"x" * 1000)
            await answered(data, *expected)
        await answered(whole, b"x" * 1000)
        for part in (whole[:50], whole[50:100]):
            await client.send(part)
            await turns()
        await answered(whole[100:], b"x" * 1000)
        await answered(whole, b"x" * 1000)
        await client.send(b"\0\r\n\r\n")
        assert (await client.answer()).status == 400
        assert await client.at_end()
