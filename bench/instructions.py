"""Instructions per request of single steps, counted by valgrind.

A count says which of two ways does less work where times differ by less than they spread. Each
step runs twice in a process of its own under ``callgrind``, once with more repetitions; the
difference of the two counts is that of the repetitions alone, whatever start and imports took.
What an instruction costs (caches, branches, the kernel) a count does not say: compare ways, then
time the winner.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import harness
import steps

WARM = 60  # CPython has specialised its bytecode by then, and the caches are full
FEW, MORE = 20, 1020


def counted(name: str, times: int) -> int:
    """Return how many instructions a process executes that does a step ``times`` times.

    :raises harness.Failed: with the last line that valgrind printed.
    """
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", f"--callgrind-out-file={os.devnull}",
         sys.executable, __file__, "--steps", name, "--run", str(WARM + times)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONHASHSEED": "0"},
    )  # fmt: skip
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or found is None:
        raise harness.Failed(f"{name}: {(done.stderr.strip() or 'no count').splitlines()[-1]}")
    return int(found[1])


@click.command()
@click.option("--steps", "chosen", default="all", help=f"Of {', '.join(steps.STEPS)}; by commas.")
@click.option("--run", type=click.IntRange(1), hidden=True, help="Only do the step, so often.")
def main(chosen: str, run: int | None) -> None:
    """Print instructions per request."""
    names = harness.names_of(chosen, list(steps.STEPS))
    if run is not None:
        call, _ = steps.STEPS[names[0]]()
        for _ in range(run):
            call()
        return
    if shutil.which("valgrind") is None:
        raise click.ClickException("valgrind is not installed")
    print("| step | instructions per request |\n|---|--:|")
    for name in names:
        _, requests = steps.STEPS[name]()
        each = (counted(name, MORE) - counted(name, FEW)) / ((MORE - FEW) * requests)
        print(f"| {name} | {each:,.0f} |", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    main()
