"""Patience with a lock whose holder does not let go of it.

Who has a lock for some microseconds may be taken off its core meanwhile, and comes back within some
milliseconds: it is waited for. A process that is stopped does not come back: after PATIENCE its
lock is given up, and in the next HURRIED seconds that one is tried once only, so that what is
stopped does not stop the rest. The clock is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

__all__ = ["HURRIED", "PATIENCE", "Patience"]

PATIENCE: Final = 0.02
"""Seconds for which a lock is waited for."""
HURRIED: Final = 1.0
"""Seconds in which it is not, after that was in vain."""
_NAP: Final = PATIENCE / 100
_MOST: Final = 1024
"""Locks that are remembered as given up; when there are more all are forgotten."""


class Patience:
    """Says when to try for which lock.

    :param clock: monotonic seconds.
    :param sleep: sleeps so many seconds.
    """

    def __init__(self, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._clock = clock
        self._sleep = sleep
        self._hurried: dict[int, float] = {}  # until when, by lock

    def tries(self, lock: int) -> Iterator[None]:
        """Yield when it is time to try for a lock, for as long as it is worth it."""
        yield
        began = now = self._clock()
        if now < self._hurried.get(lock, 0.0):
            return
        while now < began + PATIENCE:
            self._sleep(_NAP)
            yield
            now = self._clock()
        if len(self._hurried) >= _MOST:
            self._hurried.clear()
        self._hurried[lock] = now + HURRIED
