"""Slots: who waits for one, gets one, and needs none."""

from __future__ import annotations

import asyncio

from fluxor_fast.arbiter.shared import SharedMemory
from fluxor_fast.server.admission import KernelLock, SharedLimit, full_fence
from fluxor_fast.server.batch import POLL
from tests.support.inprocess import in_loop, turns, until
from tests.support.turns import Bench, Clock, HandLoop, burning_app


async def emptied(bench: Bench) -> None:
    """Wait until all requests are done and counted, which takes a turn more."""
    await until(lambda: bench.runner.busy == 0, "all are done")
    await turns()
    bench.assert_empty()


@in_loop
async def test_who_waits_for_a_slot_gets_it_first_in_first_out() -> None:
    clock = Clock()
    app, served = burning_app(clock)
    app.state.gate = asyncio.Semaphore(0)
    app.state.gate.wait = app.state.gate.acquire
    bench = Bench(app, asyncio.get_running_loop(), slots=1)
    for n in range(5):
        bench.ask(f"/wait/{n}")
    for n in range(5):
        await until(lambda n=n: len(served) == n + 1, "the next one runs")
        assert bench.memory.slots[0] == 1
        app.state.gate.release()
    await emptied(bench)
    assert served == [f"wait {n}" for n in range(5)]


@in_loop
async def test_a_slot_given_back_by_another_worker_is_found_by_the_poll() -> None:
    clock = Clock()
    app, served = burning_app(clock)
    app.state.gate = asyncio.Event()
    memory = SharedMemory(2)
    other = SharedLimit(memory.slots, 1, full_fence(), KernelLock(memory.fd, 1))
    assert other.acquire(1, 1) == 1
    loop = HandLoop()
    bench = Bench(app, loop, memory=memory, slots=1)
    bench.ask("/wait/1")
    for _ in range(3):
        loop.run()
        assert served == []
        assert [delay for delay, _ in loop.later] == [POLL]  # one poll, not one for each turn
        loop.wake()
    other.release(1)
    loop.run()
    await asyncio.sleep(0)
    assert served == ["wait 1"]
    app.state.gate.set()
    await until(lambda: bench.runner.busy == 0, "it is done")
    loop.run()
    assert loop.later == []
    bench.assert_empty()


@in_loop
async def test_synchronous_requests_need_no_slot() -> None:
    clock = Clock()
    app, _served = burning_app(clock)
    app.state.gate = asyncio.Event()
    bench = Bench(app, asyncio.get_running_loop(), slots=1)
    bench.ask("/wait/1")
    bench.ask("/wait/2")
    quick = bench.ask("/burn/3")
    await until(lambda: quick.transport.statuses == [200], "it is answered")
    app.state.gate.set()
    await emptied(bench)
