"""Who listens where, and how workers are replaced one at a time. Pure.

A *seat* is a worker's place among those that serve; an *index* is its words in shared memory.
While a worker is replaced, two have the same seat, and an index each.

Rules:

1. A successor is ready before the one that it succeeds drains.
2. A listener is never closed while the instance serves: what waits in its queue would be reset.
   With fewer workers than listeners a worker has several; with more, there is a new listener.
3. One at a time. The first successor that does not get ready ends the roll, and the workers that
   it has not come to stay as they are.
4. Workers that are too many leave last: by then others have their listeners.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Listeners", "Roll", "indexes_for", "most_workers", "plan", "share"]

Listeners = tuple[int, ...]
"""Numbers of the listeners that a worker has."""


def indexes_for(workers: int) -> int:
    """Return how many indexes of shared memory an instance with so many workers needs.

    Twice as many workers as it starts with may serve, and beside them the workers of an upgraded
    arbiter, and one that drains in each. Each index costs a batch 7 ns, so it is not more.
    """
    return 3 * workers + 2


def most_workers(indexes: int) -> int:
    """Return how many workers may serve in a memory of so many indexes."""
    return 2 * ((indexes - 2) // 3)


def share(seat: int, seats: int, listeners: int, *, common: bool) -> Listeners:
    """Return the listeners of one seat among ``seats``.

    :param common: every worker has all listeners.
    """
    return tuple(range(listeners)) if common else tuple(range(seat, listeners, seats))


@dataclass(slots=True)
class Roll:
    """A rolling replacement under way."""

    what: str
    """For the log: ``reload`` or ``scaling``."""
    seats: deque[int]
    """That wait for a successor, in order."""
    surplus: list[int]
    """Seats whose workers leave at the end."""
    before: int
    """How many seats there were."""
    successor: int | None = None
    """Index of the worker that is to be ready next."""
    done: int = 0
    """Successors that are ready."""


def plan(
    what: str,
    now: Mapping[int, Listeners],
    wanted: Sequence[Listeners],
    *,
    before: int,
    everyone: bool,
) -> Roll:
    """Return how to get from the seats ``now`` to those ``wanted``.

    :param before: how many seats there were.
    :param everyone: replace those too that keep their listeners.
    """
    added = [seat for seat in range(len(wanted)) if seat not in now]
    kept = [seat for seat in range(len(wanted)) if seat in now]
    changed = [seat for seat in kept if everyone or now[seat] != wanted[seat]]
    surplus = sorted(seat for seat in now if seat >= len(wanted))
    return Roll(what, deque(added + changed), surplus, before)
