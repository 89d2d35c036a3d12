"""A mutator of our own, for where atheris is not: blind, but seeded and quick.

It knows what an input looks like: plans, words, stock requests, and other inputs to splice.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.fuzz.inputs import LONGEST, STOCK, split

__all__ = ["Mutator"]


class Mutator:
    """Makes inputs out of ``pool``, which the caller may add to."""

    def __init__(self, pool: list[bytes], words: Sequence[bytes], rng: random.Random) -> None:
        self.pool = pool
        self._words = words
        self._rng = rng
        self._ways = (
            self._flip, self._insert, self._remove, self._repeat, self._word, self._word,
            self._splice, self._plan, self._plan, self._stock,
        )  # fmt: skip

    def make(self) -> bytes:
        """Return an input: one of the pool, changed in one to five ways."""
        rng = self._rng
        data = bytearray(rng.choice(self.pool))
        for _ in range(rng.choice((1, 1, 2, 3, 5))):
            rng.choice(self._ways)(data)
        return bytes(data[:LONGEST])

    def _at(self, data: bytearray) -> int:
        return self._rng.randint(0, len(data))

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._rng.randrange(len(data))] = self._rng.randrange(256)

    def _insert(self, data: bytearray) -> None:
        at = self._at(data)
        data[at:at] = self._rng.randbytes(self._rng.randint(1, 4))

    def _remove(self, data: bytearray) -> None:
        at = self._at(data)
        del data[at : at + self._rng.choice((1, 2, 8, 64))]

    def _repeat(self, data: bytearray) -> None:
        at = self._at(data)
        data[at:at] = data[at : at + self._rng.choice((1, 4, 32, 128))] * self._rng.randint(1, 3)

    def _word(self, data: bytearray) -> None:
        word = self._rng.choice(self._words)
        at = self._at(data)
        data[at : at + self._rng.choice((0, 0, len(word)))] = word

    def _splice(self, data: bytearray) -> None:
        other = self._rng.choice(self.pool)
        data[self._at(data) :] = other[self._rng.randint(0, len(other)) :]

    def _stock(self, data: bytearray) -> None:
        """Put in letters that stand for whole requests."""
        at = self._at(data)
        count = self._rng.randint(1, 6)
        data[at:at] = bytes(self._rng.randrange(128, 128 + len(STOCK)) for _ in range(count))

    def _plan(self, data: bytearray) -> None:
        """Add steps to the plan, or make a new one."""
        plan, wire = split(bytes(data))
        steps = self._rng.randbytes(self._rng.randint(1, 8)).replace(b"\n", b"\r")
        at = self._rng.randint(0, len(plan))
        data[:] = plan[:at] + steps + plan[at + self._rng.choice((0, 0, 2, 99)) :] + b"\n" + wire
