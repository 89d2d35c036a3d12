"""Forking a process that has signal handlers and a wake-up pipe.

A signal for the child must not wake the parent through the pipe that both have for a moment, and
must not get lost either. So signals wait, in both, until the child has its own handling.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable

__all__ = ["REOPEN", "RETIRE", "fork_with"]

log = logging.getLogger("fluxor_fast.arbiter")

RETIRE = signal.SIGUSR2
"""Tells a worker to drain while the instance goes on."""
REOPEN = signal.SIGUSR1
"""Tells a worker to open its log files anew."""
ENDING = (signal.SIGTERM, signal.SIGQUIT, signal.SIGCHLD)
"""What has its default meaning in the child. Other signals stay as they are, that is, without
effect in a child of the arbiter, until the child handles them."""


def fork_with(child: Callable[[], int]) -> int:
    """Fork; run ``child`` there and leave with the exit code it returns. Return its pid.

    :raises OSError: if there are too many processes, or there is too little memory.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in ENDING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        code = child()
    except BaseException:
        log.exception("process %d failed", os.getpid())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # the parent's own exit handlers are not the child's
