"""Which statements go on a lane, and the lanes of a worker.

Rules kept here:

1. A lane is for what reads (see ``prepared.reads``) and was quick when it last ran; the others
   borrow a connection for themselves, so that nobody stands behind them. One that is slow on a
   lane loses its place, one that is quick on a connection of its own has it (back).
2. Lanes take at most half of the pool's connections, and at most ``MOST``. They are opened when
   there is something to send, and replaced after the pool's lifetime of a connection.
3. When all lanes are full and none is slow, who comes waits in line, and is sent as answers come.
   A connection of its own would cost five times the work, and take longer. The line has the
   pool's bounds, and is told to go elsewhere when no lane moves.
4. A connection that has ended while nothing was under way fails nobody (see ``is_stale``).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Final, NamedTuple

import psycopg
from psycopg_pool import PoolTimeout, TooManyRequests

from fluxor_fast.db.connection import is_stale
from fluxor_fast.db.keeper import Keeper, Pool
from fluxor_fast.db.lane import SLOW, Lane, Rows, fail
from fluxor_fast.db.prepared import numbered, reads

__all__ = ["Elsewhere", "Lanes"]

MOST: Final = 4
REMEMBERED: Final = 1000
"""Statements known as quick: more are not an application's, but made up."""


def _form(sql: str, arguments: tuple[object, ...]) -> tuple[bytes, int] | None:
    """Return a statement as PostgreSQL takes it; without arguments ``%`` means itself."""
    return numbered(sql) if arguments else (sql.encode(), 0)


class Elsewhere(Exception):
    """The statement has not been sent, and needs a connection of its own."""


class _Waiting(NamedTuple):
    """Who waits until a lane has room."""

    since: float
    query: bytes
    arguments: tuple[object, ...]
    future: Rows


class Lanes:
    """The lanes of one worker.

    :param keeper: has the pool, and is told of what is lost.
    :param lifetime: seconds a lane is used.
    :param timeout: seconds to wait for room on a lane.
    :param max_waiting: most who may wait.
    """

    def __init__(self, keeper: Keeper, lifetime: float, timeout: float, max_waiting: int) -> None:
        self._keeper = keeper
        self._lifetime = lifetime
        self._timeout = timeout
        self._max_waiting = max_waiting
        self._lanes: list[tuple[Lane, float]] = []  # with the time when each is to end
        self._quick: set[bytes] = set()
        self._waiting: deque[_Waiting] = deque()
        self._timer: asyncio.TimerHandle | None = None  # there is one while anybody waits
        self._opening: asyncio.Task[None] | None = None
        self._returning: set[asyncio.Task[None]] = set()

    def took(self, sql: str, arguments: tuple[object, ...], seconds: float) -> None:
        """Note how long a statement ran on a connection of its own."""
        form = _form(sql, arguments)
        if form is None or not reads(form[0]):
            return
        if seconds < SLOW:
            if len(self._quick) >= REMEMBERED:
                self._quick.clear()
            self._quick.add(form[0])
        else:
            self._quick.discard(form[0])

    def send(self, sql: str, arguments: tuple[object, ...]) -> Rows | None:
        """Send a statement if it may go on a lane; None: it needs a connection of its own.

        The future has its rows, or psycopg's error, or ``Elsewhere``.

        :raises TooManyRequests: if too many wait.
        """
        form = _form(sql, arguments)
        if form is None or form[0] not in self._quick or form[1] != len(arguments):
            return None
        lane = self._pick()
        if lane is None and not self._moving():
            return None
        loop = asyncio.get_running_loop()
        future: Rows = loop.create_future()
        if lane is not None:
            lane.send(form[0], arguments, future)
            return future
        if len(self._waiting) >= self._max_waiting:
            raise TooManyRequests
        self._waiting.append(_Waiting(time.monotonic(), form[0], arguments, future))
        if self._timer is None:
            self._timer = loop.call_later(SLOW, self._look)
        return future

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

    def _moving(self) -> bool:
        """Return whether a lane is full, but not held up."""
        return any(not lane.closed and not lane.slow for lane, _ in self._lanes)

    def _advance(self) -> None:
        """Send those who wait, first come first, as far as there is room."""
        while self._waiting:
            if self._waiting[0].future.done():  # cancelled
                self._waiting.popleft()
                continue
            lane = self._pick()
            if lane is None:
                return
            one = self._waiting.popleft()
            lane.send(one.query, one.arguments, one.future)

    def _look(self) -> None:
        """Keep the bounds of the line, about every ``SLOW`` while anybody waits."""
        self._timer = None
        if not self._moving():
            self._give_up()
        limit = time.monotonic() - self._timeout
        while self._waiting and self._waiting[0].since < limit:
            fail(self._waiting.popleft().future, PoolTimeout())
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(SLOW, self._look)

    def _give_up(self) -> None:
        """Send all who wait elsewhere."""
        while self._waiting:
            fail(self._waiting.popleft().future, Elsewhere())

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
            lane.on_room = self._advance
            self._lanes.append((lane, time.monotonic() + self._lifetime))
            self._advance()
        except psycopg.OperationalError:
            pass  # none is free: all goes on as without lanes
        finally:
            self._opening = None

    async def close(self) -> None:
        """Close all lanes."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._give_up()
        for lane, _ in self._lanes:
            lane.close()
        self._lanes.clear()
        if self._returning:
            await asyncio.wait(set(self._returning))
