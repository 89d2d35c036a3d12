"""Threads for applications under test: what is called there comes back whole, or in time not."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import Iterator
from inspect import CORO_CLOSED, getcoroutinestate

import pytest

from fluxor_fast.testing.loops import DaemonThreads, LoopThread, NoAnswer


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    made = LoopThread()
    made.start()
    yield made
    made.stop(5)


def test_what_a_coroutine_raises_is_raised_with_its_place_and_its_cause(thread: LoopThread) -> None:
    async def fails() -> None:
        try:
            raise ZeroDivisionError("the cause")
        except ZeroDivisionError as error:
            raise TimeoutError("its own") from error

    with pytest.raises(TimeoutError, match="its own") as caught:
        thread.call(fails(), 5)
    assert not isinstance(caught.value, NoAnswer)
    assert "the cause" in "".join(traceback.format_exception(caught.value))


def test_what_does_not_end_is_cancelled(thread: LoopThread) -> None:
    cancelled = threading.Event()

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(NoAnswer):
        thread.call(waits(), 0.5)
    assert cancelled.wait(5)


def test_what_is_given_up_before_it_begins_is_closed(thread: LoopThread) -> None:
    """On Python 3.14 it was neither run nor closed, and a warning came in a later test."""
    release = threading.Event()

    async def nothing() -> None: ...

    late = nothing()
    thread.loop.call_soon_threadsafe(release.wait, 10)  # the loop is held up
    with pytest.raises(NoAnswer):
        thread.call(late, 0.01)
    release.set()
    thread.call(nothing(), 5)
    assert getcoroutinestate(late) == CORO_CLOSED


def test_nothing_can_be_called_before_the_start_or_after_the_end() -> None:
    async def nothing() -> int:
        return 1

    thread = LoopThread()
    with pytest.raises(RuntimeError, match="not running"):
        thread.call(nothing())
    thread.start()
    assert thread.call(nothing()) == 1
    thread.stop(5)
    with pytest.raises(RuntimeError, match="not running"):
        thread.call(nothing())
    assert thread.loop.is_closed()


def test_no_more_calls_run_at_once_than_may() -> None:
    threads = DaemonThreads(2, "test-blocking")
    both = threading.Barrier(3)
    go = threading.Event()
    third = threading.Event()

    def first() -> None:
        both.wait(5)
        go.wait(5)

    waiting = [threads.submit(first), threads.submit(first)]
    both.wait(5)
    waiting.append(threads.submit(third.set))
    assert not third.wait(0.02)
    go.set()
    for future in waiting:
        future.result(5)
    assert third.is_set()


def test_a_call_that_fails_or_was_cancelled_says_so() -> None:
    threads = DaemonThreads(1, "test-blocking")
    go = threading.Event()
    first = threads.submit(go.wait, 5)
    second = threads.submit(threading.Event().set)
    assert second.cancel()
    go.set()
    assert first.result(5)
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 // 0).result(5)
