"""Speed guards: figures as ratios of one run, held against budgets in a file.

Server and ceiling run side by side, one idle while the other is loaded for a second, in turn; each
pair gives a ratio, and their median counts. Single steps are timed in this process beside a fixed
piece of Python (see ``steps``). The exit code is 1 if a budget is exceeded, 2 if something could
not be measured.
"""

from __future__ import annotations

import socket
import statistics
import sys
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import harness
import steps
from contestants import SERVERS, Place, fluxor, start
from harness import Cores, Failed, Server, progress

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Budget:
    """The most a figure may be, and why."""

    most: float
    why: str


@dataclass(frozen=True)
class Asked:
    """What wrk asks, and of how many connections."""

    path: str
    connections: int
    script: tuple[str, ...] = ()
    refused: bool = False


SERVED = {
    "health_64": Asked("/health", 64),
    "health_1000": Asked("/health", 1000),
    "plaintext_64": Asked("/plaintext", 64),
    "pipelined_64": Asked("/health", 64, ("requests.lua", "pipeline", "16")),
    "cold_64": Asked("/health", 64, ("requests.lua", "cold")),
    "refusal_64": Asked("/plaintext", 64, refused=True),
}


def budgets(text: str, vendor: str = "") -> dict[str, Budget]:
    """Return the budgets in a TOML document for a maker of processors.

    ``most`` is one number, or a table of one for each maker by its name in ``/proc/cpuinfo``: how
    fast Python is beside the kernel differs between them. For one not named the largest counts.

    :raises ValueError: naming what is wrong with which figure.
    """
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not TOML: {error}") from None
    made = {}
    for name, entry in found.items():
        if name not in SERVED and name not in steps.STEPS:
            raise ValueError(f"{name}: there is no such figure")
        if not isinstance(entry, dict) or set(entry) != {"most", "why"}:
            raise ValueError(f"{name}: wants `most` and `why`")
        most = entry["most"]
        bounds = list(most.values()) if isinstance(most, dict) else [most]
        if not bounds or not all(isinstance(n, (int, float)) and n > 0 for n in bounds):
            raise ValueError(f"{name}: `most` is no positive number")
        one = most.get(vendor, max(bounds)) if isinstance(most, dict) else most
        made[name] = Budget(float(one), str(entry["why"]))
    return made


def exceeded(found: Mapping[str, Sequence[float]], allowed: Mapping[str, Budget]) -> list[str]:
    """Return the figures whose median is beyond their budget."""
    return [
        name for name, ratios in found.items() if statistics.median(ratios) > allowed[name].most
    ]


def table(
    found: Mapping[str, Sequence[float]], said: Mapping[str, str], allowed: Mapping[str, Budget]
) -> str:
    """Return the figures as Markdown."""
    over = exceeded(found, allowed)
    lines = ["| figure | ratio (least–most) | budget | measured | |", "|---|--:|--:|--:|---|"]
    for name, ratios in found.items():
        lines.append(
            f"| {name} | {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
            f" | {allowed[name].most:g} | {said[name]} | {'**OVER**' if name in over else 'ok'} |"
        )
    return "\n".join(lines)


def _server(cores: Cores, folder: Path, *options: str) -> Server:
    place = Place(harness.free_port(), 1, folder)
    return Server(
        "fluxor",
        # the request that is held need not be waited for at the end
        fluxor(
            place, "check_app:app", "--refusal-pause", "0", "--graceful-timeout", "0.1", *options
        ),
        place.port,
        cpus=cores.server,
        environ={"PYTHONPATH": str(SERVERS)},
    )


def served(names: Sequence[str], rounds: int, said: dict[str, str]) -> dict[str, list[float]]:
    """Return the ratios of CPU per request to the ceiling's."""
    found: dict[str, list[float]] = {}
    cores = Cores.of(1)
    harness.claim_files()
    with (
        harness.interruptible(),
        harness.pinned(cores.generator),
        harness.scratch() as folder,
        ExitStack() as stack,
    ):
        ours = stack.enter_context(_server(cores, folder))
        full = stack.enter_context(_server(cores, folder, "--max-ccu", "1", "--utilization", "100"))
        holder = stack.enter_context(socket.create_connection(("127.0.0.1", full.port)))
        holder.sendall(b"GET /hold HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for name in names:
            asked = SERVED[name]
            server = full if asked.refused else ours
            answer = harness.fetch(server.port, asked.path)
            if (answer.status == 503) != asked.refused:
                raise Failed(f"{name}: {asked.path} answers {answer.status}")
            place = Place(harness.free_port(), 1, folder, answer=answer.raw,
                          pipelined="pipeline" in asked.script)  # fmt: skip
            options: dict[str, Any] = {
                "cores": cores, "connections": asked.connections, "script": asked.script,
                "refused": asked.refused, "seconds": 1,
            }  # fmt: skip
            with start("ceiling", place, cores) as ceiling:
                pairs = []
                for number in range(rounds + 1):
                    its = harness.measured(ceiling, asked.path, **options).cpu_us
                    mine = harness.measured(server, asked.path, **options).cpu_us
                    if number:  # the first warms them up
                        pairs.append((mine, its))
            found[name] = [mine / its for mine, its in pairs]
            mine, its = (statistics.median(part) for part in zip(*pairs, strict=True))
            said[name] = f"{mine:.1f} µs of CPU, ceiling {its:.1f}"
            progress(f"{name}: {statistics.median(found[name]):.2f}, {said[name]}")
    return found


@click.command()
@click.option("--only", default="", help="These figures, by commas.")
@click.option("--rounds", default=7, type=click.IntRange(1), help="Pairs of each figure.")
@click.option(
    "--budgets", "file", default=HERE / "budgets.toml",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
)  # fmt: skip
@click.option(
    "--json", "target", default=HERE / "results" / "check.json", type=click.Path(path_type=Path)
)
def main(only: str, rounds: int, file: Path, target: Path) -> None:
    """Measure, compare with the budgets, and end with 1 if one is exceeded."""
    try:
        allowed = budgets(file.read_text(), harness.vendor())
    except ValueError as error:
        raise click.ClickException(f"{file}: {error}") from None
    names = [name.strip() for name in only.split(",") if name.strip()] or list(allowed)
    if unknown := set(names) - set(allowed):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}; known: {', '.join(allowed)}")
    said: dict[str, str] = {}
    found: dict[str, list[float]] = {}
    try:
        for name in names:
            if name in steps.STEPS:
                found[name], least = steps.measure(name, rounds)
                said[name] = f"{least:.2f} µs"
        found |= served([name for name in names if name in SERVED], rounds, said)
    except (Failed, OSError) as error:
        print(f"could not measure: {error}", file=sys.stderr)
        sys.exit(2)
    report = {
        "machine": harness.machine(),
        "figures": {
            name: {"ratios": ratios, "said": said[name], "most": allowed[name].most}
            for name, ratios in found.items()
        },
    }
    harness.write_json(target, report)
    print(table(found, said, allowed))
    if over := exceeded(found, allowed):
        print(f"over budget: {', '.join(over)}")
        sys.exit(1)


if __name__ == "__main__":
    main()
