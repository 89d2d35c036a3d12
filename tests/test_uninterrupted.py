"""Work that is done to its end: without a task where it can, whatever comes in between."""

from __future__ import annotations

import asyncio

import pytest

from fluxor_fast.db.uninterrupted import uninterrupted
from tests.support.pure import run


def test_what_does_not_wait_makes_no_task() -> None:
    async def work() -> None:
        pass

    async def main() -> None:
        before = asyncio.all_tasks()
        coroutine = uninterrupted(work())
        with pytest.raises(StopIteration):
            coroutine.send(None)
        assert asyncio.all_tasks() == before

    run(main())


def test_cancelled_again_and_again_it_ends_first() -> None:
    async def main() -> None:
        lock = asyncio.Lock()
        done = []

        async def work() -> None:
            async with lock:
                await asyncio.sleep(0)
                done.append(True)

        await lock.acquire()
        task = asyncio.create_task(uninterrupted(work()))
        for _ in range(3):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        lock.release()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done == [True]
        assert not lock.locked()

    run(main())


def test_an_error_is_passed_on() -> None:
    async def main() -> None:
        async def at_once() -> None:
            raise LookupError

        async def later() -> None:
            await asyncio.sleep(0)
            raise LookupError

        for work in (at_once, later):
            with pytest.raises(LookupError):
                await uninterrupted(work())

    run(main())
