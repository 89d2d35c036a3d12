"""A witness of the limit that shares nothing with the code under test.

A permit counts as relied on from after it was taken until before it is given back. For each one
the witness takes one place of a POSIX semaphore that has as many places as the limit: if none is
left, more permits are relied on at this moment than there are. The semaphore is one atomic
counter kept by the C library, so this is exact at every instant, and at 50 ns a permit it hardly
keeps racing processes apart.

Who relies on how many is also written down, one word per worker, so that the places of a worker
that was killed can be given back. (It must not die between the two: failpoints lie outside.)
"""

from __future__ import annotations

import mmap
from multiprocessing import get_context

OVERSHOOTS, FULL = range(2)
_WIDTH = 8  # words per worker: no two workers write to one cache line


def shared_words(count: int) -> memoryview[int]:
    """Return 8-byte words that are shared with the processes forked from now on."""
    return memoryview(mmap.mmap(-1, 8 * count)).cast("Q")


class Witness:
    """Sees it when ``workers`` together rely on more than ``limit`` permits."""

    def __init__(self, workers: int, limit: int) -> None:
        self.limit = limit
        self._places = get_context("fork").Semaphore(limit)
        self._words = shared_words(_WIDTH * workers)
        self._workers = workers

    def take(self, index: int, count: int) -> None:
        """Note that worker ``index`` now relies on ``count`` more permits."""
        place, words, own = self._places.acquire, self._words, _WIDTH * index
        for _ in range(count):
            if place(False):
                words[own + 2] += 1
            else:
                words[own + OVERSHOOTS] += 1
        words[own + FULL] += self._places.get_value() == 0

    def give(self, index: int, count: int) -> None:
        """Note that worker ``index`` relies on ``count`` permits no more."""
        words, own = self._words, _WIDTH * index
        count = min(count, words[own + 2])  # less only after an overshoot
        words[own + 2] -= count
        for _ in range(count):
            self._places.release()

    def relies(self, index: int) -> int:
        """Return on how many permits worker ``index`` relies."""
        return self._words[_WIDTH * index + 2]

    def forget(self, index: int) -> None:
        """Note that worker ``index`` is dead: it relies on nothing."""
        self.give(index, self.relies(index))

    def reset(self) -> None:
        """Begin anew when no worker is alive; a death may have fallen between the two notes."""
        for index in range(self._workers):
            self._words[_WIDTH * index + 2] = 0
        while self._places.get_value() < self.limit:
            self._places.release()

    @property
    def relied(self) -> int:
        """On how many permits all rely, as the semaphore has it."""
        return self.limit - self._places.get_value()

    @property
    def overshoots(self) -> int:
        """How many permits were taken while as many as the limit were relied on already."""
        return self._sum(OVERSHOOTS)

    @property
    def full(self) -> int:
        """How often the limit was seen reached; shows that the race was on."""
        return self._sum(FULL)

    def _sum(self, word: int) -> int:
        return sum(self._words[_WIDTH * index + word] for index in range(self._workers))
