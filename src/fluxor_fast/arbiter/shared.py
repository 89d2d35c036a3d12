"""The memory that arbiter and workers share: one mapping, made before the first fork.

There are more indexes than workers: one that drains and its successor are two workers with two
indexes of one and the same limit. An upgraded arbiter takes the mapping over, so the limit
holds over the workers of both.

Everything is 8-byte words in a memfd, read and written through a ``memoryview`` cast to ``Q``:
an aligned 8-byte store is seen whole or not at all (``struct.pack_into`` gives no such promise).

Layout, in words::

    header   magic, layout version, worker indexes, fold sequence, start (epoch seconds),
             limit (what normal requests are refused at; 0: the static one), key (2 words),
             level (least level logged; 0: that of the settings), accounts (how many entries),
             6 spare words
    permits      one word per worker index   requests in the system
    slots        one word per worker index   requests running that wait for something
    connections  one word per worker index   open connections
    claims       one word per worker index   requests waiting for a slot
    routes       ROUTES rows of one word per worker index   requests in one route with a limit
    owners       one word per worker index   pid of the arbiter that uses it; 0: it is free
    route keys   ROUTES words: which route each row of ``routes`` belongs to
    base         one region: the counters of workers that are gone
    regions      one region per worker index
    clients      one row of CLIENTS buckets per worker index: connections by client address
                 (see ``server.clients``); a page that nobody counts in takes no memory
    generations  GENERATIONS words by which caches outdate what they hold (see ``cache.memory``);
                 any worker counts them on, and takes a lock of the kernel's for it
    accounts     entries of rate limits, two words per worker index in each and one more
                 (see ``limits.table``); likewise

Rules:

1. One writer per word, but for the generations: the worker of that index; the arbiter only before
   it forks that worker or after it has reaped it. The header, the owners and the base region are
   the arbiter's, and during an upgrade there are two: they take turns by a lock of the kernel's.
2. Counters only grow while their worker lives. When it is reaped they are *folded*: added to
   the base and set to zero, within an odd-even sequence (a seqlock), so that a reader never
   sees a total go back or count twice.
3. Gauges are zeroed at the reap: a dead worker holds nothing.
4. What is in ``accounts`` is no worker's when it is gone: it stays, and pays itself off. The first
   word of an entry is written by whoever holds the lock of its set.
5. Counters decide nothing: admission reads permits, slots, connections, claims, routes, clients
   and the limit, never a counter.
6. A row of ``routes`` belongs to a route, not to a place in the order of registration: while an
   application is reloaded, workers with other routes live side by side. A row is another route's
   when no worker uses it any more, which the workers' ``ROUTES`` words tell.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Final

__all__ = [
    "BOUNDS",
    "CACHE_RESULTS",
    "LAYOUT_VERSION",
    "PROXY_REFUSALS",
    "SHED_REASONS",
    "SharedMemory",
    "State",
    "Word",
]

LAYOUT_VERSION: Final = 8
_MAGIC: Final = 0x464C55584F52_4641  # "FLUXORFA"
_HEADER: Final = 16
_FOLD: Final = 3
_LIMIT: Final = 5
_KEY: Final = 6
_LEVEL: Final = 8
_ACCOUNTS: Final = 9
# bytes of the file that are locked; limits are below
_ARBITERS, _ROUTES, _GENERATIONS = (1 << 16) + 0, (1 << 16) + 1, (1 << 16) + 2

LOOK_SECONDS: Final = 0.25
"""How often the arbiter looks when it adapts the limit; the histogram must be fresh by then."""
FOLD_SECONDS: Final = 0.25
"""How long a fold is waited for: it takes microseconds, or the arbiter died in it."""
ROUTES: Final = 64
"""Most routes with a limit of their own."""
CLIENTS: Final = 8192
"""Buckets in which a worker counts its clients' connections: 64 KiB of memory."""

GENERATIONS: Final = 4096
"""Words by which caches outdate: outdating a key outdates one entry in as many besides it."""

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

PROXY_REFUSALS: Final = ("untrusted", "malformed", "cut_off", "timeout")
"""Why a connection was closed for want of a PROXY header, in the order of their words."""

CACHE_RESULTS: Final = ("memory", "redis", "waited", "computed", "evicted")
"""What became of calls of cached functions, and entries that left for want of room; by words."""

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
    FAILING = 4  # there is none: its seat crash-loops (the arbiter's word, see ``vacancies``)


class Word(IntEnum):
    """The words of a region. Up to ``WEBSOCKETS`` they are gauges, from ``OFFERED`` counters."""

    PID = 0
    STATE = 1
    HEARTBEAT = 2  # monotonic nanoseconds, written by the worker's event loop
    DB_SIZE = 3
    DB_AVAILABLE = 4
    DB_WAITING = 5
    CACHE_ENTRIES = 6
    CACHE_BYTES = 7
    ROUTES = 8  # one bit for each row of routes that this worker uses
    WEBSOCKETS = 9  # open ones
    # requests: offered = accepted + Σ shed + waiting;
    # accepted = completed + aborted + in flight + lost in a crash
    OFFERED = 10
    ACCEPTED = 11
    COMPLETED = 12
    ABORTED = 13
    LOST = 14
    SHED = 15  # one word per reason
    RESPONSES = SHED + len(SHED_REASONS)  # one word per status class, 1xx to 5xx
    DURATION_US = RESPONSES + 5  # sum of the durations, microseconds
    PROXY = DURATION_US + 1  # connections closed for want of a PROXY header, a word per reason
    CACHE = PROXY + len(PROXY_REFUSALS)  # what became of calls of cached functions, a word per kind
    BUCKETS = CACHE + len(CACHE_RESULTS)  # one word per bound, and one for what is beyond


_COUNTERS: Final = int(Word.OFFERED)
_USED: Final = int(Word.BUCKETS) + len(BOUNDS) + 1
REGION: Final = (_USED + 7) // 8 * 8  # whole cache lines


_NOTHING: Final = bytes(8 * REGION)


class SharedMemory:
    """The mapping. Made by the arbiter, inherited by the workers through the fork.

    :param workers: how many worker indexes there are.
    :param accounts: how many entries there are for rate limits.
    """

    def __init__(self, workers: int, accounts: int = 0) -> None:
        self._map(os.memfd_create("fluxor-fast", os.MFD_CLOEXEC), workers, accounts)
        for at in (_KEY, _KEY + 1):
            self._words[at] = secrets.randbits(64)
        self._words[1] = LAYOUT_VERSION
        self._words[2] = workers
        self._words[_ACCOUNTS] = accounts
        self._words[4] = int(time.time())
        self._words[0] = _MAGIC

    @classmethod
    def adopt(cls, fd: int) -> SharedMemory:
        """Return the mapping that another arbiter has made, from its descriptor.

        :raises ValueError: if this version does not know its layout; it says why.
        """
        try:
            header = os.pread(fd, 8 * _HEADER, 0)
        except OSError as error:
            raise ValueError(f"it cannot be read: {error.strerror}") from error
        words = memoryview(header).cast("Q") if len(header) == 8 * _HEADER else None
        if words is None or words[0] != _MAGIC:
            raise ValueError("it is something else")
        if words[1] != LAYOUT_VERSION:
            raise ValueError(
                f"its layout is version {words[1]}, and this one knows version {LAYOUT_VERSION}"
            )
        memory = cls.__new__(cls)
        memory._map(fd, words[2], words[_ACCOUNTS])
        return memory

    def _map(self, fd: int, workers: int, accounts: int) -> None:
        self.fd = fd
        self.workers = workers
        self.entries = accounts
        row = (workers + 7) // 8 * 8  # whole cache lines
        rows = 5 + ROUTES
        self._base = _HEADER + rows * row + ROUTES
        clients = self._base + (workers + 1) * REGION
        generations = clients + workers * CLIENTS
        account = generations + GENERATIONS
        size = 8 * (account + accounts * ((2 * workers + 8) // 8 * 8))
        if os.fstat(fd).st_size != size:  # a new one; all of it is zero
            os.ftruncate(fd, size)
        self._words = memoryview(mmap.mmap(fd, size)).cast("Q")
        views = [
            self._words[_HEADER + at * row : _HEADER + at * row + workers] for at in range(rows)
        ]
        self.permits, self.slots, self.connections, self.claims = views[:4]
        self.routes = views[4 : 4 + ROUTES]
        self.owners = views[4 + ROUTES]
        self._route_keys = self._words[self._base - ROUTES : self._base]
        self.limit = self._words[_LIMIT : _LIMIT + 1]
        self.level = self._words[_LEVEL : _LEVEL + 1]
        self.clients = self._words[clients:generations]
        self.generations = self._words[generations:account]
        self.accounts = self._words[account:]

    @contextmanager
    def _alone(self, byte: int) -> Iterator[None]:
        """Keep other processes out; the kernel frees the lock of one that dies."""
        fcntl.lockf(self.fd, fcntl.LOCK_EX, 1, byte)
        try:
            yield
        finally:
            fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, byte)

    def claim(self, owner: int) -> int | None:
        """Return an index for a new worker of the arbiter ``owner``; None: there is none free."""
        with self._alone(_ARBITERS):
            for index, taken in enumerate(self.owners):
                if not taken:
                    self.owners[index] = owner
                    return index
        return None

    def claim_routes(self, index: int, keys: Sequence[int]) -> list[int]:
        """Return a row of ``routes`` for each key, for the worker ``index``.

        The same key gets the same row in all workers that live at the same time.

        :param keys: not 0, and different.
        :raises ValueError: if there are not enough rows.
        """
        with self._alone(_ROUTES):
            used = 0
            for other in range(self.workers):
                used |= self.region(other)[Word.ROUTES] if other != index else 0
            held = {self._route_keys[row]: row for row in range(ROUTES) if used >> row & 1}
            free = iter([row for row in range(ROUTES) if not used >> row & 1])
            rows = []
            for key in keys:
                row = held.get(key, -1)
                if row < 0:
                    row = next(free, -1)
                    if row < 0:
                        raise ValueError(f"there is room for {ROUTES}")
                    self._route_keys[row] = key
                rows.append(row)
            self.region(index)[Word.ROUTES] = sum(1 << row for row in rows)
        return rows

    def outdate(self, at: int) -> None:
        """Count the generation ``at`` on; two at the same time count twice."""
        with self._alone(_GENERATIONS):
            self.generations[at] += 1

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
        patience = time.monotonic() + FOLD_SECONDS
        while True:
            before = words[_FOLD]
            total = words[base : base + REGION].tolist()
            for index in range(self.workers):
                region = self.region(index)
                if region.tobytes() != _NOTHING:  # most indexes are spare ones
                    total = [a + b for a, b in zip(total, region.tolist(), strict=True)]
            if before % 2 == 0 and words[_FOLD] == before:
                return total
            # the arbiter may wait for this very core to end its fold; after so long it has
            # died in the middle of one, and a guess is better than a hang
            if time.monotonic() > patience:
                return total
            time.sleep(20e-6)

    def fold(self, index: int) -> None:
        """Give back all that the dead worker ``index`` held, and keep what it counted.

        Only the arbiter calls this, after it has reaped the worker. The index is free then.
        """
        with self._alone(_ARBITERS):
            self._fold(index)
            self.owners[index] = 0

    def _fold(self, index: int) -> None:
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
        words[_FOLD] |= 1  # it is odd already if an arbiter died in the middle of this
        for word in range(_COUNTERS, _USED):
            words[base + word] += region[word]
        words[base + Word.LOST] += max(lost, 0)
        for word in range(_USED):
            region[word] = 0
        words[_FOLD] += 1
