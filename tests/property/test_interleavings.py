"""Every interleaving of the real admission code, with store buffers and kills.

Invariants: the permits that workers rely on never exceed the limit, whoever is interrupted or
killed where; afterwards no word is left over; and nobody is refused while permits stay free.
The explorer proves its worth on code that is wrong: it finds the overshoot when the fence does
nothing, and when a worker checks before it adds.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from fluxor_fast.server.admission import SharedLimit
from fluxor_fast.server.clients import ClientLimit
from tests.support.explorer import Explorer, Program, Recorder


def holder(index: int, wanted: int, limit: int, *, fenced: bool = True) -> Program:
    """A worker that takes up to ``wanted`` permits and keeps them."""

    def program(words: Recorder) -> None:
        share = make(words, index, fenced)
        words.has(share.acquire(wanted, limit))

    return program


def visitor(index: int, wanted: int, limit: int) -> Program:
    """A worker that takes up to ``wanted`` permits, uses them and gives them back."""

    def program(words: Recorder) -> None:
        share = make(words, index, True)
        got = share.acquire(wanted, limit)
        words.has(got)
        words.has(0)
        if got:
            share.release(got)

    return program


def make(words: Recorder, index: int, fenced: bool) -> SharedLimit:
    double: Any = words
    share = SharedLimit.__new__(SharedLimit)
    share._words = double
    share._index = index
    share._fence = words.fence if fenced else None
    share._lock = words
    share.held = 0  # as after a fork: the arbiter has zeroed the word
    return share


def client(index: int, limit: int, *, leaves: bool, fenced: bool = True) -> Program:
    """A worker that counts a connection of the one client there is, in rows of two buckets."""

    def program(words: Recorder) -> None:
        double: Any = words
        share = ClientLimit(
            double, 2, index, words.fence if fenced else None, words, key=b"k", most=limit
        )
        place = share.acquire("192.0.2.1")
        words.has(int(place is not None))
        if leaves and place is not None:
            words.has(0)
            share.release(place)

    return program


def checks_then_adds(index: int, limit: int) -> Program:
    """What most limiters do."""

    def program(words: Recorder) -> None:
        words.fence()
        if sum(words) < limit:
            words[index] = 1
            words.fence()
            words.has(1)

    return program


CASES = [
    (workers, limit, wanted)
    for workers in (2, 3)
    for limit in (1, 2, 3)
    for wanted in (1, 2)
    if workers == 2 or wanted == 1
]


@pytest.mark.parametrize(("workers", "limit", "wanted"), CASES)
def test_no_overshoot_and_nobody_is_refused_while_permits_are_free(
    workers: int, limit: int, wanted: int
) -> None:
    found = Explorer([holder(i, wanted, limit) for i in range(workers)], limit).run()
    assert found.overshoot is None, "\n".join(found.overshoot)
    assert found.ends
    for has, words in found.ends:
        assert sum(has) == min(limit, workers * wanted), (has, words)
        assert words == has


@pytest.mark.parametrize(("workers", "limit", "wanted"), [c for c in CASES if c[0] == 2])
def test_no_overshoot_and_nothing_left_over_when_one_is_killed_anywhere(
    workers: int, limit: int, wanted: int
) -> None:
    programs = [visitor(i, wanted, limit) for i in range(workers)]
    found = Explorer(programs, limit, kills=1).run()
    assert found.overshoot is None, "\n".join(found.overshoot)
    assert found.ends == {((0,) * workers, (0,) * workers)}


@pytest.mark.skipif(os.environ.get("PROVE") != "long", reason="a minute: make prove")
@pytest.mark.parametrize("limit", [1, 2])
def test_the_same_with_three_workers(limit: int) -> None:
    programs = [visitor(i, 1, limit) for i in range(3)]
    found = Explorer(programs, limit, kills=1).run()
    print(f"limit {limit}: {found.states} states")
    assert found.overshoot is None, "\n".join(found.overshoot)
    assert found.ends == {((0,) * 3, (0,) * 3)}


def test_the_path_under_the_kernels_lock_alone_does_not_overshoot() -> None:
    programs = [holder(i, 1, 1, fenced=False) for i in range(3)]
    found = Explorer(programs, 1, kills=1).run()
    assert found.overshoot is None, "\n".join(found.overshoot)


def test_without_the_fence_it_overshoots() -> None:
    found = Explorer([holder(i, 1, 1) for i in range(2)], 1, fences=False).run()
    assert found.overshoot is not None


def test_check_then_add_overshoots_even_with_fences() -> None:
    found = Explorer([checks_then_adds(i, 1) for i in range(2)], 1).run()
    assert found.overshoot is not None


# connections of one client: two words each, and the lesser sum counts


@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("fenced", [True, False])
def test_no_more_connections_of_a_client_than_the_limit_and_none_refused_early(
    limit: int, fenced: bool
) -> None:
    programs = [client(i, limit, leaves=False, fenced=fenced) for i in range(2)]
    found = Explorer(programs, limit, row=2).run()
    assert found.overshoot is None, "\n".join(found.overshoot)
    assert found.ends
    for has, words in found.ends:
        assert sum(has) == limit
        assert words == tuple(count for count in has for _ in range(2))


@pytest.mark.parametrize("limit", [1, 2])
def test_nothing_of_a_killed_worker_stays_counted_for_its_clients(limit: int) -> None:
    programs = [client(i, limit, leaves=True) for i in range(2)]
    found = Explorer(programs, limit, kills=1, row=2).run()
    assert found.overshoot is None, "\n".join(found.overshoot)
    assert found.ends == {((0, 0), (0, 0, 0, 0))}


def test_without_the_fence_a_client_gets_too_many() -> None:
    programs = [client(i, 1, leaves=False) for i in range(2)]
    assert Explorer(programs, 1, fences=False, row=2).run().overshoot is not None
