"""One row by its key, read by 1, 20 and 200 at once: our pool beside psycopg's and asyncpg's.

Rules kept here:

1. The client has the first core to itself, PostgreSQL the second. Each figure is taken in a fresh
   process, after a warm-up; the contestants of a round follow each other in shuffled order, and
   are compared within the round, so that what the machine does meanwhile meets all of them.
2. All have ten connections, a uvloop and the same statement, and give a dict, whose key is checked.
3. CPU is the client process's own, user and system, by the kernel's account.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import asyncpg
import click
import harness
import psycopg
import uvloop
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from fluxor_fast.db.embedded import embedded_postgres
from fluxor_fast.db.pool import Database

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("fluxor-fast", "psycopg", "psycopg-binary", "psycopg-pool", "asyncpg", "uvloop")
SEED = 7
USERS = 10_000
POOL = 10
WARM_UP = 0.5
TARGET = 1.5
"""How many times plain psycopg's pool we promised to be, in queries and in CPU."""
BASE = "psycopg"

Read = Callable[[int], Awaitable[Any]]
COLUMNS = "select id, email, name, roles, created_at from users where id = "


@asynccontextmanager
async def fluxor(url: str) -> AsyncIterator[Read]:
    """Ours, as handlers use it."""
    database = Database(
        url,
        min_size=POOL,
        max_size=POOL,
        timeout=10.0,
        max_waiting=1000,
        lifetime=1800.0,
        idle=300.0,
        statement_timeout=10.0,
        connect_timeout=5.0,
    )
    await database.open()
    await database.first_contact()
    try:
        yield lambda user: database.fetch_one(COLUMNS + "%s", user)
    finally:
        await database.close()


@asynccontextmanager
async def plain(url: str, autocommit: bool) -> AsyncIterator[Read]:
    """psycopg's pool, a connection for each read."""
    options = {"autocommit": autocommit, "row_factory": dict_row}
    async with AsyncConnectionPool(url, kwargs=options, min_size=POOL, max_size=POOL) as pool:

        async def read(user: int) -> Any:
            async with pool.connection() as connection:
                return await (await connection.execute(COLUMNS + "%s", (user,))).fetchone()

        yield read


class _NoReset(asyncpg.Connection):  # type: ignore[misc]
    """A connection that is given back as it is; by default asyncpg resets it, by a statement."""

    async def reset(self, *, timeout: float | None = None) -> None:
        """Do nothing."""


@asynccontextmanager
async def other(url: str, kind: type) -> AsyncIterator[Read]:
    """asyncpg's pool, a connection for each read."""
    async with asyncpg.create_pool(
        url, min_size=POOL, max_size=POOL, connection_class=kind
    ) as pool:

        async def read(user: int) -> Any:
            return dict(await pool.fetchrow(COLUMNS + "$1", user))

        yield read


CONTESTANTS: dict[str, Callable[[str], Any]] = {
    "fluxor": fluxor,
    BASE: lambda url: plain(url, autocommit=True),
    "psycopg, transactions": lambda url: plain(url, autocommit=False),
    "asyncpg": lambda url: other(url, asyncpg.Connection),
    "asyncpg, no reset": lambda url: other(url, _NoReset),
}


@dataclass(frozen=True)
class Figures:
    """Of one contestant in one round."""

    per_second: float
    cpu_us: float
    p50_ms: float
    p99_ms: float


async def readers(read: Read, count: int, seconds: float, seed: int) -> Figures:
    """Have ``count`` readers ask one after the other for ``seconds``."""
    took: list[float] = []
    users = random.Random(seed)

    async def reader(end: float) -> None:
        while (now := time.perf_counter()) < end:
            user = users.randint(1, USERS)
            row = await read(user)
            if row["id"] != user:
                raise AssertionError(f"asked for {user}, got {row['id']}")
            took.append(time.perf_counter() - now)

    async def run(duration: float) -> tuple[float, float]:
        took.clear()
        started, used = time.perf_counter(), cpu()
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(reader(started + duration))
        return time.perf_counter() - started, cpu() - used

    await run(WARM_UP)
    elapsed, used = await run(seconds)
    took.sort()
    done = len(took)
    return Figures(
        done / elapsed, used / done * 1e6, took[done // 2] * 1e3, took[done * 99 // 100] * 1e3
    )


def cpu() -> float:
    """Return the seconds this process has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def client(name: str, url: str, count: int, seconds: float, seed: int) -> Figures:
    """Measure one contestant, in this process."""
    async with CONTESTANTS[name](url) as read:
        figures: Figures = await readers(read, count, seconds, seed)
        return figures


def fill(url: str) -> None:
    """Make the table of the reference service, with users."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop table if exists users")
        connection.execute(
            "create table users (id bigint generated always as identity primary key,"
            " email text not null, name text, password_hash text,"
            " roles text[] not null default '{user}',"
            " created_at timestamptz not null default now())"
        )
        connection.execute(
            "insert into users (email, name) select 'user' || n || '@example.com', 'User ' || n"
            " from generate_series(1, %s) n",
            (USERS,),
        )
        connection.execute("vacuum analyze users")


def measure(
    names: list[str], levels: list[int], rounds: int, seconds: float
) -> dict[str, dict[int, list[Figures]]]:
    """Return the figures of every round, by contestant and readers."""
    order = random.Random(SEED)
    cores = sorted(os.sched_getaffinity(0))
    found: dict[str, dict[int, list[Figures]]] = {n: {c: [] for c in levels} for n in names}
    with (
        harness.scratch() as folder,
        harness.pinned(cores[1:2] or None),
        embedded_postgres(folder, max_connections=40) as url,
    ):
        fill(url)
        for number in range(rounds):
            for count in levels:
                for name in order.sample(names, len(names)):
                    with harness.pinned(cores[:1]):
                        done = subprocess.run(
                            [sys.executable, __file__, "--client", name, url]
                            + [str(count), str(seconds), str(SEED + number)],
                            capture_output=True,
                            text=True,
                            check=False,
                            timeout=60 + seconds,
                        )
                    if done.returncode:
                        raise harness.Failed(f"{name}: {done.stderr[-500:]}")
                    figures = Figures(**json.loads(done.stdout))
                    found[name][count].append(figures)
                    harness.progress(
                        f"round {number + 1}/{rounds}, {count} readers, {name}:"
                        f" {figures.per_second:,.0f}/s, {figures.cpu_us:.1f} µs"
                    )
    return found


def times(mine: list[Figures], theirs: list[Figures]) -> tuple[float, float]:
    """Return how many times the queries, and how many times less CPU: medians over the rounds."""
    pairs = list(zip(mine, theirs, strict=True))
    return (
        statistics.median(m.per_second / t.per_second for m, t in pairs),
        statistics.median(t.cpu_us / m.cpu_us for m, t in pairs),
    )


def table(found: dict[str, dict[int, list[Figures]]]) -> str:
    """Return the medians as Markdown, and how they compare with ``BASE``."""
    lines = [
        "| readers | client | queries/s | CPU µs/query | P50 ms | P99 ms"
        f" | queries/s, × {BASE} | CPU, × less |",
        "|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for count in next(iter(found.values())):
        for name, levels in found.items():
            rounds = levels[count]
            middle = [
                statistics.median(getattr(r, key) for r in rounds)
                for key in ("per_second", "cpu_us", "p50_ms", "p99_ms")
            ]
            rate, less = times(rounds, found[BASE][count])
            lines.append(
                f"| {count} | {name} | {middle[0]:,.0f} | {middle[1]:.1f} | {middle[2]:.2f}"
                f" | {middle[3]:.2f} | {rate:.2f} | {less:.2f} |"
            )
    return "\n".join(lines)


@click.command()
@click.option("--readers", "levels", default="1,20,200", help="Readers at once.")
@click.option("--clients", default=",".join(CONTESTANTS).replace(", ", "+"), hidden=True)
@click.option("--rounds", default=5, type=click.IntRange(1))
@click.option("--seconds", default=2.0, type=click.FloatRange(0.2))
@click.option(
    "--json", "target", default=RESULTS / "database.json", type=click.Path(path_type=Path)
)
def main(levels: str, clients: str, rounds: int, seconds: float, target: Path) -> None:
    """Measure one read per request, beside psycopg and asyncpg."""
    before = harness.machine()
    names = [name.replace("+", ", ") for name in clients.split(",")]
    try:
        with harness.interruptible():
            found = measure(names, [int(n) for n in levels.split(",")], rounds, seconds)
    except harness.Failed as error:
        raise click.ClickException(f"no report: {error}") from None
    ratios = {
        name: {count: times(levels[count], found[BASE][count]) for count in levels}
        for name, levels in found.items()
    }
    harness.write_json(
        target,
        {
            "machine": before,
            "versions": harness.versions(*PACKAGES),
            "settings": {"rounds": rounds, "seconds": seconds, "pool": POOL, "seed": SEED},
            "target": TARGET,
            "ratios": ratios,
            "rounds": {
                name: {count: [asdict(r) for r in figures] for count, figures in levels.items()}
                for name, levels in found.items()
            },
        },
    )
    print(table(found))
    least = min((least for pair in ratios.get("fluxor", {}).values() for least in pair), default=0)
    print(f"\nfluxor: at least {least:.2f} × {BASE}; promised {TARGET} ×")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        name, url, count, seconds, seed = sys.argv[2:]
        measured = uvloop.run(client(name, url, int(count), float(seconds), int(seed)))
        print(json.dumps(asdict(measured)))
    else:
        main()
