"""Recycling in the arbiter: weighs the workers, and has one replaced that has come to a limit.

The rules are ``recycle``'s. A successor is ready before the old one drains, as at a reload: if it
does not get ready, the old one stays, and it is tried again after a while.
"""

from __future__ import annotations

import logging

from fluxor_fast.arbiter.breaker import RETRY_SECONDS
from fluxor_fast.arbiter.crew import Crew
from fluxor_fast.arbiter.recycle import next_due, resident_bytes
from fluxor_fast.arbiter.replacing import Replacing
from fluxor_fast.arbiter.shared import State, Word

__all__ = ["Recycling"]

log = logging.getLogger("fluxor_fast.arbiter")
WEIGH_SECONDS = 1.0  # between two looks at what workers have come to


class Recycling:
    """Has workers of ``crew`` replaced."""

    def __init__(self, crew: Crew, replacing: Replacing) -> None:
        self._crew = crew
        self._replacing = replacing
        self._next = 0.0  # when it is time to look again

    def look(self, now: float) -> None:
        """Look, if it is time, and nothing else is going on with the workers."""
        workers = self._crew.workers
        if now < self._next or self._replacing.busy:
            return
        self._next = now + WEIGH_SECONDS
        if not any(worker.life.limits.any_set for worker in workers.values()):
            return
        ready = len(workers) == self._replacing.seats and all(
            self._crew.state(index) == State.READY for index in workers
        )
        due = next_due(((index, self._over(index, now)) for index in workers), all_ready=ready)
        if due is not None:
            index, reason = due
            worker = workers[index]
            log.info("worker %d (pid %d) is recycled: %s", index, worker.pid, reason)
            self._replacing.recycle(worker.seat)

    def _over(self, index: int, now: float) -> str:
        worker, region = self._crew.workers[index], self._crew.region(index)
        done = region[Word.COMPLETED] + region[Word.ABORTED]
        resident = resident_bytes(worker.pid) if worker.life.limits.memory else 0
        return worker.life.over(now, done, resident)

    def rest(self, now: float) -> None:
        """Wait a while: a successor did not get ready, and would not at once."""
        self._next = now + RETRY_SECONDS
