"""``arbiter.orphans``: who is reaped, and who is left to whom it belongs."""

from __future__ import annotations

import os

from fluxor_fast.arbiter.orphans import reap_orphans
from tests.support.forks import ended, forked


def left() -> int:
    """Return the pid of a child that has left and is not reaped."""
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    return child


def among_no_other_children() -> None:
    assert reap_orphans(set()) == 0
    for _ in range(3):
        left()
    assert reap_orphans(set()) == 3
    own = left()
    assert reap_orphans({own}) == 0
    assert os.waitpid(own, os.WNOHANG)[0] == own


def test_orphans_are_reaped_and_own_children_are_left() -> None:
    with forked(among_no_other_children) as (tester,):  # pytest's own may have some
        assert ended(tester) == 0
