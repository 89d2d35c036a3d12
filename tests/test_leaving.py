"""How requests leave: the fields of answers, what handlers do wrong, and refusals."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime

import pytest

from tests.support.gates import Gates, assert_fails_alone, assert_refused, make_app, statuses
from tests.support.inprocess import Client, Server, head, in_loop, serving, until

# fields of the answer


@in_loop
async def test_the_fields_of_an_answer() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        seen = set()
        for path in ("/", "/", "/n/1", "/nothing", "/fails/async", "/none", "/blocking"):
            answer = await client.get(path)
            date = parsedate_to_datetime(answer.headers["date"])
            assert answer.headers["date"].endswith(" GMT")
            assert abs(date.timestamp() - time.time()) < 60
            if answer.status != 204:
                assert int(answer.headers["content-length"]) == len(answer.body)
            assert "connection" not in answer.headers
            assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
            seen.add(answer.headers["x-request-id"])
        assert len(seen) == 7


@in_loop
async def test_the_clients_request_id_is_kept_if_it_is_usable() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        for path in ("/", "/nothing", "/blocking", "/none"):
            answer = await client.get(path, "X-Request-ID: abc-1.2_3")
            assert answer.headers["x-request-id"] == "abc-1.2_3"
        for bad in ("a b", "", "x" * 129, "caf\xe9"):
            answer = await client.get("/", f"X-Request-ID: {bad}")
            assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


# what handlers do wrong


@pytest.mark.parametrize("path", ["/fails", "/fails/async", "/value", "/bad/header"])
@in_loop
async def test_a_handler_that_fails_is_500_and_tells_nothing(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(make_app()[0]) as server:
        await assert_fails_alone(server, path, caplog.records)


@pytest.mark.parametrize("path", ["/bad/error/header", "/bad/error/details"])
@in_loop
async def test_an_error_that_cannot_be_sent_is_500_and_not_the_end_of_the_turn(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(make_app()[0]) as server:
        one, other = await server.connect(), await server.connect()
        await one.send(head(path) + head("/"))
        await other.send(head("/"))
        assert await statuses(one, 2) == [500, 200]
        assert (await other.answer()).status == 200
        assert len(caplog.records) == 1


@in_loop
async def test_an_http_error_is_answered_as_it_says() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        answer = await client.get("/teapot")
        assert (answer.status, answer.headers["x-pot"]) == (409, "tea")
        assert answer.json() == {
            "error": "conflict",
            "message": "short and stout",
            "code": "CONFLICT",
            "details": {"a": 1},
        }


@in_loop
async def test_what_is_not_there_is_404_or_405_and_the_connection_stays() -> None:
    async with serving(make_app()[0]) as server:
        client = await server.connect()
        assert (await client.get("/none")).status == 404
        answer = await client.get("/echo")
        assert (answer.status, answer.headers["allow"]) == (405, "OPTIONS, POST")
        assert (await client.get("/", method="OPTIONS")).headers["allow"] == "GET, HEAD, OPTIONS"
        assert (await client.get("/")).status == 200


# refusals


async def fill(server: Server, gates: Gates, count: int) -> list[Client]:
    """Have ``count`` requests run."""
    clients = []
    for n in range(count):
        client = await server.connect()
        await client.send(head(f"/wait/full{n}"))
        clients.append(client)
    await until(lambda: len(gates.log) == count, "all of them run")
    return clients


@in_loop
async def test_refused_for_capacity_and_the_connection_stays() -> None:
    app, gates = make_app()
    async with serving(app, max_ccu=5, normal=3) as server:
        full = await fill(server, gates, 3)
        client = await server.connect()
        for path in ("/n/1", "/n/1", "/wait/x", "/none"):
            answer = await client.get(path, "X-Request-ID: mine")
            assert_refused(answer, "capacity")
            assert answer.headers["x-request-id"] == "mine"
            assert "connection" not in answer.headers
        assert (await client.get("/", method="HEAD")).status == 503
        gates.open("full0")
        assert (await full[0].answer()).status == 200
        assert (await client.get("/")).status == 200
        gates.open("full1")
        gates.open("full2")
        assert server.counters()["capacity"] == 5
        await client.send(head("/", version="1.0"))
        assert (await client.answer()).headers["connection"] == "close"


@in_loop
async def test_a_refusal_to_http_1_0_closes() -> None:
    app, gates = make_app()
    async with serving(app, max_ccu=1) as server:
        await fill(server, gates, 1)
        client = await server.connect()
        await client.send(head("/", version="1.0"))
        (answer,) = await client.rest()
        assert_refused(answer, "capacity")
        assert answer.headers["connection"] == "close"
        gates.open("full0")


@in_loop
async def test_refused_for_a_full_queue() -> None:
    app, gates = make_app()
    async with serving(app, max_ccu=100, normal=90, slots=1, max_queue=2) as server:
        await fill(server, gates, 1)
        waiting = await server.connect()
        await waiting.send(head("/wait/full0") * 2)
        await until(lambda: server.permits == 3, "the queue is full")
        client = await server.connect()
        assert_refused(await client.get("/"), "queue_full")
        gates.open("full0")
        assert await statuses(waiting, 2) == [200, 200]


@in_loop
async def test_refused_after_the_deadline() -> None:
    app, gates = make_app()
    async with serving(app, slots=1, deadline=0.05) as server:
        await fill(server, gates, 1)
        client = await server.connect()
        answer = await client.get("/wait/x")
        assert_refused(answer, "deadline")
        assert server.permits == 1
        assert (await client.get("/")).status == 200
        gates.open("full0")


@in_loop
async def test_critical_requests_are_taken_beyond_the_normal_threshold() -> None:
    app, gates = make_app()
    async with serving(app, max_ccu=3, normal=2) as server:
        await fill(server, gates, 2)
        client = await server.connect()
        assert_refused(await client.get("/"), "capacity")
        more = await server.connect()
        await more.send(head("/critical/full0"))
        await until(lambda: server.permits == 3, "it is taken")
        assert_refused(await client.get("/critical/x"), "capacity")
        gates.open("full0")
        gates.open("full1")
        assert (await more.answer()).json() == {"critical": "full0"}


@in_loop
async def test_exempt_requests_are_never_refused_nor_counted_in_the_limit() -> None:
    app, gates = make_app()
    async with serving(app, max_ccu=1, slots=1, max_queue=0) as server:
        await fill(server, gates, 1)
        client = await server.connect()
        for path in ("/health", "/health/deep") * 3:
            assert (await client.get(path)).status == 200
            assert server.permits == 1
        assert (await client.get("/health", method="HEAD")).status == 200
        gates.open("full0")
