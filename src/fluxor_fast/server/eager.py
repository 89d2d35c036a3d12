"""Tasks that begin at once, or when it suits.

A task made in the usual way begins in the next turn of the loop. One that never has to wait, as
most handlers' do not, then costs a turn and two callbacks that it does not need.

A ``Task`` asks the loop, when it is made, to call its first step soon. That call is caught here,
and the step made by hand, in the context the task has chosen: it is the same step, so the running
task, its cancellation and what it waits for are as always. Two rules make that right: no other task
is running (a step within a step is an error), and the loop's ``call_soon`` is its own again before
the step is made. Where either cannot be, tasks begin in the usual way.

(``eager_start`` of Python 3.12 makes a task and its first step in one, which ``made`` is to keep
apart.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from typing import Any

__all__ = ["Step", "begin", "made"]

Step = tuple[Callable[[], object], Context]
"""A step that a task asks for, and the context in which it is to be made."""


def _catcher(loop: Any, caught: list[Step]) -> Callable[..., object]:
    """Return a ``call_soon`` that puts first steps into ``caught``.

    What a finalizer asks for meanwhile (any allocation may run one) is passed on.
    """
    call_soon = loop.call_soon

    def catch(callback: Any, *args: Any, context: Context | None = None) -> object:
        if args or context is None:
            return call_soon(callback, *args, context=context)
        caught.append((callback, context))
        return None

    return catch


def made(
    loop: Any, coroutines: Sequence[Coroutine[Any, Any, None]]
) -> tuple[list[asyncio.Task[None]], list[Step]]:
    """Return tasks, and the first step of each, to be made; no steps: the loop will make them."""
    steps: list[Step] = []
    by_hand = asyncio.current_task(loop) is None
    if by_hand:
        try:
            loop.call_soon = _catcher(loop, steps)
        except AttributeError:  # a loop without attributes of its own
            by_hand = False
    try:
        # a name of its own takes time
        tasks = [asyncio.Task(one, loop=loop, name="request") for one in coroutines]
    finally:
        if by_hand:
            del loop.call_soon
    return tasks, steps


def begin(loop: Any, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Return a task that has made its first step; within another task it makes it soon."""
    if asyncio.current_task(loop) is not None:
        return asyncio.Task(coroutine, loop=loop)
    # as ``made`` does it; for one alone its lists would cost 1 µs
    steps: list[Step] = []
    try:
        loop.call_soon = _catcher(loop, steps)
    except AttributeError:
        return asyncio.Task(coroutine, loop=loop)
    try:
        task = asyncio.Task(coroutine, loop=loop, name="request")
    finally:
        del loop.call_soon
    for step, context in steps:
        context.run(step)
    return task
