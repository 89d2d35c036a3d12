"""The short form of ``make attack``: slow clients and dropped connections against real workers."""

from __future__ import annotations

import time

from tests.attack import drops, slow
from tests.attack.watch import at_rest, flow, held
from tests.support.seeds import seeded
from tests.support.server import LiveServer, eventually, get

EACH = 100
MEGABYTE = 1_000_000


def test_slow_heads_bodies_and_readers_are_ended_and_others_are_served_meanwhile() -> None:
    flags = ("--workers=2", "--header-timeout=2", "--body-timeout=2", "--write-timeout=2")
    with LiveServer("attacked:app", *flags) as server:
        before = at_rest(server.port, server.process.pid)
        took = []
        with slow.attacking(server.port, EACH) as ended:
            eventually(
                lambda: held(server.port, server.process.pid).connections == 3 * EACH,
                "all of them at once",
            )
            while sum(ended.values()) < 3 * EACH:
                begun = time.monotonic()
                assert get(server.port, "/health").status == 200
                took.append(time.monotonic() - begun)
                assert len(took) < 2000, ended
                time.sleep(0.005)
        assert ended == {("head", "408"): EACH, ("body", "408"): EACH, ("read", "aborted"): EACH}
        print(f"{len(took)} health checks, the worst took {max(took) * 1000:.1f} ms")
        assert max(took) < 0.5  # under quiet: see docs/THREAT_MODEL.md
        assert at_rest(server.port, server.process.pid).places == before.places


def test_connections_dropped_at_any_byte_leave_nothing_behind() -> None:
    plan = drops.plan(seeded("drops"))
    with LiveServer("attacked:app", "--workers=2") as server:
        drops.run(server.port, 500, plan)  # caches, threads and the allocator's arenas fill
        before = at_rest(server.port, server.process.pid)
        print(drops.run(server.port, 2500, plan))
        after = at_rest(server.port, server.process.pid)
        assert after.places == before.places
        counts = flow(server.port)
        # the request that asks is not counted yet
        assert counts["offered"] == counts["accepted"] + counts["shed"]
        assert counts["accepted"] == counts["completed"] + counts["aborted"]
        assert after.rss - before.rss < 8 * MEGABYTE
        assert "Traceback" not in server.log
        assert "ERROR" not in server.log
