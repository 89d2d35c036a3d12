"""The end of the arbiter, noticed by a worker, even one whose event loop is blocked.

The arbiter holds the only writing end of a pipe. A thread waits for its end in the kernel, which
costs nothing, and then does two things: it tells the loop, which drains; and it sets a timer, so
that the kernel ends a worker that has not left by then. Without it, a blocked loop would keep the
port for ever: who would end it is dead.

Code in C that never gives the interpreter's lock back keeps this thread from running; a worker
that hangs in that when its arbiter is killed stays.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

__all__ = ["watch_lifeline"]


def watch_lifeline(lifeline: int, gone: Callable[[], object], seconds: float) -> None:
    """Call ``gone``, in another thread, when the arbiter is gone; ``seconds`` later it is over.

    :param lifeline: reading end of the pipe.
    """

    def wait() -> None:
        os.read(lifeline, 1)  # nothing is ever written: this is the end
        signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM ends a process
        gone()

    threading.Thread(target=wait, name="fluxor-lifeline", daemon=True).start()
