"""One computes, the others wait: no more than one computation of a key at a time.

Rules kept here:

1. Who comes while a key is computed waits for it, and gets the same value or the same error.
2. Who computes and is cancelled takes nobody along: one of those who wait computes anew.
3. A computation that was begun before its key was outdated is no good for who comes afterwards:
   he begins another. Those who waited already get what they asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fluxor_fast.cache.memory import Stamp

__all__ = ["Flight", "Flights"]


class Flight:
    """One computation.

    :param stamp: of its key, as it was begun.
    """

    __slots__ = ("_landed", "stamp", "task")

    def __init__(self, stamp: Stamp, task: asyncio.Task[Any] | None) -> None:
        self.stamp = stamp
        self.task = task
        self._landed: asyncio.Future[tuple[Any, Exception | None] | None] | None = None

    async def landed(self) -> tuple[Any, Exception | None] | None:
        """Wait for the end, and return value and error; None if it was given up."""
        if self._landed is None:
            self._landed = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._landed)

    def land(self, outcome: tuple[Any, Exception | None] | None) -> None:
        """Tell those who wait."""
        if self._landed is not None:
            self._landed.set_result(outcome)


class Flights:
    """The computations of one event loop.

    :param stamp: gives the stamp of a key.
    """

    def __init__(self, stamp: Callable[[str], Stamp]) -> None:
        self._stamp = stamp
        self._flights: dict[str, Flight] = {}
        self.waited = 0  # calls that waited for another's

    async def run(self, key: str, compute: Callable[[Stamp], Awaitable[Any]]) -> Any:
        """Return what ``compute`` gives, or another's call of it that is under way."""
        task = asyncio.current_task()
        waited = False
        while (flight := self._flights.get(key)) is not None:
            if flight.task is task:  # it asks for itself: to wait would be for good
                return await compute(flight.stamp)
            if flight.stamp != self._stamp(key):
                break
            if not waited:
                waited = True
                self.waited += 1
            outcome = await flight.landed()
            if outcome is not None:
                value, error = outcome
                if error is not None:
                    raise error
                return value
        flight = self._flights[key] = Flight(self._stamp(key), task)
        outcome = None
        try:
            value = await compute(flight.stamp)
            outcome = value, None
            return value
        except Exception as error:
            outcome = None, error
            raise
        finally:
            if self._flights.get(key) is flight:
                del self._flights[key]
            flight.land(outcome)
