"""Tasks that begin at once: they are tasks like others, but for when they begin."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest
import uvloop

from fluxor_fast.server.eager import begin, made
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
async def test_several_are_made_before_the_first_begins_each_in_a_context_of_its_own() -> None:
    loop, log = asyncio.get_running_loop(), []

    async def work(number: int) -> None:
        log.append((number, VALUE.get(), asyncio.current_task()))
        VALUE.set(number)
        await asyncio.sleep(0)
        log.append((number, VALUE.get(), asyncio.current_task()))

    def action() -> None:
        tasks, steps = made(loop, [work(1), work(2), work(3)])
        assert "call_soon" not in vars(loop)
        assert len(tasks) == len(steps) == 3 and log == []
        for step, context in steps:
            context.run(step)
        assert log == [(number, 0, task) for number, task in enumerate(tasks, 1)]
        tasks[2].add_done_callback(lambda _: log.append(tasks))

    await outside(action)
    await until(lambda: len(log) == 7, "they end")
    tasks = log.pop()
    assert log[3:] == [(number, number, task) for number, task in enumerate(tasks, 1)]


@in_loop
async def test_what_a_finalizer_asks_of_the_loop_while_tasks_are_made_is_done() -> None:
    loop, woken = asyncio.get_running_loop(), []
    future = loop.create_future()
    future.add_done_callback(woken.append)

    class Lock:
        """Wakes who waits for it when it is collected, in a cycle as it is."""

        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            future.set_result(None)

    async def quick() -> None: ...

    class Coroutines(list[Any]):
        def __iter__(self) -> Any:
            gc.collect()  # as any allocation may
            return super().__iter__()

    def action() -> None:
        Lock()
        tasks, steps = made(loop, Coroutines([quick()]))
        for step, context in steps:
            context.run(step)
        assert len(steps) == 1 and tasks[0].done()

    await outside(action)
    await until(lambda: woken, "who waited is woken")


def test_loops_in_threads_do_not_get_each_other_s_steps() -> None:
    """As test clients have them."""
    wrong: list[Any] = []

    async def work(thread: int) -> None:
        if threading.get_ident() != thread:
            wrong.append("the other thread's")

    def run() -> None:
        loop, thread, rounds = uvloop.new_event_loop(), threading.get_ident(), iter(range(300))

        def act() -> None:
            tasks, steps = made(loop, [work(thread) for _ in range(32)])
            for step, context in steps:
                context.run(step)
            if len(steps) != 32 or not all(task.done() for task in tasks):
                wrong.append(len(steps))
            if next(rounds, None) is None or wrong:
                loop.stop()
            else:
                loop.call_soon(act)

        loop.call_soon(act)
        loop.run_forever()
        loop.close()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=run) for _ in range(2)]
        for one in threads:
            one.start()
        for one in threads:
            one.join(60)
    finally:
        sys.setswitchinterval(before)
    assert not wrong and not any(one.is_alive() for one in threads)


@in_loop
async def test_it_can_be_cancelled() -> None:
    loop, tasks = asyncio.get_running_loop(), []

    async def waits() -> None:
        await asyncio.sleep(60)

    await outside(lambda: tasks.append(begin(loop, waits())))
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]


@in_loop
async def test_within_another_task_it_begins_soon() -> None:
    log: list[str] = []

    async def work() -> None:
        log.append("began")

    task = begin(asyncio.get_running_loop(), work())
    assert log == []
    await task
    assert log == ["began"]


def test_a_loop_without_attributes_of_its_own_begins_soon() -> None:
    log: list[str] = []

    class Closed(asyncio.SelectorEventLoop):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "call_soon":
                raise AttributeError(name)
            super().__setattr__(name, value)

    async def work() -> None:
        log.append("began")

    loop = Closed()
    begin(loop, work())
    assert log == []
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert log == ["began"]
