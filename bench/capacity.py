"""What one instance does at its normal capacity: 3350 users on keep-alive connections.

Two loads, in turn. *Saturated*: every connection asks again as soon as it is answered, so the
latency is the number of connections divided by the rate, whatever the server does; this load
says how much the machine can do. *Thinking*: each connection pauses 50 to 150 ms between answer
and next request, as the load tests' users do; this one says how long a user waits.

Server and wrk share all cores here, as they do on the machine of someone who tries it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import harness
from harness import Cores, Failed, Round, Server, progress
from serve import PACKAGES, RESULTS, fluxor_options

PHASES: dict[str, tuple[int, int] | None] = {"saturated": None, "thinking": (50, 150)}
TARGETS = {"p50_ms": 5.0, "p95_ms": 50.0, "p99_ms": 100.0, "pss_mb": 250.0}
"""At normal load; milliseconds, and megabytes of all processes together."""


def measure(
    connections: int, workers: int, rounds: int, seconds: float, path: str
) -> dict[str, list[Round]]:
    """Return the counted rounds by phase."""
    found: dict[str, list[Round]] = {name: [] for name in PHASES}
    cores = Cores(said="not pinned")
    wrk: dict[str, Any] = {"connections": connections, "threads": 2, "cores": cores}
    for number in range(rounds):
        for name, think in PHASES.items():
            port = harness.free_port()
            with harness.scratch() as database:
                command = harness.fluxor_command(
                    port, database, workers=workers, extra=fluxor_options(connections)
                )
                with Server("fluxor", command, port, ready=harness.all_ready(workers)) as server:
                    harness.run_wrk(port, path, seconds=1, think_ms=think, **wrk)
                    done = harness.measured(server, path, seconds=seconds, think_ms=think, **wrk)
            found[name].append(done)
            progress(
                f"round {number + 1}/{rounds}, {name}: {done.load.rps:,.0f} RPS,"
                f" P95 {done.load.p95:.1f} ms, {done.cpu_us:.1f} µs of CPU per request"
            )
    return found


def table(figures: dict[str, dict[str, Any]]) -> str:
    """Return the medians as Markdown."""
    lines = [
        "| load | RPS | P50 ms | P95 ms | P99 ms | CPU µs/request | server's cores"
        " | wrk's share | PSS MB | RSS MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, found in figures.items():
        of = {key: value["median"] for key, value in found.items() if isinstance(value, dict)}
        pss = f"{of['pss_bytes'] / 1e6:.0f}" if "pss_bytes" in of else "–"
        mark = " **generator-bound**" if found["generator_bound"] else ""
        lines.append(
            f"| {name} | {of['rps']:,.0f} | {of['p50_ms']:.2f} | {of['p95_ms']:.2f}"
            f" | {of['p99_ms']:.2f} | {of['cpu_us_per_request']:.1f} | {of['server_cores']:.2f}"
            f" | {of['generator_cpu_share']:.0%}{mark} | {pss} | {of['rss_bytes'] / 1e6:.0f} |"
        )
    return "\n".join(lines)


@click.command()
@click.option("--connections", default=3350, type=click.IntRange(2))
@click.option("--workers", default=2, type=click.IntRange(1))
@click.option("--rounds", default=3, type=click.IntRange(1), help="Counted rounds of each load.")
@click.option("--seconds", default=10, type=click.IntRange(1), help="Length of a counted run.")
@click.option("--path", default="/health")
@click.option(
    "--json", "target", default=RESULTS / "capacity.json", type=click.Path(path_type=Path)
)
def main(
    connections: int, workers: int, rounds: int, seconds: int, path: str, target: Path
) -> None:
    """Measure latency, throughput, CPU and memory at normal capacity."""
    harness.wrk_path()
    files = harness.claim_files()
    if connections + 100 > files:
        raise click.ClickException(f"{connections} connections need more than {files} files")
    before = harness.machine()
    try:
        with harness.interruptible():
            found = measure(connections, workers, rounds, seconds, path)
    except Failed as error:
        raise click.ClickException(f"no report: {error}") from None
    figures = {name: harness.summary(counted) for name, counted in found.items()}
    harness.write_json(
        target,
        {
            "machine": before,
            "versions": {**harness.versions(*PACKAGES), "wrk": harness.wrk_version()},
            "settings": {
                "connections": connections,
                "workers": workers,
                "rounds": rounds,
                "seconds": seconds,
                "path": path,
                "think_ms": PHASES["thinking"],
            },
            "targets": TARGETS,
            "figures": figures,
            "rounds": {name: [asdict(r) for r in counted] for name, counted in found.items()},
        },
    )
    print(
        f"`{path}`, {connections:,} connections, {workers} worker(s) and wrk share"
        f" {len(before['cores'])} cores, {rounds} rounds of {seconds} s, medians\n"
    )
    print(table(figures))


if __name__ == "__main__":
    main()
