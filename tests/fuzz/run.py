"""Fuzz the HTTP protocol: ``python -m tests.fuzz.run --seconds 60 --jobs 2``.

Targets (see ``targets``): ``heads``, ``chunked``, ``reader``, ``protocol``, ``cache``. Each runs in
processes of its own, coverage-guided where atheris is there, else blindly. What was reached
and how much was executed stays in ``.fuzz``, and the next run goes on from there.

It ends by itself: when the time is up, the executions are done, or something was found. Then the
exit code is 1, and the input is told, minimised: put it into ``tests/fuzz/regressions/TARGET``
(and, if it is a matter of the wire alone, into ``tests/corpus``) together with the correction.

Exit codes: 0 nothing found, 1 a finding (or, with ``--report``, ``--goal`` or ``--guided`` not
reached), 2 it could not run.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.fuzz.engine import ATHERIS
from tests.fuzz.ledger import Ledger
from tests.fuzz.minimise import minimised
from tests.fuzz.targets import TARGETS
from tests.fuzz.watch import FOUND, Status

ROOT: Final = Path(__file__).parent.parent.parent
GRACE: Final = 60.0
"""Seconds that a process may take beyond its time: to start, and to replay its corpus."""
_COVERAGE: Final = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")
_REPLAYED: Final = re.compile(r"^(?:replayed |#)(\d+)(?=$|\s+INITED)", re.MULTILINE)


@dataclass
class Job:
    """One process on one target."""

    target: str
    runs: int
    seconds: int
    engine: str
    folder: Path
    began: float = 0.0
    process: subprocess.Popen[bytes] = field(init=False)
    status: Status = field(init=False)

    def start(self, number: int) -> None:
        """Start the process; what it prints goes to a file."""
        name = f"{self.target}-{os.getpid()}-{number}"
        self._paths = [self.folder / f"{name}.{end}" for end in ("status", "log")]
        self.status = Status(self._paths[0])
        seed = random.SystemRandom().randrange(1, 1 << 31)
        command = [sys.executable, "-m", "tests.fuzz.engine", self.target]
        for option in ("runs", "seconds", "engine", "folder"):
            command += [f"--{option}", str(getattr(self, option))]
        command += ["--seed", str(seed), "--status", str(self._paths[0])]
        self.began = time.monotonic()
        with self._paths[1].open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    @property
    def seconds_so_far(self) -> float:
        return time.monotonic() - self.began

    def coverage(self) -> str | None:
        """Return how far libFuzzer says it has come: edges, features, inputs in the corpus."""
        found = _COVERAGE.findall(self._log())
        return "{} edges, {} features, {} inputs".format(*found[-1]) if found else None

    def replayed(self) -> int:
        """Return how many executions were of inputs that were there before."""
        found = _REPLAYED.search(self._log())
        return int(found[1]) if found else self.status.executions

    def _log(self) -> str:
        return self._paths[1].read_text(errors="replace")

    def ended(self, ledger: Ledger) -> Path | None:
        """Note what it did; return the finding, if there is one. A ``RuntimeError`` if it broke."""
        code = self.process.returncode
        log = self._log()
        finding: Path | None = None
        if code == FOUND or code < 0 or "Test unit written to" in log:
            named = re.findall(r"(?:kept in|Test unit written to) (\S+)", log)
            finding = Path(named[-1]) if named else self._paths[1]
        ledger.add(
            self.target,
            executions=self.status.executions,
            seconds=self.seconds_so_far,
            memory=self.status.memory,
            blocks=self.status.blocks,
            engine=self.engine,
            replayed=self.replayed(),
            finding=finding.name if finding else None,
            coverage=self.coverage(),
        )
        if finding is not None:
            print(log[-4000:])
        elif code != 0:
            raise RuntimeError(f"{self.target} ended with {code}:\n{log[-4000:]}")
        if finding != self._paths[1]:
            self._paths[1].unlink()
        self._paths[0].unlink()
        return finding


def arguments() -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--runs", type=int, help="executions of this run, over all targets")
    parser.add_argument("--until", type=int, help="executions over all runs to stop at")
    parser.add_argument("--seconds", type=int, help="of the whole run (default 60, without --runs)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--engine", choices=("atheris", "blind"))
    parser.add_argument("--folder", type=Path, default=ROOT / ".fuzz")
    parser.add_argument("--report", action="store_true", help="print what all runs did, and end")
    parser.add_argument("--goal", type=int, default=0, help="with --report: fail below so many")
    parser.add_argument(
        "--guided", type=int, default=0,
        help="with --report: fail if one target has fewer that coverage guided, on these sources",
    )  # fmt: skip
    parser.add_argument("--replay", type=Path, nargs="+", help="play inputs on the first target")
    args = parser.parse_args()
    args.folder = args.folder.absolute()
    return args


def plan(args: Any, ledger: Ledger, engine: str) -> list[Job]:
    """Return what is to be run: each target once, with its part of time and executions."""
    runs = args.runs
    if args.until is not None:
        left = max(args.until - sum(ledger.executions(one) for one in TARGETS), 0)
        runs = left if runs is None else min(runs, left)
        if left == 0:
            return []
    seconds = args.seconds
    if seconds is None:
        seconds = 60 if args.runs is None else 86_400 * len(args.targets)
    count = len(args.targets)
    each = max(seconds * min(args.jobs, count) // count, 1)
    most = -(-runs // count) if runs is not None else 1 << 31
    return [Job(target, most, each, engine, args.folder) for target in args.targets]


def go(jobs: list[Job], at_once: int, ledger: Ledger) -> list[tuple[str, Path]]:
    """Run the jobs, say now and then how far they are, and return what they found."""
    waiting, running = list(jobs), list[Job]()
    findings: list[tuple[str, Path]] = []
    said = time.monotonic()
    number = 0
    try:
        while running or (waiting and not findings):
            while waiting and len(running) < at_once and not findings:
                job = waiting.pop(0)
                job.start(number)
                number += 1
                running.append(job)
            time.sleep(0.1)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                print(f"{tell(job)}, done", flush=True)
                finding = job.ended(ledger)
                if finding is not None:
                    findings.append((job.target, finding))
            for job in running:
                if job.seconds_so_far > job.seconds + GRACE:
                    job.process.kill()
            if time.monotonic() - said > 5:
                said = time.monotonic()
                for job in running:
                    print(tell(job), flush=True)
    finally:
        for job in running:
            job.process.kill()
            job.process.wait()
    return findings


def tell(job: Job) -> str:
    """Return a line on how far a job is."""
    count, seconds = job.status.executions, job.seconds_so_far
    return (
        f"{job.target:10} {count:12,} executions {count / max(seconds, 0.1):9,.0f}/s"
        f" {job.status.memory / 2**20:5.0f} MB  {job.coverage() or 'no coverage'}"
    )


def main() -> int:
    args = arguments()
    ledger = Ledger(args.folder / "results.json")
    if args.report:
        print(ledger.report())
        short = sum(ledger.executions(one) for one in TARGETS) < args.goal
        return int(short or min(ledger.guided(one) for one in TARGETS) < args.guided)
    if args.replay:
        target = TARGETS[args.targets[0]]()
        for path in args.replay:
            target(path.read_bytes())
            print(f"{path}: well")
        return 0
    engine = args.engine or ("atheris" if ATHERIS else "blind")
    if engine == "atheris" and not ATHERIS:
        print("atheris is not installed: pip install -e '.[fuzz]'", file=sys.stderr)
        return 2
    if not ATHERIS:
        print("atheris is not installed: inputs are made blindly, without coverage", flush=True)
    args.folder.mkdir(parents=True, exist_ok=True)
    findings = go(plan(args, ledger, engine), args.jobs, ledger)
    print(ledger.report())
    for target, path in findings:
        if path.suffix == ".input":
            small = minimised(target, path)
            print(f"\nFOUND in {target}: {path}\nminimised to {small}: {small.read_bytes()!r}")
        else:
            print(f"\nFOUND in {target}: {path}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
