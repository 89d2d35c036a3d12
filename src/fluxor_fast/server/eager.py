"""Tasks that begin at once: from Python 3.12 on by ``eager_start``, before that by hand.

A task made in the usual way begins in the next turn of the loop. One that never has to wait, as
most handlers' do not, then costs a turn and two callbacks that it does not need.

By hand: a ``Task`` asks the loop, when it is made, to call its first step soon. That call is
caught here, and the step made at once, in the context the task has chosen: it is the same step, so
the running task, its cancellation and what it waits for are as always. Two rules make that right:
no other task is running (a step within a step is an error), and the loop's ``call_soon`` is its own
again before the step is made.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

__all__ = ["begin"]


if sys.version_info >= (3, 12):

    def begin(loop: Any, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Return a task that has made its first step."""
        return asyncio.Task(coroutine, loop=loop, eager_start=True)

else:
    _caught: list[tuple[Callable[[], object], Context]] = []

    def _catch(callback: Callable[[], object], *, context: Context) -> None:
        _caught.append((callback, context))

    def begin(loop: Any, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Return a task that has made its first step; within another task it makes it soon."""
        if asyncio.current_task(loop) is not None:
            return asyncio.Task(coroutine, loop=loop)
        try:
            loop.call_soon = _catch
        except AttributeError:  # a loop without attributes of its own
            return asyncio.Task(coroutine, loop=loop)
        try:
            task = asyncio.Task(
                coroutine, loop=loop, name="request"
            )  # a name of its own takes time
        finally:
            del loop.call_soon
        step, context = _caught.pop()
        context.run(step)
        return task
