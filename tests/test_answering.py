"""Answers over real connections: their order, and what becomes of those that are not taken in."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.gates import BIG, make_app, statuses
from tests.support.inprocess import head, in_loop, serving, turns, until

# order


@in_loop
async def test_a_fast_answer_waits_behind_a_slow_one() -> None:
    app, gates = make_app()
    async with serving(app) as server:
        client = await server.connect()
        await client.send(head("/n/1") + head("/wait/a") + head("/n/2") + head("/wait/b"))
        await client.send(head("/n/3"))
        assert (await client.answer()).json() == {"n": 1}
        await until(lambda: gates.log == ["a", "b"], "both run")
        gates.open("b")
        assert await client.silent()
        gates.open("a")
        answers = [(await client.answer()).json() for _ in range(4)]
        assert answers == [{"waited": "a"}, {"n": 2}, {"waited": "b"}, {"n": 3}]


@in_loop
async def test_a_refusal_keeps_its_place_in_the_order() -> None:
    app, gates = make_app()
    async with serving(app, max_ccu=2) as server:
        client = await server.connect()
        await client.send(b"".join(head(path) for path in ("/wait/a", "/wait/b", "/n/1")))
        await until(lambda: len(gates.log) == 2, "two run")
        assert await client.silent()  # the third is refused already, and waits
        gates.open("b")
        gates.open("a")
        assert await statuses(client, 3) == [200, 200, 503]


@in_loop
async def test_a_request_after_answers_that_left_in_one_turn_does_not_overtake_them() -> None:
    """Two tasks end, their answers wait for the turn; what comes then must stand behind."""
    app, gates = make_app()
    async with serving(app) as server:
        client, protocol = await server.pair()
        await client.get("/")  # its head is in the cache: the short way
        await client.send(head("/wait/a") + head("/wait/b"))
        await until(lambda: len(gates.log) == 2, "both run")
        gates.open("a")
        gates.open("b")
        while protocol.current is not None:
            await asyncio.sleep(0)
        # before the turn in which the two were to be written
        protocol.data_received(head("/"))
        answers = [(await client.answer()).json() for _ in range(3)]
        assert answers == [{"waited": "a"}, {"waited": "b"}, {"home": True}]


@in_loop
async def test_an_error_after_answers_that_left_in_one_turn_does_not_overtake_them() -> None:
    app, gates = make_app()
    async with serving(app) as server:
        client, protocol = await server.pair()
        await client.send(head("/wait/a") + head("/wait/b"))
        await until(lambda: len(gates.log) == 2, "both run")
        gates.open("a")
        gates.open("b")
        while protocol.current is not None:
            await asyncio.sleep(0)
        protocol.data_received(b"not http at all\r\n\r\n")
        assert [one.status for one in await client.rest()] == [200, 200, 400]


# answers that are not taken in


@in_loop
async def test_a_slow_reader_keeps_its_permit_until_it_has_read() -> None:
    async with serving(make_app()[0]) as server:
        client, _ = await server.stuck(head("/big"))
        await turns()
        assert server.permits == 1
        assert server.counters()["completed"] == 1
        assert len((await client.answer()).body) == BIG
        await until(lambda: server.permits == 0, "the permit is back")
        assert (await client.get("/")).status == 200


@in_loop
async def test_nothing_is_read_from_a_client_that_does_not_take_in_its_answers() -> None:
    app, _ = make_app()
    async with serving(app) as server:
        client, _ = await server.stuck(head("/big"))
        await client.send(head("/n/1") * 3)
        await turns()
        assert app.state.served == []
        assert (await client.answer()).status == 200
        assert await statuses(client, 3) == [200] * 3


@in_loop
async def test_a_big_answer_behind_a_slow_one_keeps_its_permit() -> None:
    """What waits for its place in the order is not with the client either."""
    app, gates = make_app()
    async with serving(app) as server:
        client = await server.connect()
        await client.send(head("/wait/a") + head("/big") * 3)
        await until(lambda: server.counters()["completed"] == 3, "three big answers are made")
        await turns()
        assert server.permits == 4
        gates.open("a")
        for size in (len(b'{"waited":"a"}'), BIG, BIG, BIG):
            assert len((await client.answer()).body) == size
        await until(lambda: server.permits == 0, "the permits are back")


@pytest.mark.parametrize("how", ["reset", "abort"])
@in_loop
async def test_the_end_of_a_slow_reader_gives_its_permit_back(how: str) -> None:
    async with serving(make_app()[0]) as server:
        client, _ = await server.stuck(head("/big"))
        assert server.permits == 1
        if how == "reset":
            await client.send(head("/"))
            client.sock.recv(1 << 20)
            client.reset()
        else:
            server.check(31)
        await until(lambda: server.permits == 0, "the permit is back")


@in_loop
async def test_a_big_answer_with_connection_close_arrives_whole() -> None:
    """What is left below the low-water mark must not be cut off by the linger time."""
    app, gates = make_app()
    async with serving(app) as server:
        client, protocol = await server.pair()
        protocol.transport.set_write_buffer_limits(high=BIG * 5 // 4, low=BIG * 9 // 8)
        await client.send(head("/big") + head("/wait/a") + head("/big", "Connection: close"))
        await until(protocol.transport.get_write_buffer_size, "the first stands in the buffer")
        gates.open("a")
        await until(lambda: protocol.write_paused, "the second stands behind it")
        while protocol.write_paused:  # read until it goes below the mark, and then stop
            client.read_some()
            await asyncio.sleep(0)
        assert protocol.transport.get_write_buffer_size()
        server.check(5)
        server.check(5)
        for size in (BIG, len(b'{"waited":"a"}'), BIG):
            assert len((await client.answer()).body) == size
        assert await client.at_end()


@in_loop
async def test_after_an_error_nothing_is_read_even_when_the_reader_was_slow() -> None:
    """When the buffer drained, reading went on as if the error had not been."""
    app, _ = make_app()
    async with serving(app) as server:
        client, protocol = await server.pair()
        await client.get("/")
        app.state.served.clear()
        too_long = head("/echo", "Content-Length: 99999999", method="POST")
        await client.send(head("/big") + too_long)
        await until(lambda: protocol.write_paused, "the answer stands in the buffer")
        await client.send(head("/"))
        assert [one.status for one in await client.rest()] == [200, 413]
        await client.send(head("/"))
        await turns()
        assert app.state.served == []
