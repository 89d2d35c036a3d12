"""Rolling replacement, planned: pure, so every case can be tried."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fluxor_fast.arbiter.roll import indexes_for, most_workers, plan, share
from tests.support.seeds import examples

COUNTS = st.integers(1, 40)


def shares(seats: int, listeners: int, *, common: bool = False) -> list[tuple[int, ...]]:
    return [share(seat, seats, listeners, common=common) for seat in range(seats)]


@examples(200)
@given(seats=COUNTS, more=st.integers(0, 40))
def test_every_listener_has_exactly_one_seat_and_every_seat_a_listener(
    seats: int, more: int
) -> None:
    given_out = shares(seats, seats + more)
    assert sorted(at for listeners in given_out for at in listeners) == list(range(seats + more))
    assert all(given_out)
    sizes = [len(listeners) for listeners in given_out]
    assert max(sizes) - min(sizes) <= 1


def test_common_listeners_are_everyones() -> None:
    assert shares(3, 2, common=True) == [(0, 1)] * 3


@examples(200)
@given(before=COUNTS, after=COUNTS, everyone=st.booleans())
def test_a_roll_ends_with_the_wanted_seats_and_no_listener_is_ever_without_a_worker(
    before: int, after: int, everyone: bool
) -> None:
    listeners = max(before, after)
    serving = dict(enumerate(shares(before, listeners)))
    wanted = shares(after, listeners)
    found = plan("test", serving, wanted, before=before, everyone=everyone)
    for seat in found.seats:
        successor = {seat: wanted[seat]}
        assert seat not in serving or everyone or serving[seat] != wanted[seat]
        # while both are there, and when the old one has gone
        serving = {**serving, **successor}
        if before >= after:  # with more listeners than workers before, the new seats come first
            assert {at for each in serving.values() for at in each} == set(range(listeners))
    for seat in found.surplus:
        del serving[seat]
    assert serving == dict(enumerate(wanted))
    if everyone:
        assert len(found.seats) == after


def test_new_seats_come_before_those_that_give_listeners_away() -> None:
    found = plan("test", {0: (0, 1)}, [(0,), (1,)], before=1, everyone=False)
    assert list(found.seats) == [1, 0]
    assert found.surplus == []


def test_a_worker_less_has_one_other_replaced() -> None:
    before = dict(enumerate(shares(4, 4)))
    found = plan("test", before, shares(3, 4), before=4, everyone=False)
    assert (list(found.seats), found.surplus) == ([0], [3])


@examples(100)
@given(workers=st.integers(1, 1024))
def test_there_are_indexes_for_twice_as_many_workers_and_an_upgraded_arbiters(workers: int) -> None:
    indexes = indexes_for(workers)
    assert most_workers(indexes) == 2 * workers
    assert indexes >= most_workers(indexes) + workers + 2
