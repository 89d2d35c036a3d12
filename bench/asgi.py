"""The same Starlette application under fluxor-fast, uvicorn and granian.

One worker each, all pinned to one core; the other is wrk's. They take turns within each round
(``measured_in_slices``), and the CPU that a request costs is compared; or one has a round after the
other, in an order shuffled with a fixed seed, and what each does in a second is. Ratios are taken
within a round. Before anything is timed each must answer what ours does. A failed round fails the
report.
"""

from __future__ import annotations

import json
import random
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click
import harness
from compare import RESULTS, SEED, document
from contestants import fluxor, granian, side_by_side, uvicorn
from harness import Cores, Failed, Round, Server, progress

APP = "asgi_starlette:app"
CONTESTANTS = {
    "fluxor-fast": partial(fluxor, app=APP),
    "uvicorn": uvicorn(APP),
    "granian": granian("asgi", APP),
}
PROMISED = {"uvicorn": 1.3, "granian": 1.0}
"""How many times as fast as theirs ours is to be, at least."""
WORKLOADS = {
    "health": ("/health", "JSON, made anew"),
    "item": ("/items/42?q=1", "a parameter and a query"),
    "echo": ("/echo", "JSON of 1 KB read and written"),
    "stream": ("/stream", "16 pieces of 1 KB"),
}
Cell = tuple[str, int, str]
"""Workload, connections, server."""


def ask(server: Server, workload: str) -> tuple[int, str, bytes]:
    """Return what a server answers, but for the time in it."""
    path, _ = WORKLOADS[workload]
    if workload == "stream":  # it has no length, which is all that ``fetch`` reads
        return 200, "", b""
    options: dict[str, Any] = {}
    if workload == "echo":
        options = {"method": "POST", "body": document(1000)}
    answer = harness.fetch(server.port, path, **options)
    body = answer.body
    if workload == "health":
        body = json.dumps({**json.loads(body), "timestamp": 0}).encode()
    return answer.status, answer.content_type, body


def measure(
    workloads: list[str],
    connections: list[int],
    rounds: int,
    seconds: int,
    folder: Path,
    *,
    slices: bool,
) -> dict[Cell, list[Round]]:
    """Time everybody on everything, ``rounds`` times."""
    measured = harness.measured_in_slices if slices else harness.measured_in_turn
    cores = Cores.of(1)
    shuffled = random.Random(SEED)
    sent = folder / "echo.json"
    sent.write_bytes(document(1000))
    found: dict[Cell, list[Round]] = {}
    with ExitStack() as stack:
        stack.enter_context(harness.pinned(cores.generator))
        servers = {
            name: stack.enter_context(server)
            for name, server in side_by_side(CONTESTANTS, folder, cores).items()
        }
        for workload in workloads:
            expected = ask(servers["fluxor-fast"], workload)
            for name, server in servers.items():
                if ask(server, workload) != expected:
                    raise Failed(f"{name} answers {workload} otherwise than we do")
        groups = [(workload, count) for workload in workloads for count in connections]
        for number in range(rounds + 1):
            shuffled.shuffle(groups)
            for workload, count in groups:
                path = WORKLOADS[workload][0]
                options: dict[str, Any] = {"cores": cores, "connections": count}
                options["seconds"] = seconds if number else 1
                if workload == "echo":
                    options["script"] = ("requests.lua", "post", str(sent))
                names = list(CONTESTANTS)
                shuffled.shuffle(names)
                try:
                    done = measured({name: servers[name] for name in names}, path, **options)
                except Failed as error:
                    raise Failed(f"{workload}, {count} connections: {error}") from None
                if number:  # the first warms it up
                    for name, one in done.items():
                        found.setdefault((workload, count, name), []).append(one)
            progress(f"round {number}/{rounds} done")
    return found


def table(found: dict[Cell, list[Round]], *, slices: bool) -> str:
    """Return the medians as Markdown, and what was promised beside them."""
    lines = [
        "| | connections | server | RPS (least–most) | CPU µs/request (least–most) | P99 ms"
        f" | wrk CPU | {'its CPU ÷ ours' if slices else 'our RPS ÷ its'} (least–most)"
        " | promised |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for cell, rounds in sorted(found.items(), key=lambda one: list(WORKLOADS).index(one[0][0])):
        workload, count, name = cell
        rps = harness.spread([r.load.rps for r in rounds])
        cpu = harness.spread([r.cpu_us for r in rounds])
        p99 = "" if slices else f"{harness.spread([r.load.p99 for r in rounds]).median:.2f}"
        wrk = harness.spread([r.load.generator_cpu for r in rounds])
        mark = " **generator-bound**" if harness.generator_bound(rounds) else ""
        got = promised = ""
        if name in PROMISED:
            ours = found[(workload, count, "fluxor-fast")]
            times = harness.spread(harness.times_as_fast(ours, rounds, slices=slices))
            got = f"**{times.median:.2f}** ({times.least:.2f}–{times.greatest:.2f})"
            promised = f"{PROMISED[name]:g}"
        lines.append(
            f"| {WORKLOADS[workload][1]} | {count:,} | {name}"
            f" | {rps.median:,.0f} ({rps.least:,.0f}–{rps.greatest:,.0f}){mark}"
            f" | {cpu.median:.1f} ({cpu.least:.1f}–{cpu.greatest:.1f}) | {p99}"
            f" | {wrk.median:.0%} | {got} | {promised} |"
        )
    return "\n".join(lines)


@click.command()
@click.option("--workloads", default="all", help=f"Of {', '.join(WORKLOADS)}; by commas.")
@click.option("--connections", default="64", help="By commas.")
@click.option("--rounds", default=5, type=click.IntRange(1), help="Counted runs of each.")
@click.option("--seconds", default=2, type=click.IntRange(1), help="Length of a counted run.")
@click.option("--slices/--in-turn", default=True, help="Taking turns within each round, or not.")
@click.option("--json", "target", default=RESULTS / "asgi.json", type=click.Path(path_type=Path))
def main(
    workloads: str, connections: str, rounds: int, seconds: int, slices: bool, target: Path
) -> None:
    """Measure the same Starlette application under three servers, and print a table."""
    harness.wrk_path()
    chosen = harness.names_of(workloads, list(WORKLOADS))
    counts = [int(count) for count in connections.split(",")]
    before = harness.machine()
    packages = ("fluxor-fast", "starlette", "uvicorn", "granian", "uvloop", "httptools")
    try:
        with harness.interruptible(), harness.scratch() as folder:
            folder.mkdir()
            found = measure(chosen, counts, rounds, seconds, folder, slices=slices)
    except Failed as error:
        raise click.ClickException(f"no report: {error}") from None
    versions = {**harness.versions(*packages), "wrk": harness.wrk_version()}
    cells = (
        ({"workload": workload, "connections": count, "server": name}, rounds_of)
        for (workload, count, name), rounds_of in found.items()
    )
    harness.report(target, "asgi.py", before, versions, cells)
    print(table(found, slices=slices))


if __name__ == "__main__":
    main()
