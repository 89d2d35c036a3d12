"""What the refused are told, and how long they are left unread."""

from __future__ import annotations

import json
import random

import pytest

from fluxor_fast.arbiter.shared import SHED_REASONS
from fluxor_fast.server.refusal import FIRST, LONGEST, Pacer, Refusals


@pytest.mark.parametrize("reason", SHED_REASONS)
def test_a_refusal_is_json_with_its_reason(reason: str) -> None:
    answer = Refusals(lambda: 0.0).get(reason).encode(b"Date: now\r\nX-Request-ID: ", b"abc")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: 1\r\n" in head
    assert head.endswith(b"X-Request-ID: abc")
    document = json.loads(body)
    assert (document["code"], document["reason"]) == ("BACKPRESSURE", reason)
    assert f"Content-Length: {len(body)}".encode() in head


def test_retry_after_follows_the_time_to_drain_with_jitter_up_to_twice_that() -> None:
    seed = 20_260_101
    print(f"seed {seed}")
    refusals = Refusals(random.Random(seed).random)
    for drain, least, most in ((0.0, 1, 2), (0.4, 1, 2), (3.5, 4, 8), (1e6, 15, LONGEST)):
        refusals.note_drain(drain)
        seen = {after(refusals.get("capacity").before) for _ in range(500)}
        assert min(seen) == least
        assert max(seen) == most


def after(head: bytes) -> int:
    return int(head.partition(b"Retry-After: ")[2].partition(b"\r\n")[0])


class Connection:
    def __init__(self) -> None:
        self.pause = 0.0
        self.resumed = 0.0
        self.unread = False
        self.can_pause = True

    def leave_unread(self) -> bool:
        self.unread = self.can_pause
        return self.can_pause

    def read_again(self) -> None:
        self.unread = False


def test_who_retries_at_once_is_left_unread_ever_longer_up_to_the_bound() -> None:
    pacer, connection, now = Pacer(0.5), Connection(), 100.0
    pauses = []
    for _ in range(9):
        pacer.refused(connection, now, now)
        pauses.append(connection.pause)
        now += connection.pause - 1e-6
        pacer.release(now)
        assert connection.unread
        now += 2e-6
        pacer.release(now)
        assert not connection.unread
        now += 0.001  # it was already waiting
    assert pauses == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5, 0.5])
    assert not pacer.waiting


def test_who_waits_before_the_next_try_starts_anew() -> None:
    pacer, connection, now = Pacer(1.0), Connection(), 0.0
    for _ in range(5):
        pacer.refused(connection, now, now)
        assert connection.pause == FIRST
        now += 0.05
        pacer.release(now)
        now += 0.05


def test_a_connection_with_more_under_way_is_not_paused() -> None:
    pacer, connection = Pacer(1.0), Connection()
    connection.can_pause = False
    pacer.refused(connection, 1.0, 1.0)
    assert connection.pause == 0.0
    assert not pacer.waiting


def test_a_bound_of_zero_paces_nobody() -> None:
    pacer, connection = Pacer(0.0), Connection()
    pacer.refused(connection, 1.0, 1.0)
    assert not connection.unread


def test_pauses_of_different_lengths_end_in_their_own_time() -> None:
    pacer = Pacer(1.0)
    slow, quick = Connection(), Connection()
    slow.pause, slow.resumed = 0.2, 1.0
    pacer.refused(slow, 1.001, 1.001)  # 0.4 s
    pacer.refused(quick, 1.002, 1.002)  # 0.01 s
    pacer.release(1.02)
    assert slow.unread
    assert not quick.unread
    pacer.release(1.41)
    assert not slow.unread


def test_who_retried_at_once_and_then_waited_in_the_queue_before_it_was_refused_is_paced() -> None:
    pacer, connection = Pacer(1.0), Connection()
    pacer.refused(connection, 1.0, 1.0)
    pacer.release(1.011)
    pacer.refused(connection, 1.012, 1.05)  # it had been there at once, and was refused later
    assert connection.pause == 2 * FIRST
