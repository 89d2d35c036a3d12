"""``arbiter.recycle``: who is due, and that it is one at a time."""

from __future__ import annotations

import os
import random

from fluxor_fast.arbiter.recycle import MEMORY_REST, Life, RecycleLimits, next_due, resident_bytes
from tests.support.seeds import seeded

MIB = 1 << 20


def test_without_limits_nobody_is_ever_due() -> None:
    assert not RecycleLimits().any_set
    life = Life.begin(RecycleLimits(jitter=9), 0.0, random.Random(0))
    assert life.over(1e9, 10**12, 10**12) == ""


def test_requests_are_counted_to_a_number_drawn_within_the_jitter() -> None:
    rng = seeded("recycle")
    limits = RecycleLimits(requests=100, jitter=20)
    drawn = {Life.begin(limits, 0.0, rng).requests for _ in range(500)}
    assert drawn == set(range(100, 121))
    life = Life(limits, 0.0, requests=110)
    assert life.over(1.0, 109, 0) == ""
    assert life.over(1.0, 110, 0) == "110 requests, at most 110"


def test_age_counts_from_the_start() -> None:
    life = Life(RecycleLimits(age=60.0), 1000.0, 0)
    assert life.over(1059.9, 0, 0) == ""
    assert life.over(1060.0, 0, 0) == "60 s old, at most 60"


def test_memory_does_not_count_right_after_the_start() -> None:
    life = Life(RecycleLimits(memory=200), 0.0, 0)
    assert life.over(MEMORY_REST - 0.1, 0, 900 * MIB) == ""
    assert life.over(MEMORY_REST, 0, 200 * MIB) == ""
    assert life.over(MEMORY_REST, 0, 201 * MIB) == "201 MiB of memory, at most 200"


def test_one_at_a_time_and_only_when_all_are_ready() -> None:
    assert next_due([(0, ""), (1, "old"), (2, "old")], all_ready=True) == (1, "old")
    assert next_due([(0, ""), (1, "old")], all_ready=False) is None
    assert next_due([(0, "")], all_ready=True) is None


def test_resident_memory_is_read_and_nothing_for_who_has_gone() -> None:
    assert resident_bytes(os.getpid()) > 5 * MIB
    assert resident_bytes(2**22 + 1) == 0
