"""How much a request costs: fluxor-fast beside a ceiling and other Python servers.

Each server answers the same JSON, made anew for each request, alone on one core; wrk keeps
connections open on another core and asks again as soon as it is answered. Rounds are
interleaved: in each, every server is started afresh, warmed up, measured and stopped, in an
order shuffled with a fixed seed, so that whatever the machine does meanwhile hits all alike.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import harness
from harness import Cores, Failed, Round, Server, progress

NAMES = ("fluxor", "ceiling", "uvicorn", "granian", "sanic")
SERVERS = Path(__file__).resolve().parent / "servers"
RESULTS = Path(__file__).resolve().parent / "results"
SEED = 20_240_601
PACKAGES = ("fluxor-fast", "uvloop", "httptools", "orjson", "uvicorn", "granian", "sanic")
COMPARED = ("/health", "/")
"""The paths that the other servers' applications answer."""


def fluxor_options(connections: int) -> list[str]:
    """Return what our server needs to take that many connections."""
    return ["--max-connections", str(max(6000, connections))]


def contestant(
    name: str,
    *,
    workers: int,
    cores: Cores,
    database: Path,
    connections: int = 64,
    answer: str = "",
) -> Server:
    """Return a server that is not started yet.

    :param connections: how many it must take.
    :param answer: what the ceiling writes, in base64.
    """
    port = harness.free_port()
    address = ["--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
    common = [*address, "--backlog", "4096", "--log-level", "warning"]
    script = ["--port", str(port), "--workers", str(workers)]
    commands: dict[str, Callable[[], list[str]]] = {
        "fluxor": lambda: harness.fluxor_command(
            port, database, workers=workers, extra=fluxor_options(connections)
        ),
        "ceiling": lambda: [
            sys.executable, str(SERVERS / "ceiling.py"), *script, "--answer", answer,
        ],
        "uvicorn": lambda: [
            harness.command_of("uvicorn"), *common, "--loop", "uvloop", "--http", "httptools",
            "--no-access-log", "--app-dir", str(SERVERS), "asgi_app:app",
        ],
        "granian": lambda: [
            harness.command_of("granian"), *common, "--interface", "rsgi", "--loop", "uvloop",
            "--http", "1", "--no-ws", "--runtime-threads", "1", "--no-access-log",
            "--working-dir", str(SERVERS), "rsgi_app:app",
        ],
        "sanic": lambda: [sys.executable, str(SERVERS / "sanic_app.py"), *script],
    }  # fmt: skip
    return Server(
        name,
        commands[name](),
        port,
        cpus=cores.server,
        ready=harness.all_ready(workers) if name == "fluxor" else harness.answers,
        # the program's own folder is not on the path of a console script
        environ={"PYTHONPATH": str(SERVERS)} if name in ("uvicorn", "granian") else {},
    )


def check(server: Server, path: str, expected: harness.Answer) -> None:
    """Refuse to time a server that does not answer what the others do."""
    answer = harness.fetch(server.port, path)
    if (answer.status, answer.content_type) != (expected.status, expected.content_type):
        raise Failed(f"{server.name} answers {answer.status} {answer.content_type}")
    document, wanted = json.loads(answer.body), json.loads(expected.body)
    if list(document) != list(wanted) or len(answer.body) != len(expected.body):
        raise Failed(f"{server.name} answers another document: {answer.body!r}")
    made = document.get("timestamp")
    if server.name != "ceiling" and made is not None and abs(made - time.time()) > 2:
        raise Failed(f"{server.name} answers an old document: {answer.body!r}")


def reference(path: str, database: Path) -> harness.Answer:
    """Return our own answer: the others' must match it, and the ceiling writes its bytes."""
    with contestant("fluxor", workers=1, cores=Cores(), database=database) as server:
        answer = harness.fetch(server.port, path)
    if answer.status != 200 or answer.content_type != "application/json":
        raise Failed(f"{path} answers {answer.status} {answer.content_type}, not JSON with 200")
    return answer


def measure(
    names: Sequence[str],
    connections: Sequence[int],
    *,
    rounds: int,
    seconds: float,
    path: str,
    workers: int,
    cores: Cores,
    database: Path,
    expected: harness.Answer,
) -> dict[tuple[int, str], list[Round]]:
    """Return the counted rounds by connections and server."""
    shuffled = random.Random(SEED)
    answer = harness.to_base64(expected.raw)
    found: dict[tuple[int, str], list[Round]] = {(c, n): [] for c in connections for n in names}
    with harness.pinned(cores.generator):  # our own work must not take the server's core
        for number in range(rounds):
            turns = list(found)
            shuffled.shuffle(turns)
            for at, (count, name) in enumerate(turns, 1):
                wrk: dict[str, Any] = {"connections": count, "threads": min(workers, count)}
                with contestant(
                    name,
                    workers=workers,
                    cores=cores,
                    database=database,
                    connections=count,
                    answer=answer,
                ) as server:
                    check(server, path, expected)
                    try:
                        harness.run_wrk(server.port, path, cores=cores, seconds=1, **wrk)
                        done = harness.measured(server, path, cores=cores, seconds=seconds, **wrk)
                    except Failed as error:
                        raise Failed(f"{name}, {count} connections: {error}") from None
                found[count, name].append(done)
                progress(
                    f"round {number + 1}/{rounds}, {at}/{len(turns)}: {name}, {count} connections:"
                    f" {done.load.rps:,.0f} RPS, {done.cpu_us:.1f} µs of CPU per request"
                )
    return found


def table(found: dict[tuple[int, str], list[Round]]) -> str:
    """Return the medians as Markdown."""
    lines = [
        "| connections | server | RPS (least–most) | P50 ms | P99 ms | CPU µs/request (least–most)"
        " | × ceiling | wrk's CPU | core busy: server, wrk | memory MB |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for (count, name), rounds in found.items():
        rps = harness.spread([r.load.rps for r in rounds])
        cpu = harness.spread([r.cpu_us for r in rounds])
        ceiling = found.get((count, "ceiling"))
        ratio = "–"
        if ceiling:
            ratio = f"{cpu.median / harness.spread([r.cpu_us for r in ceiling]).median:.2f}"
        share = harness.spread([r.load.generator_cpu for r in rounds]).median
        busy = ", ".join(f"{part:.0%}" for part in harness.busy_of(rounds)) or "–"
        mark = " **generator-bound**" if harness.generator_bound(rounds) else ""
        lines.append(
            f"| {count:,} | {name} | {rps.median:,.0f} ({rps.least:,.0f}–{rps.greatest:,.0f})"
            f" | {harness.spread([r.load.p50 for r in rounds]).median:.2f}"
            f" | {harness.spread([r.load.p99 for r in rounds]).median:.2f}"
            f" | {cpu.median:.1f} ({cpu.least:.1f}–{cpu.greatest:.1f}) | {ratio}"
            f" | {share:.0%}{mark} | {busy} | {harness.megabytes(rounds[-1].memory)} |"
        )
    return "\n".join(lines)


def report(
    found: dict[tuple[int, str], list[Round]], settings: dict[str, Any], before: dict[str, Any]
) -> dict[str, Any]:
    """Return everything for the JSON file."""
    results = []
    for (count, name), rounds in found.items():
        ceiling = found.get((count, "ceiling"))
        figures = harness.summary(rounds)
        if ceiling:
            base = harness.spread([r.cpu_us for r in ceiling]).median
            figures["cpu_to_ceiling"] = figures["cpu_us_per_request"]["median"] / base
        results.append(
            {
                "server": name,
                "connections": count,
                "figures": figures,
                "rounds": [asdict(r) for r in rounds],
            }
        )
    return {
        "machine": before,
        "versions": {**harness.versions(*PACKAGES), "wrk": harness.wrk_version()},
        "settings": settings,
        "results": results,
    }


@click.command()
@click.option("--connections", default="64,1000,3350", help="Numbers of connections, by commas.")
@click.option("--rounds", default=5, type=click.IntRange(1), help="Counted rounds of each.")
@click.option("--seconds", default=5, type=click.IntRange(1), help="Length of a counted run.")
@click.option("--servers", default=",".join(NAMES), help="Which of them, by commas.")
@click.option("--path", default="/health", help="What is asked for; / is a limited route.")
@click.option("--workers", default=1, type=click.IntRange(1), help="More than 1: not pinned.")
@click.option("--json", "target", default=RESULTS / "serve.json", type=click.Path(path_type=Path))
def main(
    connections: str,
    rounds: int,
    seconds: int,
    servers: str,
    path: str,
    workers: int,
    target: Path,
) -> None:
    """Measure RPS, latency, CPU and memory per server and print a table."""
    names = [name.strip() for name in servers.split(",")]
    counts = [int(count) for count in connections.split(",")]
    unknown = set(names) - set(NAMES)
    if unknown:
        raise click.BadParameter(f"{', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    if path not in COMPARED and set(names) - {"fluxor", "ceiling"}:
        raise click.BadParameter(f"the other servers answer {' and '.join(COMPARED)} only")
    harness.wrk_path()
    files = harness.claim_files()
    if max(counts) + 100 > files:
        raise click.ClickException(f"{max(counts)} connections need more than {files} files")
    before = harness.machine()
    cores = Cores.of(workers)
    progress(f"{before['cpu']}, {before['kernel']}; {cores.said}; seed {SEED}")
    try:
        with harness.interruptible(), harness.scratch() as database:
            expected = reference(path, database)
            found = measure(
                names,
                counts,
                rounds=rounds,
                seconds=seconds,
                path=path,
                workers=workers,
                cores=cores,
                database=database,
                expected=expected,
            )
    except Failed as error:
        raise click.ClickException(f"no report: {error}") from None
    settings = {
        "connections": counts,
        "rounds": rounds,
        "seconds": seconds,
        "path": path,
        "workers": workers,
        "cores": cores.said,
        "seed": SEED,
        "answer_bytes": len(expected.raw),
    }
    harness.write_json(target, report(found, settings, before))
    print(f"`{path}`, {workers} worker(s), {cores.said}, {rounds} rounds of {seconds} s, medians\n")
    print(table(found))
    shared = max(harness.strangers(rounds) for rounds in found.values())
    if shared > 0.05:
        print(f"\nOther work took up to {shared:.0%} of the server's core: measure again in quiet.")


if __name__ == "__main__":
    main()
