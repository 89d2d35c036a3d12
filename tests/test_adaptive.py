"""The adaptive limit: its rules one by one, what holds for any input, and closed simulations.

The simulated service has 40 servers and a service time of 40 ms: 1,000 requests a second. It is
fed by an open loop of Poisson arrivals and looked at every 250 ms. What was measured with it,
over many seeds, exponential, constant and lognormal service times, from a ceiling of 3350:

- cold start into overload: waiting is bounded after 5 to 15 s, the longer the milder it is,
- capacity halved (servers lost, or each slower): at once where the limit was pressed already;
  12 s where it stood at the ceiling, most of which the queue takes to drain,
- capacity back: at once, 5 s at worst.
"""

from __future__ import annotations

import heapq
import math
import statistics
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxor_fast.arbiter.adaptive import AdaptiveLimit, AdaptiveSettings, Look
from fluxor_fast.arbiter.shared import BOUNDS, SHED_REASONS, SharedMemory, Word
from tests.support.seeds import examples, seeded

CEILING = 3350
SETTINGS = AdaptiveSettings(ceiling=CEILING)
LOOK = 0.25
SIZE = len(BOUNDS) + 1


def look(latency: float, *, ccu: int, count: int = 500, shed: int = 0) -> Look:
    buckets = [0] * SIZE
    buckets[bisect_left(BOUNDS, latency)] = count
    return Look(count, round(latency * count * 1e6), buckets, ccu, shed)


class Driver:
    """A controller, its clock, and looks at equal distances."""

    def __init__(self, settings: AdaptiveSettings = SETTINGS) -> None:
        self.now = 100.0
        self.control = AdaptiveLimit(settings, self.now)

    def feed(self, what: Look, times: int = 1) -> list[int]:
        limits = []
        for _ in range(times):
            self.now += LOOK
            limits.append(self.control.update(what, self.now))
        return limits


def lowered() -> Driver:
    """Return one whose limit has come down, without a probe, and whose baseline is 20 ms."""
    driver = Driver()
    driver.feed(look(0.02, ccu=100))
    limits = driver.feed(look(0.2, ccu=CEILING), 16)
    assert 200 < limits[-1] < 500
    return driver


# the rules


def test_starts_at_the_ceiling_and_stays_there_while_latency_is_good() -> None:
    driver = Driver()
    assert driver.control.limit == CEILING
    assert set(driver.feed(look(0.02, ccu=2000), 50)) == {CEILING}
    assert driver.control.baseline == pytest.approx(0.02)


def test_latency_beyond_tolerance_lowers_the_limit_down_to_the_floor() -> None:
    driver = Driver()
    driver.feed(look(0.02, ccu=100))
    limits = driver.feed(look(0.2, ccu=CEILING), 100)
    assert limits == sorted(limits, reverse=True)
    steps = [b / a for a, b in pairwise(limits)]
    assert min(steps) >= 0.84, "by 15 % a window at most"
    assert limits[-1] <= 35  # where the queue allowance holds against the cut


@pytest.mark.parametrize("floor", [20, 300])
def test_the_floor_holds(floor: int) -> None:
    driver = Driver(replace(SETTINGS, floor=floor, queue=lambda limit: 0.0))
    driver.feed(look(0.02, ccu=100))
    assert min(driver.feed(look(2.0, ccu=CEILING, shed=9), 200)) == floor


def test_settles_where_latency_is_tolerance_times_baseline() -> None:
    driver = Driver(replace(SETTINGS, queue=lambda limit: 0.0))
    driver.feed(look(0.02, ccu=100))
    limit = CEILING
    for _ in range(100):  # saturated at 5,000 a second: latency is limit / rate
        (limit,) = driver.feed(look(limit / 5000, ccu=limit))
    assert limit == pytest.approx(2 * 0.02 * 5000, rel=0.02)


def test_good_latencies_raise_it_when_it_presses_and_within_seconds() -> None:
    driver = lowered()
    limits = driver.feed(look(0.02, ccu=3000), 16)
    assert limits[-1] == CEILING


@pytest.mark.parametrize("shed", [0, 1000])
def test_does_not_grow_when_less_than_half_is_used(shed: int) -> None:
    driver = lowered()
    limit = driver.control.limit
    assert set(driver.feed(look(0.02, ccu=limit // 2 - 1, shed=shed), 40)) == {limit}


def test_a_queue_that_builds_up_lowers_an_unused_limit_to_twice_what_is_used() -> None:
    driver = Driver()
    driver.feed(look(0.02, ccu=100))
    limits = driver.feed(look(0.3, ccu=600), 40)
    assert 1200 in limits, "from there on it presses, and the gradient alone decides"
    driver = Driver()
    driver.feed(look(0.02, ccu=100))
    assert set(driver.feed(look(0.3, ccu=300), 50)) == {CEILING}, "so few prove nothing"


def test_few_samples_change_nothing() -> None:
    driver = lowered()
    limit = driver.control.limit
    few = look(0.02, ccu=limit, count=2, shed=100)
    assert set(driver.feed(few, 100)) == {limit}


def test_samples_of_several_looks_make_a_window() -> None:
    driver = Driver()
    driver.feed(look(0.02, ccu=100))
    limits = driver.feed(look(0.1, ccu=CEILING, count=7), 3)
    assert limits[:2] == [CEILING, CEILING]
    assert limits[2] < CEILING


def test_sheds_alone_change_nothing() -> None:
    driver = lowered()
    limit = driver.control.limit
    refusals = Look(0, 0, [0] * SIZE, limit, 10_000)
    assert set(driver.feed(refusals, 100)) == {limit}


def test_a_window_lasts_as_long_as_a_request() -> None:
    driver = Driver()
    driver.feed(look(1.0, ccu=100))  # the first: this is the baseline, and the lag from here
    limits = driver.feed(look(5.0, ccu=CEILING), 4)
    assert limits[:3] == [CEILING] * 3
    assert limits[3] < CEILING


def test_a_few_very_long_requests_do_not_count() -> None:
    driver = Driver()
    driver.feed(look(0.02, ccu=100))
    buckets = [0] * SIZE
    buckets[bisect_left(BOUNDS, 0.02)] = 95
    buckets[-1] = 5
    mixed = Look(100, round(1e6 * (95 * 0.02 + 5 * 100)), buckets, 2000, 0)
    assert set(driver.feed(mixed, 20)) == {CEILING}


def test_waits_below_the_least_baseline_are_no_overload() -> None:
    driver = Driver()
    driver.feed(look(0.00005, ccu=10))
    assert set(driver.feed(look(0.009, ccu=3000), 20)) == {CEILING}


def test_the_baseline_falls_at_once_and_rises_slowly_and_only_when_unused() -> None:
    driver = Driver()
    driver.feed(look(0.1, ccu=100))
    driver.feed(look(0.02, ccu=100), 30)
    assert driver.control.baseline == pytest.approx(0.02, rel=0.01)
    driver.feed(look(0.2, ccu=100), 40)  # ten seconds
    assert 0.02 < (driver.control.baseline or 0) < 0.025
    before = driver.control.baseline
    driver.feed(look(0.2, ccu=CEILING), 400)
    assert driver.control.baseline == before


def test_a_probe_raises_the_baseline_when_latency_is_the_services_own() -> None:
    driver = lowered()
    driver.feed(look(0.2, ccu=400, shed=10), 40)
    assert driver.control.baseline == pytest.approx(0.2, rel=0.01)


def test_a_probe_doubts_one_measurement_fourfold_at_most() -> None:
    driver = lowered()
    before = driver.control.baseline or 0.0
    driver.feed(look(2.0, ccu=400, shed=10), 10)
    assert driver.control.baseline in (before, pytest.approx(4 * before))


def test_no_probe_without_sheds() -> None:
    driver = lowered()
    before = driver.control.baseline
    driver.feed(look(0.2, ccu=400), 400)
    assert driver.control.baseline == before


def test_a_probe_without_samples_is_given_up() -> None:
    driver = lowered()
    level = driver.feed(look(0.2, ccu=400))[0]
    probe = driver.feed(look(0.2, ccu=400, shed=10))[0]
    assert probe < level / 2
    limits = driver.feed(Look(0, 0, [0] * SIZE, 400, 10), 60)
    assert limits[-1] == pytest.approx(level, rel=0.16)


def test_looks_come_from_the_shared_memory() -> None:
    memory = SharedMemory(2)
    before = memory.totals()
    for index in range(2):
        region = memory.region(index)
        region[Word.COMPLETED] = 10
        region[Word.DURATION_US] = 5_000
        region[Word.BUCKETS + 3] = 9
        region[Word.BUCKETS + SIZE - 1] = 1
        for reason in range(len(SHED_REASONS)):
            region[Word.SHED + reason] = 1
    seen = Look.between(before, memory.totals(), 7)
    assert (seen.completed, seen.duration_us, seen.ccu, seen.shed) == (
        20,
        10_000,
        7,
        2 * len(SHED_REASONS),
    )
    assert (seen.buckets[3], seen.buckets[-1], sum(seen.buckets)) == (18, 2, 20)
    back = Look.between(memory.totals(), before, 0)
    assert (back.completed, back.duration_us, sum(back.buckets), back.shed) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"floor": 0},
        {"floor": CEILING + 1},
        {"tolerance": 0.9},
        {"smoothing": 0.0},
        {"smoothing": 1.1},
        {"min_samples": 0},
        {"window": 0.0},
        {"window": 3.0},
        {"least_baseline": 0.0},
        {"probe_again": 31.0},
        {"tolerance": math.nan},
    ],
)
def test_settings_that_contradict_one_another_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must hold"):
        replace(SETTINGS, **wrong)


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        SETTINGS.floor = 1  # type: ignore[misc]


# for any input

COUNTS = st.integers(0, 2**63)
LOOKS = st.builds(
    Look,
    completed=COUNTS | st.just(0),
    duration_us=COUNTS | st.just(0),
    buckets=st.lists(st.integers(0, 10**6), min_size=SIZE, max_size=SIZE) | st.just([0] * SIZE),
    ccu=st.integers(0, 10_000),
    shed=st.integers(0, 10_000),
)
PLAUSIBLE = st.builds(
    look,
    st.floats(1e-6, 200),
    ccu=st.integers(0, 10_000),
    count=st.integers(0, 5000),
    shed=st.integers(0, 100),
)
PAUSES = st.floats(0, 100) | st.just(LOOK)


@examples(150)
@given(
    st.lists(st.tuples(LOOKS | PLAUSIBLE, PAUSES), max_size=40),
    st.integers(1, 500),
    st.integers(0, 4000),
)
def test_always_within_floor_and_ceiling_and_deterministic(
    steps: list[tuple[Look, float]], floor: int, above: int
) -> None:
    settings = AdaptiveSettings(floor=floor, ceiling=floor + above)
    first, second = AdaptiveLimit(settings, 0.0), AdaptiveLimit(settings, 0.0)
    now = 0.0
    for what, pause in steps:
        now += pause
        limit = first.update(what, now)
        assert type(limit) is int
        assert floor <= limit <= floor + above
        assert limit == first.limit == second.update(what, now)


@examples(100)
@given(st.lists(PLAUSIBLE, max_size=40), st.integers(0, 10_000), st.integers(0, 10_000))
def test_never_raised_without_answers(looks: list[Look], ccu: int, shed: int) -> None:
    driver = Driver()
    for what in looks:
        driver.feed(what)
    # what answers came before may still be judged once, and a probe under way be ended
    driver.feed(Look(0, 0, [0] * SIZE, ccu, shed), 40)
    limit = driver.control.limit
    assert set(driver.feed(Look(0, 0, [0] * SIZE, ccu, shed), 40)) == {limit}


# in a closed loop

SERVICE = 0.04
RATE = 1000.0
PHASE = 25.0  # seconds before, during and after the change
COLD, HALVED, BACK = 15.0, 12.0, 5.0  # seconds until all is well again: as measured, the longest

Curve = Callable[[float], float]


@dataclass
class Run:
    """What a simulation showed."""

    answers: list[tuple[float, float, float]]  # when, waited, service time
    limits: list[tuple[float, int]]

    def rate(self, start: float, end: float) -> float:
        return sum(start <= when < end for when, _, _ in self.answers) / (end - start)

    def waited(self, start: float, end: float) -> float:
        """Return the 95th percentile of the waiting time."""
        times = sorted(waited for when, waited, _ in self.answers if start <= when < end)
        return times[int(0.95 * len(times))]

    def published(self, start: float, end: float) -> list[int]:
        return [limit for when, limit in self.limits if start <= when < end]


def simulate(
    name: str,
    load: float,
    seconds: float = PHASE,
    *,
    control: AdaptiveLimit | None = None,
    spread: str = "exponential",
    servers: Curve = lambda t: 40,
    slower: Curve = lambda t: 1.0,
) -> Run:
    """Run a queue in front of servers under the limit; ``load`` is a multiple of capacity."""
    rng = seeded(name)
    run = Run([], [])
    draw: Callable[[float], float] = {
        "exponential": lambda mean: rng.expovariate(1 / mean),
        "constant": lambda mean: mean,
        "lognormal": lambda mean: mean * rng.lognormvariate(-0.5, 1.0),
    }[spread]
    system: list[tuple[float, float, float]] = []  # end, waited, service time
    free = [0.0] * int(servers(0.0))  # when each server is next free
    rate = load * servers(0.0) / SERVICE
    limit, next_look, now = CEILING, LOOK, 0.0
    buckets, done, duration, shed = [0] * SIZE, 0, 0.0, 0
    while now < seconds:
        now += rng.expovariate(rate)
        while True:
            if system and system[0][0] <= min(now, next_look):
                end, waited, service = answer = heapq.heappop(system)
                run.answers.append(answer)
                buckets[bisect_left(BOUNDS, waited + service)] += 1
                done += 1
                duration += waited + service
            elif next_look <= now:
                what = Look(done, int(duration * 1e6), buckets, len(system), shed)
                if control is not None:
                    limit = control.update(what, next_look)
                run.limits.append((next_look, limit))
                buckets, done, duration, shed = [0] * SIZE, 0, 0.0, 0
                next_look += LOOK
            else:
                break
        if len(system) >= limit:
            shed += 1
            continue
        while len(free) < servers(now):
            heapq.heappush(free, now)
        while len(free) > servers(now):
            heapq.heappop(free)
        start = max(now, heapq.heappop(free))
        service = draw(SERVICE * slower(now))
        end = start + service
        heapq.heappush(free, end)
        heapq.heappush(system, (end, start - now, service))
    return run


def adaptive() -> AdaptiveLimit:
    return AdaptiveLimit(SETTINGS, 0.0)


def test_a_static_limit_lets_everyone_wait() -> None:
    """What the adaptive one is compared with."""
    assert simulate("static", 1.5).waited(15, 20) > 50 * SERVICE


@pytest.mark.parametrize("load", [0.5, 0.9])
def test_without_overload_nothing_is_refused(load: float) -> None:
    run = simulate(f"calm {load}", load, control=adaptive())
    assert set(run.published(0, PHASE)) == {CEILING}
    assert run.rate(1, PHASE) == pytest.approx(load * RATE, rel=0.05)


@pytest.mark.parametrize("spread", ["exponential", "constant", "lognormal"])
@pytest.mark.parametrize("load", [1.1, 1.5, 4.0])
def test_finds_a_limit_under_overload_from_the_start(load: float, spread: str) -> None:
    run = simulate(f"cold {load} {spread}", load, COLD + 20, control=adaptive(), spread=spread)
    assert run.rate(COLD, COLD + 20) >= 0.95 * RATE
    assert run.waited(COLD, COLD + 20) <= 4 * SERVICE


@pytest.mark.parametrize("how", ["servers", "slower"])
@pytest.mark.parametrize("load", [0.9, 1.5, 3.0])
def test_follows_capacity_down_and_back(load: float, how: str) -> None:
    def halved(now: float) -> bool:
        return PHASE <= now < 2 * PHASE

    run = simulate(
        f"halved {load} {how}",
        load,
        3 * PHASE,
        control=adaptive(),
        servers=lambda now: 20 if how == "servers" and halved(now) else 40,
        slower=lambda now: 2.0 if how == "slower" and halved(now) else 1.0,
    )
    service = SERVICE * (2 if how == "slower" else 1)
    assert run.rate(PHASE + HALVED, 2 * PHASE) >= 0.9 * RATE / 2
    assert run.waited(PHASE + HALVED, 2 * PHASE) <= 4 * service
    assert run.rate(2 * PHASE + BACK, 3 * PHASE) >= 0.95 * RATE * min(load, 1)
    # what was learned of a slower service is doubted by the next probe only
    assert run.waited(2 * PHASE + BACK, 3 * PHASE) <= 4 * service


def test_a_service_ten_times_slower_is_not_strangled() -> None:
    """A baseline that could not rise would leave a tenth of the servers at work."""
    run = simulate(
        "ten times",
        2.0,
        60,
        control=adaptive(),
        slower=lambda now: 10.0 if now >= 20 else 1.0,
    )
    assert run.rate(40, 60) >= 0.9 * RATE / 10
    assert run.waited(40, 60) <= 6 * 10 * SERVICE


@pytest.mark.parametrize(("load", "swing"), [(1.1, 2.0), (1.5, 1.65), (3.0, 1.65)])
def test_stands_still_between_probes_and_does_not_drift(load: float, swing: float) -> None:
    """The bound on oscillation: this factor around the median, between probes, for minutes."""
    control = AdaptiveLimit(replace(SETTINGS, floor=10), 0.0)
    run = simulate(f"steady {load}", load, 150, control=control, servers=lambda t: 20)
    early, late = run.published(30, 90), run.published(90, 150)
    assert statistics.median(late) == pytest.approx(statistics.median(early), rel=0.4)
    assert control.baseline == pytest.approx(SERVICE, rel=0.6)
    median = statistics.median(early + late)
    between = [limit for limit in early + late if limit >= median / swing]
    assert max(between) <= median * swing
    assert len(between) >= 0.94 * len(early + late), "the others are probes"
    assert run.waited(90, 150) <= 4 * SERVICE
    assert run.rate(30, 150) >= 0.95 * RATE / 2
