"""Reads from PostgreSQL: our pool, psycopg's own, and asyncpg's, by number of concurrent readers.

Each reader reads one row by its key, again and again. This process is pinned to the first core and
PostgreSQL to the second; contestants take turns within each round, so that the machine's drift hits
all alike. What counts is the CPU of this process per read, and reads per second.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import harness
import uvloop
from compare_report import spread_of
from harness import Cores, progress

sys.path.insert(0, str(Path(__file__).resolve().parent / "servers"))

import psycopg
import work
from psycopg_pool import AsyncConnectionPool

from fluxor_fast.db.pool import Database

RESULTS = Path(__file__).resolve().parent / "results"
POOL = 10
READERS = (1, 20, 200)
Read = Callable[[], Awaitable[object]]


async def timed(read: Read, readers: int, seconds: float) -> tuple[float, float]:
    """Return reads per second, and CPU microseconds per read."""
    until = time.perf_counter() + seconds
    done = 0

    async def reader() -> None:
        nonlocal done
        while time.perf_counter() < until:
            await read()
            done += 1

    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(reader() for _ in range(readers)))
    used = time.process_time() - cpu
    return done / (time.perf_counter() - started), used / done * 1e6


async def measure(url: str, rounds: int, seconds: float) -> dict[tuple[int, str], list[Any]]:
    """Return (rate, CPU) of each round by readers and contestant."""
    database = Database(
        url, min_size=POOL, max_size=POOL, timeout=10, max_waiting=1000, lifetime=3600,
        idle=300, statement_timeout=10, connect_timeout=5,
    )  # fmt: skip
    await database.open()
    await database.first_contact()
    plain = AsyncConnectionPool(
        url, min_size=POOL, max_size=POOL, open=False, kwargs={"autocommit": True}
    )
    await plain.open(wait=True)

    async def ours() -> object:
        return await database.fetch_one(work.SQL, work.key())

    async def psycopg_pool() -> object:
        async with plain.connection() as connection:
            return await (await connection.execute(work.SQL, (work.key(),))).fetchone()

    async def transaction() -> object:
        async with plain.connection() as connection, connection.transaction():
            return await (await connection.execute(work.SQL, (work.key(),))).fetchone()

    contestants: dict[str, Read] = {
        "fluxor-fast": ours,
        "psycopg's pool": psycopg_pool,
        "psycopg's pool, transactions": transaction,
    }
    other: Any = None
    try:
        import asyncpg  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        progress("asyncpg is not installed, and left out")
    else:
        other = await asyncpg.create_pool(url, min_size=POOL, max_size=POOL)
        contestants["asyncpg's pool"] = lambda: other.fetchrow(work.SQL_NUMBERED, work.key())

    found: dict[tuple[int, str], list[Any]] = {}
    shuffled = random.Random(1)
    for readers in READERS:
        for number in range(rounds + 1):
            order = list(contestants)
            shuffled.shuffle(order)
            for name in order:
                figures = await timed(contestants[name], readers, seconds)
                if number:  # the first warms it up
                    found.setdefault((readers, name), []).append(figures)
        progress(f"{readers} readers done")
    await database.close()
    await plain.close()
    if other is not None:
        await other.close()
    return {key: found[key] for key in ((n, name) for n in READERS for name in contestants)}


@click.command()
@click.option("--rounds", default=5, type=click.IntRange(1), help="Counted runs of each.")
@click.option("--seconds", default=1.0, type=click.FloatRange(0.1), help="Length of each.")
@click.option(
    "--json", "target", default=RESULTS / "database.json", type=click.Path(path_type=Path)
)
def main(rounds: int, seconds: float, target: Path) -> None:
    """Measure reads and print a table."""
    from fluxor_fast.db.embedded import embedded_postgres  # an extra, wanted only here

    cores = Cores.of(1)
    before = harness.machine()
    with harness.interruptible(), harness.scratch() as folder, ExitStack() as stack:
        with harness.pinned(cores.generator):
            url = stack.enter_context(embedded_postgres(folder, max_connections=100))
        with psycopg.connect(url, autocommit=True) as connection:
            work.fill(connection)
        with harness.pinned(cores.server):
            found = uvloop.run(measure(url, rounds, seconds))
    lines = [
        "| readers | pool | reads/s (least–most) | CPU µs per read (least–most)"
        " | rate ÷ psycopg's |",
        "|--:|---|--:|--:|--:|",
    ]
    rows = []
    for (readers, name), figures in found.items():
        rates, cpus = ([f[at] for f in figures] for at in (0, 1))
        base = [f[0] for f in found[readers, "psycopg's pool"]]
        ratio = harness.spread([mine / its for mine, its in zip(rates, base, strict=True)]).median
        lines.append(
            f"| {readers} | {name} | {spread_of(rates, '{:,.0f}')} | {spread_of(cpus, '{:.1f}')}"
            f" | {ratio:.2f} |"
        )
        rows.append({"readers": readers, "pool": name, "rates": rates, "cpu_us": cpus})
    versions = harness.versions("fluxor-fast", "psycopg", "psycopg-pool", "asyncpg", "uvloop")
    harness.write_json(target, {"machine": before, "versions": versions, "rows": rows})
    print("\n".join(lines))


if __name__ == "__main__":
    main()
