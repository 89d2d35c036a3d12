"""The adaptive limit in the arbiter: looks at the shared memory, publishes there."""

from __future__ import annotations

from fluxor_fast.arbiter.adaptive import AdaptiveLimit, AdaptiveSettings, Look
from fluxor_fast.arbiter.shared import LOOK_SECONDS, SharedMemory
from fluxor_fast.config import ServerSettings

__all__ = ["Adapting"]


class Adapting:
    """Publishes the limit that fits what was seen since the last look.

    :param now: any clock that does not go back, seconds; as for ``look``.
    """

    def __init__(self, server: ServerSettings, memory: SharedMemory, now: float) -> None:
        ceiling = server.capacity.normal
        floor = min(server.adaptive_floor, ceiling)
        self._limit = AdaptiveLimit(AdaptiveSettings(ceiling=ceiling, floor=floor), now)
        self._memory = memory
        self._looked = 0.0
        self._before = memory.totals()

    def look(self, now: float) -> None:
        """Look, if it is time."""
        if now - self._looked < LOOK_SECONDS:
            return
        memory = self._memory
        after = memory.totals()
        look = Look.between(self._before, after, sum(memory.permits))
        self._looked, self._before = now, after
        memory.limit[0] = self._limit.update(look, now)
