"""One turn of a worker: slices, deadlines, order, and that every request is counted once.

The protocol here is the real one over a transport that only records; the clock is a number.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fluxor_fast import App, HTTPError, Request, Response
from fluxor_fast.arbiter.shared import SharedMemory, Word
from fluxor_fast.server import batch, leaving, running
from fluxor_fast.server.admission import KernelLock, SharedLimit, full_fence
from fluxor_fast.server.protocol import HttpProtocol
from tests.support.inprocess import head, in_loop, serving, until
from tests.support.seeds import seeded
from tests.support.turns import Bench, Clock, HandLoop, burning_app


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(batch, "monotonic", clock)
    monkeypatch.setattr(running, "monotonic", clock)
    return clock


# slices


@pytest.mark.parametrize("route", ["burn", "bytes"])
def test_a_slice_ends_after_its_time_and_the_backlog_goes_on_next_turn(
    clock: Clock, route: str
) -> None:
    app, served = burning_app(clock)
    bench = Bench(app, HandLoop(), slice_seconds=0.002)
    for n in range(10):
        bench.ask(f"/{route}/{n}")
    for turn in range(1, 6):
        bench.loop.turn()
        assert served == [f"{route} {n}" for n in range(2 * turn)]
        bench.assert_adds_up()
    assert bench.loop.run() <= 1
    bench.assert_empty()


def test_at_least_one_handler_runs_in_a_slice(clock: Clock) -> None:
    app, served = burning_app(clock, seconds=0.5)
    bench = Bench(app, HandLoop(), slice_seconds=0.002, deadline=100)
    for n in range(3):
        bench.ask(f"/burn/{n}")
    for turn in range(1, 4):
        bench.loop.turn()
        assert len(served) == turn


def test_an_exempt_request_is_answered_before_the_backlog_is_done(clock: Clock) -> None:
    app, served = burning_app(clock)
    bench = Bench(app, HandLoop(), slice_seconds=0.002)
    for n in range(100):
        bench.ask(f"/burn/{n}")
    bench.loop.turn()
    health = bench.ask("/health")
    assert served == ["burn 0", "burn 1"]
    bench.loop.turn()
    assert served[2] == "health"
    assert health.transport.statuses == [200]
    bench.loop.run()
    assert len(served) == 101
    bench.assert_empty()


def test_refusals_leave_before_the_backlog_is_done(clock: Clock) -> None:
    app, served = burning_app(clock)
    bench = Bench(app, HandLoop(), slice_seconds=0.002, max_ccu=10)
    connections = [bench.ask(f"/burn/{n}") for n in range(15)]
    bench.loop.turn()
    assert [one.transport.statuses for one in connections[10:]] == [[503]] * 5
    assert len(served) == 2
    bench.loop.run()
    assert [one.transport.statuses for one in connections[:10]] == [[200]] * 10
    assert bench.shed("capacity") == 5
    bench.assert_empty()


def test_the_first_to_come_are_the_ones_taken_and_run_in_order(clock: Clock) -> None:
    app, served = burning_app(clock)
    bench = Bench(app, HandLoop(), max_ccu=4)
    for n in range(6):
        bench.ask(f"/burn/{n}")
    bench.loop.run()
    assert served == [f"burn {n}" for n in range(4)]


def test_answers_of_one_connection_leave_in_one_write(clock: Clock) -> None:
    app, _ = burning_app(clock, seconds=0)
    bench = Bench(app, HandLoop())
    connection = bench.connect()
    connection.data_received(b"".join(head(f"/burn/{n}") for n in range(16)))
    bench.loop.run()
    assert len(connection.transport.written) == 1
    assert connection.transport.statuses == [200] * 16
    bench.assert_empty()


def test_a_turn_is_scheduled_once_however_much_arrives(clock: Clock) -> None:
    app, _ = burning_app(clock, seconds=0)
    bench = Bench(app, HandLoop())
    for n in range(20):
        bench.ask(f"/burn/{n}")
    assert len(bench.loop.soon) == 1
    assert bench.loop.run() == 1
    assert not bench.loop.later


# deadlines


def test_what_waited_longer_than_its_deadline_is_refused_and_not_run(clock: Clock) -> None:
    app, served = burning_app(clock)
    bench = Bench(app, HandLoop(), slice_seconds=0.001, deadline=0.0045)
    connections = [bench.ask(f"/burn/{n}") for n in range(10)]
    bench.loop.run()
    assert served == [f"burn {n}" for n in range(5)]  # begun 0, 1, 2, 3 and 4 ms after arrival
    assert [one.transport.statuses for one in connections] == [[200]] * 5 + [[503]] * 5
    assert bench.shed("deadline") == 5
    bench.assert_empty()


def test_a_deadline_counts_from_each_requests_own_arrival(clock: Clock) -> None:
    app, served = burning_app(clock)
    bench = Bench(app, HandLoop(), slice_seconds=0.001, deadline=0.0015)
    for n in range(3):
        bench.ask(f"/burn/{n}")
    bench.loop.turn()
    late = bench.ask("/burn/9")
    bench.loop.run()
    assert served == ["burn 0", "burn 1", "burn 9"]
    assert late.transport.statuses == [200]
    assert bench.shed("deadline") == 1


# the end


@in_loop
async def test_finish_waits_for_what_runs_and_refuses_what_has_no_time_left() -> None:
    """All words are 0 after a drain, even one that ran out of time."""
    clock = Clock()
    app, served = burning_app(clock)
    app.state.gate = asyncio.Event()
    bench = Bench(app, asyncio.get_running_loop(), slots=2)
    connections = [bench.ask(f"/wait/{n}") for n in range(5)]
    await until(lambda: len(served) == 2, "two run")
    bench.runner.draining = True
    assert await bench.runner.finish(0.02) == 2
    assert len(served) == 2
    assert [one.transport.statuses for one in connections] == [[], [], [503], [503], [503]]
    assert all(one.transport.closing for one in connections)
    assert bench.shed("draining") == 3
    assert bench.figures()["aborted"] == 2
    bench.assert_empty()


@in_loop
async def test_a_task_cancelled_before_it_began_gives_everything_back() -> None:
    clock = Clock()
    app, _ = burning_app(clock)
    app.state.gate = asyncio.Event()
    loop = HandLoop()
    bench = Bench(app, loop)
    bench.ask("/wait/1")
    loop.turn()  # the task is made, and has not had its first step
    assert await bench.runner.finish(0) == 1
    loop.run()
    bench.assert_empty()


@in_loop
async def test_a_request_that_arrives_as_the_time_runs_out_leaves_nothing_behind() -> None:
    """Its task was made and cancelled before it began: its permit and slot stayed taken."""
    app, served = burning_app(Clock())
    app.state.gate = asyncio.Event()
    bench = Bench(app, asyncio.get_running_loop(), slots=2)
    bench.ask("/wait/1")
    await until(lambda: served == ["wait 1"], "it runs")
    bench.runner.draining = True
    late = bench.ask("/wait/2")  # the turn that takes it is due with the end
    assert await bench.runner.finish(0) == 1
    assert served == ["wait 1"]
    assert late.transport.statuses == [503]
    assert bench.shed("draining") == 1
    bench.assert_empty()


@in_loop
async def test_finish_does_not_wait_when_clients_of_the_backlog_are_gone() -> None:
    """Their places were counted twice: what was in the worker went below zero, for ever."""
    app, served = App(), []

    @app.get("/n/{n:int}")
    def number(request: Request, n: int) -> dict[str, int]:
        served.append(n)
        if n == 0:
            for connection in connections[1:]:
                connection.connection_lost(None)
        return {"n": n}

    bench = Bench(app, asyncio.get_running_loop())
    connections = [bench.ask(f"/n/{n}") for n in range(5)]
    await until(lambda: served, "the first runs")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert served == [0]
    assert bench.runner.busy == 0
    assert bench.figures()["aborted"] == 4
    async with asyncio.timeout(5):
        assert await bench.runner.finish(60) == 0
    bench.assert_empty()


# for all sequences

Event = tuple[str, str, int]
SHORT = ["/sync"] * 4 + ["/text", "/response"]
PATHS = [*SHORT, "/bytes", "/async", "/async", "/fail", "/teapot", "/critical", "/health"]


def random_events(rng: random.Random) -> list[Event]:
    """Return what happens to a worker: often enough more arrives than it can run in a turn."""
    events: list[Event] = []
    for _ in range(60):
        what = rng.choices(("arrive", "turn", "leave", "open", "wait"), (8, 8, 3, 2, 2))[0]
        most = {"arrive": 5, "turn": 1, "leave": 100, "open": 3, "wait": 12}[what]
        events.append((what, rng.choice(PATHS), rng.randint(1, most)))
    return events


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    """Handlers fail here on purpose, by the hundred."""
    logging.getLogger("fluxor_fast.server").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("fluxor_fast.server").setLevel(logging.NOTSET)


def sequence_app(clock: Clock) -> App:
    app = App()
    app.state.gate = asyncio.Semaphore(0)

    @app.get("/sync")
    def sync(request: Request) -> dict[str, bool]:
        clock.now += 0.001
        return {"sync": True}

    @app.get("/text")
    def text(request: Request) -> str:
        clock.now += 0.001
        return "text"

    @app.get("/response")
    def response(request: Request) -> Response:
        clock.now += 0.001
        return Response.json({"response": True}, 202)

    @app.get("/bytes")
    def octets(request: Request) -> bytes:
        clock.now += 0.001
        return b"bytes"

    @app.get("/fail")
    def fail(request: Request) -> None:
        raise RuntimeError

    @app.get("/teapot")
    async def teapot(request: Request) -> None:
        raise HTTPError(418)

    @app.get("/async")
    async def wait(request: Request) -> dict[str, bool]:
        await app.state.gate.acquire()
        return {"async": True}

    @app.get("/critical", priority="critical")
    def critical(request: Request) -> dict[str, bool]:
        return {"critical": True}

    @app.get("/health", priority="exempt")
    def health(request: Request) -> dict[str, bool]:
        return {"healthy": True}

    return app


@pytest.mark.parametrize("number", range(12))
def test_every_request_is_counted_once_and_every_permit_comes_back(number: int) -> None:
    """After any turn: offered = accepted + Σ shed + waiting; accepted = completed + aborted + …"""
    rng = seeded(f"sequences {number}")
    for _ in range(25):
        max_ccu = rng.randint(2, 16)
        knobs = {
            "max_ccu": max_ccu,
            "normal": max(1, max_ccu - rng.randint(0, 3)),
            "slots": rng.randint(1, 4),
            "max_queue": rng.randint(0, 16),
        }
        events = random_events(rng)
        print(knobs, events)
        check_sequence(events, **knobs)


def check_sequence(events: list[Event], **knobs: int) -> None:
    clock = Clock()

    async def run() -> None:
        loop = HandLoop()
        app = sequence_app(clock)
        bench = Bench(app, loop, deadline=0.01, slice_seconds=0.002, **knobs)
        connections: list[HttpProtocol] = []

        async def settle() -> None:
            for _ in range(10):  # what tasks did is published by the turn that follows
                await asyncio.sleep(0)
            if loop.soon:
                loop.turn()
            assert bench.memory.permits[0] <= knobs["max_ccu"]
            assert bench.memory.slots[0] <= knobs["slots"]
            bench.assert_adds_up()

        for what, path, count in events:
            if what == "arrive":
                connection = bench.connect()
                connections.append(connection)
                connection.data_received(head(path) * count)
            elif what == "turn":
                await settle()
            elif what == "leave" and connections:
                connection = connections.pop(count % len(connections))
                connection.connection_lost(None)
            elif what == "open":
                for _ in range(count):
                    app.state.gate.release()
            elif what == "wait":
                clock.now += count / 1000
                loop.wake()
        for _ in range(200):
            app.state.gate.release()
        while bench.runner.busy or loop.soon:
            await settle()
            loop.wake()
        await settle()
        bench.assert_empty()
        # everyone who stayed got one answer for each request
        for connection in connections:
            assert connection.order is None and connection.current is None
        region = bench.memory.region(0)
        assert region[Word.OFFERED] == sum(n for what, _, n in events if what == "arrive")

    original = batch.monotonic
    batch.monotonic = running.monotonic = clock
    try:
        asyncio.run(run())
    finally:
        batch.monotonic = running.monotonic = original


# limits of routes, clients' own deadlines, pacing


def limited_app() -> App:
    app = App()

    @app.get("/two", max_in_flight=2)
    async def two(request: Request) -> dict[str, int]:
        await app.state.gate.wait()
        return {}

    @app.get("/quick", max_in_flight=2)
    def quick(request: Request) -> dict[str, int]:
        return {}

    return app


def route_limits(app: App, memory: SharedMemory, index: int = 0) -> dict[Any, SharedLimit]:
    limited = [route for route in app.routes if route.max_in_flight]
    return {
        route: SharedLimit(memory.routes[at], index, full_fence(), KernelLock(memory.fd, 3 + at))
        for at, route in enumerate(limited)
    }


@in_loop
async def test_a_routes_permits_are_taken_once_and_given_back_once() -> None:
    app, memory, loop = limited_app(), SharedMemory(2), HandLoop()
    app.state.gate = asyncio.Event()
    bench = Bench(app, loop, memory=memory, routes=route_limits(app, memory), slots=1)
    asked = [bench.ask("/two") for _ in range(5)]
    loop.run()
    assert sum(p.transport.statuses == [503] for p in asked) == 3
    assert bench.shed("route") == 3
    assert memory.routes[0].tolist() == [2, 0]
    waiting = next(p for p in asked if p.current is not None and p.current.queued)
    waiting.connection_lost(None)  # one that waits for the only slot
    assert memory.routes[0].tolist() == [1, 0]
    app.state.gate.set()
    await until(lambda: not loop.run() and bench.runner.busy == 0, "all are done")
    for _ in range(3):
        quick = [bench.ask("/quick") for _ in range(2)]
        loop.run()
        assert [p.transport.statuses for p in quick] == [[200], [200]]
    assert [row.tolist() for row in memory.routes[:2]] == [[0, 0], [0, 0]]
    bench.assert_empty()


def test_a_client_that_says_how_long_it_waits_is_told_by_then(clock: Clock) -> None:
    app, _ = burning_app(clock)
    app.state.gate = None
    bench = Bench(app, HandLoop(), slots=1, deadline=10.0)
    bench.runner.slots._words[1] = 1  # another worker has the only slot
    hurried, patient = bench.connect(), bench.connect()
    hurried.data_received(head("/wait/1", "X-Request-Timeout-Ms: 50"))
    patient.data_received(head("/wait/2", "X-Request-Timeout-Ms: 999999"))
    for _ in range(60):
        bench.loop.run()
        bench.loop.wake()
        clock.now += 0.001
    assert hurried.transport.statuses == [503]
    assert patient.transport.statuses == []
    assert bench.shed("deadline") == 1
    bench.runner.slots._words[1] = 1
    clock.now += 10.0  # the server's own deadline caps what a client asks for
    bench.loop.wake()
    bench.loop.run()
    assert patient.transport.statuses == [503]
    bench.runner.slots._words[1] = 0
    bench.assert_empty()


def test_who_would_wait_beyond_the_deadline_is_refused_on_arrival(clock: Clock) -> None:
    app, _ = burning_app(clock)
    bench = Bench(app, HandLoop(), deadline=0.2)
    for n in range(150):  # 150 ms of work
        bench.ask(f"/burn/{n}")
    for _ in range(60):  # of which 120 are done: a request a millisecond is known to leave
        bench.loop.turn()
    late = [bench.ask(f"/burn/{n}") for n in range(300)]
    bench.loop.turn()
    told = [p for p in late if p.transport.statuses == [503]]
    assert 90 <= len(told) <= 140  # 30 wait already, and 170 more will be done in time
    assert bench.shed("deadline") == len(told)
    bench.loop.run()
    assert bench.shed("deadline") - len(told) <= 20
    bench.assert_empty()


def test_a_refused_connection_is_left_unread_for_a_while(clock: Clock) -> None:
    app, _ = burning_app(clock)
    bench = Bench(app, HandLoop(), max_ccu=1, pause=0.5)
    bench.runner.limit._words[1] = 1  # another worker has the only permit
    protocol = bench.ask("/burn/1")
    bench.loop.run()
    assert protocol.transport.statuses == [503]
    assert protocol.paused
    clock.now += 0.011
    bench.loop.wake()
    bench.loop.run()
    assert not protocol.paused
    exempt = bench.ask("/health")
    bench.loop.run()
    assert exempt.transport.statuses == [200]
    assert not exempt.paused


def test_who_was_served_starts_anew_whichever_way_the_answer_took(clock: Clock) -> None:
    app, _ = burning_app(clock)
    bench = Bench(app, HandLoop(), pause=0.5)
    for path in ("/burn/1", "/bytes/1"):  # the short way and the long one
        protocol = bench.connect()
        protocol.pause, bench.runner.pacer.waiting = 0.08, 1
        protocol.data_received(head(path))
        bench.loop.turn()
        assert protocol.transport.statuses == [200]
        assert protocol.pause == 0.0


def early_retry(bench: Bench, path: str) -> HttpProtocol:
    """Return a connection on which a request comes as soon as its pause is over."""
    protocol = bench.connect()
    protocol.pause, protocol.resumed = 0.02, batch.monotonic()
    bench.runner.pacer._released = protocol.resumed
    protocol.data_received(head(path))
    return protocol


def test_who_did_not_stay_away_is_refused_while_others_wait(clock: Clock) -> None:
    app, served = burning_app(clock, seconds=0.003)
    bench = Bench(app, HandLoop(), pause=0.5)
    for n in range(3):
        bench.ask(f"/burn/{n}")
    bench.loop.turn()
    let_in = early_retry(bench, "/burn/7")  # one in a while
    early = [early_retry(bench, f"/burn/{n}") for n in (8, 9)]
    fresh = bench.ask("/burn/10")
    bench.loop.run()
    assert [p.transport.statuses for p in early] == [[503], [503]]
    assert let_in.transport.statuses == fresh.transport.statuses == [200]
    assert "burn 8" not in served
    assert bench.shed("codel") == 2
    bench.assert_empty()


def test_who_did_not_stay_away_has_what_is_idle(clock: Clock) -> None:
    app, _ = burning_app(clock, seconds=0.003)
    bench = Bench(app, HandLoop(), pause=0.5)
    for _ in range(5):  # more than may be let in for other reasons
        early = early_retry(bench, "/burn/1")
        bench.loop.run()
        assert early.transport.statuses == [200]
    bench.assert_empty()


@in_loop
async def test_who_did_not_stay_away_has_the_slots_that_are_free(clock: Clock) -> None:
    app, _ = burning_app(clock)
    app.state.gate = asyncio.Event()
    bench = Bench(app, asyncio.get_running_loop(), slots=4, pause=0.5)
    patient = [bench.ask(f"/wait/{n}") for n in range(2)]
    early = [early_retry(bench, f"/wait/{n}") for n in range(2, 9)]
    await until(lambda: bench.shed("codel") == 5, "those without a slot are refused")
    app.state.gate.set()
    await until(lambda: not bench.runner.busy, "the others are served")
    assert [p.transport.statuses for p in patient + early] == [[200]] * 4 + [[503]] * 5
    bench.assert_empty()


def test_who_stayed_away_as_told_waits_like_everybody(clock: Clock) -> None:
    app, _ = burning_app(clock, seconds=0.003)
    bench = Bench(app, HandLoop(), pause=0.5)
    for n in range(2):
        bench.ask(f"/burn/{n}")
    bench.loop.turn()
    late = bench.connect()
    late.pause, late.resumed = 0.02, clock.now - 0.5
    bench.runner.pacer._released = clock.now
    late.data_received(head("/burn/7"))
    bench.loop.run()
    assert late.transport.statuses == [200]
    bench.assert_empty()


# new connections


def test_handlers_wait_for_new_connections_but_not_for_good(clock: Clock) -> None:
    app, served = burning_app(clock, seconds=0.003)
    bench = Bench(app, HandLoop())
    for n in range(5):
        bench.ask(f"/burn/{n}")
    bench.loop.turn()
    assert len(served) == 1
    for _ in range(batch.PUT_OFF):
        for _ in range(batch.ACCEPTS):
            bench.connect()
        bench.loop.turn()
    assert len(served) == 1
    for _ in range(batch.ACCEPTS):
        bench.connect()
    bench.loop.turn()
    assert len(served) == 2  # their turn has come, though more connections came
    bench.connect()
    bench.loop.turn()
    assert len(served) == 3  # a few more hold up nobody
    bench.loop.run()
    bench.assert_empty()


# the short way

RESPONSES: dict[str, Callable[[], Response]] = {
    "json": lambda: Response.json({"a": 1}, 201, {"X-A": "1", "Set-Cookie": "s=1; HttpOnly"}),
    "text": lambda: Response("é", headers={"X-Name": "é"}),
    "empty": lambda: Response(b"", 200),
    "nothing": lambda: Response(b"not sent", 204),
    "moved": lambda: Response(b"", 308, {"Location": "/"}),
    "missing": lambda: Response("no", 404),
    "large": lambda: Response(b"x" * leaving.LARGE),
    "splitting": lambda: Response(b"x", headers={"X-A": "1\r\nX-B: 2"}),
    "owned": lambda: Response(b"x", headers={"Content-Length": "1"}),
    "typed": lambda: Response(b"x", content_type="text/plain\r\nX-B: 2"),
}


@pytest.mark.parametrize("name", RESPONSES)
@in_loop
async def test_a_response_says_and_counts_the_same_on_the_short_way_and_the_long(name: str) -> None:
    app = App()

    @app.get("/")
    def handler(request: Request) -> Response:
        return RESPONSES[name]()

    bench = Bench(app, HandLoop())
    answers = []
    for lines in ((), ("Connection: close",)):
        for _ in range(2):  # the second time, what the first has left behind is there
            protocol = bench.connect()
            protocol.data_received(head("/", *lines))
            bench.loop.run()
            answer = b"".join(protocol.transport.written)
            answers.append(answer.replace(b"Connection: close\r\n", b""))
    about_request = re.compile(rb"(X-Request-ID: |request id )[0-9a-f]{32}")
    assert len({about_request.sub(b"", answer) for answer in answers}) == 1, answers
    assert b"X-B" not in answers[0]
    status = int(answers[0][9:12])
    assert status == (500 if name in ("splitting", "owned", "typed") else RESPONSES[name]().status)
    responses = bench.runner.counters.responses
    assert responses[status // 100] == sum(responses) == 4
    await asyncio.sleep(0)  # the permits of large answers come back
    bench.assert_empty()


# several requests in one packet


def seen(bench: Bench, *paths: str) -> None:
    """Have the heads of ``paths`` known, so that they take the short way."""
    for path in paths:
        bench.ask(path)
        bench.loop.run()


@pytest.mark.parametrize("numbers", [[0, 1, 2, 3, 4], [1, 1, 1, 1], [1, 1, 2, 1]])
@pytest.mark.parametrize("behind", ["", "GET /burn/"])
def test_pipelined_heads_seen_before_are_answered_in_order_in_one_write(
    numbers: list[int], behind: str, clock: Clock
) -> None:
    app, served = burning_app(clock, seconds=0.0)
    bench = Bench(app, HandLoop())
    paths = [f"/burn/{n}" for n in numbers]
    seen(bench, *paths)
    served.clear()
    protocol = bench.connect()
    protocol.data_received(b"".join(head(path) for path in paths) + behind.encode())
    bench.loop.run()
    assert served == [f"burn {n}" for n in numbers]
    assert protocol.transport.statuses == [200] * len(numbers)
    assert len(protocol.transport.written) == 1
    protocol.data_received(head("/burn/3")[len(behind) :])  # and the connection goes on
    bench.loop.run()
    assert served[len(numbers) :] == ["burn 3"]
    assert protocol.transport.statuses == [200] * (len(numbers) + 1)
    bench.assert_empty()


def test_what_a_slice_has_done_of_a_pipeline_leaves_before_the_next(clock: Clock) -> None:
    app, _ = burning_app(clock, seconds=0.003)
    bench = Bench(app, HandLoop())
    paths = [f"/burn/{n}" for n in range(3)]
    seen(bench, *paths)
    protocol = bench.connect()
    protocol.data_received(b"".join(head(path) for path in paths))
    for done in (1, 2, 3):
        bench.loop.turn()
        assert protocol.transport.statuses == [200] * done
    bench.assert_empty()


def test_a_pipeline_of_plain_and_other_answers_keeps_its_order(clock: Clock) -> None:
    app, _ = burning_app(clock, seconds=0.0)
    bench = Bench(app, HandLoop())
    paths = ["/burn/1", "/bytes/2", "/health", "/burn/3", "/nowhere", "/burn/4"]
    seen(bench, *paths)
    protocol = bench.connect()
    protocol.data_received(b"".join(head(path) for path in paths))
    bench.loop.run()
    assert protocol.transport.statuses == [200, 200, 200, 200, 404, 200]
    text = b"".join(protocol.transport.written)
    marks = [b'"n":1', b"not the short way", b"healthy", b'"n":3', b"404", b'"n":4']
    assert [text.index(mark) for mark in marks] == sorted(text.index(mark) for mark in marks)
    bench.assert_empty()


def test_an_answer_that_came_early_leaves_behind_a_short_one(clock: Clock) -> None:
    """Exempt requests run first; theirs must wait, and leave with the answer before them."""
    app, served = burning_app(clock, seconds=0.0)
    bench = Bench(app, HandLoop())
    seen(bench, "/burn/1", "/health")
    served.clear()
    protocol = bench.connect()
    protocol.data_received(head("/burn/1") + head("/health") + head("/health"))
    bench.loop.run()
    assert served == ["health", "health", "burn 1"]
    assert protocol.transport.statuses == [200] * 3
    assert b"".join(protocol.transport.written).index(b'"n":1') < 300
    assert protocol.current is None
    bench.assert_empty()


def test_a_pipeline_longer_than_the_cap_is_read_in_parts(clock: Clock) -> None:
    app, _ = burning_app(clock, seconds=0.0)
    bench = Bench(app, HandLoop())
    seen(bench, "/burn/1")
    protocol = bench.connect()
    protocol.data_received(head("/burn/1") * 100)
    assert len(protocol.order or ()) == 32
    bench.loop.run()
    assert protocol.transport.statuses == [200] * 100
    bench.assert_empty()


# the end of a connection


def test_while_draining_only_the_last_answer_says_close(clock: Clock) -> None:
    """All of them did, and a client drops what comes behind the first (RFC 9112, 9.6)."""
    app, _ = burning_app(clock, seconds=0.0)
    bench = Bench(app, HandLoop())
    protocol = bench.connect()
    protocol.data_received(head("/burn/1") + head("/bytes/2") + head("/burn/3"))
    bench.runner.draining = True
    protocol.data_received(head("/burn/4"))
    bench.loop.turn()
    protocol.data_received(head("/burn/5"))  # behind the close: not a request any more
    bench.loop.run()
    answers = b"".join(protocol.transport.written).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200"] * 4
    assert [b"Connection: close" in answer for answer in answers] == [False] * 3 + [True]
    assert protocol.transport.closing
    bench.assert_empty()


def test_a_request_cut_off_by_the_end_of_input_is_not_answered_behind_the_close(
    clock: Clock,
) -> None:
    """While the transport had something left to send, the sweep wrote a 408 to it."""
    app, _ = burning_app(clock)
    bench = Bench(app, HandLoop())
    protocol = bench.connect()
    protocol.data_received(b"GET /")
    assert not protocol.eof_received()
    protocol.transport.close()  # as the loop does then
    bench.runner.tick += 60
    protocol.check(bench.runner.tick)
    assert protocol.transport.written == []


@pytest.mark.parametrize("kind", ["sync", "async", "blocking"])
@in_loop
async def test_a_handler_whose_own_wait_was_cancelled_fails_as_any(kind: str) -> None:
    """It took the permits of its whole batch with it, and its client got no answer."""
    app = App()

    def fails(request: Request) -> None:
        raise asyncio.CancelledError

    async def fails_too(request: Request) -> None:
        task = asyncio.ensure_future(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(task.cancel)
        await task

    handler: Any = fails_too if kind == "async" else fails
    app.get("/", blocking=kind == "blocking")(handler)
    app.get("/good")(lambda request: {})
    async with serving(app) as server:
        client, other = await server.connect(), await server.connect()
        await asyncio.gather(client.send(head("/") * 2), other.send(head("/good")))
        for _ in range(2):
            assert (await client.answer()).status == 500
        assert (await other.answer()).status == 200
