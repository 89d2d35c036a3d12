"""The shared limit: never exceeded, nobody refused while permits are free, nothing left over.

Here one step follows the other, or real processes race; ``property/test_interleavings.py``
walks through every interleaving of the steps.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxor_fast.arbiter.shared import SharedMemory
from fluxor_fast.server.admission import (
    Fence,
    KernelLock,
    SharedLimit,
    Thresholds,
    full_fence,
)
from tests.support.forks import ended, forked
from tests.support.seeds import examples, seeded

FENCES = pytest.mark.parametrize("fence", [full_fence("x86_64"), None], ids=["fenced", "locked"])


def words(count: int) -> memoryview[int]:
    return memoryview(bytearray(8 * count)).cast("Q")


class FreeLock:
    """A lock that nobody else wants; counts, so that one not left is seen."""

    def __init__(self) -> None:
        self.held = 0
        self.taken = 0

    def acquire(self) -> bool:
        assert self.held == 0
        self.held = 1
        self.taken += 1
        return True

    def release(self) -> None:
        assert self.held == 1
        self.held = 0


class BusyLock:
    """A lock that somebody holds for ever."""

    def acquire(self) -> bool:
        return False

    def release(self) -> None:
        raise AssertionError("released, but never got")


# one step after the other, against a model

WORKERS = 4
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, WORKERS - 1), st.integers(0, 12), st.booleans()),
        st.tuples(st.just("give"), st.integers(0, WORKERS - 1), st.integers(0, 12), st.booleans()),
    ),
    max_size=60,
)


@FENCES
@examples(400)
@given(limit=st.integers(0, 20), normal=st.integers(0, 20), steps=_steps)
def test_every_sequence_gets_what_a_counter_under_one_lock_would_give(
    fence: Fence | None, limit: int, normal: int, steps: list[tuple[str, int, int, bool]]
) -> None:
    """Exactly min(wanted, what is free): so Σ ≤ limit, and nobody is refused while some are."""
    shared = words(WORKERS)
    lock = FreeLock()
    shares = [SharedLimit(shared, index, fence, lock) for index in range(WORKERS)]
    model = [0] * WORKERS
    for what, index, count, critical in steps:
        if what == "take":
            threshold = max(limit, normal) if critical else min(limit, normal)
            got = shares[index].acquire(count, threshold)
            assert got == min(count, max(threshold - sum(model), 0))
            model[index] += got
        else:
            count = min(count, model[index])
            shares[index].release(count)
            model[index] -= count
        assert shared.tolist() == model == [share.held for share in shares]
        assert {share.total() for share in shares} == {sum(model)}
        assert sum(model) <= max(limit, normal)
    assert lock.held == 0


@FENCES
def test_a_lower_threshold_refuses_while_a_higher_one_is_in_use(fence: Fence | None) -> None:
    shared = words(2)
    one, other = (SharedLimit(shared, index, fence, FreeLock()) for index in range(2))
    assert one.acquire(10, 10) == 10
    assert other.acquire(5, 6) == 0
    assert shared.tolist() == [10, 0]


def test_without_contention_the_lock_is_not_asked() -> None:
    lock = FreeLock()
    share = SharedLimit(words(2), 0, full_fence("x86_64"), lock)
    for _ in range(10):
        assert share.acquire(3, 3) == 3
        share.release(3)
    assert lock.taken == 0


def test_a_lock_that_is_not_to_be_had_costs_refusals_and_nothing_else() -> None:
    shared = words(2)
    fenced = SharedLimit(shared, 0, full_fence("x86_64"), BusyLock())
    assert fenced.acquire(5, 3) == 3  # what the announcement got needs no lock
    assert fenced.acquire(1, 3) == 0
    locked = SharedLimit(shared, 1, None, BusyLock())
    assert locked.acquire(1, 10) == 0
    assert shared.tolist() == [3, 0]


def test_two_that_announce_at_once_do_not_both_go_without() -> None:
    """The last free permit: both announce, both see too much; one more try under the lock."""
    shared = words(2)

    def meanwhile() -> None:
        if not lock.taken:
            shared[1] = 1  # the other worker announces between our announcement and our sum

    class AfterTheOther(FreeLock):
        def acquire(self) -> bool:
            shared[1] = 0  # it saw us too, and gave its permit back
            return super().acquire()

    lock = AfterTheOther()
    assert SharedLimit(shared, 0, meanwhile, lock).acquire(1, 1) == 1
    assert shared.tolist() == [1, 0]


def test_a_new_worker_goes_on_from_what_its_word_says() -> None:
    shared = words(1)
    shared[0] = 2
    share = SharedLimit(shared, 0, full_fence("x86_64"), FreeLock())
    assert share.held == 2
    assert share.acquire(5, 4) == 2


def test_a_fence_is_known_for_x86_alone() -> None:
    for machine in ("x86_64", "AMD64", "i686"):
        fence = full_fence(machine)
        assert fence is not None
        fence()
    for machine in ("aarch64", "arm64", "ppc64le", "riscv64", ""):
        assert full_fence(machine) is None


# thresholds


@examples(300)
@given(
    max_ccu=st.integers(1, 10_000),
    share=st.integers(1, 100),
    slots=st.integers(1, 1000),
    max_queue=st.integers(0, 10_000),
)
def test_normal_requests_go_by_the_smaller_of_capacity_and_room(
    max_ccu: int, share: int, slots: int, max_queue: int
) -> None:
    normal = max(1, max_ccu * share // 100)
    found = Thresholds.of(max_ccu=max_ccu, normal=normal, slots=slots, max_queue=max_queue)
    assert found.normal == min(normal, slots + max_queue)
    assert found.normal_reason == ("queue_full" if slots + max_queue < normal else "capacity")
    assert (found.critical, found.slots) == (max_ccu, slots)
    assert found.normal <= found.critical


def test_the_reserve_is_kept_for_critical_requests() -> None:
    share = SharedLimit(words(1), 0, full_fence("x86_64"), FreeLock())
    thresholds = Thresholds.of(max_ccu=10, normal=6, slots=10, max_queue=10)
    assert share.acquire(8, thresholds.normal) == 6
    assert share.acquire(1, thresholds.normal) == 0
    assert share.acquire(8, thresholds.critical) == 4
    share.release(10)
    assert share.total() == 0


# real processes

SECONDS = 0.8
LIMIT = 7


class Witness:
    """Counts the permits really held, under a lock of its own.

    A permit counts from after it was taken until before it is given back: if the count ever
    exceeds the limit, so did the permits.
    """

    def __init__(self) -> None:
        self._fd = os.memfd_create("witness")
        os.ftruncate(self._fd, 4096)
        self._words = memoryview(mmap.mmap(self._fd, 4096)).cast("Q")

    def add(self, count: int) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        self._words[0] += count
        self._words[1] = max(self._words[1], self._words[0])
        self._words[2] += count > 0
        fcntl.lockf(self._fd, fcntl.LOCK_UN)

    @property
    def now(self) -> int:
        return self._words[0]

    @property
    def most(self) -> int:
        return self._words[1]

    @property
    def grants(self) -> int:
        return self._words[2]


@FENCES
def test_processes_that_race_never_exceed_the_limit(fence: Fence | None) -> None:
    memory, witness = SharedMemory(3), Witness()

    def hammer(index: int) -> Callable[[], None]:
        rng = seeded(f"hammer {index}")

        def run() -> None:
            share = SharedLimit(memory.permits, index, fence, KernelLock(memory.fd, 0))
            until = time.monotonic() + SECONDS
            held = 0
            while time.monotonic() < until:
                got = share.acquire(rng.randint(1, 4), rng.choice((LIMIT - 2, LIMIT, LIMIT)))
                if got:
                    witness.add(got)
                    held += got
                if held and rng.random() < 0.6:
                    back = rng.randint(1, held)
                    witness.add(-back)
                    held -= back
                    share.release(back)
            witness.add(-held)
            share.release(held)

        return run

    with forked(*(hammer(index) for index in range(3))) as children:
        assert [ended(pid) for pid in children] == [0, 0, 0]
    assert witness.most == LIMIT  # it was reached, and never exceeded
    assert witness.grants > 100
    assert witness.now == 0
    assert memory.permits.tolist() == [0, 0, 0]


def test_a_killed_worker_leaves_one_word_and_zeroing_it_frees_all() -> None:
    memory = SharedMemory(2)
    told, tell = os.pipe()

    def hold() -> None:
        share = SharedLimit(memory.permits, 1, full_fence("x86_64"), KernelLock(memory.fd, 0))
        assert share.acquire(5, 7) == 5
        os.write(tell, b"x")
        signal.pause()

    with forked(hold) as (pid,):
        os.read(told, 1)
        share = SharedLimit(memory.permits, 0, full_fence("x86_64"), KernelLock(memory.fd, 0))
        assert share.acquire(7, 7) == 2
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
        assert share.acquire(7, 7) == 0  # no clock gives it back, only who reaped the worker
        memory.fold(1)
        assert share.acquire(7, 7) == 5
        share.release(7)
    assert memory.permits.tolist() == [0, 0]
    os.close(told)
    os.close(tell)


def test_the_kernels_lock_is_exclusive_bounded_and_freed_when_its_owner_is_killed() -> None:
    memory = SharedMemory(1)
    told, tell = os.pipe()

    def hold() -> None:
        assert KernelLock(memory.fd, 3).acquire()
        os.write(tell, b"x")
        signal.pause()

    with forked(hold) as (pid,):
        os.read(told, 1)
        lock = KernelLock(memory.fd, 3)
        assert not lock.acquire()  # and it came back: the tries are bounded
        assert KernelLock(memory.fd, 4).acquire()  # another byte is another lock
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
        assert lock.acquire()
        lock.release()
    os.close(told)
    os.close(tell)


def test_a_worker_stopped_with_the_lock_costs_refusals_never_a_hang() -> None:
    """And those only where permits were already fought over."""
    memory = SharedMemory(2)
    told, tell = os.pipe()

    def hold() -> None:
        assert KernelLock(memory.fd, 0).acquire()
        os.write(tell, b"x")
        signal.pause()

    with forked(hold) as (pid,):
        os.read(told, 1)
        os.kill(pid, signal.SIGSTOP)
        share = SharedLimit(memory.permits, 0, full_fence("x86_64"), KernelLock(memory.fd, 0))
        started = time.monotonic()
        assert share.acquire(3, 3) == 3
        assert share.acquire(1, 3) == 0
        assert time.monotonic() - started < 5
        share.release(3)
        os.kill(pid, signal.SIGKILL)
        ended(pid)
    os.close(told)
    os.close(tell)
