"""One limit over several instances, by a real Redis; and what holds while it is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from fluxor_fast import App, Request
from fluxor_fast.arbiter.shared import SharedMemory
from fluxor_fast.errors import RedisAway
from fluxor_fast.limits import remote
from fluxor_fast.limits.gcra import Policy
from fluxor_fast.limits.remote import Holds
from fluxor_fast.limits.table import Table
from fluxor_fast.middleware.rate_limit import RateLimit
from fluxor_fast.redis import Redis
from tests.support.inprocess import Client, in_loop, serving
from tests.support.pure import run
from tests.support.redis import RedisServer
from tests.test_redis import opened, until

POLICY = Policy("client", 100, 1.0, 100)


def test_what_gets_through_is_exact_whoever_asks(redis_server: RedisServer) -> None:
    times: list[float] = []  # of all answers

    async def hammer(redis: Redis, until: float) -> tuple[int, float]:
        passed, asked = 0, time.monotonic()
        while asked < until:
            passed += await remote.charge(redis, POLICY, b"a") <= POLICY.tolerance
            times.append(time.monotonic())
            last, asked = asked, times[-1]
        return passed, last

    async def scenario() -> None:
        async with opened(redis_server.url) as one, opened(redis_server.url) as other:
            begun = time.monotonic()
            parts = [hammer(redis, begun + 0.5) for redis in (one, other) * 4]
            done = await asyncio.gather(*parts)
            passed = sum(part for part, _ in done)
            most = POLICY.burst + 100 * (max(times) - begun)
            least = POLICY.burst + 100 * (max(last for _, last in done) - min(times))
            print(f"{passed} passed; from {least:.1f} to {most:.1f}")
            assert least - 2 <= passed <= most + 1

    run(scenario())


def test_an_account_is_gone_when_it_is_paid_off(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url) as redis:
            policy = Policy("client", 1, 1.0, 1)
            assert await remote.charge(redis, policy, b"a") == policy.cost
            assert await remote.charge(redis, policy, b"a") > policy.tolerance
            (key,) = await redis.run(lambda client: client.keys("*"))
            assert key.startswith(b"fluxor-fast:rate:client ")
            async with asyncio.timeout(5):
                while await redis.run(lambda client: client.exists(key)):
                    await asyncio.sleep(0.01)
            assert await remote.charge(redis, policy, b"a") == policy.cost

    run(scenario())


def test_a_refund_and_a_charge_are_one_round(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        outer, inner = Policy("outer", 2, 60.0, 2), Policy("inner", 9, 60.0, 9)
        async with opened(redis_server.url) as redis:
            for _ in range(5):
                assert await remote.charge(redis, outer, b"a") <= outer.tolerance
                await remote.charge(redis, inner, b"b", (outer, b"a"))
            for refused in (False, False, True):
                ahead = await remote.charge(redis, outer, b"a")
                assert (ahead > outer.tolerance) is refused

    run(scenario())


def test_who_is_held_is_let_go_in_time_and_they_are_bounded() -> None:
    now = [0]
    holds = Holds(lambda: now[0])
    holds.hold("a", 10)
    assert (holds.left("a"), holds.left("b")) == (10, 0)
    now[0] = 10
    assert holds.left("a") == 0
    for n in range(2 * remote.MOST_HELD):
        holds.hold(str(n), 10)
    assert len(holds._until) <= remote.MOST_HELD


class Instances:
    """Two instances with memory of their own and one Redis."""

    def __init__(self, redis: list[Redis], limit: int) -> None:
        self.apps = [self._app(one, limit) for one in redis]

    def _app(self, redis: Redis, limit: int) -> App:
        app = App()
        memory = SharedMemory(1, 1024)
        app.accounts = Table.of_this_process(memory.entries, memory.key)

        @app.get("/", middleware=[RateLimit(limit, redis=lambda request: redis)])
        async def home(request: Request) -> dict[str, Any]:
            return {}

        return app


@asynccontextmanager
async def two_instances(
    redis_server: RedisServer, limit: int
) -> AsyncIterator[tuple[list[Redis], list[Client]]]:
    """Serve an application with a shared limit twice; yield each one's Redis, and a client."""
    async with AsyncExitStack() as stack:
        redis = [await stack.enter_async_context(opened(redis_server.url)) for _ in range(2)]
        servers = [
            await stack.enter_async_context(serving(app)) for app in Instances(redis, limit).apps
        ]
        yield redis, [await server.connect() for server in servers]


async def passed(clients: list[Client], count: int) -> int:
    return sum([(await clients[n % 2].get()).status == 200 for n in range(count)])


@in_loop
async def test_instances_share_a_limit(
    redis_server: RedisServer,
) -> None:
    async with two_instances(redis_server, 20) as (redis, clients):
        assert await passed(clients, 50) == 20
        refused = await clients[0].get()
        assert refused.status == 429
        assert refused.headers["retry-after"] in ("3", "2")
        assert refused.headers["ratelimit"].startswith('"client";r=0;t=')
        asked = await redis[0].run(lambda client: client.info("commandstats"))
        assert asked["cmdstat_eval"]["calls"] <= 20 + 2 + 1  # a flood is not passed on


@in_loop
async def test_while_redis_is_away_each_instance_has_the_limit_for_itself(
    redis_server: RedisServer,
) -> None:
    async with two_instances(redis_server, 20) as (redis, clients):
        assert await passed(clients, 10) == 10
        redis_server.stop()
        begun = time.monotonic()
        # what got through by Redis has been charged here too
        assert await passed(clients, 90) == 2 * 20 - 10
        assert time.monotonic() - begun < 1
        redis_server.start()
        await until(lambda: all(one.ready for one in redis), 2)
        assert await passed(clients, 20) == 0  # by its own accounts: Redis has forgotten


@in_loop
async def test_a_redis_that_goes_silent_holds_up_a_request_once(redis_server: RedisServer) -> None:
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(opened(redis_server.url, timeout=1.0))
        app = Instances([redis], 100).apps[0]
        server = await stack.enter_async_context(serving(app))
        client = await server.connect()
        assert (await client.get()).status == 200
        redis_server.freeze()
        try:
            took = []
            for _ in range(20):
                begun = time.monotonic()
                assert (await client.get()).status == 200
                took.append(time.monotonic() - begun)
            with pytest.raises(RedisAway):
                await remote.charge(redis, POLICY, b"a")
        finally:
            redis_server.thaw()
        slow = [one for one in took if one > 0.5]
        print(f"the longest {max(took) * 1000:.0f} ms, {len(slow)} of {len(took)} waited")
        assert len(slow) <= 1
        assert max(took) < 3
