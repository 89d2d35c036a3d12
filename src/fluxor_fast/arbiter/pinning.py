"""Which core each worker is pinned to.

Rules:

1. Only cores that this process may use: those of its affinity mask, which containers and
   ``taskset`` narrow.
2. First one hardware thread of each physical core, then their siblings: two workers that share a
   core's execution units are slower than two that do not.
3. More workers than cores share them in turn.
4. Speed is no reason to stay down: a core that went away since means a worker that runs anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

__all__ = ["core_of", "cores_in_order", "pin", "siblings"]


def siblings(core: int, root: Path = Path("/")) -> str:
    """Return what the threads of one physical core have in common; its own number if unknown."""
    name = f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list"
    try:
        return (root / name).read_text().strip()
    except OSError:
        return str(core)


def cores_in_order(
    allowed: Iterable[int], physical: Callable[[int], str] = siblings
) -> tuple[int, ...]:
    """Return the cores in the order in which workers get them (rule 2)."""
    seen: dict[str, int] = {}
    ranked = []
    for core in sorted(allowed):
        place = physical(core)
        rank = seen.get(place, 0)
        seen[place] = rank + 1
        ranked.append((rank, core))
    return tuple(core for _, core in sorted(ranked))


def core_of(seat: int, cores: Sequence[int]) -> int:
    """Return the core of the worker in ``seat`` (rule 3)."""
    return cores[seat % len(cores)]


def pin(core: int) -> str:
    """Pin this process to ``core``; return why that failed, or nothing."""
    try:
        os.sched_setaffinity(0, {core})
    except OSError as error:
        return error.strerror or str(error)
    return ""
