"""What an instance holds, looked at from outside: its own gauges, and /proc.

Everything here is to be what it was when who attacked is gone.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "bench"
if str(BENCH) not in sys.path:
    sys.path.insert(0, str(BENCH))

import harness  # noqa: E402

LOOKS = 5
_ESTABLISHED = "01"
_FIN_WAIT_1 = "04"


@dataclass(frozen=True)
class Held:
    """What the processes of an instance hold now."""

    connections: int
    """As the instance counts them, without the one that asked."""
    ccu: int
    """Permits: requests in the system."""
    running: int
    """Slots."""
    files: int
    """Descriptors of all processes."""
    rss: int
    pss: int
    """Bytes of all processes; ``pss`` divides shared pages among their users."""

    @property
    def places(self) -> tuple[int, int, int, int]:
        """All that has to be exactly what it was."""
        return self.connections, self.ccu, self.running, self.files


def held(port: int, root: int) -> Held:
    """Look at the instance that listens on ``port``, whose first process is ``root``."""
    gauges = harness.gauges(port, timeout=10)
    pids = harness.process_tree(root)
    memory = harness.memory_of(pids)
    return Held(
        connections=int(gauges["http_connections"]) - 1,
        ccu=int(gauges["ccu"]),
        running=int(gauges["worker_pool_active_count"]),
        files=sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids),
        rss=memory.rss,
        pss=memory.pss or memory.rss,
    )


def at_rest(port: int, root: int, seconds: float = 10.0) -> Held:
    """Wait until nobody but who asks is there, and return what the instance holds then.

    The connection of an earlier look may still be on its way out: least of some looks counts.

    :raises AssertionError: if somebody still is there after ``seconds``.
    """
    until = time.monotonic() + seconds
    quiet: list[Held] = []
    while len(quiet) < LOOKS:
        now = held(port, root)
        if now.places[:3] == (0, 0, 0):
            quiet.append(now)
        if time.monotonic() > until:
            raise AssertionError(f"not at rest after {seconds:g} s: {now}")
        time.sleep(0.02)
    return min(quiet, key=lambda now: now.files)


def flow(port: int) -> dict[str, int]:
    """Return the counters of requests by what became of them, and of answers by class."""
    found = harness.gauges(port, timeout=10)
    stages = ("offered", "accepted", "completed", "aborted", "lost")
    counts = {stage: int(found[f'http_requests_flow_total{{stage="{stage}"}}']) for stage in stages}
    counts["shed"] = sum(
        int(value) for name, value in found.items() if name.startswith("http_requests_shed_total{")
    )
    for status in ("2xx", "4xx", "5xx"):
        counts[status] = int(found[f'http_requests_total{{status="{status}"}}'])
    return counts


def kernel(port: int) -> tuple[int, int]:
    """Return how many connections of the local ``port`` the kernel has: proc_net_tcp(5).

    Those established, and those that are closed but kept for what nobody has taken in.
    """
    place = f":{port:04X}"
    states: Counter[str] = Counter()
    with open("/proc/net/tcp") as table:
        for line in table:
            fields = line.split(None, 4)
            if fields[1].endswith(place):
                states[fields[3]] += 1
    return states[_ESTABLISHED], states[_FIN_WAIT_1]
