"""Attack the running service from outside: ``python -m tests.attack.run [PART …]``.

Slow parts: slowhttptest holds thousands of connections at once while h2load sends moderate load
and health checks come on connections of their own. The last part opens and drops connections at
random points of a request or its answer (``drops``). Each has a service of its own, on a port of
its own, with a database of its own, at the default settings but for what the part says.

What must hold, or the exit code is 1:

1. All slow connections stand at once: the instance's own gauge and the kernel say so.
2. Health checks meanwhile: no fault, P99 below ``MOST_MS``.
3. All processes of the service together: memory below ``MOST_BYTES``.
4. The slow connections are ended by the service, while slowhttptest would go on, and the number
   that the part's counter shows is that of the connections.
5. Afterwards connections, permits, slots and descriptors are what they were before, after the
   drops memory is too (``DROPS_BYTES``), the counters add up, and the service has logged no error.

A table goes to standard output, figures to ``bench/results/attack-PART.json``. Without the tools
the exit code is 2.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tests.attack import drops, tools, watch
from tests.attack.watch import harness

ROOT: Final = Path(__file__).resolve().parents[2]
MOST_MS: Final = 50.0
MOST_BYTES: Final = 300_000_000
DROPS: Final = 100_000
DROPS_BYTES: Final = 5_000_000
"""What all processes together may have grown by over the drops, after a tenth of them."""
CONNECTIONS: Final = 4000
LOAD: Final = (50, 1000)
"""h2load's connections, and requests a second in all."""
TOOLS: Final = 2
"""Processes of slowhttptest: one alone needs longer to connect than some connections stand."""
WORKERS: Final = 2
POOL: Final = 4
"""Connections of the database pool, all there from the start, as descriptors are compared."""
LOOK: Final = 0.2
SLOW_SHARE: Final = 0.99
"""From this share of the connections on all are said to be there, or gone."""


@dataclass(frozen=True)
class Slow:
    """A run of slowhttptest."""

    about: str
    mode: tuple[str, ...]
    path: str
    seconds: int
    counter: str
    """What the service counts for each connection that it ends: ``4xx`` (408), ``aborted``."""
    flags: tuple[str, ...] = ()


SLOW: Final = {
    "heads": Slow(
        "heads that go on, ended by --header-timeout (10 s)",
        ("-H", "-i", "3", "-x", "24"), "/", 18, "4xx",
    ),
    "bodies": Slow(
        "bodies of some bytes a second, ended by --min-body-rate (after 5 s)",
        ("-B", "-i", "3", "-s", "8192", "-x", "24"), "/api/echo", 16, "4xx",
    ),
    "steady": Slow(
        "bodies above the least rate, ended by --body-timeout (30 s)",
        ("-B", "-i", "1", "-s", "1000000", "-x", "1500"), "/api/echo", 42, "4xx",
    ),
    "idle": Slow(
        "answers that the kernel holds and nobody reads, reset after --keep-alive-timeout (15 s)",
        ("-X", "-k", "3", "-w", "512", "-y", "1024", "-n", "5", "-z", "32"),
        "/openapi.json", 34, "", ("--keep-alive-timeout=15",),
    ),
    "reads": Slow(
        "streams of 8 MiB that nobody reads, reset by --min-write-rate (after 5 s)",
        ("-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32"),
        "/attacked/large", 28, "aborted",
        # all are admitted: who is refused is an idle connection then, for longer than this takes
        ("--utilization=100", "--queue-target=0"),
    ),
}  # fmt: skip
PARTS: Final = (*SLOW, "drops")


def service(port: int, database: Path, flags: Sequence[str]) -> harness.Server:
    """Return the service, to be started."""
    pool = [f"--database-pool-min={POOL}", f"--database-pool-max={POOL}"]
    command = harness.fluxor_command(port, database, workers=WORKERS, extra=[*pool, *flags])
    command.insert(command.index("serve") + 1, "tests.support.apps.attacked:service")
    workers_ready = harness.all_ready(WORKERS)

    def ready(port: int) -> bool:
        return workers_ready(port) and harness.gauges(port)["database_connections"] == POOL

    return harness.Server("the service", command, port, ready=ready)


def faults_of_log(server: harness.Server) -> list[str]:
    """Return what the service has said that it should not."""
    lines = server.said().splitlines()
    found = [line for line in lines if "ERROR" in line or "Traceback" in line]
    return [f"logged {len(found)} errors, first: {found[0][:200]}"] if found else []


def slow(part: Slow, connections: int) -> tuple[dict[str, Any], list[str]]:
    """Run ``part``; return its figures, and what did not hold."""
    port = harness.free_port()
    clients, rate = LOAD
    with harness.scratch() as database, service(port, database, part.flags) as server:
        before = watch.at_rest(port, server.pid)
        counted = watch.flow(port)
        load = tools.h2load(port, "/", clients, rate, part.seconds)
        share = connections // TOOLS
        attack = tools.slowhttptest(port, part.path, share, part.seconds, *part.mode)
        probe = [sys.executable, "-m", "tests.attack.probe", str(port), str(part.seconds)]
        looks: list[tuple[float, watch.Held, int]] = []
        blind = 0
        with ExitStack() as stack:
            loading, probing, *attacking = (
                stack.enter_context(tools.running(command))
                for command in (load, probe, *[attack] * TOOLS)
            )
            begun = time.monotonic()
            while (now := time.monotonic() - begun) < part.seconds - 1:
                try:
                    looks.append((now, watch.held(port, server.pid), watch.kernel(port)[0]))
                except OSError:  # no answer within a second
                    blind += 1
                time.sleep(LOOK)
            # the tool would still go on here if there was anything left
            left = max(0, watch.held(port, server.pid).connections - clients - 1)
            counts = watch.flow(port)
            _, kept = watch.kernel(port)
            for tool in (loading, probing, *attacking):
                with suppress(subprocess.TimeoutExpired):
                    tool.process.wait(15)
            asked = json.loads(probing.said())
            loaded = tools.read_h2load(loading.said())
            said = [tools.read_slowhttptest(tool.said()) for tool in attacking]
        after = watch.at_rest(port, server.pid)
        faults = faults_of_log(server)
    standing = [(at, held.connections - clients) for at, held, _ in looks]
    most = max(count for _, count in standing)
    full = [at for at, count in standing if count >= SLOW_SHARE * connections]
    gone = [at for at, count in standing if full and at > full[-1] and count < 0.01 * connections]
    took = sorted(asked["took"])
    ended = counts[part.counter] - counted[part.counter] if part.counter else None
    figures: dict[str, Any] = {
        "about": part.about,
        "command": f"{TOOLS} times: {' '.join(attack)}",
        "flags": list(part.flags),
        "connections": connections,
        "standing_most": most,
        "established_most": max(count for _, _, count in looks),
        "all_standing_from_s": full[0] if full else None,
        "all_standing_until_s": full[-1] if full else None,
        "all_gone_at_s": gone[0] if gone else None,
        "left": left,
        "kept_by_kernel": kept,
        "ended_by_counter": ended,
        "counter": part.counter,
        "slowhttptest": [asdict(one) for one in said],
        "probes": len(took),
        "probe_faults": asked["wrong"][:5],
        "probe_p50_ms": statistics.median(took),
        "probe_p99_ms": took[int(len(took) * 0.99)],
        "probe_worst_ms": took[-1],
        "load": asdict(loaded),
        "pss_most": max(held.pss for _, held, _ in looks),
        "rss_most": max(held.rss for _, held, _ in looks),
        "ccu_most": max(held.ccu for _, held, _ in looks),
        "before": asdict(before),
        "after": asdict(after),
    }
    rules: list[tuple[bool, str]] = [
        (most < connections, f"only {most} stood at once"),
        (blind > 0, f"/metrics was not answered within a second, {blind} times"),
        (bool(asked["wrong"]), f"{len(asked['wrong'])} health checks failed"),
        (figures["probe_p99_ms"] >= MOST_MS, f"P99 of health {figures['probe_p99_ms']:.0f} ms"),
        (figures["pss_most"] >= MOST_BYTES, f"memory {figures['pss_most'] / 1e6:.0f} MB"),
        (left > 0, f"{left} slow connections were not ended"),
        (kept > connections // 100, f"the kernel keeps {kept} that are closed"),
        (ended is not None and ended < connections, f"{ended} were counted as {part.counter}"),
        (loaded.lost > 0, f"{loaded.lost} requests of the load had no answer"),
        (after.places != before.places, f"left over: {before.places} became {after.places}"),
    ]
    return figures, faults + [text for broken, text in rules if broken]


def dropped(count: int, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Drop ``count`` connections; return the figures, and what did not hold."""
    port = harness.free_port()
    plan = drops.plan(random.Random(seed))
    with harness.scratch() as database, service(port, database, ()) as server:
        drops.run(port, count // 10, plan)  # caches, threads and the allocator's arenas fill
        before = watch.at_rest(port, server.pid)
        begun = time.monotonic()
        seen = drops.run(port, count, plan)
        took = time.monotonic() - begun
        after = watch.at_rest(port, server.pid)
        counts = watch.flow(port)
        faults = faults_of_log(server)
    grown = after.rss - before.rss
    figures = {
        "seed": seed,
        "connections": count,
        "seconds": took,
        "seen": dict(seen),
        "flow": counts,
        "before": asdict(before),
        "after": asdict(after),
        "rss_grown": grown,
    }
    settled = counts["completed"] + counts["aborted"] + counts["lost"]
    rules: list[tuple[bool, str]] = [
        (after.places != before.places, f"left over: {before.places} became {after.places}"),
        (grown >= DROPS_BYTES, f"memory grew by {grown / 1e6:.1f} MB"),
        (counts["offered"] != counts["accepted"] + counts["shed"], f"offered: {counts}"),
        (counts["accepted"] != settled, f"accepted: {counts}"),
        (counts["lost"] > 0, f"a worker was lost: {counts}"),
    ]
    return figures, faults + [text for broken, text in rules if broken]


def _row(name: str, figures: dict[str, Any]) -> str:
    if name == "drops":
        before, after = figures["before"], figures["after"]
        return (
            f"drops: {figures['connections']:,} in {figures['seconds']:.0f} s"
            f" (seed {figures['seed']}): {figures['seen']}\n"
            f"  descriptors {before['files']} → {after['files']},"
            f" connections {after['connections']}, permits {after['ccu']},"
            f" slots {after['running']},"
            f" RSS {before['rss'] / 1e6:.1f} → {after['rss'] / 1e6:.1f} MB"
        )
    times = [figures[f"all_{key}_s"] for key in ("standing_from", "standing_until", "gone_at")]
    shown = ", ".join("never" if at is None else f"{at:.1f}" for at in times)
    by = f"{figures['ended_by_counter']} {figures['counter']}" if figures["counter"] else "gauge"
    load = figures["load"]
    return (
        f"{name}: {figures['about']}\n"
        f"  at once {figures['standing_most']:,} by the gauge,"
        f" {figures['established_most'] - LOAD[0]:,} by the kernel;"
        f" all there from s, until s, all gone at s: {shown}; left {figures['left']},"
        f" kept by the kernel {figures['kept_by_kernel']}; ended: {by};"
        f" slowhttptest: {', '.join({one['ended'] for one in figures['slowhttptest']})}\n"
        f"  /health {figures['probes']} times: P50 {figures['probe_p50_ms']:.1f}, P99"
        f" {figures['probe_p99_ms']:.1f}, worst {figures['probe_worst_ms']:.1f} ms;"
        f" load: {load['good']} good, {load['refused']} refused, {load['lost']} lost;"
        f" memory {figures['before']['pss'] / 1e6:.0f} → {figures['pss_most'] / 1e6:.0f} MB PSS,"
        f" {figures['rss_most'] / 1e6:.0f} RSS; permits at most {figures['ccu_most']}"
    )


def main() -> int:
    """Run the parts named; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--drops", type=int, default=DROPS)
    parser.add_argument("--seed", type=int, default=1729)
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    options = parser.parse_args()
    parts = options.parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"{', '.join(unknown)}: known are {', '.join(PARTS)}")
    if set(parts) & set(SLOW) and (lines := tools.missing()):
        print("\n".join(lines), file=sys.stderr)
        return 2
    files = harness.claim_files()
    if files < options.connections + 500:
        print(f"{files} open files are too few (ulimit -n)", file=sys.stderr)
        return 2
    machine = harness.machine()
    broken = 0
    with harness.interruptible():
        for name in parts:
            run: Callable[[], tuple[dict[str, Any], list[str]]] = (
                (lambda: dropped(options.drops, options.seed))
                if name == "drops"
                else lambda name=name: slow(SLOW[name], options.connections)
            )
            figures, faults = run()
            report = {"machine": machine, "workers": WORKERS, **figures, "faults": faults}
            harness.write_json(options.results / f"attack-{name}.json", report)
            print(_row(name, figures), flush=True)
            print("  " + ("; ".join(f"NOT KEPT: {one}" for one in faults) or "kept"), flush=True)
            broken += bool(faults)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
