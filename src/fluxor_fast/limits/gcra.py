"""The Generic Cell Rate Algorithm (ITU-T I.371, annex A, "virtual scheduling"). Pure.

An account is one number, the *theoretical arrival time* (TAT): when all that was taken is paid off.
A request that conforms moves it on by ``cost``, from now if it lies in the past::

    ahead = max(tat, now) + cost - now
    if ahead <= tolerance: tat = now + ahead     # else the request is refused, and costs nothing

What follows, with ``cost = window / limit`` and ``tolerance = burst x cost``:

1. In any time t at most ``burst + limit x t / window`` requests get through.
2. Whoever keeps to ``limit`` in every window is never refused if ``burst`` is the limit.
3. There is nothing to expire: an account whose time has come is as one that never was.

Times are integers, nanoseconds of a clock that never goes back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

__all__ = ["Policy"]

SECOND = 1_000_000_000
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


@dataclass(frozen=True)
class Policy:
    """How many requests in which time.

    :param name: for clients to read; letters, digits, ``_.:-``.
    :param limit: requests in ``window``, in the long run.
    :param window: seconds.
    :param burst: requests at once, after a rest.
    :raises ValueError: for what cannot be kept to.
    """

    name: str
    limit: int
    window: float
    burst: int

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"a rate limit's name is letters, digits, _.:- and not {self.name!r}")
        if self.limit < 1 or self.burst < 1:
            raise ValueError("a rate limit lets through at least one request")
        if not (0 < self.window <= 86_400 and self.cost >= 1000):
            raise ValueError("a rate limit's window is a day at most, and a request costs 1 µs")
        if self.tolerance > 86_400 * SECOND:
            raise ValueError("a rate limit's burst is the requests of a day at most")

    @cached_property
    def cost(self) -> int:
        """By how many nanoseconds a request moves the account on."""
        return int(self.window * SECOND / self.limit)

    @cached_property
    def tolerance(self) -> int:
        """How far ahead of now the account may lie, in nanoseconds."""
        return self.burst * self.cost

    @cached_property
    def key(self) -> bytes:
        """What tells its accounts from those of another policy."""
        return f"{self.name} {self.limit} {self.window:g} {self.burst} ".encode()
