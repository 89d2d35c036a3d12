"""The queue by itself, with a clock of its own: order, deadlines, standing overload."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fluxor_fast.server.queueing import WaitingQueue


class Waiting:
    """Of a request what a queue looks at."""

    def __init__(self, arrived: float) -> None:
        self.arrived = arrived
        self.queued = True


class Clocked:
    """A queue that is worked on in steps of a millisecond."""

    def __init__(self, deadline: float = 1.0, target: float = 0.005, interval: float = 0.1) -> None:
        self.queue = WaitingQueue(deadline, target, interval)
        self.now = 0.0
        self.shed: list[tuple[float, float, str]] = []  # when, arrived, reason
        self.served: list[tuple[float, float]] = []  # when, arrived

    def arrive(self, count: int = 1) -> list[Any]:
        made: list[Any] = [Waiting(self.now) for _ in range(count)]
        self.queue.requests.extend(made)
        return made

    def step(self, serve: int, seconds: float = 0.001) -> None:
        for request, reason in self.queue.overdue(self.now):
            request.queued = False
            self.shed.append((self.now, request.arrived, reason))
        done = 0
        requests = self.queue.requests
        while done < serve and requests:
            request = requests.pop() if self.queue.standing else requests.popleft()
            if not request.queued:
                self.queue.gone -= 1
                continue
            request.queued = False
            self.served.append((self.now, request.arrived))
            done += 1
        self.queue.served(done, self.now)
        self.now += seconds

    def run(self, steps: int, arrivals: int, serve: int) -> None:
        for _ in range(steps):
            self.arrive(arrivals)
            self.step(serve)


def test_first_in_first_out_while_it_keeps_up() -> None:
    clocked = Clocked()
    clocked.run(300, 2, 2)
    assert [arrived for _, arrived in clocked.served] == sorted(a for _, a in clocked.served)
    assert clocked.shed == []
    assert not clocked.queue.standing


def test_a_burst_is_not_overload() -> None:
    clocked = Clocked()
    clocked.arrive(80)  # 80 ms of work at once
    clocked.run(90, 0, 1)
    assert clocked.shed == []
    assert len(clocked.served) == 80
    assert [w for w, _ in clocked.served] == sorted(w for w, _ in clocked.served)


def test_a_standing_queue_is_cut_to_twice_the_target_and_the_newest_goes_first() -> None:
    clocked = Clocked()
    clocked.run(1000, 2, 1)  # twice what is served
    assert clocked.queue.standing
    late = [(when, arrived) for when, arrived in clocked.served if when > 0.2]
    assert len(late) > 790  # nothing of the capacity is lost
    assert max(when - arrived for when, arrived in late) <= 0.010 + 1e-9
    assert {reason for when, _, reason in clocked.shed if when > 0.2} == {"codel"}
    assert len(clocked.queue) <= 20


def test_it_stands_until_the_oldest_has_waited_little_for_an_interval() -> None:
    clocked = Clocked()
    clocked.run(300, 2, 1)
    assert clocked.queue.standing
    clocked.run(5, 0, 10)  # empty for a moment
    assert clocked.queue.standing
    before = len(clocked.shed)
    clocked.run(200, 1, 1)
    assert not clocked.queue.standing
    assert len(clocked.shed) == before


def test_a_target_of_zero_is_first_in_first_out_with_deadlines() -> None:
    clocked = Clocked(deadline=0.05, target=0.0)
    clocked.run(500, 2, 1)
    assert not clocked.queue.standing
    assert {reason for _, _, reason in clocked.shed} == {"deadline"}
    waits = [when - arrived for when, arrived in clocked.served]
    assert max(waits) <= 0.05 + 1e-9


def test_a_shorter_deadline_of_ones_own_counts_wherever_one_stands() -> None:
    clocked = Clocked(deadline=10.0, target=0.0)
    first, hurried, last = clocked.arrive(3)
    clocked.queue.hasten(hurried, 0.02)
    clocked.run(19, 0, 0)
    assert clocked.shed == []
    clocked.run(5, 0, 0)
    assert [(arrived, reason) for _, arrived, reason in clocked.shed] == [(0.0, "deadline")]
    assert not hurried.queued
    assert len(clocked.queue) == 2
    clocked.run(1, 0, 5)
    assert len(clocked.served) == 2
    assert len(clocked.queue) == 0
    assert first.queued is last.queued is False


def test_who_was_served_is_not_kept_until_its_own_deadline() -> None:
    """It was, with its body, for as long as a client said that it would wait."""
    clocked = Clocked(deadline=10)
    for _ in range(3):
        for hurried in clocked.arrive(5):
            clocked.queue.hasten(hurried, 9.0)
        clocked.step(5)
        assert clocked.queue._early == []
    clocked.arrive(10)  # nor while others wait, beyond twice as many
    for _ in range(100):
        for hurried in clocked.arrive(1):
            clocked.queue.hasten(hurried, 9.0)
        clocked.step(1)
        assert len(clocked.queue._early) <= 2 * 11


def test_who_went_away_does_not_wait_and_is_swept_out() -> None:
    clocked = Clocked(target=0.0)
    made = clocked.arrive(200)
    for request in made[:150]:
        request.queued = False
        clocked.queue.dropped()
    assert len(clocked.queue) == 50
    assert len(clocked.queue.requests) < 150  # dead entries are bounded
    clocked.run(1, 0, 100)
    assert len(clocked.served) == 50


def test_the_wait_is_known_from_the_rate_at_which_others_leave() -> None:
    clocked = Clocked(deadline=10.0, target=0.0)
    assert clocked.queue.wait == 0.0  # nothing is known yet
    clocked.arrive(1000)
    clocked.run(500, 0, 1)  # a thousand a second
    assert 0.4 < clocked.queue.wait < 0.6


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.booleans()), max_size=400))
def test_everyone_leaves_exactly_once(steps: list[tuple[int, int, bool]]) -> None:
    """Invariant: arrived = served + shed + gone + waiting, whatever happens."""
    clocked = Clocked(deadline=0.05)
    arrived = gone = 0
    for arrivals, serve, leaves in steps:
        made = clocked.arrive(arrivals)
        arrived += arrivals
        if leaves and made:
            made[0].queued = False
            clocked.queue.dropped()
            gone += 1
        clocked.step(serve)
        assert arrived == len(clocked.served) + len(clocked.shed) + gone + len(clocked.queue)
    clocked.run(60, 0, 0)  # past every deadline
    clocked.run(1, 0, 0)
    assert len(clocked.queue) == 0
