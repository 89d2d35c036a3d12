"""Admission: an exact limit over all worker processes, without a lock on the way.

Each worker has one word in shared memory, written by it alone: how many permits it holds. To
take n permits a worker

    1. *announces*: stores its word raised by n,
    2. *fences*: no later load may be done before that store is seen by all,
    3. *verifies*: sums all words, and gives back what lies above the limit.

Why the permits that stick never exceed the limit: among the raises that stick, take the one
announced last (stores to memory have one order that all agree on). Its worker summed after
that store, so it saw every other raise that sticks, and its sum was within the limit. Releases
only lower a word. Memory model: the fence must be full (store before load). On x86 any locked
instruction is one, and taking and leaving an uncontended ``threading.Lock`` executes two.
Elsewhere CPython promises nothing of the kind, and each raise is done under a lock of the
kernel's (``fcntl``), which dies with its owner.

Two workers that announce at once may both see too much and both give back what one of them
could have kept. So a worker that was refused tries once more under the kernel's lock: whoever
is in the way there will itself try under the lock later, and takes what this one gave up.
Hence nobody is refused while permits stay free. The lock is tried for a bounded time: a worker
that is stopped while it holds the lock costs the others some refusals, never a hang.

A worker that is killed leaves one word behind. The arbiter zeroes it when it has reaped the
worker; no timer ever resets a count.

The module does no I/O: words, fence, lock and thresholds are handed in.
"""

from __future__ import annotations

import fcntl
import os
import platform
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Fence", "KernelLock", "SharedLimit", "Thresholds", "full_fence"]

Fence = Callable[[], None]


class Lock(Protocol):
    """A lock between processes, given back by the kernel when its owner dies."""

    def acquire(self) -> bool:
        """Try for a short, bounded time; tell whether it was got."""

    def release(self) -> None:
        """Leave it."""


class KernelLock:
    """One byte of a file, locked through ``fcntl``: free again when its owner dies."""

    def __init__(self, fd: int, byte: int, tries: int = 64) -> None:
        self._fd = fd
        self._byte = byte
        self._tries = tries

    def acquire(self) -> bool:
        """Try ``tries`` times, letting others run in between."""
        for _ in range(self._tries):
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._byte)
                return True
            except OSError:
                os.sched_yield()
        return False

    def release(self) -> None:
        """Leave it."""
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, self._byte)


def full_fence(machine: str = platform.machine()) -> Fence | None:
    """Return a function that is a full memory fence on ``machine``; None if none is known."""
    if machine.lower() not in ("x86_64", "amd64", "i686", "i386"):
        return None
    lock = threading.Lock()
    acquire, release = lock.acquire, lock.release

    def fence() -> None:
        acquire()
        release()

    return fence


class SharedLimit:
    """One worker's share in a count that all workers keep below a limit together.

    :param words: one word per worker, shared by all.
    :param index: this worker's own.
    :param fence: a full memory fence, or None to do every raise under ``lock``.
    """

    __slots__ = ("_fence", "_index", "_lock", "_words", "held")

    def __init__(self, words: memoryview[int], index: int, fence: Fence | None, lock: Lock) -> None:
        self._words = words
        self._index = index
        self._fence = fence
        self._lock = lock
        self.held = words[index]

    def acquire(self, wanted: int, limit: int) -> int:
        """Take up to ``wanted`` permits while the count of all stays within ``limit``.

        Return how many were got, 0 to ``wanted``.
        """
        if self._fence is None:
            return self._acquire_locked(wanted, limit)
        words, index = self._words, self._index
        held = self.held + wanted
        words[index] = held
        self._fence()
        excess = sum(words) - limit
        if excess <= 0:
            self.held = held
            return wanted
        back = excess if excess < wanted else wanted
        self.held = words[index] = held - back
        return wanted - back + self._acquire_locked(back, limit)

    def _acquire_locked(self, wanted: int, limit: int) -> int:
        words, index = self._words, self._index
        if not self._lock.acquire():
            return 0
        try:
            words[index] = self.held + wanted
            if self._fence is not None:
                self._fence()
            back = min(max(sum(words) - limit, 0), wanted)
            self.held = words[index] = self.held + wanted - back
            return wanted - back
        finally:
            self._lock.release()

    def release(self, count: int) -> None:
        """Give ``count`` permits back."""
        self.held = self._words[self._index] = self.held - count

    def total(self) -> int:
        """Return what all workers hold now (raises that may be taken back included)."""
        return sum(self._words)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Where each class of requests is refused, on one and the same count."""

    normal: int
    """Normal requests: normal capacity, or slots + queue if that is less."""
    normal_reason: str
    """``capacity`` or ``queue_full``, whichever of the two it is."""
    critical: int
    """Critical requests: ``max_ccu``."""
    slots: int
    """How many requests may run and wait for something at once."""

    @classmethod
    def of(cls, *, max_ccu: int, normal: int, slots: int, max_queue: int) -> Thresholds:
        """Return the thresholds that follow from the capacity model."""
        room = slots + max_queue
        if room < normal:
            return cls(room, "queue_full", max_ccu, slots)
        return cls(normal, "capacity", max_ccu, slots)
