"""The server beside its peers, in one run: speed, latency, CPU and memory for several workloads.

All servers are started at once, pinned to one core, and idle but for the one that is measured; wrk
has another core. Rounds are short and interleaved, in an order shuffled with a fixed seed, so that
what the machine does meanwhile hits all alike; a ratio to the ceiling (a uvloop protocol that
writes a constant) is taken within its round. Before anything is timed each server must answer the
same bytes as ours. A failed round fails the report; what could not take part is named in it.

What may be prepared beforehand follows TechEmpower's rules: an answer is made anew for each
request (the ceiling and nginx, marked as constant, do not keep to that).
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
import compare_report
import harness
from contestants import CONTESTANTS, DATABASE, SERVERS, Place, missing, start
from harness import Cores, Failed, Round, Server, progress

RESULTS = Path(__file__).resolve().parent / "results"
SEED = 20_261_124
DEPTH = 16
READERS = 64
POOL = 10
PACKAGES = (
    "fluxor-fast", "uvloop", "httptools", "orjson", "psycopg", "granian", "uvicorn", "gunicorn",
    "uvicorn-worker", "sanic", "robyn", "socketify", "blacksheep", "falcon", "fastpysgi", "asyncpg",
)  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """What is asked.

    :param script: for wrk, see ``requests.lua``; POSTs name a size instead of a file.
    :param connections: None: those of the command line, else these.
    """

    path: str
    said: str
    script: tuple[str, ...] = ()
    size: int = 0
    connections: tuple[int, ...] | None = (64,)


WORKLOADS = {
    "health": Workload("/health", "JSON, made anew", connections=None),
    "plaintext": Workload("/plaintext", "text"),
    "pipelined": Workload("/health", f"JSON, {DEPTH} in a packet", ("pipeline", str(DEPTH))),
    "cold": Workload("/health", "JSON, each head sent for the first time", ("cold",)),
    "params": Workload("/r150/items/42", "one of 300 routes with a parameter"),
    "echo1k": Workload("/echo", "JSON of 1 KB read and written", ("post",), 1_000),
    "echo17k": Workload("/echo", "JSON of 17 KB read and written", ("post",), 17_000),
    "db": Workload("/db", "one row from PostgreSQL", connections=(READERS,)),
    "queries": Workload("/queries", "20 rows from PostgreSQL, in turn", connections=(READERS,)),
}
Cell = tuple[str, int, str]
"""Workload, connections, server."""


@cache
def document(size: int) -> bytes:
    """Return a JSON document of about ``size`` bytes, as every encoder here writes it."""
    made = random.Random(SEED)
    words = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath"]
    items: list[dict[str, Any]] = []
    while len(json.dumps({"items": items}, separators=(",", ":"))) < size - 60:
        number = made.randrange(1_000_000)
        items.append({"id": number, "name": made.choice(words), "tags": made.sample(words, 3)})
    return json.dumps({"items": items}, separators=(",", ":")).encode()


class Comparison:
    """One run: who takes part, with what, and what came of it."""

    def __init__(self, cores: Cores, seconds: float, folder: Path) -> None:
        self.cores = cores
        self.seconds = seconds
        self.folder = folder
        self.found: dict[Cell, list[Round]] = {}
        self.left_out: dict[str, str] = {}
        self._warm: set[Cell] = set()

    def place(self, **more: Any) -> Place:
        """Return where the next contestant is to run."""
        return Place(harness.free_port(), 1, self.folder, **more)

    def ask(self, server: Server, name: str) -> harness.Answer:
        """Return a server's answer to one request of a workload."""
        workload = WORKLOADS[name]
        if not workload.size:
            return harness.fetch(server.port, workload.path)
        return harness.fetch(
            server.port, workload.path, method="POST", body=document(workload.size),
            headers={"Content-Type": "application/json"},
        )  # fmt: skip

    def script(self, name: str) -> tuple[str, ...]:
        """Return the script for wrk."""
        workload = WORKLOADS[name]
        if not workload.size:
            return ("requests.lua", *workload.script) if workload.script else ()
        file = self.folder / f"{name}.json"
        if not file.exists():
            file.write_bytes(document(workload.size))
        return ("requests.lua", *workload.script, str(file))

    @contextmanager
    def servers(
        self, names: Sequence[str], workloads: Sequence[str], url: str | None
    ) -> Iterator[dict[tuple[str, str], Server]]:
        """Run everybody; by workload and name, since the ceiling needs one for each answer."""
        running: dict[tuple[str, str], Server] = {}
        with ExitStack() as stack:
            ours = stack.enter_context(start("fluxor", self.place(url=url, pool=POOL), self.cores))
            health = harness.fetch(ours.port, "/health").raw
            for name in names:
                reason = missing(name)
                if reason is not None:
                    self.left_out[name] = reason
                    continue
                mine = [w for w in workloads if w in CONTESTANTS[name].workloads]
                one = ours if name == "fluxor" else None
                for workload in mine:
                    expected = self.ask(ours, workload)
                    try:
                        if name == "ceiling":
                            pipelined = workload == "pipelined"
                            place = self.place(answer=expected.raw, pipelined=pipelined)
                            one = stack.enter_context(start(name, place, self.cores))
                        elif one is None:
                            place = self.place(answer=health, url=url, pool=POOL)
                            one = stack.enter_context(start(name, place, self.cores))
                        check(workload, name, self.ask(one, workload), expected)
                        running[workload, name] = one
                    except (Failed, OSError, ValueError) as error:
                        self.left_out[f"{name}, {workload}"] = str(error)
                        progress(f"{name} is left out of {workload}: {error}")
                        if one is None:  # it does not start
                            break
            yield running

    def measure(
        self,
        names: Sequence[str],
        workloads: Sequence[str],
        connections: Sequence[int],
        rounds: int,
        url: str | None = None,
    ) -> None:
        """Time everybody on everything, ``rounds`` times."""
        shuffled = random.Random(SEED)
        with self.servers(names, workloads, url) as running:
            cells = [
                (workload, count, name)
                for workload in workloads
                for count in WORKLOADS[workload].connections or connections
                for name in names
                if (workload, name) in running
            ]
            for number in range(rounds):
                # those of one workload stay together: they are compared
                groups: dict[tuple[str, int], list[Cell]] = {}
                for cell in cells:
                    groups.setdefault(cell[:2], []).append(cell)
                turns = list(groups.values())
                shuffled.shuffle(turns)
                for group in turns:
                    shuffled.shuffle(group)
                    for cell in group:
                        self.found.setdefault(cell, []).append(
                            self.time(cell, running[cell[0], cell[2]])
                        )
                    progress(f"round {number + 1}/{rounds}: {compare_report.brief(self, group)}")

    def time(self, cell: Cell, server: Server) -> Round:
        """Run wrk once."""
        name, count, contestant = cell
        options: dict[str, Any] = {
            "cores": self.cores, "connections": count, "script": self.script(name),
        }  # fmt: skip
        path = WORKLOADS[name].path
        try:
            if cell not in self._warm:
                self._warm.add(cell)
                harness.run_wrk(server.port, path, seconds=1, **options)
            return harness.measured(server, path, seconds=self.seconds, **options)
        except Failed as error:
            raise Failed(f"{contestant}, {name}, {count} connections: {error}") from None


def check(workload: str, name: str, answer: harness.Answer, expected: harness.Answer) -> None:
    """Refuse to time a server that does not answer what ours does."""
    if (answer.status, answer.content_type) != (expected.status, expected.content_type):
        raise Failed(f"{name} answers {workload} with {answer.status} {answer.content_type}")
    if workload in DATABASE:
        mine, wanted = json.loads(answer.body), json.loads(expected.body)
        rows = [found if isinstance(found, list) else [found] for found in (mine, wanted)]
        if type(mine) is not type(wanted) or list(rows[0][0]) != list(rows[1][0]):
            raise Failed(f"{name} answers {workload} with {answer.body[:80]!r}")
    elif WORKLOADS[workload].path == "/health":  # but for the time
        mine, wanted = json.loads(answer.body), json.loads(expected.body)
        at = mine.pop("timestamp")
        del wanted["timestamp"]
        if mine != wanted or len(answer.body) != len(expected.body):
            raise Failed(f"{name} answers {workload} with {answer.body[:80]!r}")
        # ours may have been asked long before: servers that are built begin later
        if not CONTESTANTS[name].constant and abs(at - time.time()) > 30:
            raise Failed(f"{name} answers {workload} with an old document")
    elif answer.body != expected.body:
        raise Failed(f"{name} answers {workload} with {answer.body[:80]!r}")


def fill(url: str) -> None:
    """Make the table that is read."""
    import psycopg  # only the database workloads need it

    sys.path.insert(0, str(SERVERS))
    import work

    with psycopg.connect(url, autocommit=True) as connection:
        work.fill(connection)


def _embedded(folder: Path) -> AbstractContextManager[str]:
    from fluxor_fast.db.embedded import embedded_postgres  # an extra, wanted only here

    return embedded_postgres(folder, max_connections=100)


def scaling(folder: Path, seconds: float, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return CPU per request with one process and with two, on all cores: ours and the ceiling's.

    Two processes and the generator share the machine. What the ceiling loses by that, which shares
    nothing between its processes, is the kernel's and the generator's; only the rest is ours.
    """
    found: dict[str, dict[str, list[float]]] = {}
    cores = Cores()
    with ExitStack() as stack:
        servers: dict[tuple[str, str], Server] = {}
        answer = b""
        for name in ("fluxor", "ceiling"):
            found[name] = {"1": [], "2": []}
            for workers in found[name]:
                place = Place(harness.free_port(), int(workers), folder, answer=answer)
                servers[name, workers] = stack.enter_context(start(name, place, cores))
            if not answer:
                answer = harness.fetch(place.port, "/health").raw
        for number in range(rounds + 1):
            for (name, workers), server in servers.items():
                done = harness.measured(
                    server, "/health", cores=cores, connections=64, threads=1, seconds=seconds
                )
                if number:  # the first warms it up
                    found[name][workers].append(done.cpu_us)
    progress(f"1 and 2 workers: {found}")
    return found


@click.command()
@click.option("--servers", default="all", help=f"Of {', '.join(CONTESTANTS)}; by commas.")
@click.option("--workloads", default="all", help=f"Of {', '.join(WORKLOADS)}; by commas.")
@click.option("--connections", default="64,1000,3350", help="Of the health workload, by commas.")
@click.option("--rounds", default=5, type=click.IntRange(1), help="Counted runs of each.")
@click.option("--seconds", default=2, type=click.IntRange(1), help="Length of a counted run.")
@click.option("--quick", is_flag=True, help="At most 3 rounds, of 1 s; 64 connections.")
@click.option("--scaling/--no-scaling", "scales", default=True, help="One worker against two.")
@click.option("--database", metavar="URL", help="Read this PostgreSQL; its table `world` is lost.")
@click.option("--report-only", is_flag=True, help="Measure nothing: the report once more.")
@click.option("--json", "target", default=RESULTS / "compare.json", type=click.Path(path_type=Path))
@click.option("--plots", type=click.Path(path_type=Path, file_okay=False), help="Folder of SVGs.")
def main(
    servers: str,
    workloads: str,
    connections: str,
    rounds: int,
    seconds: int,
    quick: bool,
    scales: bool,
    database: str | None,
    report_only: bool,
    target: Path,
    plots: Path | None,
) -> None:
    """Measure everybody on everything; print tables and what was promised beside what was got."""
    if not report_only:
        names, chosen = (
            harness.names_of(servers, list(CONTESTANTS)),
            harness.names_of(workloads, list(WORKLOADS)),
        )
        counts = [64] if quick else [int(count) for count in connections.split(",")]
        if quick:
            rounds, seconds = min(rounds, 3), 1
        try:
            report = run(names, chosen, counts, rounds, seconds, scales, database)
            harness.write_json(target, report)
        except Failed as error:
            raise click.ClickException(f"no report: {error}") from None
    report = json.loads(target.read_text())
    print(compare_report.markdown(report))
    if plots is not None:
        for path in compare_report.plot(report, plots):
            progress(f"wrote {path}")


def run(
    names: Sequence[str],
    chosen: Sequence[str],
    counts: Sequence[int],
    rounds: int,
    seconds: int,
    scales: bool,
    database: str | None,
) -> dict[str, Any]:
    """Measure, and return the report.

    :param database: URL of a PostgreSQL for the workloads that read one; None: start one.
    """
    harness.wrk_path()
    if max(counts) + 500 > harness.claim_files():
        raise Failed(f"{max(counts)} connections need more open files than are allowed")
    before = harness.machine()
    cores = Cores.of(1)
    cells = sum(
        len(WORKLOADS[w].connections or counts)
        for n in names for w in chosen if w in CONTESTANTS[n].workloads
    )  # fmt: skip
    guess = cells * (rounds * (seconds + 0.3) + 1.3) + 30
    progress(f"{before['cpu']}; {cores.said}; seed {SEED}; about {guess / 60:.0f} min")
    started = time.monotonic()
    with harness.interruptible(), ExitStack() as stack:
        stack.enter_context(harness.pinned(cores.generator))  # our own work, and the database
        folder = stack.enter_context(harness.scratch())
        folder.mkdir()
        comparison = Comparison(cores, seconds, folder)
        over_http = [w for w in chosen if w not in DATABASE]
        if over_http:
            everybody = [n for n in names if CONTESTANTS[n].workloads - DATABASE]
            comparison.measure(everybody, over_http, counts, rounds)
        reading = [w for w in chosen if w in DATABASE]
        if reading:
            url = database or stack.enter_context(_embedded(folder / "database"))
            fill(url)
            readers = [n for n in names if CONTESTANTS[n].workloads & DATABASE]
            comparison.measure(readers, reading, counts, rounds, url)
        scaled = None
        if scales:
            with harness.pinned(before["cores"]):
                scaled = scaling(folder, seconds, rounds)
    return {
        "machine": before,
        "versions": {**harness.versions(*PACKAGES), "wrk": harness.wrk_version()},
        "command": " ".join(["python bench/compare.py", *sys.argv[1:]]),
        "settings": {"rounds": rounds, "seconds": seconds, "seed": SEED, "cores": cores.said},
        "minutes": round((time.monotonic() - started) / 60, 1),
        "left_out": comparison.left_out,
        "scaling": scaled,
        "results": [
            {
                "workload": workload,
                "said": WORKLOADS[workload].said,
                "connections": count,
                "server": name,
                "title": CONTESTANTS[name].title,
                "figures": harness.summary(done),
                "cpu_to_ceiling": compare_report.paired(
                    done, comparison.found.get((workload, count, "ceiling"))
                ),
                "rounds": [asdict(one) for one in done],
            }
            for (workload, count, name), done in comparison.found.items()
        ],
    }


if __name__ == "__main__":
    main()
