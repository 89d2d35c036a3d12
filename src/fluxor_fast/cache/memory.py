"""The tier in this process: a bounded map of what was computed, the least used leaves first.

Rules kept here:

1. Never more than so many entries, nor so many bytes (what their JSON takes; with the objects,
   entries take several times that).
2. An entry is good until its time is over, or until the *generation* of its key is another than
   when it was begun. Generations are counters that all workers of the instance share, so what
   one outdates is outdated for all at once. There are far fewer of them than keys: now and then
   an entry goes that need not have.
3. Any thread may call any of it. A look takes no lock: each step of it is one operation of C.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any, Protocol
from zlib import crc32

__all__ = ["Entry", "Generations", "LocalGenerations", "Memory", "Stamp"]

Stamp = tuple[int, int, int]
"""What was so when a computation began: place and value of the key's generation, times cleared."""


class Generations(Protocol):
    """Counters by which entries are outdated; a memory of all workers has them."""

    generations: memoryview[int]

    def outdate(self, at: int) -> None:
        """Count word ``at`` on, whoever else does at the same time."""


class LocalGenerations:
    """Those of a process that shares them with nobody."""

    def __init__(self, count: int = 64) -> None:
        self.generations: memoryview[int] = memoryview(bytearray(8 * count)).cast("Q")
        self._lock = Lock()

    def outdate(self, at: int) -> None:
        """Count word ``at`` on."""
        with self._lock:
            self.generations[at] += 1


class Entry:
    """A value with the time it is good until, in monotonic seconds."""

    __slots__ = ("at", "expires", "generation", "size", "value")

    def __init__(self, value: Any, expires: float, size: int, at: int, generation: int) -> None:
        self.value = value
        self.expires = expires
        self.size = size
        self.at = at
        self.generation = generation


OVERHEAD = 200
"""Bytes that an entry takes besides its value and key."""


class Memory:
    """The map.

    :param most: entries.
    :param most_bytes: of them all, keys and an ``OVERHEAD`` each included; one that takes more
        than a tenth of it by itself is not kept.
    :param clock: monotonic seconds.
    """

    def __init__(
        self, most: int, most_bytes: int, clock: Callable[[], float], generations: Generations
    ) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._clock = clock
        self._generations = generations
        self._words = generations.generations
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._lock = Lock()
        self._cleared = 0  # times
        self.bytes = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Entry | None:
        """Return what is known for ``key`` and still good."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires <= self._clock() or entry.generation != self._words[entry.at]:
            self.discard(key)
            return None
        try:
            self._entries.move_to_end(key)
        except KeyError:
            return None  # another thread has just dropped it
        return entry

    def stamp(self, key: str) -> Stamp:
        """Return the stamp of ``key``, to be taken before its value is computed."""
        at = crc32(key.encode()) % len(self._words)
        return at, self._words[at], self._cleared

    def put(self, key: str, value: Any, ttl: float, size: int, stamp: Stamp) -> None:
        """Keep ``value`` for ``ttl`` seconds, unless the key was outdated since ``stamp``.

        :param size: bytes of it as JSON.
        """
        at, generation, _ = stamp
        size += len(key) + OVERHEAD
        if stamp != self.stamp(key) or size > self._most_bytes // 10:
            self.discard(key)
            return
        entry = Entry(value, self._clock() + ttl, size, at, generation)
        with self._lock:
            before = self._entries.pop(key, None)
            self._entries[key] = entry
            self.bytes += size - (before.size if before is not None else 0)
            while len(self._entries) > self._most or self.bytes > self._most_bytes:
                _, last = self._entries.popitem(last=False)
                self.bytes -= last.size
                self.evicted += 1

    def outdate(self, key: str) -> None:
        """Have no worker of the instance use what it has for ``key``."""
        self._generations.outdate(self.stamp(key)[0])
        self.discard(key)

    def discard(self, key: str) -> None:
        """Drop what this process has for ``key``."""
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is not None:
                self.bytes -= entry.size

    def clear(self) -> None:
        """Drop what this process has, and is computing."""
        with self._lock:
            self._cleared += 1
            self._entries.clear()
            self.bytes = 0
