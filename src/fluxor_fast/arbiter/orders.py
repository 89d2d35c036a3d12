"""What was asked of the workers (a reload, another number), by number, and what became of it. Pure.

An order is *taken* when its execution begins, and *settled* when that ends, well or not. Orders
that come while others are executed are taken together afterwards.
"""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["Orders"]

KEPT: Final = 64
"""Outcomes that are remembered; who asks, asks many times a second."""


class Orders:
    """Counts orders, and keeps the outcome of the last ones."""

    def __init__(self) -> None:
        self.asked = 0
        """The number of the last order."""
        self._taken = 0
        self._outcomes = deque[tuple[int, str]](maxlen=KEPT)

    @property
    def open(self) -> bool:
        """Whether an order is not settled."""
        return self.asked > (self._outcomes[-1][0] if self._outcomes else 0)

    def ask(self) -> None:
        """Note one more order."""
        self.asked += 1

    def take(self) -> None:
        """All that was asked for so far is executed from now on."""
        self._taken = self.asked

    def settle(self, problem: str = "", *, everything: bool = False) -> None:
        """What was taken has ended.

        :param problem: why it did not end well.
        :param everything: and what was not taken ends with it.
        """
        self._outcomes.append((self.asked if everything else self._taken, problem))

    def outcome(self, order: int) -> str | None:
        """Return the problem that an order ended with, "" for none; None: it has not ended."""
        for until, problem in self._outcomes:
            if until >= order:
                return problem
        return None
