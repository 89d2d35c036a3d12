"""Tasks that begin at once: they are tasks like others, but for when they begin."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextvars import ContextVar

import pytest

from fluxor_fast.server.eager import begin
from tests.support.inprocess import in_loop, until

VALUE: ContextVar[int] = ContextVar("VALUE", default=0)


async def outside(action: Callable[[], object]) -> None:
    """Run ``action`` while no task is running."""
    done = asyncio.get_running_loop().create_future()

    def act() -> None:
        try:
            done.set_result(action())
        except BaseException as error:
            done.set_exception(error)

    asyncio.get_running_loop().call_soon(act)
    await done


@in_loop
async def test_it_begins_at_once_and_goes_on_as_the_same_task() -> None:
    loop, log = asyncio.get_running_loop(), []

    async def work() -> None:
        task = asyncio.current_task()
        VALUE.set(1)
        log.append("began")
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await asyncio.sleep(0.001)
        assert asyncio.current_task() is task
        assert VALUE.get() == 1
        log.append("ended")

    def action() -> None:
        task = begin(loop, work())
        assert log == ["began"]
        assert asyncio.current_task() is None
        assert VALUE.get() == 0  # what it sets is its own
        assert "call_soon" not in vars(loop)
        task.add_done_callback(lambda _: log.append("done"))

    await outside(action)
    await until(lambda: log == ["began", "ended", "done"], "it ends")


@in_loop
async def test_one_that_need_not_wait_is_done_at_once_also_with_an_error() -> None:
    loop = asyncio.get_running_loop()

    async def quick() -> None: ...

    async def fails() -> None:
        raise KeyError("x")

    def action() -> None:
        assert begin(loop, quick()).done()
        with pytest.raises(KeyError):
            begin(loop, fails()).result()

    await outside(action)


@in_loop
async def test_it_can_be_cancelled() -> None:
    loop, tasks = asyncio.get_running_loop(), []

    async def waits() -> None:
        await asyncio.sleep(60)

    await outside(lambda: tasks.append(begin(loop, waits())))
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="by hand before 3.12 only")
@in_loop
async def test_within_another_task_it_begins_soon() -> None:
    log: list[str] = []

    async def work() -> None:
        log.append("began")

    task = begin(asyncio.get_running_loop(), work())
    assert log == []
    await task
    assert log == ["began"]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="by hand before 3.12 only")
def test_a_loop_without_attributes_of_its_own_begins_soon() -> None:
    log: list[str] = []

    class Closed:
        __slots__ = ("loop",)

        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            self.loop = loop

        @property
        def call_soon(self) -> Callable[..., object]:
            return self.loop.call_soon

        def get_debug(self) -> bool:
            return False

    async def work() -> None:
        log.append("began")

    loop = asyncio.new_event_loop()
    begin(Closed(loop), work())
    assert log == []
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert log == ["began"]
