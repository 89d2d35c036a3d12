"""New connections are taken while handlers keep the processor busy."""

from __future__ import annotations

import os
import signal

from tests.support.server import Client, LiveServer

QUEUED, NEW = 40, 160
FLAGS = ("--workers=1", "--queue-target=0", "--queue-deadline=60")


def test_a_health_check_behind_many_new_connections_does_not_wait_a_turn_for_each() -> None:
    """libuv accepts once a turn: each turn here lasts 20 ms, and 40 of them are all there are."""
    with LiveServer("busy:app", *FLAGS) as server:
        busy = [Client(server.port) for _ in range(QUEUED)]
        for client in busy:
            client.request("/")  # it is accepted
        (worker,) = server.workers
        os.kill(worker, signal.SIGSTOP)  # it finds them all at once
        for client in busy:
            client.send("/busy")
        crowd = [Client(server.port) for _ in range(NEW)]
        probe = Client(server.port)
        probe.send("/turn")
        os.kill(worker, signal.SIGCONT)
        turn = probe.read().json["turn"]
        last = max(client.read().json["turn"] for client in busy)
        for client in [*busy, *crowd, probe]:
            client.close()
    assert last == QUEUED
    assert turn < last, "the health check came after all that was queued"
