"""How many requests a limit of 1,000 a minute lets through over four workers, under wrk.

    python bench/rate_limit.py [--seconds 10] [--connections 64] [--burst 1000] [--burst 100] …

wrk asks one address's fill as fast as it is answered, or at ``--rps`` in all; what got through is
counted by the instance (all its workers' words), and stands beside ``burst + 1000/60 x time``. The
bound is one more for each other worker. Exits with 1 if it does not hold.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import harness

WORKERS = 4
APPS = Path(__file__).resolve().parent.parent / "tests" / "support" / "apps"


def passed(port: int) -> int:
    """Return how many answers were no refusals, without that of this very request."""
    return int(json.loads(harness.fetch(port, "/answers").body)["2xx"])


def measure(burst: int, seconds: int, connections: int) -> tuple[int, int, float]:
    """Return requests, how many got through, and the seconds from the first to the last."""
    port = harness.free_port()
    command = [
        harness.command_of("fluxor-fast"), "serve", "limited:app", "--port", str(port),
        "--workers", str(WORKERS), "--log-level", "warning",
    ]  # fmt: skip
    environ = {"LIMIT_BURST": str(burst), "PYTHONPATH": str(APPS)}
    with harness.Server("limited", command, port, environ=environ, ready=ready) as server:
        before = passed(server.port)
        begun = time.monotonic()
        said = subprocess.run(
            [
                harness.wrk_path(), "-t1", f"-c{connections}", f"-d{seconds}s",
                "-s", str(harness.HERE / "report.lua"), f"http://127.0.0.1:{port}/",
            ],
            capture_output=True, text=True, check=True, timeout=seconds + 30,
        ).stdout  # fmt: skip
        took = time.monotonic() - begun
        got = passed(server.port) - before - 1
    report = json.loads(said.partition("REPORT ")[2])
    assert not any(report["errors"][name] for name in ("connect", "read", "write", "timeout"))
    return report["requests"], got, took


def ready(port: int) -> bool:
    """Tell whether the application answers."""
    return harness.fetch(port, "/who").status == 200


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--burst", type=int, action="append")
    options = parser.parse_args(arguments)
    print("| burst | requests/s | asked | passed | burst + rate × time | off by |")
    print("|--:|--:|--:|--:|--:|--:|", flush=True)
    good = True
    for burst in options.burst or [1000, 100, 1]:
        asked, got, took = measure(burst, options.seconds, options.connections)
        exact = burst + 1000 / 60 * took
        good = good and exact - 3 <= got <= exact + WORKERS - 1
        print(
            f"| {burst} | {asked / took:,.0f} | {asked:,} | {got:,} | {exact:,.1f}"
            f" | {got - exact:+.1f} |",
            flush=True,
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
