"""What happens beyond capacity: goodput, latency of the accepted, refusals, recovery.

For each server and route: what it can do is measured first (a few users in a closed loop, as
many as load it fully and no more). Then requests arrive on a schedule, at a multiple of that
capacity, whatever the server does (open loop), each point on a fresh server; then as a step, three
times the capacity for a while and before and after it half. What counts is an answer 200 within
the deadline, from the moment the request was due.

The closed case: 1,000 users at once, who ask again as soon as they are answered and, if they are
refused, at once. A probe in a process of its own asks the health route meanwhile.

One server at a time, one worker each, on the first core; the generator, and the database, on the
second. A server that fails makes its row fail, and the report goes on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import harness
import overload_report
from harness import Cores, Failed, Server, progress

HERE = Path(__file__).resolve().parent
APPS = HERE / "servers"
RESULTS = HERE / "results"
PACKAGES = (
    "fluxor-fast", "uvloop", "httptools", "psycopg", "psycopg-pool", "granian", "uvicorn",
    "gunicorn", "uvicorn-worker",
)  # fmt: skip
ROUTES = {"cpu": 4, "wait": 335, "db": 64}
"""Users that measure the capacity: as few as keep the server busy, so that none is refused."""
LIMIT = 100
"""The limit that the other servers are given."""
USERS_AT_LIMIT = 90
"""Users that a server with that limit takes without refusing, the probe included."""
FACTORS: tuple[float, ...] = (0.5, 0.8, 1.0, 1.2, 2.0, 3.0, 5.0)
DEADLINE = 1.0
CLOSED_SERVERS = ("fluxor", "uvicorn", "granian")
CLOSED_USERS = 1000
CONNECTIONS = 2000
"""Most connections of the generator."""
POOL_SECONDS, POOL_MOST = 0.05, 64
"""Connections opened beforehand: what that many seconds' load needs, but clearly below LIMIT."""
LEAD_SECONDS = 2.0
"""Load before a point counts: until its queues have filled, an overloaded server looks well."""
GIVE_UP = 2.0
"""Seconds after which a user closes the connection: twice the deadline, so late shows as late."""
MAX_RATE = 40_000.0
"""Offered rates beyond are left out: there the generator would measure itself."""
LATE_MS = 5.0
"""From this P99 of the generator's own lateness on, a row is marked."""
SOAK_FACTOR, SOAK_SAMPLE = 5, 5.0
"""Multiple of the capacity, and seconds between two looks at the memory, of the long run."""
SETTLE_SECONDS = 0.3
"""Pause in which a server notices that the last clients' connections are closed."""
START_SECONDS = 2.0
"""Rough cost of starting and stopping a server, for the estimate."""


@dataclass(frozen=True)
class Contestant:
    """A server under test.

    :param limit: users that it takes at once without refusing; None for any number here.
    :param options: what is told to it beyond address, application and silence.
    """

    title: str
    options: tuple[str, ...] = ()
    limit: int | None = None


UNLIMITED = (
    "--max-ccu", "100000", "--utilization", "100", "--slots", "100000",
    "--max-connections", "10000", "--queue-deadline", "3600",
)  # fmt: skip
CONTESTANTS = {
    "fluxor": Contestant("fluxor-fast"),
    "fluxor-unlimited": Contestant("fluxor-fast, admission off", UNLIMITED),
    "granian": Contestant(
        f"granian, backpressure {LIMIT}", ("--backpressure", str(LIMIT)), USERS_AT_LIMIT
    ),
    "uvicorn": Contestant(
        f"uvicorn, limit {LIMIT}", ("--limit-concurrency", str(LIMIT)), USERS_AT_LIMIT
    ),
    "gunicorn": Contestant("gunicorn, uvicorn worker"),
}
OFF_IF_KNOWN = ("--queue-target", "0")
"""Shedding by waiting time, also off when admission is; older versions do not have it."""


def _knows(flag: str) -> bool:
    """Return whether ``fluxor-fast serve`` has an option."""
    done = subprocess.run(
        [harness.command_of("fluxor-fast"), "serve", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    return flag in done.stdout


def options_of(name: str) -> list[str]:
    """Return the options of a contestant that are a matter of this benchmark."""
    options = list(CONTESTANTS[name].options)
    if name == "fluxor-unlimited" and _knows(OFF_IF_KNOWN[0]):
        options += OFF_IF_KNOWN
    return options


def command(
    name: str, port: int, options: Sequence[str], url: str | None, pool_size: int
) -> list[str]:
    """Return the command line of a contestant."""
    address = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    common = [*address, "--backlog", "4096"]
    kinds: dict[str, Callable[[], list[str]]] = {
        "fluxor": lambda: [
            harness.command_of("fluxor-fast"), "serve", "overload_fluxor:app", *common,
            "--log-level", "error", "--graceful-timeout", "1",
            *(["--database-url", url] if url else []),
            "--database-pool-min", str(pool_size), "--database-pool-max", str(pool_size),
        ],
        "granian": lambda: [
            harness.command_of("granian"), *common, "--log-level", "error",
            "--interface", "asgi", "--loop", "uvloop", "--http", "1", "--no-ws",
            "--runtime-threads", "1", "--no-access-log", "--workers-kill-timeout", "1",
            "--working-dir", str(APPS),
        ],
        # each refusal is a warning in its log, which is not what is measured
        "uvicorn": lambda: [
            harness.command_of("uvicorn"), *common, "--log-level", "error",
            "--loop", "uvloop", "--http", "httptools", "--ws", "none", "--no-access-log",
            "--timeout-graceful-shutdown", "1", "--app-dir", str(APPS),
        ],
        "gunicorn": lambda: [
            harness.command_of("gunicorn"), "--bind", f"127.0.0.1:{port}", "--workers", "1",
            "--backlog", "4096", "--log-level", "error", "--graceful-timeout", "1",
            "-k", "uvicorn_worker.UvicornWorker", "--chdir", str(APPS),
        ],
    }  # fmt: skip
    kind = name.partition("-")[0]
    app = [] if kind == "fluxor" else ["overload_asgi:app"]
    return [*kinds[kind](), *options, *app]


@dataclass
class Bench:
    """What all measurements share."""

    cores: Cores
    url: str | None
    seconds: float
    factors: tuple[float, ...]
    step: tuple[float, float, float] | None
    pool_size: int
    soak: float = 0.0
    options: dict[str, list[str]] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def server(self, name: str) -> Iterator[Server]:
        """Run a contestant on its core."""
        port = harness.free_port()
        options = self.options.setdefault(name, options_of(name))
        environ = {"PYTHONPATH": str(APPS), "OVERLOAD_POOL": str(self.pool_size)}
        if self.url:
            environ["OVERLOAD_DATABASE"] = self.url
        server = Server(
            name,
            command(name, port, options, self.url, self.pool_size),
            port,
            cpus=self.cores.server,
            environ=environ,
        )
        with server:
            yield server

    def generate(self, script: str, *options: object, seconds: float) -> dict[str, Any]:
        """Run a generator and return its report."""
        with self.start(script, *options) as process:
            return _report_of(process, seconds)

    @contextmanager
    def start(self, script: str, *options: object) -> Iterator[subprocess.Popen[str]]:
        """Run a generator on its core for the block; it does not outlive it."""
        words = [sys.executable, str(HERE / script), *map(str, options)]
        with harness.pinned(self.cores.generator):
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is ours: we end it
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()

    @contextmanager
    def row(self, name: str, route: str, kind: str, **more: Any) -> Iterator[dict[str, Any]]:
        """Yield a row to be filled in; a failure fails this row alone.

        An interrupted one is dropped: it is neither a measurement nor the server's fault.
        """
        row = {"server": name, "route": route, "kind": kind, **more}
        try:
            yield row
        except Failed as error:
            row["failed"] = str(error)
            progress(f"  FAILED: {error}")
        self.rows.append(row)


def _report_of(process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    try:
        output, errors = process.communicate(timeout=seconds + 20)
    except subprocess.TimeoutExpired:
        raise Failed("the generator did not end in time") from None
    if process.returncode != 0:
        raise Failed(f"the generator ended with {process.returncode}: {errors.strip()[-300:]}")
    found: dict[str, Any] = json.loads(output)
    return found


@contextmanager
def accounted(server: Server, row: dict[str, Any]) -> Iterator[None]:
    """Put the server's CPU and memory into ``row``; a process lost meanwhile fails it."""
    before, idle, started = (
        harness.cpu_seconds(server.pid),
        harness.idle_seconds(),
        time.monotonic(),
    )
    yield
    took = time.monotonic() - started
    used = harness.cpu_since(before, server.pid) / took
    row["server_cores"] = round(used, 3)
    if server.cpus is not None:
        now = harness.idle_seconds()
        busy = sum(1 - (now[core] - idle[core]) / took for core in server.cpus)
        row["others_on_core"] = round(max(0.0, busy - used), 3)
    row["server_rss_mb"] = round(harness.memory_of(server.tree).rss / 1e6, 1)
    if not server.alive or before.keys() - harness.cpu_seconds(server.pid).keys():
        raise Failed(f"{server.name} lost a process: {server.tail()}")


def closed(bench: Bench, port: int, route: str, users: int, seconds: float) -> dict[str, Any]:
    """Let users ask in a closed loop and return the generator's report."""
    options = ("--port", port, "--path", f"/{route}", "--users", users, "--seconds", seconds)
    return bench.generate("closedloop.py", *options, seconds=seconds)


def capacity(bench: Bench, name: str, route: str) -> float | None:
    """Measure what a server can do on a route; None if that failed."""
    users = min(ROUTES[route], CONTESTANTS[name].limit or ROUTES[route])
    with (
        bench.row(name, route, "capacity", users=users) as row,
        bench.server(name) as server,
    ):
        closed(bench, server.port, route, users, 0.5)  # warms it up
        time.sleep(SETTLE_SECONDS)
        with accounted(server, row):
            row |= closed(bench, server.port, route, users, max(2.0, bench.seconds / 2))
        if not row["accepted_rps"]:
            raise Failed(f"nothing was accepted: {row['errors']} errors")
        progress(f"{name} /{route}: {row['accepted_rps']:,.0f}/s with {users} users")
    return None if "failed" in row else float(row["accepted_rps"])


def open_loop(
    bench: Bench,
    row: dict[str, Any],
    rates: Sequence[float],
    seconds: Sequence[float],
    *,
    skip: float = 0.0,
) -> None:
    """Offer a fresh server these rates, and fill in ``row``; the first seconds do not count."""
    with bench.server(row["server"]) as server:
        closed(bench, server.port, row["route"], 2, 0.3)
        time.sleep(SETTLE_SECONDS)
        pool = min(POOL_MOST, max(4, round(max(rates) * POOL_SECONDS)))
        options: list[object] = [
            "--port", server.port, "--path", f"/{row['route']}", "--probe", "/health",
            "--connections", CONNECTIONS, "--pool", pool, "--deadline", DEADLINE,
            "--give-up", GIVE_UP, "--patience", GIVE_UP, "--skip", skip,
        ]  # fmt: skip
        for rate, length in zip(rates, seconds, strict=True):
            options += ["--rate", rate, "--seconds", length]
        with accounted(server, row):
            row |= bench.generate("openloop.py", *options, seconds=sum(seconds))
    mark_generator(row)


def mark_generator(row: dict[str, Any]) -> None:
    """Tell in ``row`` whether the generator measured itself."""
    late = row["generator_late"]["p99_ms"] or 0.0
    row["generator_bound"] = row["generator_cpu_share"] > harness.GENERATOR_BOUND or late > LATE_MS


def point(bench: Bench, name: str, route: str, factor: float, full: float) -> None:
    """Measure one multiple of the capacity ``full``."""
    rate = factor * full
    with bench.row(name, route, "open", factor=factor, capacity_rps=full) as row:
        if rate > MAX_RATE:
            row["skipped"] = f"{rate:,.0f}/s is more than the generator holds"
            return
        open_loop(bench, row, [rate], [LEAD_SECONDS + bench.seconds], skip=LEAD_SECONDS)
        row.pop("timeline")  # only a step has one that tells something
        progress(f"  {factor:g} ×: {overload_report.in_short(row)}")


def step(bench: Bench, name: str, route: str, full: float) -> None:
    """Measure a step to three times the capacity and back."""
    assert bench.step is not None
    more = {"capacity_rps": full, "step_seconds": bench.step}
    with bench.row(name, route, "step", **more) as row:
        if 3 * full > MAX_RATE:
            row["skipped"] = f"{3 * full:,.0f}/s is more than the generator holds"
            return
        open_loop(bench, row, [0.5 * full, 3 * full, 0.5 * full], bench.step)
        row["recovery_seconds"] = overload_report.recovery(
            row["timeline"], row["bin_seconds"], sum(bench.step[:2])
        )
        progress(
            f"  step: {overload_report.in_short(row)}, recovery {overload_report.recovered(row)}"
        )


def soak(bench: Bench, name: str, route: str, full: float, seconds: float) -> None:
    """Offer five times the capacity for a long time, and watch the server's memory."""
    with bench.row(name, route, "soak", capacity_rps=full) as row, bench.server(name) as server:
        closed(bench, server.port, route, 2, 0.3)
        options: list[object] = [
            "--port", server.port, "--path", f"/{route}", "--probe", "/health",
            "--connections", CONNECTIONS, "--deadline", DEADLINE, "--give-up", GIVE_UP,
            "--rate", SOAK_FACTOR * full, "--seconds", seconds, "--skip", LEAD_SECONDS,
        ]  # fmt: skip
        samples: list[float] = []
        with accounted(server, row), bench.start("openloop.py", *options) as generator:
            until = time.monotonic() + seconds
            while (now := time.monotonic()) < until:
                time.sleep(min(SOAK_SAMPLE, until - now))
                samples.append(round(harness.memory_of(server.tree).rss / 1e6, 1))
            row |= _report_of(generator, seconds)
        mark_generator(row)
        row.pop("timeline")
        row["rss_mb"] = samples
        progress(f"  {SOAK_FACTOR} × for {seconds:g} s: {overload_report.in_short(row)}")
        progress(f"  memory every {SOAK_SAMPLE:g} s, MB: {samples}")


def crowd(bench: Bench, name: str) -> None:
    """Measure many users at once on the processor's route, beside a probe of the health route."""
    seconds = bench.seconds
    with bench.row(name, "cpu", "closed") as row, bench.server(name) as server:
        row["uncontended"] = closed(bench, server.port, "cpu", ROUTES["cpu"], 1.5)
        time.sleep(SETTLE_SECONDS)
        # in a process of its own: the users' is busy with their refusals
        probe = (
            "--port", server.port, "--rate", 0, "--pool", 0, "--probe", "/health",
            "--deadline", DEADLINE, "--patience", DEADLINE,
        )  # fmt: skip
        with (
            accounted(server, row),
            bench.start("openloop.py", *probe, "--seconds", seconds) as watcher,
        ):
            users = ("--port", server.port, "--path", "/cpu", "--users", CLOSED_USERS)
            with bench.start("closedloop.py", *users, "--seconds", seconds) as crowd:
                if name == "fluxor":  # asked twice: the first second, when all came, is not counted
                    time.sleep(1.0)
                    harness.fetch(server.port, "/told")
                row |= _report_of(crowd, seconds)
            row["probe"] = _report_of(watcher, seconds)["probe"]
        if name == "fluxor":
            row["told_after_read"] = json.loads(harness.fetch(server.port, "/told").body)
        progress(f"{name}, {CLOSED_USERS} users: {overload_report.closed_in_short(row)}")


def estimate(bench: Bench, names: Sequence[str], routes: Sequence[str], crowds: int) -> float:
    """Return about how many seconds it will take."""
    each = START_SECONDS + max(2.0, bench.seconds / 2) + 1
    each += len(bench.factors) * (LEAD_SECONDS + bench.seconds + 1.0 + START_SECONDS)
    if bench.step is not None:
        each += sum(bench.step) + GIVE_UP + START_SECONDS
    if bench.soak:
        each += bench.soak + GIVE_UP + START_SECONDS
    return len(names) * len(routes) * each + crowds * (bench.seconds + 4 + START_SECONDS)


def merge(target: Path, rows: Sequence[dict[str, Any]], before: dict[str, Any]) -> None:
    """Put rows into the report: in place of older ones of the same server, route and kind."""
    known: list[dict[str, Any]] = []
    if target.exists():
        new = {(row["server"], row["route"], row["kind"]) for row in rows}
        known = [
            row
            for row in json.loads(target.read_text())["rows"]
            if (row["server"], row["route"], row["kind"]) not in new
        ]
    harness.write_json(target, {**before, "rows": [*known, *rows]})


@click.command()
@click.option("--servers", default="all", help=f"Of {', '.join(CONTESTANTS)}; by commas.")
@click.option("--routes", default="all", help=f"Of {', '.join(ROUTES)}; by commas.")
@click.option("--factors", help="Multiples of the capacity, by commas.")
@click.option("--seconds", type=click.FloatRange(1), help="Of each point.  [default: 6]")
@click.option("--quick", is_flag=True, help="3 s a point, fewer points, a shorter step.")
@click.option("--open/--no-open", "points", default=True, help="The points in an open loop.")
@click.option("--step/--no-step", default=True, help="The step to 3 × and back.")
@click.option("--closed/--no-closed", "crowded", default=True, help=f"{CLOSED_USERS} users.")
@click.option("--soak", default=0.0, type=click.FloatRange(0), help="Seconds at 5 ×; 0 for none.")
@click.option("--pool-size", default=10, type=click.IntRange(1), help="Database connections.")
@click.option("--fresh", is_flag=True, help="Keep nothing of an earlier report.")
@click.option("--report-only", is_flag=True, help="Measure nothing: table and plots once more.")
@click.option(
    "--json", "target", default=RESULTS / "overload.json", type=click.Path(path_type=Path)
)
@click.option("--plots", type=click.Path(path_type=Path, file_okay=False), help="Folder of SVGs.")
def main(
    servers: str,
    routes: str,
    factors: str | None,
    seconds: float | None,
    quick: bool,
    points: bool,
    step: bool,
    crowded: bool,
    soak: float,
    pool_size: int,
    fresh: bool,
    report_only: bool,
    target: Path,
    plots: Path | None,
) -> None:
    """Load servers beyond what they can do, and tell what becomes of the requests."""
    names, chosen = (
        harness.names_of(servers, list(CONTESTANTS)),
        harness.names_of(routes, list(ROUTES)),
    )
    if not report_only:
        multiples: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0) if quick else FACTORS
        if factors:
            multiples = tuple(float(factor) for factor in factors.split(","))
        length = seconds or (3.0 if quick else 6.0)
        bench = Bench(Cores.of(1), None, length, multiples if points else (), None, pool_size)
        bench.soak = soak
        if step:
            bench.step = (2.0, 4.0, 4.0) if quick else (5.0, 10.0, 5.0)
        run(bench, names, chosen, crowded, target, fresh)
    report = json.loads(target.read_text())
    titles = {name: contestant.title for name, contestant in CONTESTANTS.items()}
    print(overload_report.markdown(report["rows"], titles))
    if plots is not None:
        for path in overload_report.plot(report["rows"], titles, plots):
            progress(f"wrote {path}")
    others = max((row.get("others_on_core", 0.0) for row in report["rows"]), default=0.0)
    if others > 0.1:
        print(f"Other work took up to {others:.0%} of the server's core: measure again in quiet.")
    if any("failed" in row for row in report["rows"]):
        raise click.ClickException("some rows failed")


def run(
    bench: Bench,
    names: Sequence[str],
    routes: Sequence[str],
    crowded: bool,
    target: Path,
    fresh: bool,
) -> None:
    """Measure, and write what was measured, also if interrupted."""
    harness.claim_files()
    crowds = [name for name in CLOSED_SERVERS if name in names] if crowded else []
    opened = routes if bench.factors or bench.step or bench.soak else []
    before: dict[str, Any] = {
        "machine": harness.machine(),
        "versions": harness.versions(*PACKAGES),
        "command": " ".join(["python bench/overload.py", *sys.argv[1:]]),
        "settings": {
            "cores": bench.cores.said.replace("wrk", "generator and database"),
            "seconds": bench.seconds, "deadline_seconds": DEADLINE, "connections": CONNECTIONS,
            "give_up_seconds": GIVE_UP, "lead_seconds": LEAD_SECONDS,
            "max_rate": MAX_RATE, "users": ROUTES,
            "closed_users": CLOSED_USERS, "database_pool": bench.pool_size,
        },
    }  # fmt: skip
    took = estimate(bench, names, opened, len(crowds))
    progress(f"{before['machine']['cpu']}; {bench.cores.said}; about {took / 60:.0f} min")
    started = time.monotonic()
    if fresh:
        target.unlink(missing_ok=True)
    try:
        with harness.interruptible(), ExitStack() as stack:
            # our own work and the database must not take the server's core
            stack.enter_context(harness.pinned(bench.cores.generator))
            if "db" in opened:
                from fluxor_fast.db.embedded import embedded_postgres  # an extra, wanted only here

                folder = stack.enter_context(harness.scratch())
                progress("starting PostgreSQL …")
                bench.url = stack.enter_context(embedded_postgres(folder, max_connections=150))
            for route in opened:
                for name in names:
                    measure(bench, name, route)
            for name in crowds:
                crowd(bench, name)
    finally:
        before["server_options"] = {name: " ".join(o) for name, o in bench.options.items()}
        before["minutes"] = round((time.monotonic() - started) / 60, 1)
        if bench.rows:
            merge(target, bench.rows, before)


def measure(bench: Bench, name: str, route: str) -> None:
    """Measure one server on one route."""
    full = capacity(bench, name, route)
    if full is None:
        return
    for factor in bench.factors:
        point(bench, name, route, factor, full)
    if bench.step is not None:
        step(bench, name, route, full)
    if bench.soak:
        soak(bench, name, route, full, bench.soak)


if __name__ == "__main__":
    main()
