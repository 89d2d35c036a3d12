"""The shared memory: its layout, and totals that never go back while a worker is folded in."""

from __future__ import annotations

import itertools
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxor_fast.arbiter import shared
from fluxor_fast.arbiter.shared import (
    BOUNDS,
    CLIENTS,
    LAYOUT_VERSION,
    REGION,
    SHED_REASONS,
    SharedMemory,
    State,
    Word,
)
from tests.support.forks import ended, forked
from tests.support.seeds import examples

COUNTERS = [
    word for word in range(Word.OFFERED, Word.BUCKETS + len(BOUNDS) + 1) if word != Word.LOST
]


def raw_words(memory: SharedMemory) -> memoryview[int]:
    size = os.fstat(memory.fd).st_size
    return memoryview(os.pread(memory.fd, size, 0)).cast("Q")


# layout


def test_all_words_are_apart_and_inside() -> None:
    """Each word written through its own view changes that word alone."""
    for workers in (1, 2, 7, 8, 9):
        memory = SharedMemory(workers)
        before = raw_words(memory).tolist()
        views = [memory.permits, memory.slots, memory.connections, memory.clients]
        views += [memory.region(index) for index in range(workers)]
        number = 0
        for view in views:
            for at in range(len(view)):
                assert view[at] == 0
                number += 1
                view[at] = 10**6 + number
        after = raw_words(memory).tolist()
        changed = [b for a, b in zip(before, after, strict=True) if a != b]
        assert sorted(changed) == list(range(10**6 + 1, 10**6 + number + 1))
        assert after[:8] == before[:8]  # the header


def test_words_of_different_writers_share_no_cache_line_between_regions() -> None:
    assert REGION % 8 == 0
    assert os.fstat(SharedMemory(3).fd).st_size % 64 == 0


def test_the_header_says_what_it_is() -> None:
    header = raw_words(SharedMemory(5))
    assert header[0] == int.from_bytes(b"FLUXORFA", "big")
    assert header[1] == LAYOUT_VERSION
    assert header[2] == 5
    assert header[3] == 0  # nothing is being folded
    assert abs(header[4] - time.time()) < 60
    assert header[6:8].tobytes() != raw_words(SharedMemory(5))[6:8].tobytes()  # the key


def test_the_words_of_a_region_do_not_overlap() -> None:
    assert list(Word) == sorted(set(Word))
    assert Word.SHED + len(SHED_REASONS) == Word.RESPONSES
    assert Word.DURATION_US == Word.RESPONSES + 5
    assert Word.BUCKETS + len(BOUNDS) + 1 <= REGION


def test_bounds_rise_from_10_microseconds_to_75_seconds() -> None:
    assert list(BOUNDS) == sorted(set(BOUNDS))
    assert (BOUNDS[0], BOUNDS[-1]) == (0.00001, 75.0)
    assert all(b / a <= 1.7 for a, b in itertools.pairwise(BOUNDS))


# totals and folding

_counts = st.lists(st.integers(0, 50), min_size=len(COUNTERS), max_size=len(COUNTERS))


@examples(100)
@given(regions=st.lists(_counts, min_size=3, max_size=3), dead=st.lists(st.integers(0, 2)))
def test_folding_changes_no_total_but_what_was_lost(
    regions: list[list[int]], dead: list[int]
) -> None:
    """Requests that were in a worker when it died count as accepted and as lost; all else stays."""
    memory = SharedMemory(3)
    for index, counts in enumerate(regions):
        region = memory.region(index)
        for word, count in zip(COUNTERS, counts, strict=True):
            region[word] = count
        shed = sum(region[Word.SHED + at] for at in range(len(SHED_REASONS)))
        # a worker writes counters that add up: some requests wait, some run
        region[Word.ACCEPTED] += region[Word.COMPLETED] + region[Word.ABORTED]
        region[Word.OFFERED] += region[Word.ACCEPTED] + shed
    for index in dead:
        before = memory.totals()
        region = memory.region(index)
        shed = sum(region[Word.SHED + at] for at in range(len(SHED_REASONS)))
        inside = region[Word.OFFERED] - shed - region[Word.COMPLETED] - region[Word.ABORTED]
        waiting = region[Word.OFFERED] - shed - region[Word.ACCEPTED]
        memory.fold(index)
        after = memory.totals()
        for word in COUNTERS:
            assert after[word] == before[word] + (waiting if word == Word.ACCEPTED else 0)
        assert after[Word.LOST] == before[Word.LOST] + inside
        assert not any(region)
    total = memory.totals()
    if set(dead) == {0, 1, 2}:
        shed = sum(total[Word.SHED + at] for at in range(len(SHED_REASONS)))
        assert total[Word.OFFERED] == total[Word.ACCEPTED] + shed
        gone = total[Word.COMPLETED] + total[Word.ABORTED] + total[Word.LOST]
        assert total[Word.ACCEPTED] == gone


def test_a_dead_worker_holds_nothing_and_the_others_keep_theirs() -> None:
    memory = SharedMemory(3)
    for view in (memory.permits, memory.slots, memory.connections):
        for index in range(3):
            view[index] = index + 1
    for index in range(3):
        region = memory.region(index)
        region[Word.PID], region[Word.STATE] = 100 + index, State.READY
        region[Word.DB_SIZE] = 10
    for index in range(3):
        memory.clients[index * CLIENTS] = memory.clients[(index + 1) * CLIENTS - 1] = index + 1
    memory.fold(1)
    for view in (memory.permits, memory.slots, memory.connections):
        assert view.tolist() == [1, 0, 3]
    assert memory.clients[::CLIENTS].tolist() == [1, 0, 3]
    assert memory.clients[CLIENTS - 1 :: CLIENTS].tolist() == [1, 0, 3]
    assert memory.region(1)[Word.STATE] == State.ABSENT
    assert memory.region(1)[Word.PID] == 0
    assert memory.region(0)[Word.PID] == 100
    assert memory.totals()[Word.DB_SIZE] == 20


def test_totals_never_go_back_while_another_process_folds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared, "FOLD_SECONDS", 10.0)  # it may be off its core in one
    memory = SharedMemory(2)
    watched = (Word.OFFERED, Word.COMPLETED, Word.RESPONSES + 1, Word.BUCKETS + 7)
    seconds = 1.0

    def live_and_die() -> None:
        """Be worker 0 for a while, then the arbiter that folds it; again and again."""
        region = memory.region(0)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for _ in range(1000):
                for word in watched:
                    region[word] += 1
            memory.fold(0)

    folds = reads = 0
    last = memory.totals()
    with forked(live_and_die) as (pid,):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            sequence = raw_words(memory)[3]
            now = memory.totals()
            folds += raw_words(memory)[3] != sequence
            reads += 1
            for word in watched:
                assert now[word] >= last[word], f"{word!r} went back after {reads} reads"
            last = now
        assert ended(pid) == 0
    total = memory.totals()
    assert len({total[word] for word in watched}) == 1
    assert total[Word.COMPLETED] % 1000 == 0 < total[Word.COMPLETED]
    assert total[Word.LOST] == 0
    assert folds > 0  # some reads did meet a fold


# indexes and rows


def test_an_index_has_one_owner_and_is_free_when_its_worker_has_been_folded() -> None:
    memory = SharedMemory(3)
    other = SharedMemory.adopt(memory.fd)
    assert [memory.claim(7), other.claim(8), memory.claim(7)] == [0, 1, 2]
    assert memory.claim(7) is other.claim(8) is None
    memory.permits[1] = 5
    other.fold(1)
    assert memory.permits.tolist() == [0, 0, 0]
    assert memory.owners.tolist() == [7, 0, 7]
    assert memory.claim(9) == 1


def test_two_processes_that_claim_at_once_get_different_indexes() -> None:
    memory = SharedMemory(200)

    def claim() -> None:
        while memory.claim(os.getpid()) is not None:
            pass

    with forked(claim, claim, claim) as pids:
        assert [ended(pid) for pid in pids] == [0, 0, 0]
        assert set(memory.owners) <= set(pids)
        assert all(memory.owners)


def test_a_mapping_that_is_taken_over_is_the_same_memory() -> None:
    memory = SharedMemory(5)
    memory.routes[63][4] = memory.clients[-1] = memory.region(4)[Word.OFFERED] = 11
    other = SharedMemory.adopt(memory.fd)
    assert (other.workers, other.key) == (5, memory.key)
    assert other.routes[63][4] == other.clients[-1] == other.totals()[Word.OFFERED] == 11


def test_what_is_no_such_mapping_is_not_taken_over() -> None:
    memory = SharedMemory(1)
    memory._words[1] += 1
    with pytest.raises(ValueError, match="layout is version"):
        SharedMemory.adopt(memory.fd)
    memory._words[0] += 1
    with pytest.raises(ValueError, match="something else"):
        SharedMemory.adopt(memory.fd)
    empty = os.memfd_create("empty")
    with pytest.raises(ValueError, match="something else"):
        SharedMemory.adopt(empty)
    os.close(empty)
    with pytest.raises(ValueError, match="cannot be read"):
        SharedMemory.adopt(empty)


def test_a_route_keeps_its_row_while_any_worker_uses_it() -> None:
    """The next version of an application may have other routes, in another order."""
    memory = SharedMemory(3)
    assert memory.claim_routes(0, [101, 102]) == [0, 1]
    assert memory.claim_routes(1, [103, 102]) == [2, 1]
    memory.routes[0][0] = 4
    memory.fold(0)
    assert memory.claim_routes(2, [104, 101, 103]) == [0, 3, 2]  # 101's row was free
    assert memory.routes[0].tolist() == [0, 0, 0]


def test_more_routes_than_rows_are_an_error_and_keep_nothing() -> None:
    memory = SharedMemory(2)
    memory.claim_routes(0, range(1, 65))
    with pytest.raises(ValueError, match="room for 64"):
        memory.claim_routes(1, [1, 65])
    memory.fold(0)
    assert len(set(memory.claim_routes(1, range(65, 129)))) == 64


def test_an_arbiter_that_died_in_the_middle_of_a_fold_does_not_turn_the_sequence() -> None:
    memory = SharedMemory(1)
    memory._words[3] += 1  # odd: a fold is under way
    memory.region(0)[Word.OFFERED] = memory.region(0)[Word.COMPLETED] = 3
    memory.fold(0)
    assert memory._words[3] % 2 == 0
    assert memory.totals()[Word.OFFERED] == 3


def test_no_process_outdates_in_vain() -> None:
    memory = SharedMemory(2)

    def outdate() -> None:
        for _ in range(3000):
            memory.outdate(7)

    with forked(outdate, outdate, outdate) as children:
        assert [ended(pid) for pid in children] == [0, 0, 0]
    assert memory.generations[7] == 9000
    assert sum(memory.generations) == 9000
