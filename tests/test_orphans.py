"""``arbiter.orphans``: who is reaped, and who is left to whom it belongs."""

from __future__ import annotations

import os

from fluxor_fast.arbiter.orphans import reap_orphans


def left() -> int:
    """Return the pid of a child that has left and is not reaped."""
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    return child


def test_orphans_are_reaped_and_own_children_are_left() -> None:
    # in a process without other children: pytest's own may have some
    tester = os.fork()
    if tester:
        assert os.waitstatus_to_exitcode(os.waitpid(tester, 0)[1]) == 0
        return
    good = reap_orphans(set()) == 0
    for _ in range(3):
        left()
    good = good and reap_orphans(set()) == 3
    own = left()
    good = good and reap_orphans({own}) == 0 and os.waitpid(own, os.WNOHANG)[0] == own
    os._exit(0 if good else 1)
