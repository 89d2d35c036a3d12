"""Places in the admission code where a process kills or stops itself.

The real words, fence and lock are wrapped: before and after each store, before each load, after
each fence and around taking and leaving the lock a ``decide`` function is asked what to do there.
SIGKILL and SIGSTOP sent to oneself take effect before the call returns, so the process dies or
stands still exactly at that place.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any

from fluxor_fast.arbiter.shared import SharedMemory
from fluxor_fast.server.admission import Fence, KernelLock, SharedLimit


class Point(IntEnum):
    LOAD = 0  # before it
    STORE = 1  # before it
    STORED = 2
    FENCED = 3
    LOCK = 4  # before it is tried
    LOCKED = 5
    NOT_LOCKED = 6
    UNLOCK = 7  # before it is left
    UNLOCKED = 8


class Act(IntEnum):
    GO_ON = 0
    KILL = 1
    STOP = 2


Decide = Callable[[Point], Act]


class Failpoints:
    """Asks ``decide`` at each point, and does it; ``last`` word 0 says where it was last."""

    def __init__(self, decide: Decide, last: memoryview[int]) -> None:
        self._decide = decide
        self._last = last

    def __call__(self, point: Point) -> None:
        act = self._decide(point)
        if act is Act.GO_ON:
            return
        self._last[0] = point
        os.kill(os.getpid(), signal.SIGKILL if act is Act.KILL else signal.SIGSTOP)


class _Words:
    def __init__(self, words: memoryview[int], at: Failpoints) -> None:
        self._words = words
        self._at = at

    def __getitem__(self, word: int) -> int:
        self._at(Point.LOAD)
        return self._words[word]

    def __setitem__(self, word: int, value: int) -> None:
        self._at(Point.STORE)
        self._words[word] = value
        self._at(Point.STORED)

    def __iter__(self) -> Iterator[int]:
        for word in range(len(self)):
            yield self[word]

    def __len__(self) -> int:
        return len(self._words)


class _Lock:
    def __init__(self, lock: KernelLock, at: Failpoints) -> None:
        self._lock = lock
        self._at = at

    def acquire(self) -> bool:
        self._at(Point.LOCK)
        got = self._lock.acquire()
        self._at(Point.LOCKED if got else Point.NOT_LOCKED)
        return got

    def release(self) -> None:
        self._at(Point.UNLOCK)
        self._lock.release()
        self._at(Point.UNLOCKED)


def failing_share(
    memory: SharedMemory, index: int, fence: Fence | None, at: Failpoints
) -> SharedLimit:
    """Return worker ``index``'s share in the permits of ``memory``, with failpoints."""

    def fenced() -> None:
        assert fence is not None
        fence()
        at(Point.FENCED)

    words: Any = _Words(memory.permits, at)
    lock = _Lock(KernelLock(memory.fd, 0), at)
    return SharedLimit(words, index, None if fence is None else fenced, lock)


def by_chance(rng: random.Random, kill: float, stop: float) -> Decide:
    """Kill and stop with these probabilities; a quarter of them at loads, which are many."""

    def decide(point: Point) -> Act:
        draw = rng.random() * (4 if point is Point.LOAD else 1)
        if draw < kill:
            return Act.KILL
        return Act.STOP if draw < kill + stop else Act.GO_ON

    return decide


class AtNumber:
    """Does ``act`` at the point with the given number, counted from 0; -1: only counts."""

    def __init__(self, number: int, act: Act) -> None:
        self._number = number
        self._act = act
        self.count = 0

    def __call__(self, point: Point) -> Act:
        self.count += 1
        return self._act if self.count - 1 == self._number else Act.GO_ON
