"""The store-buffer litmus test: is the fence one, on this processor, from Python?

Two processes on two cores, each: store to its own word, then load the other's. In one order of
all four steps at least one of them sees the other's store. On x86 a store may still be in its
core's buffer when the later load is done, so that both see the old value: then two workers could
both take the last permit. A full fence between store and load forbids it.

Invariant: with ``full_fence()`` both never see the old value. Without it they may; how often is
reported, for it shows whether this test could see it at all.

Three ways to look, all on the words of ``SharedMemory.permits``:

- *spun*: a spin on shared words brings both to each round together;
- *acquire*: the same, and the code between is ``SharedLimit.acquire`` for the only permit, with
  a lock that is not to be had: both get it exactly if both saw the old value;
- *free-running*: both store 1, 2, 3 … and note what they load, never waiting. Round n of one and
  m of the other saw each other's old value if n loaded less than m and m loaded less than n.
  (T. Melissaris et al., "PerpLE: Improving the Speed and Effectiveness of Memory Consistency
  Testing", MICRO 2020.)

Each on two words of one cache line, which is what few workers have, and *crowded*: on two lines,
after many stores to memory that the other writes as well, so that the store has to wait in the
buffer behind them. ``PROVE=long`` does more rounds; ``-s`` shows the figures.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable

import pytest

from fluxor_fast.arbiter.shared import SharedMemory
from fluxor_fast.server.admission import Fence, SharedLimit, full_fence
from tests.support.forks import ended, forked
from tests.support.seeds import seeded
from tests.support.witness import shared_words

LONG = os.environ.get("PROVE") == "long"
FENCE = full_fence()
CORES = sorted(os.sched_getaffinity(0))
BOUND = 120.0 if LONG else 30.0  # seconds after which a process gives up

pytestmark = [
    pytest.mark.skipif(FENCE is None, reason=f"no fence is known for {platform.machine()}"),
    pytest.mark.skipif(len(CORES) < 2, reason="it takes two cores to race"),
    pytest.mark.timeout(900 if LONG else 120),
]

CROWDED = pytest.mark.parametrize("crowded", [False, True], ids=["plain", "crowded"])
LINE = 8  # words in a cache line
CROWD = 2048  # words written before each store


class NoLock:
    def acquire(self) -> bool:
        return False

    def release(self) -> None:
        raise AssertionError("released, but never got")


def no_fence() -> None: ...


class Setting:
    """What two processes share, and how they meet."""

    def __init__(self, crowded: bool) -> None:
        self.own = (0, LINE) if crowded else (0, 1)  # the words of the two
        self.words = SharedMemory(self.own[1] + 1).permits
        self.crowd = shared_words(CROWD) if crowded else None
        self._places = shared_words(4 * LINE)

    def meet(self, index: int, count: int, deadline: float) -> None:
        """Wait until the other has come as far as ``count`` too."""
        places, other = self._places, 2 * LINE * (1 - index)
        places[2 * LINE * index] = count
        looks = 0
        while places[other] < count:
            looks += 1
            if looks % 2000 == 0:  # the machine is shared: perhaps it waits for this very core
                os.sched_yield()
                assert time.monotonic() < deadline, "the other one does not come"


def on_two_cores(program: Callable[[int], None]) -> None:
    """Run ``program`` with 0 and 1, on a core each."""

    def pinned(index: int) -> Callable[[], None]:
        def run() -> None:
            os.sched_setaffinity(0, {CORES[index]})
            program(index)

        return run

    with forked(pinned(0), pinned(1)) as children:
        assert [ended(pid) for pid in children] == [0, 0]


FILLING = memoryview(bytes(8 * CROWD)).cast("Q")


def spun(rounds: int, fence: Fence | None, crowded: bool) -> int:
    """Return in how many of ``rounds`` both saw the old value."""
    setting = Setting(crowded)
    blind = [shared_words(rounds // 8 + 1).cast("B") for _ in range(2)]
    rngs = [seeded(f"litmus {index}") for index in range(2)]
    lags = [[rng.randint(0, 3) for _ in range(997)] for rng in rngs]

    def program(index: int) -> None:
        words, crowd, saw_nothing, lag = setting.words, setting.crowd, blind[index], lags[index]
        own, other = setting.own[index], setting.own[1 - index]
        deadline = time.monotonic() + BOUND
        for number in range(rounds):
            setting.meet(index, number + 1, deadline)
            for _ in range(lag[number % 997]):
                pass
            if crowd is not None:
                crowd[:] = FILLING
            words[own] = number + 1
            if fence is not None:
                fence()
            if words[other] <= number:
                saw_nothing[number] = 1

    on_two_cores(program)
    return sum(a & b for a, b in zip(*blind, strict=True))


def acquired(rounds: int, fence: Fence, crowded: bool) -> int:
    """Return in how many of ``rounds`` both got the only permit."""
    setting = Setting(crowded)
    got = [shared_words(rounds // 8 + 1).cast("B") for _ in range(2)]

    def program(index: int) -> None:
        crowd, mine = setting.crowd, got[index]
        share = SharedLimit(setting.words, setting.own[index], fence, NoLock())
        deadline = time.monotonic() + BOUND
        for number in range(rounds):
            setting.meet(index, 2 * number + 1, deadline)
            if crowd is not None:
                crowd[:] = FILLING
            mine[number] = share.acquire(1, 1)
            setting.meet(index, 2 * number + 2, deadline)
            share.release(share.held)

    on_two_cores(program)
    assert any(got[0]) or any(got[1])
    return sum(a & b for a, b in zip(*got, strict=True))


def free_running(rounds: int, fence: Fence | None, crowded: bool) -> int:
    """Return how many pairs of rounds saw each other's old value."""
    setting = Setting(crowded)
    seen = [shared_words(rounds + 1) for _ in range(2)]

    def program(index: int) -> None:
        words, crowd, loaded = setting.words, setting.crowd, seen[index]
        own, other = setting.own[index], setting.own[1 - index]
        setting.meet(index, 1, time.monotonic() + BOUND)
        for number in range(1, rounds + 1):
            if crowd is not None:
                crowd[:] = FILLING
            words[own] = number
            if fence is not None:
                fence()
            loaded[number] = words[other]

    on_two_cores(program)
    first, second = seen
    # of the other's rounds that round n did not see, the first one loaded least
    return sum(
        second[first[number] + 1] < number
        for number in range(1, rounds + 1)
        if first[number] < rounds
    )


Look = Callable[[int, Fence | None, bool], int]


@CROWDED
@pytest.mark.parametrize(
    ("look", "rounds"),
    [(spun, 200_000), (acquired, 200_000), (free_running, 400_000)],
    ids=["spun", "acquire", "free-running"],
)
def test_of_two_at_once_one_sees_the_other(look: Look, rounds: int, crowded: bool) -> None:
    if LONG:
        rounds *= 20
    began = time.monotonic()
    how = f"{look.__name__}{', crowded' if crowded else ''}: {rounds} rounds each"
    found = look(rounds, FENCE, crowded)
    empty = look(rounds, no_fence, crowded)
    nothing = ""
    if look is not acquired:  # that works under the lock if there is no fence
        nothing = f"{look(rounds, None, crowded)} times with nothing in between, "
    print(
        f"{how}; both saw the old value {nothing}"
        f"{empty} times with the call of an empty function, {found} times with the fence; "
        f"{time.monotonic() - began:.1f} s"
    )
    assert found == 0
