"""The memory that arbiter and workers share: one mapping, made before the first fork.

Everything is 8-byte words in a memfd, read and written through a ``memoryview`` cast to ``Q``:
an aligned 8-byte store is seen whole or not at all (``struct.pack_into`` gives no such promise).

Layout, in words::

    header   magic, layout version, workers, fold sequence, start (epoch seconds),
             limit (what normal requests are refused at; 0: the static one), key (2 words)
    permits      one word per worker index   requests in the system
    slots        one word per worker index   requests running that wait for something
    connections  one word per worker index   open connections
    claims       one word per worker index   requests waiting for a slot
    routes       ROUTES rows of one word per worker index   requests in one route with a limit
    base         one region: the counters of workers that are gone
    regions      one region per worker index
    clients      one row of CLIENTS buckets per worker index: connections by client address
                 (see ``server.clients``); a page that nobody counts in takes no memory

Rules:

1. One writer per word: the worker of that index; the arbiter only before it forks that worker
   or after it has reaped it. The header and the base region are the arbiter's.
2. Counters only grow while their worker lives. When it is reaped they are *folded*: added to
   the base and set to zero, within an odd-even sequence (a seqlock), so that a reader never
   sees a total go back or count twice.
3. Gauges are zeroed at the reap: a dead worker holds nothing.
4. Counters decide nothing: admission reads permits, slots, connections, claims, routes, clients
   and the limit, never a counter.
"""

from __future__ import annotations

import mmap
import os
import secrets
import time
from enum import IntEnum
from typing import Final

__all__ = ["BOUNDS", "LAYOUT_VERSION", "SHED_REASONS", "SharedMemory", "State", "Word"]

LAYOUT_VERSION: Final = 3
_MAGIC: Final = 0x464C55584F52_4641  # "FLUXORFA"
_HEADER: Final = 8
_FOLD: Final = 3
_LIMIT: Final = 5
_KEY: Final = 6

LOOK_SECONDS: Final = 0.25
"""How often the arbiter looks when it adapts the limit; the histogram must be fresh by then."""
ROUTES: Final = 64
"""Most routes with a limit of their own."""
CLIENTS: Final = 8192
"""Buckets in which a worker counts its clients' connections: 64 KiB of memory."""

SHED_REASONS: Final = (
    "capacity",
    "queue_full",
    "deadline",
    "codel",
    "draining",
    "connections",
    "route",
    "client",
)
"""Why a request was refused, in the order of their words."""

BOUNDS: Final = tuple(
    round(step * 10.0**decade, 9) for decade in range(-5, 2) for step in (1, 1.5, 2, 3, 5, 7.5)
)
"""Upper bounds of the latency buckets in seconds: 10 µs to 75 s, six to a decade."""


class State(IntEnum):
    """What a worker is doing."""

    ABSENT = 0
    BOOTING = 1
    READY = 2
    DRAINING = 3
    FAILING = (
        4  # there is none: it crash-loops, and is tried again now and then (the arbiter's word)
    )


class Word(IntEnum):
    """The words of a region. Up to ``DB_WAITING`` they are gauges, from ``OFFERED`` counters."""

    PID = 0
    STATE = 1
    HEARTBEAT = 2  # monotonic nanoseconds, written by the worker's event loop
    DB_SIZE = 3
    DB_AVAILABLE = 4
    DB_WAITING = 5
    # requests: offered = accepted + Σ shed + waiting;
    # accepted = completed + aborted + in flight + lost in a crash
    OFFERED = 6
    ACCEPTED = 7
    COMPLETED = 8
    ABORTED = 9
    LOST = 10
    SHED = 11  # one word per reason
    RESPONSES = SHED + len(SHED_REASONS)  # one word per status class, 1xx to 5xx
    DURATION_US = RESPONSES + 5  # sum of the durations, microseconds
    BUCKETS = DURATION_US + 1  # one word per bound, and one for what is beyond


_COUNTERS: Final = int(Word.OFFERED)
_USED: Final = int(Word.BUCKETS) + len(BOUNDS) + 1
REGION: Final = (_USED + 7) // 8 * 8  # whole cache lines


class SharedMemory:
    """The mapping. Made by the arbiter, inherited by the workers through the fork.

    :param workers: how many worker indexes there are.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        row = (workers + 7) // 8 * 8  # whole cache lines
        self._base = _HEADER + (4 + ROUTES) * row
        clients = self._base + (workers + 1) * REGION
        size = 8 * (clients + workers * CLIENTS)
        self.fd = os.memfd_create("fluxor-fast", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self._words = memoryview(mmap.mmap(self.fd, size)).cast("Q")
        rows = [
            self._words[_HEADER + at * row : _HEADER + at * row + workers]
            for at in range(4 + ROUTES)
        ]
        self.permits, self.slots, self.connections, self.claims = rows[:4]
        self.routes = rows[4:]
        self.limit = self._words[_LIMIT : _LIMIT + 1]
        self.clients = self._words[clients:]
        for at in (_KEY, _KEY + 1):
            self._words[at] = secrets.randbits(64)
        self._words[1] = LAYOUT_VERSION
        self._words[2] = workers
        self._words[4] = int(time.time())
        self._words[0] = _MAGIC

    def region(self, index: int) -> memoryview[int]:
        """Return the words of worker ``index``, by ``Word``."""
        start = self._base + (1 + index) * REGION
        return self._words[start : start + REGION]

    @property
    def key(self) -> bytes:
        """A secret of this instance, 16 random bytes: what ``clients`` are hashed with."""
        return self._words[_KEY : _KEY + 2].tobytes()

    def totals(self) -> list[int]:
        """Return the sum of all regions and the base, by ``Word``; gauges are summed too."""
        words, base = self._words, self._base
        patience = time.monotonic() + 0.25
        while True:
            before = words[_FOLD]
            total = words[base : base + REGION].tolist()
            for index in range(self.workers):
                total = [a + b for a, b in zip(total, self.region(index).tolist(), strict=True)]
            if before % 2 == 0 and words[_FOLD] == before:
                return total
            # the arbiter may wait for this very core to end its fold; after so long it has
            # died in the middle of one, and a guess is better than a hang
            if time.monotonic() > patience:
                return total
            time.sleep(20e-6)

    def fold(self, index: int) -> None:
        """Give back all that the dead worker ``index`` held, and keep what it counted.

        Only the arbiter calls this, after it has reaped the worker.
        """
        for row in (self.permits, self.slots, self.connections, self.claims, *self.routes):
            row[index] = 0
        clients = self.clients[index * CLIENTS : (index + 1) * CLIENTS]
        for at in [at for at, held in enumerate(clients) if held]:  # word by word, as all stores
            clients[at] = 0
        words, base, region = self._words, self._base, self.region(index)
        # what waited or ran when the worker died counts as accepted and lost
        shed = sum(region[Word.SHED : Word.SHED + len(SHED_REASONS)])
        accepted = region[Word.OFFERED] - shed
        lost = accepted - region[Word.COMPLETED] - region[Word.ABORTED]
        region[Word.ACCEPTED] = accepted
        words[_FOLD] += 1
        for word in range(_COUNTERS, _USED):
            words[base + word] += region[word]
        words[base + Word.LOST] += max(lost, 0)
        for word in range(_USED):
            region[word] = 0
        words[_FOLD] += 1
