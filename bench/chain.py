"""A profile from the cache behind the whole chain, beside granian's RSGI with nothing around it.

The chain is the original's: access log (into a file), recovery, CORS, security headers, rate limit,
compression, token; the client sends a token, an origin, and what it can decompress. Beside it the
same route bare, and granian making the same document. One worker each, pinned to one core, wrk on
the other. They take turns within each round (``measured_in_slices``), and the CPU that a request
costs is compared; or one has a round after the other, in an order shuffled with a fixed seed, and
what each does in a second is. Ratios are taken within a round. Before anything is timed all must
answer the same document, and the chain must refuse who has no token. A failed round fails the
report.
"""

from __future__ import annotations

import random
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click
import harness
from compare import RESULTS, SEED
from contestants import SERVERS, Place, fluxor, granian, side_by_side
from harness import Cores, Failed, Round, Server, progress

sys.path.insert(0, str(SERVERS))
from chained_profile import TOKENS

PATH = "/api/users/4711"
CHAIN, BARE, PEER = "fluxor-fast, whole chain", "fluxor-fast, bare", "granian RSGI, bare"


def _chain(place: Place, *, access_log: bool) -> list[str]:
    if not access_log:
        return fluxor(place, "chained:app")
    log = str(place.folder / "access.log")
    # the later --log-level counts
    return fluxor(place, "chained:app", "--access-log", "--log-file", log, "--log-level", "info")


def _bare(place: Place) -> list[str]:
    return ["env", "CHAINED_BARE=1", *fluxor(place, "chained:app")]


def fields() -> dict[str, str]:
    """Return what the client sends; the same to all."""
    token = TOKENS.issue(4711, "user@example.org", ["user"])
    return {
        "Authorization": f"Bearer {token}",
        "Origin": "https://app.example.com",
        "Accept-Encoding": "gzip, deflate, br, zstd",
    }


def checked(servers: dict[str, Server], sent: dict[str, str]) -> None:
    """See to it that all answer the same, and that the chain is there."""
    answers = {name: harness.fetch(one.port, PATH, headers=sent) for name, one in servers.items()}
    if len({(a.status, a.content_type, a.body) for a in answers.values()}) != 1:
        raise Failed(f"not the same answers: {answers}")
    refused = harness.fetch(servers[CHAIN].port, PATH)
    if refused.status != 401:
        raise Failed(f"without a token the chain answers {refused.status}")
    told = answers[CHAIN].headers
    for name in ("access-control-allow-origin", "x-content-type-options", "ratelimit"):
        if name not in told:
            raise Failed(f"the chain has no {name}: {told}")


def measure(
    connections: int, rounds: int, seconds: int, folder: Path, *, access_log: bool, slices: bool
) -> dict[str, list[Round]]:
    """Time all three, ``rounds`` times."""
    measured = harness.measured_in_slices if slices else harness.measured_in_turn
    cores = Cores.of(1)
    shuffled = random.Random(SEED)
    chain = partial(_chain, access_log=access_log)
    commands = {CHAIN: chain, BARE: _bare, PEER: granian("rsgi", "chained_rsgi:app")}
    sent = fields()
    script = ("requests.lua", "fields", *(part for pair in sent.items() for part in pair))
    found: dict[str, list[Round]] = {name: [] for name in commands}
    with ExitStack() as stack:
        stack.enter_context(harness.pinned(cores.generator))
        servers = {
            name: stack.enter_context(server)
            for name, server in side_by_side(commands, folder, cores).items()
        }
        checked(servers, sent)
        names = list(servers)
        for number in range(rounds + 1):
            shuffled.shuffle(names)
            options: dict[str, Any] = {"cores": cores, "connections": connections, "script": script}
            options["seconds"] = seconds if number else 1
            done = measured({name: servers[name] for name in names}, PATH, **options)
            if number:  # the first warms it up
                for name, one in done.items():
                    found[name].append(one)
            progress(f"round {number}/{rounds} done")
    if access_log:
        logged = (folder / "access.log").read_bytes().count(b" 200 ")
        if logged < sum(one.load.requests for one in found[CHAIN]):
            raise Failed(f"only {logged} lines in the access log")
    return found


def table(found: dict[str, list[Round]], *, slices: bool) -> str:
    """Return the medians as Markdown."""
    lines = [
        "| server | RPS (least–most) | CPU µs/request (least–most) | P99 ms | wrk CPU"
        f" | {'granian CPU ÷ its' if slices else 'its RPS ÷ granian'} (least–most) |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, rounds in found.items():
        rps = harness.spread([r.load.rps for r in rounds])
        cpu = harness.spread([r.cpu_us for r in rounds])
        p99 = "" if slices else f"{harness.spread([r.load.p99 for r in rounds]).median:.2f}"
        wrk = harness.spread([r.load.generator_cpu for r in rounds])
        mark = " **generator-bound**" if harness.generator_bound(rounds) else ""
        times = harness.spread(harness.times_as_fast(rounds, found[PEER], slices=slices))
        lines.append(
            f"| {name} | {rps.median:,.0f} ({rps.least:,.0f}–{rps.greatest:,.0f}){mark}"
            f" | {cpu.median:.1f} ({cpu.least:.1f}–{cpu.greatest:.1f}) | {p99}"
            f" | {wrk.median:.0%}"
            f" | **{times.median:.2f}** ({times.least:.2f}–{times.greatest:.2f}) |"
        )
    return "\n".join(lines)


@click.command()
@click.option("--connections", default=64, type=click.IntRange(1))
@click.option("--rounds", default=5, type=click.IntRange(1), help="Counted runs of each.")
@click.option("--seconds", default=2, type=click.IntRange(1), help="Length of a counted run.")
@click.option("--access-log/--no-access-log", default=True, help="Have it in the chain.")
@click.option("--slices/--in-turn", default=True, help="Taking turns within each round, or not.")
@click.option("--json", "target", default=RESULTS / "chain.json", type=click.Path(path_type=Path))
def main(
    connections: int, rounds: int, seconds: int, access_log: bool, slices: bool, target: Path
) -> None:
    """Measure the whole chain beside granian without any, and print a table."""
    harness.wrk_path()
    before = harness.machine()
    try:
        with harness.interruptible(), harness.scratch() as folder:
            folder.mkdir()
            found = measure(
                connections, rounds, seconds, folder, access_log=access_log, slices=slices
            )
    except Failed as error:
        raise click.ClickException(f"no report: {error}") from None
    versions = {
        **harness.versions("fluxor-fast", "granian", "uvloop"), "wrk": harness.wrk_version(),
    }  # fmt: skip
    cells = (({"server": name}, rounds_of) for name, rounds_of in found.items())
    harness.report(target, "chain.py", before, versions, cells)
    print(table(found, slices=slices))


if __name__ == "__main__":
    main()
