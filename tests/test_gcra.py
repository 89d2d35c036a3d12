"""The policy of a rate limit, and what follows from its two numbers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxor_fast.limits.gcra import SECOND, Policy
from tests.support.gcra import Reference
from tests.support.seeds import examples


def test_a_request_costs_its_share_of_the_window_and_the_burst_is_so_many_of_them() -> None:
    policy = Policy("client", 1000, 60.0, 100)
    assert policy.cost == 60_000_000
    assert policy.tolerance == 6 * SECOND


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0}, {"burst": 0}, {"window": 0.0}, {"window": -1.0}, {"window": float("nan")},
        {"window": 90_000.0}, {"limit": 10**9}, {"burst": 10**7},
        {"name": ""}, {"name": 'a"b'}, {"name": "a\r\nb"}, {"name": "x" * 65}, {"name": "50%"},
    ],
)  # fmt: skip
def test_what_cannot_be_kept_to_is_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="rate limit"):
        Policy(**{"name": "client", "limit": 10, "window": 60.0, "burst": 10, **wrong})


@examples(200)
@given(
    st.integers(1, 20),
    st.integers(1, 30),
    st.lists(st.integers(0, 5 * SECOND), min_size=1, max_size=120),
)
def test_no_stretch_of_time_lets_through_more_than_the_burst_and_its_share(
    limit: int, burst: int, gaps: list[int]
) -> None:
    policy = Policy("client", limit, 10.0, burst)
    account, now, taken = Reference(policy), 1000 * SECOND, []
    for gap in gaps:
        now += gap
        if account.charge(now) <= policy.tolerance:
            taken.append(now)
    for first, since in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + (taken[last] - since) / policy.cost


@examples(200)
@given(st.integers(1, 20), st.lists(st.integers(0, 3 * SECOND), min_size=1, max_size=120))
def test_who_keeps_to_the_limit_in_every_window_is_never_refused(
    limit: int, gaps: list[int]
) -> None:
    """With the burst that a limit has by default."""
    policy = Policy("client", limit, 10.0, limit)
    account, now, sent = Reference(policy), 1000 * SECOND, []
    for gap in gaps:
        now += gap
        if sum(now - one < 10 * SECOND for one in sent) < limit:
            sent.append(now)
            assert account.charge(now) <= policy.tolerance
