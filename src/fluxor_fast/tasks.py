"""Ending tasks that go on until they are cancelled."""

from __future__ import annotations

import asyncio
from typing import Any, Final

__all__ = ["end"]

AGAIN_SECONDS: Final = 1.0
"""For what a task still has to put in order, before it is cancelled once more."""


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel ``tasks``, and wait until they have ended.

    They are cancelled again if they go on: before Python 3.12 ``asyncio.wait_for`` loses a
    cancellation that comes together with its result (CPython issue 86296), and psycopg_pool waits
    by it. A task that loops would then be waited for in vain.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=AGAIN_SECONDS)
