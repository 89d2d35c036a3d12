"""What a cached answer costs, by where it is found, and how often it is found.

    python bench/cache.py [--rounds 200] [--json]

* *request*: from bytes to bytes in this process, 16 connections, a small JSON answer: of a plain
  function, a coroutine function, and a cached one whose answer is known. Least times in µs.
* *call*: of a cached coroutine function whose value is known, beyond one that is not cached.
* *Redis*: a value that Redis has and this process has not, one caller and 50 at a time; a value
  that nobody has, with and without Redis. Median in µs of wall time, Redis on this machine.
* *hit rate*: users asked for by a Zipf law (exponent 1), with as many entries as there are by
  default.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import accumulate, count
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.steps import DOCUMENT
from fluxor_fast import App, Request
from fluxor_fast.cache import Cache
from fluxor_fast.config import CacheSettings, Settings
from fluxor_fast.redis import Redis
from tests.support.redis import RedisServer, program
from tests.support.turns import Bench, Silent

SEED = 20_240_601
KINDS = ("plain", "coroutine", "cached")
USERS, REQUESTS = 100_000, 300_000


def requests(rounds: int) -> dict[str, float]:
    """Return µs per request by kind of handler."""
    app, cache = App(), Cache()

    @app.get("/plain/{id:int}")
    def plain(request: Request, id: int) -> dict[str, Any]:
        return {**DOCUMENT, "id": id}

    @app.get("/coroutine/{id:int}")
    async def coroutine(request: Request, id: int) -> dict[str, Any]:
        return {**DOCUMENT, "id": id}

    @app.get("/cached/{id:int}")
    @cache.cached(ttl=3600, key=lambda request, id: id)
    async def cached(request: Request, id: int) -> dict[str, Any]:
        return {**DOCUMENT, "id": id}

    loop = uvloop.new_event_loop()
    found: dict[str, float] = {}

    def measure() -> None:  # outside of any task, as a turn of the server is
        bench = Bench(app, loop)
        bench.runner.block = b"Date: Mon, 03 Jun 2024 08:00:00 GMT\r\nX-Request-ID: "
        bench.runner._scheduled = True  # turns are made here
        protocols = [bench.connect(Silent) for _ in range(16)]
        for kind in [*KINDS, *KINDS]:
            head = b"GET /%b/5 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n" % kind.encode()
            for _ in range(rounds):
                started = perf_counter()
                for protocol in protocols:
                    protocol.data_received(head)
                while bench.runner.busy:
                    bench.runner.turn()
                took = (perf_counter() - started) / len(protocols) * 1e6
                found[kind] = min(found.get(kind, took), took)
        loop.stop()

    loop.call_soon(measure)
    loop.run_forever()
    loop.close()
    return found


def call(rounds: int) -> float:
    """Return what a known value costs beyond a function that returns one, in µs."""
    cache = Cache()

    async def plain(id: int) -> dict[str, Any]:
        return DOCUMENT

    cached = cache.cached(ttl=3600, key=lambda id: id)(plain)
    asyncio.run(cached(5))  # type: ignore[arg-type]

    def least(function: Callable[[int], Any]) -> float:
        best = float("inf")
        for _ in range(rounds):
            started = perf_counter()
            for _ in range(100):
                with suppress(StopIteration):
                    function(5).send(None)
            best = min(best, (perf_counter() - started) / 100 * 1e6)
        return best

    least(cached)
    return least(cached) - least(plain)


async def tiers(url: str) -> dict[str, float]:
    """Return µs of wall time of what goes beyond this process."""
    app = App()
    app.settings = Settings()

    def function(cache: Cache) -> Callable[[int], Awaitable[Any]]:
        @cache.cached(ttl=3600, key=lambda number: number, name="users")
        async def user(number: int) -> dict[str, Any]:
            return DOCUMENT

        return user

    alone, here, there = Cache(), Cache(), Cache()
    redis = Redis(url, max_connections=100, idle=50, timeout=5.0, connect_timeout=5.0)
    await redis.open()
    for cache in (here, there):
        await cache.start(app, redis)
    while not all(cache._remote is not None and cache._remote.hears for cache in (here, there)):
        await asyncio.sleep(0.01)
    numbers = count()
    found: dict[str, float] = {}

    async def times(
        name: str, ask: Callable[[int], Awaitable[Any]], first: int, at_once: int
    ) -> None:
        taken = []
        for turn in range(2000 // at_once):
            started = perf_counter()
            of = range(first + turn * at_once, first + (turn + 1) * at_once)
            await asyncio.gather(*map(ask, of)) if at_once > 1 else await ask(of[0])
            taken.append((perf_counter() - started) / at_once * 1e6)
        found[name] = median(taken)

    try:
        await times("computed, no Redis", function(alone), next(numbers), 1)
        await times("computed, stored in Redis", function(here), 0, 1)
        other = function(there)
        await times("found in Redis", other, 0, 1)
        there._memory.clear()
        await times("found in Redis, 50 at a time", other, 0, 50)
        assert there.figures.redis_hits >= 4000
    finally:
        for cache in (here, there):
            await cache.stop()
        await redis.close()
    return found


async def hit_rate() -> float:
    """Return the share of requests whose user is known."""
    rng = Random(SEED)
    cache = Cache()
    app = App()
    app.settings = Settings(cache=CacheSettings())
    await cache.start(app)

    @cache.cached(ttl=3600, key=lambda number: number)
    async def user(number: int) -> dict[str, Any]:
        return {"id": number, "email": f"user{number}@example.com", "roles": ["user"]}

    weights = list(accumulate(1 / rank for rank in range(1, USERS + 1)))
    for number in rng.choices(range(USERS), cum_weights=weights, k=REQUESTS):
        await user(number)
    figures = cache.figures
    await cache.stop()
    return figures.memory_hits / (figures.memory_hits + figures.misses)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    found = {f"request: {kind}": us for kind, us in requests(options.rounds).items()}
    found["call: known, beyond a plain one"] = call(options.rounds)
    if program() is not None:
        with tempfile.TemporaryDirectory(prefix="fluxor-redis-") as folder:
            server = RedisServer(Path(folder))
            try:
                server.start()
                found |= asyncio.run(tiers(server.url))
            finally:
                server.stop()
    rate = asyncio.run(hit_rate())
    if options.json:
        print(json.dumps({"us": found, "hit_rate": rate}))
        return
    print("| | µs |\n|---|--:|")
    for name, us in found.items():
        print(f"| {name} | {us:.2f} |")
    print(f"\nhit rate {rate:.1%}: {REQUESTS:,} requests for {USERS:,} users, Zipf, 10,000 entries")


if __name__ == "__main__":
    main()
