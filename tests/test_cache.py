"""Cached functions in one process: what is kept, for how long, how much, and who computes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from fluxor_fast import HTTPError, Request
from fluxor_fast.cache import Cache
from fluxor_fast.cache.memory import OVERHEAD, LocalGenerations, Memory
from tests.support.pure import run
from tests.support.seeds import seeded
from tests.support.turns import Clock


def memory(most: int = 100, most_bytes: int = 1 << 20) -> tuple[Memory, Clock]:
    clock = Clock()
    return Memory(most, most_bytes, clock, LocalGenerations()), clock


def keep(store: Memory, key: str, value: Any = None, ttl: float = 60.0, size: int = 1) -> None:
    store.put(key, value, ttl, size, store.stamp(key))


def held(store: Memory, key: str) -> Any:
    entry = store.get(key)
    return None if entry is None else entry.value


# memory


def test_an_entry_is_good_until_its_time_is_over() -> None:
    store, clock = memory()
    keep(store, "a", "value", ttl=10)
    clock.now += 9.999
    assert held(store, "a") == "value"
    clock.now += 0.001
    assert held(store, "a") is None
    assert len(store) == store.bytes == 0


def test_the_least_used_leaves_first() -> None:
    store, _ = memory(most=3)
    for key in "abc":
        keep(store, key, key)
    assert held(store, "a") == "a"
    keep(store, "d", "d")
    assert [held(store, key) for key in "abcd"] == ["a", None, "c", "d"]
    assert store.evicted == 1


def test_bytes_are_bounded_whatever_comes() -> None:
    rng = seeded("memory")
    store, clock = memory(most=50, most_bytes=40_000)
    for _ in range(5_000):
        key = f"key{rng.randrange(200)}"
        match rng.randrange(10):
            case 0:
                store.discard(key)
            case 1:
                store.outdate(key)
            case 2:
                clock.now += rng.random() * 10
                store.get(key)
            case 3 if rng.random() < 0.02:
                store.clear()
            case _:
                keep(store, key, key, ttl=rng.random() * 30, size=rng.randrange(5_000))
        assert store.bytes <= 40_000
        assert len(store) <= 50
        assert store.bytes == sum(entry.size for entry in store._entries.values())
    assert store.evicted > 100


def test_what_is_larger_than_a_tenth_is_not_kept_and_its_predecessor_goes() -> None:
    store, _ = memory(most_bytes=10_000)
    keep(store, "a", "small")
    keep(store, "a", "large", size=1_000 - OVERHEAD)
    assert held(store, "a") is None
    keep(store, "a", "fits", size=999 - OVERHEAD)
    assert held(store, "a") == "fits"


def test_what_was_begun_before_the_key_was_outdated_is_not_kept() -> None:
    store, _ = memory()
    for outdate in (lambda: store.outdate("a"), store.clear):
        stamp = store.stamp("a")
        outdate()
        store.put("a", "old", 60, 1, stamp)
        assert held(store, "a") is None


def test_generations_are_shared_by_all_who_look_at_them() -> None:
    shared = LocalGenerations()
    one, two = (Memory(10, 10_000, Clock(), shared) for _ in range(2))
    keep(two, "a", "value")
    one.outdate("a")
    assert held(two, "a") is None


# what is cached


class Source:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def __call__(self, *args: Any) -> Any:
        self.asked.append(args)
        return {"of": list(args), "asked": len(self.asked)}


def cached(source: Callable[..., Any], **options: Any) -> tuple[Any, Cache, Clock]:
    clock = Clock()
    cache = Cache(clock=clock)

    @cache.cached(**({"ttl": 10} | options))
    async def function(*args: Any) -> Any:
        await asyncio.sleep(0)
        return source(*args)

    return function, cache, clock


def test_a_value_is_computed_once_while_it_is_good() -> None:
    async def scenario() -> None:
        function, cache, clock = cached(Source())
        first = await function(1, "a")
        assert await function(1, "a") is first
        assert (await function(2, "a"))["asked"] == 2
        clock.now += 10
        assert (await function(1, "a"))["asked"] == 3
        figures = cache.figures
        assert (figures.memory_hits, figures.misses, figures.entries) == (1, 3, 2)

    run(scenario())


def test_values_of_different_types_are_different_keys() -> None:
    keys = [
        "ä",
        "\udcff",
        1,
        "1",
        True,
        "true",
        None,
        "null",
        1.0,
        (1,),
        [1, 2],
        "[1,2]",
        "=1",
        {"a": 1},
        "#",
        "",
    ]

    async def scenario() -> None:
        asked: list[Any] = []
        function, _, _ = cached(lambda key: len(asked.append(key) or asked), key=lambda each: each)
        assert [await function(key) for key in keys] == list(range(1, len(keys) + 1))
        assert [await function(key) for key in keys] == list(range(1, len(keys) + 1))

    run(scenario())


def test_a_long_key_is_one_of_its_own() -> None:
    async def scenario() -> None:
        source = Source()
        function, cache, _ = cached(source)
        for end in ("a", "b", "a"):
            await function("x" * 10_000 + end)
        assert len(source.asked) == 2
        assert cache.figures.bytes < 25_000  # the values, and not the keys

    run(scenario())


def test_the_first_answer_is_what_later_ones_are() -> None:
    cache = Cache()

    @cache.cached(ttl=10)
    async def function() -> Any:
        return {"when": datetime(2024, 1, 1, tzinfo=UTC), "pair": (1, 2)}

    async def scenario() -> None:
        expected = {"when": "2024-01-01T00:00:00+00:00", "pair": [1, 2]}
        assert await function() == await function() == expected

    run(scenario())


def test_what_json_cannot_hold_is_an_error_at_once() -> None:
    async def scenario() -> None:
        function, _, _ = cached(lambda: object())
        with pytest.raises(TypeError, match="JSON"):
            await function()

    run(scenario())


def test_errors_are_not_cached_and_none_only_by_choice() -> None:
    async def scenario() -> None:
        asked: list[int] = []

        def fails(number: int) -> Any:
            asked.append(number)
            if number == 404:
                raise HTTPError(404)
            return None

        plain, _, _ = cached(fails)
        for _ in range(2):
            with pytest.raises(HTTPError):
                await plain(404)
            assert await plain(1) is None
        assert asked == [404, 1, 404, 1]

        asked.clear()
        negative, _, clock = cached(fails, none_ttl=3)
        for _ in range(2):
            assert await negative(1) is None
        clock.now += 3
        assert await negative(1) is None
        assert asked == [1, 1]

    run(scenario())


def test_forgotten_is_computed_anew() -> None:
    async def scenario() -> None:
        function, _, _ = cached(Source(), key=lambda number: number)
        assert (await function(1))["asked"] == 1
        assert (await function(2))["asked"] == 2
        await function.forget(1)
        assert (await function(1))["asked"] == 3
        assert (await function(2))["asked"] == 2

    run(scenario())


def test_a_handler_has_to_say_what_its_answer_depends_on() -> None:
    cache = Cache()
    with pytest.raises(TypeError, match="give a key"):

        @cache.cached(ttl=1)
        async def handler(req: Request) -> None: ...

    with pytest.raises(TypeError, match="give a key"):

        @cache.cached(ttl=1)
        def untyped(request): ...  # type: ignore[no-untyped-def]


def test_two_functions_do_not_share_keys_by_accident() -> None:
    cache = Cache()

    @cache.cached(ttl=1, name="one")
    async def one() -> int:
        return 1

    with pytest.raises(ValueError, match="one is cached already"):

        @cache.cached(ttl=1, name="one")
        async def two() -> int:
            return 2


# who computes


def test_one_computes_and_the_others_wait() -> None:
    async def scenario() -> None:
        source = Source()
        function, cache, _ = cached(source)
        values = await asyncio.gather(*(function(1) for _ in range(100)))
        assert len(source.asked) == 1
        assert all(value is values[0] for value in values)
        assert cache.figures.waited == 99
        assert cache.figures.misses == 1

    run(scenario())


def test_an_error_reaches_all_who_wait() -> None:
    async def scenario() -> None:
        asked: list[int] = []

        def fails(number: int) -> Any:
            asked.append(number)
            raise ValueError("no")

        function, _, _ = cached(fails)
        ends = await asyncio.gather(*(function(1) for _ in range(20)), return_exceptions=True)
        assert all(isinstance(end, ValueError) for end in ends)
        assert asked == [1]

    run(scenario())


def test_who_computes_and_is_cancelled_has_another_compute() -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        begun: list[Any] = []
        cache = Cache()

        @cache.cached(ttl=10)
        async def function() -> int:
            begun.append(asyncio.current_task())
            await gate.wait()
            return len(begun)

        tasks = [asyncio.create_task(function()) for _ in range(5)]
        for number in range(3):
            while len(begun) == number:
                await asyncio.sleep(0)
            begun[-1].cancel()
        while len(begun) == 3:
            await asyncio.sleep(0)
        gate.set()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(end, asyncio.CancelledError) for end in ends) == 3
        assert [end for end in ends if isinstance(end, int)] == [4, 4]
        assert not cache._flights._flights

    run(scenario())


def test_one_who_waits_and_leaves_disturbs_nobody() -> None:
    async def scenario() -> None:
        source = Source()
        function, _, _ = cached(source)
        tasks = [asyncio.create_task(function(1)) for _ in range(5)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        await asyncio.wait(tasks)
        assert tasks[3].cancelled()
        assert len(source.asked) == 1

    run(scenario())


def test_who_comes_after_a_change_does_not_get_what_was_computed_before_it() -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        cache = Cache()
        row = "old"

        @cache.cached(ttl=10, key=lambda: 1)
        async def function() -> str:
            read = row
            await gate.wait()
            return read

        before = asyncio.create_task(function())
        await asyncio.sleep(0)
        row = "new"
        await function.forget(1)  # type: ignore[attr-defined]
        after = asyncio.create_task(function())
        await asyncio.sleep(0)
        gate.set()
        assert await before == "old"  # asked before the change
        assert await after == "new"
        assert await function() == "new"

    run(scenario())


def test_a_function_that_asks_for_itself_does_not_wait_for_itself() -> None:
    async def scenario() -> None:
        cache = Cache()
        depth = 0

        @cache.cached(ttl=10)
        async def function() -> int:
            nonlocal depth
            depth += 1
            return await function() + 1 if depth < 3 else 0

        async with asyncio.timeout(5):
            assert await function() == 2

    run(scenario())


def test_a_plain_function_is_cached_in_the_loop_and_out_of_it() -> None:
    source = Source()
    cache = Cache()

    @cache.cached(ttl=10)
    def function(number: int) -> Any:
        return source(number)

    async def scenario() -> None:
        assert function(1) is function(1)

    run(scenario())
    assert function(1)["asked"] == 1
    assert function(2)["asked"] == 2


def test_one_thread_computes_and_the_others_wait() -> None:
    cache = Cache()
    source = Source()
    gate = threading.Event()

    @cache.cached(ttl=10)
    def function(number: int) -> Any:
        gate.wait(5)
        if number < 0:
            raise ValueError("no")
        return source(number)

    with ThreadPoolExecutor(8) as threads:
        good = [threads.submit(function, 1) for _ in range(4)]
        bad = [threads.submit(function, -1) for _ in range(4)]
        gate.set()
        assert len({id(each.result(5)) for each in good}) == 1
        assert all(isinstance(each.exception(5), ValueError) for each in bad)
    assert len(source.asked) == 1
    assert not cache._jobs
