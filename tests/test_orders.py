"""Orders: each is settled once, with the outcome of what executed it."""

from __future__ import annotations

from fluxor_fast.arbiter.orders import KEPT, Orders


def test_an_order_is_open_until_what_took_it_has_ended() -> None:
    orders = Orders()
    assert not orders.open
    orders.ask()
    assert orders.outcome(1) is None
    orders.take()
    orders.ask()  # while the first is executed
    orders.settle()
    assert orders.outcome(1) == ""
    assert orders.outcome(2) is None
    assert orders.open
    orders.take()
    orders.settle("broken")
    assert orders.outcome(2) == "broken"
    assert orders.outcome(1) == ""
    assert not orders.open


def test_what_ends_everything_ends_what_was_not_taken() -> None:
    orders = Orders()
    orders.ask()
    orders.settle("the instance stops", everything=True)
    assert orders.outcome(1) == "the instance stops"


def test_outcomes_are_kept_in_bounded_number() -> None:
    orders = Orders()
    for _ in range(10 * KEPT):
        orders.ask()
        orders.take()
        orders.settle()
    assert orders.outcome(10 * KEPT) == ""
    assert orders.outcome(10 * KEPT + 1) is None
