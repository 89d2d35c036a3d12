"""Reaping orphans, for a server that is process 1 of its container.

Processes whose parent has died become children of process 1, and stay as zombies until it reaps
them; enough of them, and nothing can be forked any more. Rules:

1. Only process 1 does this: nobody else gets orphans.
2. It takes no child from whoever waits for it by its id, as the arbiter does for its workers:
   those are looked at without being reaped, and left.
"""

from __future__ import annotations

import os
from collections.abc import Container

__all__ = ["reap_orphans"]


def reap_orphans(own: Container[int]) -> int:
    """Reap children that have left and are not in ``own``; return how many there were.

    To be called when those in ``own`` that have left are reaped: one that is not hides the rest.
    """
    reaped = 0
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return reaped
        if found is None or found.si_pid in own:
            return reaped
        os.waitpid(found.si_pid, os.WNOHANG)
        reaped += 1
