"""Accounts in shared memory: as GCRA has it, exact over processes, and nothing to mend."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

from fluxor_fast.app import App
from fluxor_fast.arbiter.shared import SharedMemory
from fluxor_fast.config import Settings
from fluxor_fast.limits.gcra import SECOND, Policy
from fluxor_fast.limits.patience import HURRIED, PATIENCE, Patience
from fluxor_fast.limits.table import UNCOUNTED, WAYS, Accounts, Table, crowded
from fluxor_fast.server.admission import Fence, KernelLock, full_fence
from fluxor_fast.server.worker import ACCOUNTS_BYTE, Worker
from tests.support.forks import ended, forked
from tests.support.gcra import Reference
from tests.support.seeds import seeded
from tests.support.witness import shared_words

FENCES = pytest.mark.parametrize("fence", [full_fence("x86_64"), None], ids=["fence", "lock"])
BYTE = 1 << 17
NOW = 1000 * SECOND


def share(
    memory: SharedMemory,
    index: int = 0,
    fence: Fence | None = full_fence(),  # noqa: B008
    tries: int = 64,
) -> Table:
    return Table(
        memory.accounts,
        memory.entries,
        memory.workers,
        index,
        fence=fence,
        lock=lambda number: KernelLock(memory.fd, BYTE + number, tries),
        key=memory.key,
        tries=Patience(time.monotonic, time.sleep).tries,
    )


def per_minute(limit: int, burst: int | None = None) -> Policy:
    return Policy("client", limit, 60.0, burst or limit)


# one process


@FENCES
def test_over_several_workers_it_decides_as_one_account_would(fence: Fence | None) -> None:
    """Requests one after the other, by whichever worker: not one is decided otherwise."""
    rng = seeded("workers as one")
    memory = SharedMemory(5, 64)
    policy = Policy("client", 10, 1.0, 7)
    workers = [Accounts(share(memory, index, fence), policy) for index in range(5)]
    owners = {name: Reference(policy) for name in "abc"}
    now, refused = NOW, 0
    for _ in range(5000):
        now += int(rng.expovariate(1 / (0.03 * SECOND)))
        name = rng.choice("abc")
        ahead = rng.choice(workers).charge(name, now)
        assert ahead == owners[name].charge(now)
        refused += ahead > policy.tolerance
    assert 500 < refused < 4500


def test_a_refund_makes_the_account_what_it_was() -> None:
    accounts = Accounts(share(SharedMemory(3, 64), 1), per_minute(2))
    for _ in range(5):
        assert accounts.charge("a", NOW) == accounts.policy.cost
        accounts.refund("a")
    accounts.refund("b")  # never seen here: nothing happens
    assert [accounts.charge("a", NOW) > accounts.policy.tolerance for _ in range(3)] == [
        False, False, True,
    ]  # fmt: skip


def test_who_is_not_counted_is_told_so_each_time() -> None:
    accounts = Accounts(share(SharedMemory(1, 64)), per_minute(1), lambda owner: None)
    assert [accounts.charge("unix", NOW) for _ in range(3)] == [UNCOUNTED] * 3


def test_policies_that_differ_have_accounts_of_their_own() -> None:
    table = share(SharedMemory(1, 64))
    for policy in (per_minute(1), per_minute(2), per_minute(2, 1), Policy("user", 1, 60.0, 1)):
        assert Accounts(table, policy).charge("a", NOW) == policy.cost


def test_threads_of_a_worker_share_its_words() -> None:
    accounts = Accounts(share(SharedMemory(2, 64)), per_minute(1000, 2000))
    got: list[int] = []

    def hammer() -> None:
        got.append(sum(accounts.charge("a", NOW) <= 120 * SECOND for _ in range(1000)))

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(got) == 2000


# sets, and who is in whose way


def test_more_owners_than_entries_are_bounded_and_take_turns() -> None:
    """One set: a new owner takes the entry that is nearest to being paid off, debts and all."""
    memory = SharedMemory(1, WAYS)
    accounts = Accounts(share(memory), per_minute(10))
    taken = sum(
        accounts.charge(f"owner {n}", NOW) <= accounts.policy.tolerance for n in range(1000)
    )
    assert taken == 10 * WAYS
    assert accounts.charge("fresh", NOW) > accounts.policy.tolerance
    assert accounts.charge("fresh", NOW + 60 * SECOND) == accounts.policy.cost


def test_who_is_paid_off_makes_room_and_who_is_not_is_remembered() -> None:
    memory = SharedMemory(1, WAYS)
    accounts = Accounts(share(memory), per_minute(10))
    heavy = Reference(accounts.policy)
    for n in range(100):  # the light ones cost six seconds each: at most six are in debt
        now = NOW + n * SECOND
        assert accounts.charge(f"light {n}", now) == accounts.policy.cost
        for _ in range(3):
            assert accounts.charge("heavy", now) == heavy.charge(now)


@pytest.mark.parametrize("used_up", [64, 128, 256])
def test_how_often_a_fresh_client_is_refused_for_others_is_as_said(used_up: int) -> None:
    """P(Poisson(K/S) >= WAYS); here 64 sets, so that it happens at all."""
    rng = seeded(f"crowded {used_up}")
    sets, probes, refused = 64, 0, 0
    for _ in range(8):
        memory = SharedMemory(1, sets * WAYS)
        table = share(memory)
        accounts = Accounts(table, per_minute(1))
        for n in range(used_up):
            accounts.charge(f"heavy {n} {rng.random()}", NOW)
        for n in range(500):
            number, _ = table.where(f"fresh {n} {rng.random()}".encode())
            first = number * WAYS * table.stride
            refused += all(table.arrival(first + way * table.stride) > NOW for way in range(WAYS))
            probes += 1
    expected = crowded(used_up, sets)
    print(f"K/S = {used_up / sets}: {refused / probes:.4%}, said {expected:.4%}")
    # 8 tables of 64 sets: the sets that are full are what is drawn
    assert refused / probes <= expected + 3 * (expected / (8 * sets)) ** 0.5 + 1e-9


def test_the_probabilities_that_are_stated() -> None:
    assert 5e-13 < crowded(1000, 8192) < 2e-12
    assert 3e-5 < crowded(10_000, 8192) < 5e-5
    assert crowded(0, 8192) == 0


def test_collisions_found_with_one_key_are_none_with_another() -> None:
    rng = seeded("keys of tables")
    ours, theirs = (Table.of_this_process(8 * 1024, rng.randbytes(16)) for _ in range(2))
    victim = ours.where(b"victim")[0]
    aimed = [n for n in range(20_000) if ours.where(b"%d" % n)[0] == victim]
    assert len(aimed) > 5
    assert len({theirs.where(b"%d" % n)[0] for n in aimed}) > len(aimed) // 2


def test_who_lost_an_entry_leaves_it_as_its_new_owner_has_it() -> None:
    """A place that a worker remembers can be another's by now; its tag is no charge of theirs."""
    rng = seeded("entries that change their owner")
    policy = per_minute(10)
    for trial in range(200):
        memory = SharedMemory(3, WAYS)
        one, other, third = (Accounts(share(memory, index), policy) for index in range(3))
        for _ in range(rng.randint(1, 3)):
            one.charge("a", NOW)
        owners = [f"{trial} {n}" for n in range(WAYS)]
        now = NOW + 60 * SECOND  # the first one is paid off, and makes room
        for owner in owners:
            assert other.charge(owner, now) == policy.cost
        assert one.charge("a", now) == 2 * policy.cost  # where the debt is least
        at_most = sorted(third.charge(owner, now) for owner in owners)
        assert at_most[0] >= 2 * policy.cost
        assert at_most[-1] <= 4 * policy.cost


def test_owners_of_one_name_are_one_account_in_every_worker() -> None:
    """Two addresses of one /64: what one has begun the other must not take for older."""
    rng = seeded("owners of one name")
    memory, policy = SharedMemory(3, 64), Policy("client", 10, 1.0, 7)
    workers = [Accounts(share(memory, index), policy, lambda owner: b"one") for index in range(2)]
    reference, now = Reference(policy), NOW
    for _ in range(5000):
        now += int(rng.expovariate(1 / (rng.choice((0.02, 1.0)) * SECOND)))
        owner = f"address {rng.randrange(5)}"
        assert rng.choice(workers).charge(owner, now) == reference.charge(now)


# over processes


@FENCES
def test_processes_that_race_let_through_the_exact_number(fence: Fence | None) -> None:
    """Between burst + rate x time, and as many more as there are other workers (rule 1 and 2)."""
    workers, seconds = 4, 1.0
    # the burst outlasts what the machine may do meanwhile instead of running any of them
    policy = Policy("client", 1000, 1.0, 1000)
    memory, words = SharedMemory(workers, 64), shared_words(workers)
    begun = time.monotonic_ns() + SECOND // 2  # by then all have been forked

    def hammer(index: int) -> Callable[[], None]:
        def run() -> None:
            accounts = Accounts(share(memory, index, fence), policy)
            while time.monotonic_ns() < begun:
                pass
            end, got, now = begun + int(seconds * SECOND), 0, begun
            while now < end:
                now = time.monotonic_ns()
                got += accounts.charge("a", now) <= policy.tolerance
            words[index] = got

        return run

    with forked(*(hammer(index) for index in range(workers))) as children:
        assert [ended(pid) for pid in children] == [0] * workers
    took = (time.monotonic_ns() - begun) / SECOND
    print(f"{sum(words)} through; {policy.burst} + 1000 x {seconds}..{took:.3f} s")
    assert sum(words) <= policy.burst + 1000 * took + workers - 1
    assert sum(words) >= policy.burst + 1000 * seconds * 0.97  # the last look is before the end


def race_for_fresh_accounts(fence: Fence | None) -> int:
    """Check the bounds; return of how many accounts more than one worker had a part."""
    workers, owners, burst = 2, 3000, 3
    if os.environ.get("PROVE") == "long":
        owners *= 20
    policy = Policy("client", 1000, 60.0, burst)
    memory = SharedMemory(workers, 8192)
    passed, place = shared_words(workers * owners), shared_words(workers)

    def hammer(index: int) -> Callable[[], None]:
        def run() -> None:
            accounts = Accounts(share(memory, index, fence), policy)
            until = time.monotonic() + 60
            for number in range(owners):
                accounts._find(str(number))
                place[index] = number + 1
                spins = 0
                while min(place) <= number:  # both at the same one
                    assert time.monotonic() < until
                    spins += 1
                    if spins > 500:  # the other is not running
                        os.sched_yield()
                passed[workers * number + index] = sum(
                    accounts.charge(str(number), NOW + number * SECOND) <= policy.tolerance
                    for _ in range(burst + 1)
                )

        return run

    with forked(*(hammer(index) for index in range(workers))) as children:
        assert [ended(pid) for pid in children] == [0] * workers
    found = Counter(sum(passed[at : at + workers]) for at in range(0, len(passed), workers))
    mixed = sum(
        sum(count > 0 for count in passed[at : at + workers]) > 1
        for at in range(0, len(passed), workers)
    )
    print(f"{dict(found)} of {owners} accounts; of {mixed} more than one worker had a part")
    assert burst <= min(found)
    assert max(found) <= burst + workers - 1
    return mixed


@FENCES
def test_accounts_that_are_fresh_when_processes_race_for_them(fence: Fence | None) -> None:
    """The hard case of rule 1: who begins an account, while others charge it already.

    Time stands still, so exactly the burst gets through, but for one for each other worker. A
    machine that lets them run only one after the other is given more chances.
    """
    assert any(race_for_fresh_accounts(fence) for _ in range(5))


def test_what_a_killed_worker_has_charged_stays_and_its_successor_goes_on() -> None:
    policy = per_minute(1000, 20_000)
    memory, words = SharedMemory(3, 64), shared_words(1)

    def hammer() -> None:
        accounts = Accounts(share(memory, 1), policy)
        while True:
            words[0] += accounts.charge("a", NOW) <= policy.tolerance

    rng = seeded("kills of who charges")
    survivor = Accounts(share(memory, 0), policy)
    got = 0
    for _ in range(10):  # at any instruction
        with forked(hammer) as (pid,):
            time.sleep(rng.uniform(0.001, 0.01))
            os.kill(pid, signal.SIGKILL)
            assert ended(pid) == -signal.SIGKILL
        memory.fold(1)
        got += survivor.charge("a", NOW) <= policy.tolerance
    while survivor.charge("a", NOW) <= policy.tolerance:
        got += 1
    print(f"{words[0]} by workers that were killed, {got} by the one that was not")
    # a kill can leave one charge for a request that never went on, or was not counted here
    assert policy.burst - 10 <= got + words[0] <= policy.burst + 10


def test_a_process_that_is_stopped_with_the_lock_holds_up_nobody() -> None:
    memory = SharedMemory(2, WAYS)  # one set: everybody's
    ready = shared_words(1)

    def hold() -> None:
        KernelLock(memory.fd, BYTE).acquire()
        ready[0] = 1
        os.kill(os.getpid(), signal.SIGSTOP)

    accounts = Accounts(share(memory, 0), per_minute(5))
    assert accounts.charge("known", NOW) <= accounts.policy.tolerance
    with forked(hold) as (pid,):
        until = time.monotonic() + 5
        while not ready[0]:
            assert time.monotonic() < until
        begun = time.monotonic()
        if accounts._table.fence is not None:
            got = [accounts.charge("known", NOW) <= accounts.policy.tolerance for _ in range(8)]
            assert got == [True] * 4 + [False] * 4
        assert accounts.charge("new", NOW) == UNCOUNTED  # rule 5
        assert time.monotonic() - begun < 1
        os.kill(pid, signal.SIGKILL)
        ended(pid)
    assert accounts.charge("new", NOW) == accounts.policy.cost


class Held:
    """A lock that is to be had after so many naps, and the clock of who naps."""

    def __init__(self, naps: float) -> None:
        self.left, self.naps, self.now = naps, 0, 50.0
        self.mutex = threading.Lock()

    def acquire(self) -> bool:
        return self.left <= 0

    def release(self) -> None: ...

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert not self.mutex.locked()  # threads of the process go on
        self.naps, self.left, self.now = self.naps + 1, self.left - 1, self.now + seconds


@FENCES
def test_a_lock_whose_holder_is_off_its_core_is_waited_for_in_bounded_time(
    fence: Fence | None,
) -> None:
    held = Held(naps=7)
    sets = 8
    table = Table(
        memoryview(bytearray(8 * 3 * WAYS * sets)).cast("Q"), WAYS * sets, 1, 0,
        fence=fence, lock=lambda _: held, key=b"k", tries=Patience(held.clock, held.sleep).tries,
    )  # fmt: skip
    held.mutex = table.mutex
    accounts = Accounts(table, per_minute(2))
    by_set: dict[int, list[str]] = {}
    for name in map(str, range(200)):
        by_set.setdefault(table.where(accounts.policy.key + name.encode())[0], []).append(name)
    one, other = by_set[0], by_set[1]
    assert accounts.charge(one[0], NOW) == accounts.policy.cost
    assert held.naps == 7
    held.left = float("inf")
    assert accounts.charge(one[1], NOW) == UNCOUNTED
    assert held.now - 50 < 2 * PATIENCE
    naps = held.naps
    assert {accounts.charge(name, NOW) for name in one[1:]} == {UNCOUNTED}
    assert held.naps == naps  # it was in vain
    held.left = 2
    assert accounts.charge(other[0], NOW) == accounts.policy.cost  # another lock is waited for
    assert held.naps == naps + 2
    held.now += HURRIED
    held.left = 3
    assert accounts.charge(one[1], NOW) == accounts.policy.cost
    assert held.naps == naps + 5


def test_a_worker_waits_for_a_lock_whose_holder_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, words = SharedMemory(2, WAYS), shared_words(2)  # held, to be let go of

    def hold() -> None:
        lock = KernelLock(memory.fd, ACCOUNTS_BYTE)
        assert lock.acquire()
        words[0] = 1
        while not words[1]:
            os.sched_yield()
        lock.release()
        words[0] = 0

    def reached(held: int) -> None:
        until = time.monotonic() + 10
        while words[0] != held:
            assert time.monotonic() < until
            os.sched_yield()

    def nap(seconds: float) -> None:
        words[1] = 1
        reached(0)

    monkeypatch.setattr("fluxor_fast.server.worker.time.sleep", nap)
    table = Worker(Settings(), memory, 0, App())._accounts()
    assert table is not None
    with forked(hold):
        reached(1)
        accounts = Accounts(table, per_minute(2))
        assert accounts.charge("a", NOW) == accounts.policy.cost
