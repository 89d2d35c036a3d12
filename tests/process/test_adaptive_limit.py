"""The adaptive limit in a real instance; what it does in time is simulated in test_adaptive."""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter

from tests.support.server import Client, LiveServer, eventually, get

USERS = 150  # more than the limit: it adapts only while it is what keeps them out
FLAGS = (
    "--workers=2", "--max-ccu=100", "--utilization=100", "--slots=100", "--max-connections=500",
    "--adaptive", "--adaptive-floor=4", "--queue-target=0", "--queue-deadline=60",
    "--refusal-pause=0.1",
)  # fmt: skip


def test_a_limit_far_above_what_the_service_can_do_is_lowered() -> None:
    with LiveServer("tide:app", *FLAGS) as server:
        done, seen = threading.Event(), Counter[int]()

        def user() -> None:
            with Client(server.port, timeout=30) as client:
                while not done.is_set():
                    seen[client.request("/work").status] += 1

        users = [threading.Thread(target=user) for _ in range(USERS)]
        for thread in users:
            thread.start()
        try:
            # twenty run at a time, and as many may wait; the first looks may lead below that, or
            # a busy machine, as the clients share it and their delay looks like the service's
            eventually(
                lambda: all(20 <= settled(server) < 80 for _ in range(2)), "it fits and stays", 80
            )
        finally:
            done.set()
            for thread in users:
                thread.join(30)
        assert set(seen) == {200, 503}


def settled(server: LiveServer) -> float:
    """Return the median of the limit over two seconds: a probe lowers it for half of one."""
    seen = []
    until = time.monotonic() + 2
    while time.monotonic() < until:
        seen.append(get(server.port, "/limit").json["limit"])
        assert 4 <= seen[-1] <= 100  # floor and ceiling
        time.sleep(0.02)
    return statistics.median(seen)
