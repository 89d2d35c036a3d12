"""``arbiter.health``: who is ended for silence, and who is not."""

from __future__ import annotations

from fluxor_fast.arbiter.health import Verdict, Watch
from fluxor_fast.arbiter.shared import State

WELL, ASK, WAIT, END = Verdict


def watch() -> Watch:
    return Watch(0.0, heartbeat_timeout=2.0, boot_timeout=5.0)


def test_a_loop_that_beats_is_well_however_long_it_lives() -> None:
    one = watch()
    assert {one.look(at / 10, State.READY, at // 5, 0) for at in range(1, 1000)} == {WELL}


def test_a_silent_loop_is_asked_for_its_stacks_and_ended_when_they_are_complete() -> None:
    one = watch()
    looks = [(0.5, 0), (1.4, 0), (2.4, 0), (2.6, 0), (2.7, 0), (2.8, 100), (2.9, 300), (3.0, 300)]
    assert [one.look(at, State.READY, 7, dumped) for at, dumped in looks] == [
        WELL, WELL, WELL, ASK, WAIT, WAIT, WAIT, END,
    ]  # fmt: skip
    assert one.reason == "had a silent event loop for 2.5 s"


def test_who_gives_no_stacks_is_ended_after_a_second() -> None:
    one = watch()
    verdicts = [one.look(at / 10, State.READY, 7, 0) for at in range(1, 40)]
    assert verdicts.count(ASK) == 1
    assert verdicts.index(END) - verdicts.index(ASK) == 10


def test_who_comes_back_while_it_is_asked_is_spared() -> None:
    one = watch()
    verdicts = [one.look(at / 10, State.READY, at >= 25, 0) for at in range(1, 35)]
    assert ASK in verdicts
    assert END not in verdicts
    assert verdicts[-1] is WELL


def test_after_all_stood_still_together_nobody_is_blamed() -> None:
    one = watch()
    assert one.look(0.1, State.READY, 7, 0) is WELL
    assert one.look(3600.0, State.READY, 7, 0) is WELL
    assert one.look(3600.1, State.READY, 8, 0) is WELL


def test_nor_is_anybody_where_the_timeout_is_the_least_and_a_heartbeat_was_due() -> None:
    one = Watch(0.0, heartbeat_timeout=1.0, boot_timeout=5.0)
    looks = [(0.1, 7), (0.2, 7), (0.3, 7), (0.4, 7), (0.5, 7), (60.0, 7), (60.1, 7), (60.2, 8)]
    assert {one.look(at, State.READY, beat, 0) for at, beat in looks} == {WELL}


def test_a_start_has_a_limit_of_its_own() -> None:
    one = watch()
    verdicts = [one.look(at / 10, State.BOOTING, 7, 0) for at in range(1, 60)]
    assert verdicts.index(ASK) == 50
    assert "was not ready after 5.1 s" in one.reason or one.reason.startswith("was not ready")
    assert one.look(6.0, State.READY, 8, 0) is WELL  # it made it after all


def test_a_worker_that_drains_is_watched_too() -> None:
    one = watch()
    assert END in [one.look(at / 10, State.DRAINING, 7, 0) for at in range(1, 40)]
