"""What must be done to its end, though whoever does it is cancelled on the way.

``asyncio.shield`` needs a task each time. What is done here hardly ever suspends, so the first
step is made without one, and only what then waits goes on in a task of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any

__all__ = ["uninterrupted"]


class _Rest:
    """The rest of a coroutine that has begun, and waits for ``first``."""

    def __init__(self, work: Coroutine[Any, Any, None], first: Any) -> None:
        self._work = work
        self._first = first

    def __await__(self) -> Generator[Any, Any, None]:
        waits = self._first
        while True:
            try:
                yield waits
            except BaseException as error:
                resume: Callable[[], Any] = partial(self._work.throw, error)
            else:
                resume = partial(self._work.send, None)
            try:
                waits = resume()
            except StopIteration:
                return


async def uninterrupted(work: Coroutine[Any, Any, None]) -> None:
    """Await ``work``; a cancellation takes effect after its end."""
    try:
        first = work.send(None)
    except StopIteration:
        return

    async def rest() -> None:
        await _Rest(work, first)

    task = asyncio.ensure_future(rest())
    cancelled = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
