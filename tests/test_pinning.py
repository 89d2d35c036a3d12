"""``arbiter.pinning``: which core a worker gets."""

from __future__ import annotations

import os
from pathlib import Path

from fluxor_fast.arbiter.pinning import core_of, cores_in_order, pin, siblings


def test_physical_cores_come_before_their_siblings() -> None:
    assert cores_in_order(range(8), lambda core: str(core % 4)) == (0, 1, 2, 3, 4, 5, 6, 7)
    assert cores_in_order(range(8), lambda core: str(core // 2)) == (0, 2, 4, 6, 1, 3, 5, 7)
    assert cores_in_order({5, 2, 3}, lambda core: str(core // 2)) == (2, 5, 3)


def test_more_workers_than_cores_share_them_in_turn() -> None:
    assert [core_of(seat, (2, 5)) for seat in range(5)] == [2, 5, 2, 5, 2]


def test_siblings_are_read_and_a_machine_that_tells_nothing_has_none(tmp_path: Path) -> None:
    file = tmp_path / "sys/devices/system/cpu/cpu3/topology/thread_siblings_list"
    file.parent.mkdir(parents=True)
    file.write_text("1,3\n")
    assert siblings(3, tmp_path) == "1,3"
    assert siblings(4, tmp_path) == "4"


def test_a_core_that_is_not_there_is_told_and_nothing_changes() -> None:
    before = os.sched_getaffinity(0)
    assert pin(1023) == "Invalid argument"
    assert os.sched_getaffinity(0) == before
