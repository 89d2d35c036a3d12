"""When a worker that is well is replaced all the same: by requests, age or memory.

For applications that leak, or whose libraries do. Rules:

1. Off unless a limit is set.
2. One at a time: nobody is recycled while a worker is missing, starting or draining.
3. Each worker draws its own number of requests, so that they do not all come due at once.
4. A worker that has just started is not recycled for its memory: if the limit is below what the
   application needs, that would never end. So it is once in ``MEMORY_REST`` at most, and logged.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final, TypeVar

__all__ = ["Life", "RecycleLimits", "next_due", "resident_bytes"]

MEMORY_REST: Final = 30.0
"""Seconds from a worker's start in which its memory does not count."""
MIB: Final = 1 << 20

_PAGE = os.sysconf("SC_PAGE_SIZE")

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class RecycleLimits:
    """What a worker may come to; 0: any.

    :param requests: answered by it.
    :param jitter: most requests more, by chance.
    :param age: seconds since its start.
    :param memory: resident MiB, those shared with the arbiter included.
    """

    requests: int = 0
    jitter: int = 0
    age: float = 0.0
    memory: int = 0

    @property
    def any_set(self) -> bool:
        """Whether there is anything to look at."""
        return bool(self.requests or self.age or self.memory)


@dataclass(slots=True)
class Life:
    """The life of one worker, measured against the limits.

    :param started: seconds of a monotonic clock.
    :param requests: what it may answer; drawn by ``begin``.
    """

    limits: RecycleLimits
    started: float
    requests: int

    @classmethod
    def begin(cls, limits: RecycleLimits, started: float, random: Random) -> Life:
        """Return the life of a worker that starts now."""
        requests = limits.requests and limits.requests + random.randint(0, limits.jitter)
        return cls(limits, started, requests)

    def over(self, now: float, requests: int, resident: int) -> str:
        """Return why the worker is to be recycled; empty: it is not.

        :param requests: answered so far.
        :param resident: bytes of memory.
        """
        limits = self.limits
        if self.requests and requests >= self.requests:
            return f"{requests} requests, at most {self.requests}"
        age = now - self.started
        if limits.age and age >= limits.age:
            return f"{age:.0f} s old, at most {limits.age:g}"
        if limits.memory and resident > limits.memory * MIB and age >= MEMORY_REST:
            return f"{resident / MIB:.0f} MiB of memory, at most {limits.memory}"
        return ""


def next_due(reasons: Iterable[tuple[K, str]], *, all_ready: bool) -> tuple[K, str] | None:
    """Return the first worker that has a reason, if all are ready (rule 2)."""
    return next(((key, why) for key, why in reasons if why), None) if all_ready else None


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process (proc(5), statm); 0 if it has gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0
