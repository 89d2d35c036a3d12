"""What single choices in the server cost or bring: as it is, and with one of them made otherwise.

Both run side by side, one idle while the other is loaded, in turn; a pair gives a ratio of CPU per
request, and the median of the ratios counts. Above 1 the choice that is in the server pays.
``nothing`` is the server beside itself: what differs there is the noise of the method.
"""

from __future__ import annotations

import os
import statistics
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import harness
from contestants import SERVERS, Place, fluxor
from harness import Cores, Failed, Server, progress

sys.path.insert(0, str(SERVERS))

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Way:
    """One way to run the server that differs from its own."""

    said: str
    options: tuple[str, ...] = ()
    environ: tuple[tuple[str, str], ...] = ()
    script: tuple[str, ...] = ()


def _ways() -> dict[str, Way]:
    from varied_app import VARIATIONS  # it imports the server

    made = {name: Way(said, environ=(("VARIED", name),)) for name, (said, _) in VARIATIONS.items()}
    return {
        "nothing": Way("the same again"),
        **made,
        "no_cache_cold": Way("no head cache, each head new", environ=(("VARIED", "no_cache"),),
                             script=("requests.lua", "cold")),
        "access_log": Way("a line in the log for each request",
                          ("--access-log", "--log-level", "info")),
        "no_docstrings": Way("python -OO", environ=(("PYTHONOPTIMIZE", "2"),)),
        "malloc": Way("the C library's allocator", environ=(("PYTHONMALLOC", "malloc"),)),
        "huge_pages": Way("huge pages for the allocator",
                          environ=(("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),
                                   ("PYTHONMALLOC", "malloc"))),
        "shared_listener": Way("one listener for all", ("--listener", "shared")),
    }  # fmt: skip


def _server(way: Way, cores: Cores, folder: Path) -> Server:
    place = Place(harness.free_port(), 1, folder)
    options = ("--refusal-pause", "0", *way.options)
    return Server(
        "fluxor",
        fluxor(place, "varied_app:app", *options),
        place.port,
        cpus=cores.server,
        environ={**dict(way.environ), "PYTHONPATH": str(SERVERS)},
    )


@click.command()
@click.option("--only", default="", help="These, by commas.")
@click.option("--rounds", default=7, type=click.IntRange(1), help="Pairs of each.")
@click.option("--connections", default=64, type=click.IntRange(1))
@click.option(
    "--json", "target", default=HERE / "results" / "variations.json",
    type=click.Path(path_type=Path),
)  # fmt: skip
def main(only: str, rounds: int, connections: int, target: Path) -> None:
    """Measure each way beside the server as it is."""
    ways = _ways()
    names = harness.names_of(only or "all", list(ways))
    cores = Cores.of(1)
    harness.claim_files()
    found: dict[str, list[float]] = {}
    lines = ["| with | CPU per request ÷ as it is | |", "|---|--:|---|"]
    try:
        with harness.interruptible(), harness.pinned(cores.generator), harness.scratch() as folder:
            for name in names:
                way = ways[name]
                options: dict[str, Any] = {
                    "cores": cores, "connections": connections, "seconds": 1, "script": way.script
                }  # fmt: skip
                pairs = []
                with ExitStack() as stack:
                    ours = stack.enter_context(_server(Way("as it is"), cores, folder))
                    other = stack.enter_context(_server(way, cores, folder))
                    for number in range(rounds + 1):
                        its = harness.measured(other, "/health", **options).cpu_us
                        mine = harness.measured(ours, "/health", **options).cpu_us
                        if number:  # the first warms them up
                            pairs.append(its / mine)
                found[name] = pairs
                middle = statistics.median(pairs)
                progress(f"{name}: {middle:.2f}")
                lines.append(
                    f"| {way.said} | {middle:.2f} ({min(pairs):.2f}–{max(pairs):.2f}) | {name} |"
                )
    except (Failed, OSError) as error:
        print(f"could not measure: {error}", file=sys.stderr)
        sys.exit(2)
    harness.write_json(
        target,
        {"machine": harness.machine(), "connections": connections, "ratios": found,
         "load": os.getloadavg()[0]},
    )  # fmt: skip
    print("\n".join(lines))


if __name__ == "__main__":
    main()
