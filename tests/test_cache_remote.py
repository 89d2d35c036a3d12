"""The cache with Redis: several processes as several caches, a server that goes and freezes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from fluxor_fast import App
from fluxor_fast.cache import Cache, remote
from fluxor_fast.config import Settings
from fluxor_fast.redis import Redis
from tests.support.pure import run
from tests.support.redis import RedisServer

BACK_SECONDS = 1.0
SHORT = 0.5
"""Patience with a Redis that is about to stop answering."""


class Machine:
    """What a worker on a machine of its own has: a cache, and a function over a common source."""

    def __init__(self, source: Callable[[int], Any]) -> None:
        self.cache = Cache()
        self.computed = 0

        @self.cache.cached(ttl=60, key=lambda number: number, name="row", none_ttl=60)
        async def row(number: int) -> Any:
            self.computed += 1
            return await source(number)

        self.row: Any = row

    @property
    def hears(self) -> bool:
        assert self.cache._remote is not None
        return self.cache._remote.hears


@asynccontextmanager
async def machines(
    server: RedisServer, count: int, source: Callable[[int], Any], *, timeout: float = 5.0
) -> AsyncIterator[list[Machine]]:
    """Run ``count`` of them; one that Redis keeps waiting for ``timeout`` does without."""
    app = App()
    app.settings = Settings()
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            redis = Redis(
                server.url, max_connections=8, idle=1, timeout=timeout, connect_timeout=0.5
            )
            await redis.open()
            stack.push_async_callback(redis.close)
            machine = Machine(source)
            await machine.cache.start(app, redis)
            stack.push_async_callback(machine.cache.stop)
            made.append(machine)
        if server.running:
            await until(lambda: all(machine.hears for machine in made))
        yield made


async def until(check: Callable[[], bool], seconds: float = 5.0) -> float:
    started = time.monotonic()
    while not check():
        assert time.monotonic() - started < seconds
        await asyncio.sleep(0.002)
    return time.monotonic() - started


async def identity(number: int) -> Any:
    await asyncio.sleep(0)
    return {"id": number}


def test_what_one_machine_computed_the_others_find(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with machines(redis_server, 3, identity) as made:
            for machine in made:
                assert await machine.row(7) == {"id": 7}
            assert [machine.computed for machine in made] == [1, 0, 0]
            assert [machine.cache.figures.redis_hits for machine in made] == [0, 1, 1]

    run(scenario())


def test_none_is_found_too(redis_server: RedisServer) -> None:
    async def nothing(number: int) -> Any:
        return None

    async def scenario() -> None:
        async with machines(redis_server, 2, nothing) as made:
            assert [await machine.row(1) for machine in made] == [None, None]
            assert sum(machine.computed for machine in made) == 1

    run(scenario())


def test_a_value_is_no_longer_good_than_it_was_computed_for(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with machines(redis_server, 2, identity) as made:
            await made[0].row(1)
            redis_server.command("PEXPIRE", "fluxor:fluxor-fast:row:1", "5000")
            await made[1].row(1)
            (entry,) = made[1].cache._memory._entries.values()
            assert entry.expires - time.monotonic() < 5.0

    run(scenario())


def test_one_machine_computes_and_the_others_wait(redis_server: RedisServer) -> None:
    async def slow(number: int) -> Any:
        await asyncio.sleep(0.1)
        return number

    async def scenario() -> None:
        async with machines(redis_server, 4, slow) as made:
            values = await asyncio.gather(*(machine.row(1) for machine in made for _ in range(10)))
            assert values == [1] * 40
            assert sum(machine.computed for machine in made) == 1

    run(scenario())


def test_a_machine_that_computes_for_too_long_is_not_waited_for(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "WAIT_SECONDS", 0.1)
    gate = asyncio.Event()

    async def first_hangs(number: int) -> Any:
        if not begun:
            begun.append(number)
            await gate.wait()
        return number

    begun: list[int] = []

    async def scenario() -> None:
        async with machines(redis_server, 2, first_hangs) as made:
            hanging = asyncio.create_task(made[0].row(1))
            await until(lambda: bool(begun))
            async with asyncio.timeout(1):
                assert await made[1].row(1) == 1
            gate.set()
            assert await hanging == 1

    run(scenario())


def test_a_computation_that_fails_or_is_given_up_keeps_nobody_waiting(
    redis_server: RedisServer,
) -> None:
    ends: list[Any] = [ValueError("no"), asyncio.CancelledError(), 3]

    async def source(number: int) -> Any:
        await asyncio.sleep(0)
        end = ends.pop(0)
        if isinstance(end, BaseException):
            raise end
        return end

    async def scenario() -> None:
        async with machines(redis_server, 2, source) as made:
            for error in (ValueError, asyncio.CancelledError):
                with pytest.raises(error):
                    await made[0].row(1)
            started = time.monotonic()
            assert await made[1].row(1) == 3
            assert time.monotonic() - started < 0.3  # well below the time of a lease

    run(scenario())


def test_what_is_forgotten_on_one_machine_is_so_on_all(redis_server: RedisServer) -> None:
    rows = {1: "old"}

    async def source(number: int) -> Any:
        return rows[number]

    async def scenario() -> None:
        async with machines(redis_server, 3, source) as made:
            for machine in made:
                assert await machine.row(1) == "old"
            rows[1] = "new"
            await made[0].row.forget(1)
            assert await made[0].row(1) == "new"  # here at once
            for machine in made[1:]:
                took = await until(lambda m=machine: m.cache._memory.get("row:1") is None)  # type: ignore[misc]
                assert took < 0.5
                assert await machine.row(1) == "new"

    run(scenario())


def test_what_was_computed_from_before_a_change_is_not_stored_after_it(
    redis_server: RedisServer,
) -> None:
    rows = {1: "old"}
    gate = asyncio.Event()
    reading: list[int] = []

    async def source(number: int) -> Any:
        read = rows[number]
        reading.append(number)
        if read == "old":
            await gate.wait()
        return read

    async def scenario() -> None:
        async with machines(redis_server, 3, source) as made:
            slow = asyncio.create_task(made[0].row(1))
            await until(lambda: bool(reading))
            rows[1] = "new"
            await made[1].row.forget(1)
            gate.set()
            assert await slow == "old"  # asked before the change
            assert await made[2].row(1) == "new"
            await asyncio.sleep(0.05)
            assert [await machine.row(1) for machine in made] == ["new"] * 3

    run(scenario())


def test_without_redis_values_come_from_the_function(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with machines(redis_server, 2, identity, timeout=SHORT) as made:
            await made[0].row(1)
            redis_server.stop()
            await until(lambda: not any(machine.hears for machine in made))
            for machine in made:
                before = machine.computed
                started = time.monotonic()
                for number in range(2, 22):
                    assert await machine.row(number) == {"id": number}
                    assert await machine.row(number) == {"id": number}
                assert time.monotonic() - started < 2 * SHORT  # and not 40
                assert machine.computed - before == 20  # its own memory is there still
            redis_server.start()
            took = await until(lambda: all(machine.hears for machine in made))
            assert took < BACK_SECONDS
            await made[0].row(99)
            await made[1].row(99)
            assert made[1].cache.figures.redis_hits == 1

    run(scenario())


def test_a_frozen_redis_holds_nobody_for_long(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with machines(redis_server, 1, identity, timeout=SHORT) as (machine,):
            redis_server.freeze()
            started = time.monotonic()
            await asyncio.gather(*(machine.row(number) for number in range(50)))
            assert time.monotonic() - started < SHORT + 1
            started = time.monotonic()
            for number in range(50, 100):
                await machine.row(number)
            assert time.monotonic() - started < SHORT  # and not 50
            await until(lambda: not machine.hears)
            redis_server.thaw()
            assert await until(lambda: machine.hears) < BACK_SECONDS

    run(scenario())


def test_who_cannot_hear_drops_what_it_has_and_keeps_new_things_for_a_short_time(
    redis_server: RedisServer,
) -> None:
    async def scenario() -> None:
        async with machines(redis_server, 1, identity, timeout=SHORT) as (machine,):
            await machine.row(1)
            redis_server.stop()
            await until(lambda: not machine.hears)
            assert len(machine.cache._memory) == 0
            await machine.row(1)
            (entry,) = machine.cache._memory._entries.values()
            assert entry.expires - time.monotonic() <= remote.DEAF_SECONDS

    run(scenario())


@pytest.mark.parametrize("most", [10, 1])
def test_what_could_not_be_deleted_is_before_redis_is_used_again(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(remote, "MOST_OWED", most)
    rows = dict.fromkeys(range(5), "old")

    async def source(number: int) -> Any:
        return rows[number]

    async def scenario() -> None:
        async with machines(redis_server, 2, source, timeout=SHORT) as made:
            for number in rows:
                await made[0].row(number)
            redis_server.freeze()  # it keeps what it has
            await asyncio.sleep(0)
            for number in (1, 2, 3):
                rows[number] = "new"
                await made[0].row.forget(number)
                assert await made[0].row(number) == "new"
            redis_server.thaw()
            await until(lambda: all(machine.hears for machine in made))
            assert [await made[0].row(number) for number in rows] == list(rows.values())
            # the other one may be back a moment sooner, and hears of it then
            async with asyncio.timeout(BACK_SECONDS):
                while [await made[1].row(number) for number in rows] != list(rows.values()):
                    await asyncio.sleep(0.01)

    run(scenario())


def test_a_blocking_function_asks_redis_too(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with machines(redis_server, 2, identity) as made:
            computed: list[int] = []
            functions = []
            for machine in made:

                @machine.cache.cached(ttl=60, name="blocking")
                def function(number: int) -> int:
                    computed.append(number)
                    return number

                functions.append(function)
            values = await asyncio.gather(
                *(asyncio.to_thread(function, 1) for function in functions for _ in range(5))
            )
            assert values == [1] * 10
            assert computed == [1]

    run(scenario())


def test_what_is_not_ours_is_as_good_as_nothing(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with machines(redis_server, 1, identity) as (machine,):
            redis_server.command("SET", "fluxor:fluxor-fast:row:1", "{nonsense", "PX", "60000")
            redis_server.command("HSET", "fluxor:fluxor-fast:row:2", "a", "1")
            for number in (1, 2):
                assert await machine.row(number) == {"id": number}
            assert machine.computed == 2
            assert redis_server.command("GET", "fluxor:fluxor-fast:row:1").endswith(b'{"id":1}\r\n')

    run(scenario())


def test_a_deletion_that_is_cancelled_is_made_up_for(redis_server: RedisServer) -> None:
    rows = {1: "old"}

    async def source(number: int) -> Any:
        return rows[number]

    async def scenario() -> None:
        async with machines(redis_server, 2, source, timeout=SHORT) as made:
            for machine in made:
                await machine.row(1)
            rows[1] = "new"
            redis_server.freeze()
            task = asyncio.create_task(made[0].row.forget(1))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            redis_server.thaw()
            async with asyncio.timeout(BACK_SECONDS):
                while [await machine.row(1) for machine in made] != ["new", "new"]:
                    await asyncio.sleep(0.01)

    run(scenario())


def test_a_redis_that_is_full_is_a_tier_less(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with machines(redis_server, 1, identity) as (machine,):
            redis_server.command("CONFIG", "SET", "maxmemory", "1")
            assert await machine.row(1) == {"id": 1}
            await machine.row.forget(1)
            assert await machine.row(1) == {"id": 1}

    run(scenario())
