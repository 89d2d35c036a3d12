"""What a worker looks at about once a second, for all connections: no timer for each.

Most looks find nothing due and cost a fraction of a microsecond. But connections that were
opened together are due together, and ending one costs tens of microseconds. So after a few
milliseconds the loop goes round once, and the sweep goes on where it was.

All timeouts hang on this one task, so a look that fails ends its connection, never the sweep.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Protocol

__all__ = ["sweep"]

log = logging.getLogger("fluxor_fast.server")


class Swept(Protocol):
    """A connection that the sweep looks at."""

    closed: bool

    def check(self, tick: int) -> None:
        """End the connection if it has outlived a timeout."""

    def abort(self) -> None:
        """Drop the connection."""


async def sweep(
    connections: Iterable[Swept],
    tick: int,
    seconds: float,
    clock: Callable[[], float] = monotonic,
) -> None:
    """Have every connection checked; every ``seconds`` the loop goes round in between."""
    until = clock() + seconds
    for connection in list(connections):
        if not connection.closed:  # it may be gone since the list was made
            try:
                connection.check(tick)
            except Exception:
                log.exception("a connection could not be looked at, and is dropped")
                connection.abort()
        if clock() >= until:
            await asyncio.sleep(0)
            until = clock() + seconds
