"""A database that is killed and started again, under the reference service with load on it.

Invariants:

1. No request hangs: while the database is away, a route that needs it answers 503
   ``DATABASE_BUSY`` and ``/ready`` is 503; nothing else fails but by these.
2. ``BACK`` seconds after the database takes connections again, every request is answered.
3. No connection is leaked: ``pg_stat_activity`` has no more of them than the pool may have.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psycopg

from fluxor_fast.auth.tokens import Tokens
from fluxor_fast.db.embedded import EmbeddedPostgres
from tests.faults.chaos.clients import Load
from tests.support.server import LiveServer, get

BACK = 2.0
QUIET = 0.7  # seconds without a refusal, after which the outage is over
POOL = 8
FLAGS = (
    "--workers=2", "--max-ccu=200", "--refusal-pause=0", f"--database-pool-max={POOL}",
    "--database-pool-min=2",
)  # fmt: skip


def restarts(database: EmbeddedPostgres, modes: list[str], away: float) -> dict[str, Any]:
    """Kill and start the database once for each of ``modes`` of ``pg_ctl stop``; return figures.

    :param database: a server of the test's own that runs.
    :param away: seconds it is away.
    """
    secret = secrets.token_hex(32)
    token = Tokens(secret.encode(), 3600).issue(1, "chaos@example.com", ["user"])
    wrong: list[str] = []
    back: list[float] = []
    noticed: list[float] = []
    connections: list[int] = []
    with ExitStack() as stack:
        server = stack.enter_context(
            LiveServer("", *FLAGS, env={"DATABASE_URL": database.url, "JWT_SECRET": secret})
        )
        load = stack.enter_context(
            Load(
                server.port,
                target="/api/users",
                keeping=12,
                fresh=3,
                fields=f"Authorization: Bearer {token}\r\n",
            )
        )
        account = load.account

        def await_(check: Callable[[], bool], what: str, seconds: float) -> float:
            begun = time.monotonic()
            while not check():
                if time.monotonic() - begun > seconds:
                    wrong.append(f"not within {seconds} s: {what}")
                    break
                time.sleep(0.01)
            return time.monotonic() - begun

        await_(lambda: account.answered > 50, "served at first", 10)
        for mode in modes:
            refused = account.refused
            database.stop(mode)
            noticed.append(
                await_(lambda: get(server.port, "/ready").status == 503, "/ready is 503", 5)
            )
            time.sleep(away)
            if account.refused == refused:
                wrong.append("nobody was told that the database is away")
            database.start()
            begun = time.monotonic()
            await_(lambda: get(server.port, "/ready").status == 200, "/ready is 200", BACK)
            # the last refusal is what ends the outage
            last, seen = begun, account.refused
            while time.monotonic() < min(last + QUIET, begun + BACK + 1):
                if account.refused != seen:
                    last, seen = time.monotonic(), account.refused
                time.sleep(0.01)
            back.append(last - begun)
            if last - begun > BACK:
                wrong.append(f"still refused {last - begun:.2f} s after it was back")
            if load.good < last:
                wrong.append("not served after it was back")
            with psycopg.connect(database.url, autocommit=True) as connection:
                row = connection.execute(
                    "select count(*) from pg_stat_activity where application_name = %s"
                    " and datname = current_database()",
                    ("fluxor-fast",),
                ).fetchone()
            assert row is not None
            connections.append(row[0])
            if not 0 < row[0] <= POOL + 2:  # and one each for the workers' watch
                wrong.append(f"{row[0]} connections, of {POOL}")
            if set(account.codes) - {"DATABASE_BUSY"}:
                wrong.append(f"refused for other reasons: {account.codes}")
            for name in ("failed", "hung", "unconnected", "losses"):
                if found := getattr(account, name):
                    wrong.append(f"{len(found)} {name}: {found[:3]}")
                    found.clear()
            print(
                f"database {mode}: /ready 503 after {noticed[-1]:.2f} s, last refusal "
                f"{back[-1]:.2f} s after it was back, {row[0]} connections",
                flush=True,
            )
        return {
            "restarts": len(modes),
            "answered": account.answered,
            "refused": dict(account.codes),
            "seconds until /ready is 503": noticed,
            "seconds until full service": back,
            "connections": connections,
            "broken": wrong,
        }
