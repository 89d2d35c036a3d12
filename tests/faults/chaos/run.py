"""The long fault injection: ``python -m tests.faults.chaos.run``; exit code 1 if it shows a fault.

A schedule of faults is drawn from a seed (``TEST_SEED`` for another); with ``--kills`` it is
SIGKILLs alone, and the totals are looked at after every twentieth.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fluxor_fast.db.embedded import EmbeddedPostgres
from tests.faults.chaos import database
from tests.faults.chaos.torment import LIMIT, Torment, tormented
from tests.support.seeds import SEED

FAULTS = (
    "kill", "kill", "kill", "kill_all", "pause", "pause", "stop", "block", "grow", "reloads",
    "scale", "disk", "clock", "descriptors", "upgrade",
)  # fmt: skip
LATE = 0.5  # seconds after a kill, in which a new worker is to take requests


def schedule(rng: random.Random) -> list[str]:
    """Return every fault, some of them several times, in an order of this generator's."""
    return rng.sample(FAULTS, len(FAULTS))


def mixed(torment: Torment, rng: random.Random, seconds: float) -> None:
    """Inflict faults by turns until ``seconds`` are over."""
    until = begun = time.monotonic()
    until += seconds
    while time.monotonic() < until:
        for name in schedule(rng):
            if time.monotonic() > until:
                break
            torment.inflict(name)
        progress(torment, f"{time.monotonic() - begun:.0f} s of {seconds:.0f}")


def kills(torment: Torment, count: int, seconds: float) -> None:
    """Kill ``count`` workers one after the other, or as many as ``seconds`` allow."""
    until = time.monotonic() + seconds
    for number in range(1, count + 1):
        if time.monotonic() > until:
            print(f"out of time after {number - 1} of {count} kills")
            break
        torment.kill()
        torment.exact()
        if number % 20 == 0 or number == count:
            torment.settle()
            progress(torment, f"{number} of {count} kills")
    torment.settle()


def restarted(times: int) -> dict[str, Any]:
    """Kill and start a database under a service of its own, by turns hard and in order."""
    # not below a folder of ours alone: as root, the server's user must be able to reach it
    with tempfile.TemporaryDirectory(prefix="fluxor-fast-chaos-") as name:
        Path(name).chmod(0o755)
        server = EmbeddedPostgres(Path(name) / "postgres", max_connections=30)
        try:
            server.start()
            return database.restarts(server, (["immediate", "fast"] * times)[:times], away=2.0)
        finally:
            server.close()


def progress(torment: Torment, what: str) -> None:
    account = torment.load.account
    print(
        f"{what}: {account.answered} answered, {account.refused} refused, "
        f"{len(account.losses)} lost; {len(torment.broken)} broken invariants",
        flush=True,
    )


def table(found: dict[str, object]) -> str:
    """Return figures as text."""
    lines = []
    for name, value in found.items():
        if isinstance(value, dict):
            lines += [name] + [f"  {key:<44}{each}" for key, each in value.items()]
        else:
            lines.append(f"{name:<46}{value}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--restarts", type=int, default=4, help="of the database")
    given = parser.parse_args()
    print(f"seed {SEED}; set TEST_SEED to try another", flush=True)
    rng = random.Random(f"{SEED} chaos")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, tormented(Path(folder), rng) as torment:
        if given.kills:
            kills(torment, given.kills, given.seconds)
        else:
            mixed(torment, rng, given.seconds)
        torment.settle()
        found = torment.report()
        waits = sorted(torment.times.get("answered after the end of a worker", []))
        late = sum(seconds > LATE for seconds in waits)
        if waits and waits[len(waits) * 99 // 100] > LATE:
            torment.wrong(f"{late} of {len(waits)} successors took more than {LATE} s")
    of_database = {} if given.kills else restarted(given.restarts)
    broken = torment.broken + of_database.get("broken", [])
    found = {
        "seed": SEED,
        "limit": LIMIT,
        "took": round(time.monotonic() - begun),
        f"successors that took more than {LATE} s": late,
        **found,
        "database": of_database,
        "broken": broken,
    }
    print(json.dumps(found))
    print(table(found))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
