"""Reads from PostgreSQL: our pool, psycopg's own, and asyncpg's, by number of concurrent readers.

Each reader reads one row by its key, again and again, and looks whether it got that row. This
process is pinned to the first core and PostgreSQL to the second; contestants take turns within each
round, so that the machine's drift hits all alike. What counts is the CPU of this process per read,
reads per second, and how long the slowest hundredth of reads takes. asyncpg's pool asks the server
to reset a connection each time it is given back, unless told not to; it is measured both ways.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click
import harness
import uvloop
from compare_report import spread_of
from harness import Cores, Failed, progress

sys.path.insert(0, str(Path(__file__).resolve().parent / "servers"))

import psycopg
import work
from psycopg_pool import AsyncConnectionPool

from fluxor_fast.db.pool import Database

RESULTS = Path(__file__).resolve().parent / "results"
POOL = 10
READERS = (1, 20, 200)
Read = Callable[[int], Awaitable[Any]]


async def timed(read: Read, readers: int, seconds: float) -> tuple[float, float, float]:
    """Return reads per second, CPU microseconds per read, and P99 in milliseconds.

    :raises Failed: if a reader gets a row that it did not ask for.
    """
    now = time.perf_counter
    until = now() + seconds
    took: list[float] = []

    async def reader() -> None:
        while (began := now()) < until:
            key = work.key()
            row = await read(key)
            took.append(now() - began)
            if row[0 if isinstance(row, tuple) else "id"] != key:
                raise Failed(f"asked for row {key} and got {row}")

    started, cpu = now(), time.process_time()
    await asyncio.gather(*(reader() for _ in range(readers)))
    used = time.process_time() - cpu
    rate = len(took) / (now() - started)
    return rate, used / len(took) * 1e6, sorted(took)[len(took) * 99 // 100] * 1e3


async def measure(url: str, rounds: int, seconds: float) -> dict[tuple[int, str], list[Any]]:
    """Return (rate, CPU, P99) of each round by readers and contestant."""
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

    async def ours(key: int) -> Any:
        return await database.fetch_one(work.SQL, key)

    async def psycopg_pool(key: int) -> Any:
        async with plain.connection() as connection:
            return await (await connection.execute(work.SQL, (key,))).fetchone()

    async def transaction(key: int) -> Any:
        async with plain.connection() as connection, connection.transaction():
            return await (await connection.execute(work.SQL, (key,))).fetchone()

    contestants: dict[str, Read] = {
        "fluxor-fast": ours,
        "psycopg's pool": psycopg_pool,
        "psycopg's pool, transactions": transaction,
    }
    others: list[Any] = []
    try:
        import asyncpg  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        progress("asyncpg is not installed, and left out")
    else:

        async def nothing(connection: Any) -> None:
            """Leave a connection as it is when it is given back."""

        for name, reset in ("asyncpg's pool", None), ("asyncpg's pool, no reset", nothing):
            pool = await asyncpg.create_pool(url, min_size=POOL, max_size=POOL, reset=reset)
            others.append(pool)
            contestants[name] = partial(pool.fetchrow, work.SQL_NUMBERED)

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
    for pool in others:
        await pool.close()
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
        " | P99 ms (least–most) | rate ÷ psycopg's |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    rows = []
    for (readers, name), figures in found.items():
        rates, cpus, waits = ([f[at] for f in figures] for at in (0, 1, 2))
        base = [f[0] for f in found[readers, "psycopg's pool"]]
        ratio = harness.spread([mine / its for mine, its in zip(rates, base, strict=True)]).median
        lines.append(
            f"| {readers} | {name} | {spread_of(rates, '{:,.0f}')} | {spread_of(cpus, '{:.1f}')}"
            f" | {spread_of(waits, '{:.2f}')} | {ratio:.2f} |"
        )
        rows.append(
            {"readers": readers, "pool": name, "rates": rates, "cpu_us": cpus, "p99_ms": waits}
        )
    versions = harness.versions("fluxor-fast", "psycopg", "psycopg-pool", "asyncpg", "uvloop")
    harness.write_json(target, {"machine": before, "versions": versions, "rows": rows})
    print("\n".join(lines))


if __name__ == "__main__":
    main()
