"""Patience with a lock whose holder does not let go of it.

Who has a lock for some microseconds may be taken off its core meanwhile, and comes back within some
milliseconds: it is waited for. A process that is stopped does not come back: after PATIENCE the
lock is given up, and in the next HURRIED seconds none is waited for, so that what is stopped does
not stop the rest. The clock is handed in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fluxor_fast.server.admission import Lock

__all__ = ["HURRIED", "PATIENCE", "Patience"]

PATIENCE: Final = 0.02
"""Seconds for which a lock is waited for."""
HURRIED: Final = 1.0
"""Seconds in which none is, after that was in vain."""


class Patience:
    """Waits for locks.

    :param clock: monotonic seconds.
    :param sleep: sleeps so many seconds.
    """

    def __init__(self, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._clock = clock
        self._sleep = sleep
        self._hurried = 0.0  # until then

    def wait(self, lock: Lock) -> bool:
        """Wait for ``lock``; tell whether it was got."""
        began = now = self._clock()
        if now < self._hurried:
            return False
        while now < began + PATIENCE:
            self._sleep(PATIENCE / 100)
            if lock.acquire():
                return True
            now = self._clock()
        self._hurried = now + HURRIED
        return False
