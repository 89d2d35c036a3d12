"""Accounts of rate limits in memory that all worker processes share: bounded, exact, lock-free.

An *entry* is an account: a tag that says whose, and for each worker index two words which that
worker alone writes: ``charges`` (nanoseconds, the sum of what it has charged) and ``start``. The
account's theoretical arrival time (see ``gcra``) is the sum of all charges plus the greatest
start. A start only grows: a worker that finds the account paid off sets its own so that it lies
at ``now``. So nothing is ever reset, and a worker that dies leaves nothing behind that would have
to be mended.

To charge a request a worker *announces* (adds the cost to its own charges), *fences*, *verifies*
(reads the entry), and takes back what lies beyond the tolerance: as ``server.admission`` does,
whose argument and memory model are these too. Bytes of the memory's file are locked, one for each
set, where a raise was refused and is tried once more, and where an entry changes its owner.

Rules:

1. *Never much too many.* In any time t an account lets through at most ``burst + limit x t /
   window + (workers - 1)``. Of the charges that stick, the last to be announced saw all the
   others. Only where others have announced and not yet set their start (one charge for each other
   worker) does a start take their charges for older ones, and lie too low by as much. The starts
   of others are read only when their charges have changed, which are announced before. (Where
   blocking handlers are limited, each thread counts as a worker.)
2. *Never too few.* Who is refused has announced, seen too much, and then seen it again under the
   lock, as whoever was in the way does too. So nobody is refused while there is room, unless the
   lock cannot be had (rule 7). Who was refused last looks before it announces again: else a flood
   of refusals would be in the way of all.
3. *Sets.* An account lies in one of the WAYS entries of the set that its hash names. A new one
   takes a free entry, else the one with the least arrival time: one that is paid off, if there is
   any. It takes over what is not, so that a set never lets through more than WAYS accounts:
   however many addresses somebody has, the table bounds what they get.
4. *Collisions.* Two accounts are one with the probability 2^-60 (the tag), given the same set. A
   fresh client is refused for others only if all WAYS entries of its set are used up: with K
   accounts that are, in S sets, P(Poisson(K/S) >= WAYS). Of 65,536 entries, S = 8,192: 1e-12 for
   K = 1,000, 4e-5 for 10,000. ``crowded`` computes it. Nobody can aim: BLAKE2b (RFC 7693), keyed
   with a secret of the instance.
5. *Who cannot be counted gets through*: if the lock of the set cannot be had for a new account
   (rule 7).
6. An entry may change its owner between reading and charging: the tag is read after the charge,
   and one that is another's is taken back.
7. A lock whose holder is off its core is waited for, but not for long (see ``patience``).

Words, clock and locks are handed in. Thread-safe: a worker's threads share its words, and take
turns by a lock of the process, whose release is the fence (on x86 a locked instruction).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from math import exp, factorial
from struct import Struct
from typing import TYPE_CHECKING, Final

from fluxor_fast.limits.gcra import Policy

if TYPE_CHECKING:
    from fluxor_fast.server.admission import Fence, Lock

__all__ = ["UNCOUNTED", "WAYS", "Accounts", "Table", "crowded"]

WAYS: Final = 8
"""Entries of a set."""
UNCOUNTED: Final = -1
MOST_KNOWN: Final = 16_384
"""Accounts whose entries a worker remembers, for each policy."""


def crowded(accounts: float, sets: int) -> float:
    """Return the probability that a set holds WAYS of so many accounts, or more (rule 4)."""
    mean = accounts / sets
    return max(0.0, 1.0 - exp(-mean) * sum(mean**n / factorial(n) for n in range(WAYS)))


def _once(number: int) -> Iterator[None]:
    """Have a lock tried once."""
    yield


class Table:
    """One worker's share in the table.

    :param words: all entries, one after the other.
    :param entries: how many; a multiple of WAYS.
    :param indexes: how many worker indexes an entry has words for.
    :param index: this worker's own.
    :param fence: a full memory fence, as which leaving a ``threading.Lock`` counts then, too; None:
        every charge is made under the set's lock.
    :param lock: makes the lock between processes of a set.
    :param key: the instance's secret, at most 64 bytes.
    :param tries: yields when to try for the lock of a set, and in the end no more.
    """

    def __init__(
        self,
        words: memoryview[int],
        entries: int,
        indexes: int,
        index: int,
        *,
        fence: Fence | None,
        lock: Callable[[int], Lock],
        key: bytes,
        tries: Callable[[int], Iterator[None]] = _once,
    ) -> None:
        self.words = words
        self.stride = len(words) // entries
        self.sets = entries // WAYS
        self.indexes = indexes
        self.index = index
        self.fence = fence
        self.lock = lock
        self.mutex = threading.Lock()
        self._key = key
        self._tries = tries

    @classmethod
    def of_this_process(cls, entries: int, key: bytes) -> Table:
        """Return a table that no other process shares."""
        words = memoryview(bytearray(8 * 3 * entries)).cast("Q")
        return cls(words, entries, 1, 0, fence=_nothing, lock=lambda _: _Mine(), key=key)

    def where(self, owner: bytes) -> tuple[int, int]:
        """Return the set of an owner's entry, and the tag in it, which is not 0.

        Sixty bits, so that tag and charges are summed as C integers.
        """
        digest = int.from_bytes(blake2b(owner, digest_size=16, key=self._key).digest(), "big")
        return (digest >> 64) % self.sets, (digest & (1 << 60) - 1) or 1

    def find(self, number: int, tag: int) -> int | None:
        """Return where the entry with ``tag`` begins in the set ``number``; None: there is none."""
        first = number * WAYS * self.stride
        tags = self.words[first : first + WAYS * self.stride : self.stride].tolist()
        return first + tags.index(tag) * self.stride if tag in tags else None

    @contextmanager
    def alone(self, number: int) -> Iterator[bool]:
        """Keep processes and threads out of a set; tell whether that was to be had."""
        lock = self.lock(number)
        for _ in self._tries(number):
            with self.mutex:  # not while it is waited: threads' own charges need it
                if lock.acquire():
                    try:
                        yield True
                    finally:
                        lock.release()
                    return
        yield False

    def claim(self, number: int, tag: int) -> int:
        """Return where the entry with ``tag`` begins, which may be another's until now.

        Only ``alone``.
        """
        at = self.find(number, tag)
        if at is None:
            first, stride = number * WAYS * self.stride, self.stride
            ways = range(first, first + WAYS * stride, stride)
            at = next((way for way in ways if not self.words[way]), None)
            if at is None:
                at = min(ways, key=self.arrival)
            self.words[at] = tag
        return at

    def arrival(self, at: int) -> int:
        """Return the theoretical arrival time of the entry that begins at ``at``."""
        row, n = self.words[at + 1 : at + 1 + 2 * self.indexes].tolist(), self.indexes
        return sum(row[:n]) + max(row[n:])


def _nothing() -> None:
    """Fence for a process alone."""


class _Mine:
    """A lock that no other process wants."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None: ...


class _Place:
    """Where an owner's entry is, and what this worker has seen there."""

    __slots__ = ("at", "byte", "full", "others", "own", "start", "tag")

    def __init__(self, at: int, own: int, tag: int) -> None:
        self.at = at
        self.byte = 8 * at
        self.own = own
        self.tag = tag
        self.others = -1
        """The other workers' charges."""
        self.start = 0
        """The greatest start of others when they were these. Ours is read: another owner's place
        can be the same entry (two addresses of one /64)."""
        self.full = False
        """Whether the last request was refused."""


class Accounts:
    """The accounts of one policy.

    :param name: gives the bytes that tell one owner from another; None: that one is not counted.
    """

    charge: Callable[[str, int], int]
    """``charge(owner, now)`` charges a request; returns how far ahead of ``now`` the account lies
    with it, in ns. More than the tolerance: it is refused, and has cost nothing. UNCOUNTED: the
    owner is not counted, or cannot be. ``now`` is of a clock that is the same in all processes."""

    def __init__(
        self, table: Table, policy: Policy, name: Callable[[str], bytes | None] = str.encode
    ) -> None:
        self.policy = policy
        self._table = table
        self._name = name
        self._known: dict[str, _Place | None] = {}
        self.charge = self._charger()

    def _charger(self) -> Callable[[str, int], int]:
        """Return ``charge``, with all that it uses at hand: it is called for each request."""
        table, known = self._table, self._known
        words, n, fence = table.words, table.indexes, table.fence
        # native words: an aligned load each, as a memoryview's
        charges = Struct(f"@{1 + n}Q").unpack_from  # after the tag
        starts = Struct(f"@{n}Q").unpack_from
        cost, tolerance = self.policy.cost, self.policy.tolerance
        acquire, release = table.mutex.acquire, table.mutex.release
        find, locked = self._find, self._locked

        def charge(owner: str, now: int) -> int:
            place = known.get(owner)
            if place is None:
                place = find(owner)
                if place is None:
                    return UNCOUNTED
            if place.full:
                ahead = max(table.arrival(place.at) - now, 0) + cost
                if ahead > tolerance and words[place.at] == place.tag:
                    return ahead
            if fence is None:
                return locked(owner, place, now)
            own, tag = place.own, place.tag
            acquire()
            mine = words[own] = words[own] + cost
            release()  # the fence
            row = charges(words, place.byte)
            if row[0] == tag:
                total = sum(row) - tag
                if total - mine != place.others:
                    place.start = max(starts(words, place.byte + 8 + 8 * n))
                    place.others = total - mine
                start = words[own + n]
                if start < place.start:
                    start = place.start
                ahead = total + start - now
                if ahead < cost:  # it was paid off: it begins anew
                    ahead, start = cost, now + cost - total
                    acquire()
                    if start > words[own + n]:
                        words[own + n] = start
                    release()
                if ahead <= tolerance:
                    if place.full:
                        place.full = False
                    return ahead
            with table.mutex:
                words[own] -= cost
            return locked(owner, place, now)

        return charge

    def refund(self, owner: str) -> None:
        """Give back what a request of ``owner`` was charged in this process."""
        place, words, cost = self._known.get(owner), self._table.words, self.policy.cost
        if place is not None:
            with self._table.mutex:
                if words[place.at] == place.tag and words[place.own] >= cost:
                    words[place.own] -= cost

    def _find(self, owner: str) -> _Place | None:
        """Return the owner's place, and remember it; None: there is none, or none to be had."""
        name = self._name(owner)
        if name is None:
            return None
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        number, tag = self._table.where(self.policy.key + name)
        at = self._table.find(number, tag)
        if at is None:
            with self._table.alone(number) as alone:
                if not alone:
                    return None
                at = self._table.claim(number, tag)
        place = self._known[owner] = _Place(at, at + 1 + self._table.index, tag)
        return place

    def _locked(self, owner: str, place: _Place, now: int) -> int:
        """Charge it where nobody else can be in the way (rule 2)."""
        table, cost = self._table, self.policy.cost
        words, n = table.words, table.indexes
        number = place.at // (WAYS * table.stride)
        with table.alone(number) as alone:
            if not alone:
                return self.policy.tolerance + cost
            at = table.claim(number, place.tag)
            if at != place.at:
                place = self._known[owner] = _Place(at, at + 1 + table.index, place.tag)
            words[place.own] += cost
            if table.fence is not None:
                table.fence()
            row = words[at + 1 : at + 1 + 2 * n].tolist()
            total, start = sum(row[:n]), max(row[n:])
            if total + start - now < cost:
                start = now + cost - total
                words[place.own + n] = start
            ahead = total + start - now
            place.full = ahead > self.policy.tolerance
            if place.full:
                words[place.own] -= cost
            return ahead
