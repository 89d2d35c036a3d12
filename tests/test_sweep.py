"""The sweep: everyone is looked at, the loop is never held up for long."""

from __future__ import annotations

import asyncio

import pytest

from fluxor_fast.server.sweep import sweep
from tests.support.inprocess import in_loop

SLICE = 0.002


class Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Connection:
    def __init__(self, clock: Hand, cost: float) -> None:
        self.clock = clock
        self.cost = cost
        self.closed = False
        self.ticks: list[int] = []

    def check(self, tick: int) -> None:
        self.ticks.append(tick)
        self.clock.now += self.cost

    def abort(self) -> None:
        self.closed = True


async def run(connections: list[Connection], clock: Hand) -> list[float]:
    """Sweep; return for how long the clock ran between two turns of the loop."""
    spans: list[float] = []
    sweeping = asyncio.ensure_future(sweep(connections, 7, SLICE, clock))
    while not sweeping.done():
        before = clock.now
        await asyncio.sleep(0)
        spans.append(clock.now - before)
    await sweeping
    return spans


@in_loop
async def test_everyone_is_looked_at_once_in_slices() -> None:
    """Four thousand that are due at once, at 25 µs each, would hold up the loop for 100 ms."""
    clock = Hand()
    connections = [Connection(clock, 25e-6) for _ in range(4000)]
    spans = await run(connections, clock)
    assert all(one.ticks == [7] for one in connections)
    assert max(spans) < SLICE + 50e-6
    assert sum(spans) > 0.099


@in_loop
async def test_one_look_suffices_where_nothing_is_due() -> None:
    clock = Hand()
    assert len(await run([Connection(clock, 0.2e-6) for _ in range(5000)], clock)) <= 3


@in_loop
async def test_who_goes_while_the_loop_goes_round_is_not_looked_at() -> None:
    clock = Hand()
    first, second = Connection(clock, SLICE), Connection(clock, SLICE)
    sweeping = asyncio.ensure_future(sweep([first, second], 7, SLICE, clock))
    while not first.ticks:
        await asyncio.sleep(0)
    second.closed = True
    await sweeping
    assert second.ticks == []


@in_loop
async def test_a_look_that_fails_ends_its_connection_and_not_the_sweep(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All timeouts of a worker hang on the one task."""

    class Broken(Connection):
        def check(self, tick: int) -> None:
            raise RuntimeError("broken")

    clock = Hand()
    broken, sound = Broken(clock, 0.0), Connection(clock, 0.0)
    await run([broken, sound], clock)
    assert broken.closed and not sound.closed
    assert sound.ticks == [7]
    assert len(caplog.records) == 1
