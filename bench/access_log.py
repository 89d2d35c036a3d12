"""What the access log costs a request: ``python bench/access_log.py`` (20 s, one quiet core).

The whole way of a request through protocol and batch in this process (see ``steps``), 16
connections, with the log off, on in both forms to a file on this disk, and sampled. CPU time of all
threads, so the one that writes is counted too; rounds in turn, the median and what lies between the
quartiles.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.steps import DOCUMENT, HEAD
from fluxor_fast import App, Request
from fluxor_fast.middleware.access_log import AccessLog
from fluxor_fast.observability import logs
from fluxor_fast.observability.sink import Buffer, Sink
from tests.support.turns import Bench, HandLoop, Silent

CONNECTIONS, TURNS, ROUNDS = 16, 400, 41
CASES: dict[str, tuple[str, float] | None] = {
    "off": None,
    "console": ("console", 1.0),
    "json": ("json", 1.0),
    "sample 0.1": ("console", 0.1),
    "sample 0.01": ("console", 0.01),
    "off, again": None,  # how much of a difference is none
}


def make(case: tuple[str, float] | None, file: Path) -> tuple[Callable[[], None], Buffer]:
    """Return what serves a turn, and where its lines go."""
    app = App()

    @app.get("/")
    def home(request: Request) -> dict[str, object]:
        return {**DOCUMENT, "timestamp": int(time.time())}

    bench = Bench(app, HandLoop())
    bench.runner.block = b"Date: Mon, 03 Jun 2024 08:00:00 GMT\r\nX-Request-ID: "
    buffer = Buffer(Sink(file))
    if case is not None:
        AccessLog(buffer.write, *case).watch(app.routes)
    protocols = [bench.connect(Silent) for _ in range(CONNECTIONS)]

    def turn() -> None:
        for protocol in protocols:
            protocol.data_received(HEAD)
        while bench.runner.busy:
            bench.loop.turn()

    turn()
    bench.loop.run()
    return turn, buffer


def _through_logging(form: str, file: Path) -> float:
    """Return the µs that a line takes which is not the access log's."""
    logs.configure("info", form, file, ["a secret of exactly 32 bytes....."])
    log = logging.getLogger("fluxor_fast.bench")

    def line() -> None:
        log.info("%s %s %d %.1fms %s", "GET", "/users", 200, 1.2, "192.0.2.1")

    return min(timeit.repeat(line, number=2000, repeat=5)) / 2000 * 1e6


def main() -> None:
    """Measure and print a table."""
    with tempfile.TemporaryDirectory() as folder:
        made = {name: make(case, Path(folder) / "log") for name, case in CASES.items()}
        took: dict[str, list[float]] = {name: [] for name in CASES}
        for turn, _ in made.values():
            for _ in range(TURNS):
                turn()
        for _ in range(ROUNDS):
            for name, (turn, buffer) in made.items():
                buffer.flush()
                began = time.process_time()
                for _ in range(TURNS):
                    turn()
                buffer.flush()
                took[name].append((time.process_time() - began) / TURNS / CONNECTIONS * 1e6)
        through = {
            form: _through_logging(form, Path(folder) / "log") for form in ("console", "json")
        }
        lost = sum(buffer._sink.dropped for _, buffer in made.values())
    print("| access log | µs/request | quartiles | more than off |\n|---|---|---|---|")
    off = statistics.median(took["off"])
    for name, values in took.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"| {name} | {middle:.2f} | {low:.2f}–{high:.2f} | {middle - off:+.2f} |")
    for form, cost in through.items():
        print(f"a line through logging, {form}: {cost:.1f} µs")
    print(f"\n{lost} lines lost; Python {sys.version.split()[0]}, {ROUNDS} rounds")


if __name__ == "__main__":
    main()
