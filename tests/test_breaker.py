"""``arbiter.breaker``: how soon, and when a seat crash-loops."""

from __future__ import annotations

from fluxor_fast.arbiter.breaker import OPENS_AFTER, RETRY_SECONDS, Backoff, Breaker


def test_a_worker_that_lived_is_replaced_at_once_and_early_deaths_double_the_delay() -> None:
    backoff = Backoff(healthy=5.0, first=0.1, longest=1.0)
    assert [backoff.after(1.0) for _ in range(7)] == [0.0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert backoff.after(6.0) == 0.0  # one that lived makes good
    assert [backoff.after(1.0) for _ in range(3)] == [0.0, 0.1, 0.2]


def test_a_seat_that_crash_loops_is_said_once_and_tried_slowly() -> None:
    breaker = Breaker()
    found = [breaker.died(1, 0.0) for _ in range(OPENS_AFTER + 3)]
    assert [begins for _, begins in found].count(True) == 1
    assert found[OPENS_AFTER - 1] == (RETRY_SECONDS, True)
    assert {delay for delay, _ in found[OPENS_AFTER - 1 :]} == {RETRY_SECONDS}
    assert sum(delay for delay, _ in found[: OPENS_AFTER - 1]) < 2.0
    assert breaker.looping == {1}
    assert breaker.died(0, 0.0) == (0.0, False)  # the other seat's affair


def test_the_word_tells_whether_anybody_serves() -> None:
    breaker = Breaker()
    assert breaker.word(2) == "ok"
    for _ in range(OPENS_AFTER):
        breaker.died(0, 0.0)
    assert breaker.word(1) == "degraded"
    assert breaker.word(0) == "crash-loop"


def test_a_seat_whose_worker_lives_is_forgiven_all() -> None:
    breaker = Breaker()
    for _ in range(OPENS_AFTER):
        breaker.died(0, 0.5)
    assert not breaker.lives(0, 0.9)
    assert breaker.lives(0, 1.0)
    assert not breaker.lives(0, 2.0)  # said once
    assert breaker.word(1) == "ok"
    assert [breaker.died(0, 0.0) for _ in range(2)] == [(0.0, False), (0.1, False)]


def test_a_seat_whose_worker_lived_and_died_unseen_is_forgiven_too() -> None:
    breaker = Breaker()
    for _ in range(OPENS_AFTER):
        breaker.died(0, 0.5)
    assert breaker.died(0, 5.0) == (0.0, False)
    assert not breaker.looping


def test_a_million_early_deaths_are_no_overflow() -> None:
    backoff = Backoff(longest=3.0)
    backoff.early = 10**6
    assert backoff.after(0.0) == 3.0
