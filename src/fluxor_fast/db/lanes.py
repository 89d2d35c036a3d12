"""Which statements go on a lane, and the lanes of a worker.

Rules kept here:

1. A lane is for statements that were quick when they last ran; the others borrow a connection for
   themselves, so that nobody stands behind them. One that is slow on a lane loses its place, one
   that is quick on a connection of its own has it (back).
2. Lanes take at most half of the pool's connections, and at most ``MOST``. They are opened when
   there is something to send, and replaced after the pool's lifetime of a connection.
3. A connection that has ended while nothing was under way fails nobody (see ``is_stale``).
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Final

import psycopg

from fluxor_fast.db.connection import Row, is_stale
from fluxor_fast.db.keeper import Keeper, Pool
from fluxor_fast.db.lane import SLOW, Lane, numbered

__all__ = ["Lanes"]

MOST: Final = 4
_READS = re.compile(rb"(?is)\s*select\b(?!.*\bfor\s+(no\s+key\s+|key\s+)?(update|share)\b)").match
REMEMBERED: Final = 1000
"""Statements known as quick: more are not an application's, but made up."""


def _form(sql: str, arguments: tuple[object, ...]) -> tuple[bytes, int] | None:
    """Return a statement as PostgreSQL takes it; without arguments ``%`` means itself."""
    return numbered(sql) if arguments else (sql.encode(), 0)


class Lanes:
    """The lanes of one worker.

    :param keeper: has the pool, and is told of what is lost.
    :param lifetime: seconds a lane is used.
    """

    def __init__(self, keeper: Keeper, lifetime: float) -> None:
        self._keeper = keeper
        self._lifetime = lifetime
        self._lanes: list[tuple[Lane, float]] = []  # with the time when each is to end
        self._quick: set[bytes] = set()
        self._opening: asyncio.Task[None] | None = None
        self._returning: set[asyncio.Task[None]] = set()

    def took(self, sql: str, arguments: tuple[object, ...], seconds: float) -> None:
        """Note how long a statement ran on a connection of its own."""
        form = _form(sql, arguments)
        # two statements cannot be prepared as one; and one that writes may wait for a lock whose
        # holder's next read stands behind it
        if form is None or b";" in form[0] or not _READS(form[0]):
            return
        if seconds < SLOW:
            if len(self._quick) >= REMEMBERED:
                self._quick.clear()
            self._quick.add(form[0])
        else:
            self._quick.discard(form[0])

    def send(self, sql: str, arguments: tuple[object, ...]) -> asyncio.Future[list[Row]] | None:
        """Send a statement if it may go on a lane now; None: it needs a connection of its own."""
        form = _form(sql, arguments)
        if form is None or form[0] not in self._quick or form[1] != len(arguments):
            return None
        lane = self._pick()
        return None if lane is None else lane.send(form[0], arguments)

    def _pick(self) -> Lane | None:
        """Return the lane with the least under way; have one more opened if none is idle."""
        best: Lane | None = None
        now = time.monotonic()
        for lane, end in self._lanes:
            if not len(lane) and (now > end or (not lane.closed and is_stale(lane.connection))):
                lane.close()
            elif now <= end and lane.open and (best is None or len(lane) < len(best)):
                best = lane
        if best is None or len(best):
            self._lanes = [entry for entry in self._lanes if not entry[0].closed]
            most = min(MOST, self._keeper.most // 2)
            if self._opening is None and len(self._lanes) < most and self._keeper.pool is not None:
                self._opening = asyncio.create_task(self._add(self._keeper.pool))
        return best

    async def _add(self, pool: Pool) -> None:
        """Open a lane on a connection of the pool, if one is to be had at once."""
        try:
            connection = await pool.getconn(0.1)
            lane = None
            if not is_stale(connection):
                try:
                    lane = Lane(connection, self._quick)
                except psycopg.Error:
                    await connection.close()
            if lane is None:
                await pool.putconn(connection)
                return
            keeper = self._keeper
            keeper.lent.add(connection)

            def give_back() -> None:
                keeper.lent.discard(connection)
                task = asyncio.ensure_future(pool.putconn(connection))
                self._returning.add(task)
                task.add_done_callback(self._returning.discard)

            lane.on_close = give_back
            self._lanes.append((lane, time.monotonic() + self._lifetime))
        except psycopg.OperationalError:
            pass  # none is free: all goes on as without lanes
        finally:
            self._opening = None

    async def close(self) -> None:
        """Close all lanes."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
        for lane, _ in self._lanes:
            lane.close()
        self._lanes.clear()
        if self._returning:
            await asyncio.wait(set(self._returning))
