"""Redis on a real server: shares, bounds, and a server that comes, goes and goes silent."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.exceptions import ResponseError

from fluxor_fast.config import RedisSettings, ServerSettings, Settings
from fluxor_fast.errors import BootError, RedisAway
from fluxor_fast.redis import Redis
from tests.support.pure import run
from tests.support.redis import RedisServer
from tests.support.seeds import seeded

BACK_SECONDS = 1.0
"""What is promised."""


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[Redis]:
    sizes = {"max_connections": 8, "idle": 2, "timeout": 5.0, "connect_timeout": 5.0} | options
    redis = Redis(url, **sizes)
    await redis.open()
    try:
        yield redis
    finally:
        await redis.close()


async def until(check: Callable[[], bool], seconds: float) -> float:
    """Wait until ``check`` is true, and return how long it took."""
    started = time.monotonic()
    while not check():
        assert time.monotonic() - started < seconds
        await asyncio.sleep(0.005)
    return time.monotonic() - started


async def away_at_once(redis: Redis, tries: int = 50) -> None:
    """Assert that commands fail without waiting."""
    started = time.perf_counter()
    for _ in range(tries):
        with pytest.raises(RedisAway):
            await redis.run(lambda client: client.get("key"))
    assert (time.perf_counter() - started) / tries < 0.001


def test_a_command_is_answered(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url) as redis:
            assert redis.ready
            await redis.run(lambda client: client.set("key", b"value"))
            assert await redis.run(lambda client: client.get("key")) == b"value"
            await redis.check()

    run(scenario())


def test_what_redis_says_of_a_command_passes_through(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url) as redis:
            with pytest.raises(ResponseError):
                await redis.run(lambda client: client.execute_command("NONSENSE"))
            assert redis.ready

    run(scenario())


def test_idle_connections_are_made_before_they_are_wanted(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, idle=5):
            assert redis_server.command("CLIENT", "LIST").count(b"id=") == 5 + 2  # ours, a look's

    run(scenario())


def test_more_commands_than_connections_wait_for_one(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, max_connections=2, timeout=5.0) as redis:
            numbers = await asyncio.gather(
                *(redis.run(lambda client: client.incr("count")) for _ in range(50))
            )
            assert sorted(numbers) == list(range(1, 51))
            assert redis_server.command("CLIENT", "LIST").count(b"id=") <= 2 + 2

    run(scenario())


def test_it_is_away_from_the_start_and_then_there(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        redis_server.stop()
        async with opened(redis_server.url) as redis:
            assert not redis.ready
            await away_at_once(redis)
            redis_server.start()
            assert await until(lambda: redis.ready, 5) < BACK_SECONDS
            await redis.run(lambda client: client.set("key", "value"))

    run(scenario())
    said = [record.getMessage() for record in caplog.records if "redis" in record.getMessage()]
    assert [text.split(": ")[1] for text in said] == ["away", "connected"]


def test_a_crash_fails_those_on_it_and_no_other_waits(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url) as redis:
            for _ in range(3):
                redis_server.stop()
                with pytest.raises(RedisAway):
                    await redis.run(lambda client: client.get("key"))
                await away_at_once(redis)
                redis_server.start()
                assert await until(lambda: redis.ready, 5) < BACK_SECONDS
                # no connection of the server that went is lent
                for _ in range(20):
                    await redis.run(lambda client: client.get("key"))

    run(scenario())


def test_a_frozen_server_holds_the_first_for_the_timeout_only(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, timeout=1.0) as redis:
            redis_server.freeze()
            started = time.monotonic()
            first = await asyncio.gather(
                *(redis.run(lambda client: client.get("key")) for _ in range(20)),
                return_exceptions=True,
            )
            assert all(isinstance(each, RedisAway) for each in first)
            assert time.monotonic() - started < 1.0 + 1.0
            await away_at_once(redis)
            await asyncio.sleep(0.7)  # a look has ended too
            await away_at_once(redis)
            redis_server.thaw()
            assert await until(lambda: redis.ready, 5) < BACK_SECONDS
            await redis.run(lambda client: client.get("key"))

    run(scenario())


def test_answers_are_not_mixed_up_by_callers_who_leave(redis_server: RedisServer) -> None:
    rng = seeded("redis callers who leave")

    async def ask(redis: Redis, number: int) -> None:
        key = f"key{number}"
        for _ in range(20):
            assert await redis.run(lambda client: client.get(key)) == str(number).encode()

    async def scenario() -> None:
        async with opened(redis_server.url, timeout=5.0) as redis:
            for number in range(50):
                await redis.run(lambda client, n=number: client.set(f"key{n}", n))
            tasks = [asyncio.create_task(ask(redis, number)) for number in range(50)]
            while not all(task.done() for task in tasks):
                await asyncio.sleep(0)
                if rng.random() < 0.1:
                    rng.choice(tasks).cancel()
            for task in tasks:
                assert task.cancelled() or task.exception() is None
            assert redis.ready
            # nor is a connection lost to them
            await asyncio.gather(*(ask(redis, number) for number in range(20)))

    run(scenario())


def test_a_wrong_password_is_an_error_of_the_start(redis_server: RedisServer) -> None:
    redis_server.command("CONFIG", "SET", "requirepass", "secret")

    async def scenario() -> None:
        with pytest.raises(BootError, match="refuses the user or password"):
            async with opened(redis_server.url.replace("unix://", "unix://:wrong@")):
                pass
        async with opened(redis_server.url.replace("unix://", "unix://:secret@")) as redis:
            assert redis.ready

    run(scenario())


def test_the_instances_connections_are_shared_over_its_workers() -> None:
    settings = Settings(
        server=ServerSettings(workers=4),
        redis=RedisSettings.model_validate({"url": "redis://localhost", "pool_max": 10}),
    )
    redis = Redis.from_settings(settings)
    assert redis is not None
    assert redis._pool.max_connections == 2
    assert Redis.from_settings(Settings()) is None
