"""Run a k6 script against the reference service and tell what both sides used.

Unless BASE_URL names a running instance, the service is started on an embedded database and
stopped at the end. The exit code is k6's: 0 when all thresholds were kept, 99 when not.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "bench"))

import harness  # noqa: E402
from harness import Failed, Server, progress  # noqa: E402

SCRIPTS = {  # the most users, and seconds
    "smoke": (200, 30),
    "load": (10_000, 600),
    "spike": (5_000, 150),
    "stress": (20_000, 480),
}
SLACK_SECONDS = 180
"""For accounts, the end of the last iterations, and the summary."""
READY_SECONDS = 60.0


def await_ready(base_url: str) -> None:
    """Poll ``/ready`` until it answers 200."""
    until = time.monotonic() + READY_SECONDS
    problem: object = ""
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{base_url}/ready", timeout=2):
                return
        except (OSError, urllib.error.URLError) as error:
            problem = error
        time.sleep(0.2)
    raise Failed(f"{base_url}/ready: {problem}")


@contextmanager
def service(workers: int, options: Sequence[str]) -> Iterator[tuple[Server, Path]]:
    """Yield the running service and the folder of its database."""
    port = harness.free_port()
    # every user of the test has an address of its own, which a proxy would tell
    extra = ["--trusted-proxies", "127.0.0.1/32", *options]
    with harness.scratch() as database:
        command = harness.fluxor_command(port, database, workers=workers, extra=extra)
        with Server("fluxor", command, port, ready=harness.all_ready(workers)) as server:
            yield server, database


def run_k6(script: str, base_url: str, scale: float, results: Path) -> tuple[int, float, float]:
    """Run a script; return its exit code, its CPU seconds and how long it took."""
    log = results / f"{script}.log"  # a line for each request that failed: many, in a bad run
    log.unlink(missing_ok=True)
    command = [
        harness.command_of("k6"), "run", "--quiet", "--no-usage-report", "--no-color",
        "--log-output", f"file={log}", "--log-format", "raw",
        "--address", "",  # its own interface on a port would be in the way of a second run
        "-e", f"BASE_URL={base_url}", "-e", f"SCALE={scale}", "-e", f"RESULTS={results}",
        str(HERE / f"{script}.js"),
    ]  # fmt: skip
    seconds = SCRIPTS[script][1] * scale + SLACK_SECONDS
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise Failed(f"k6 did not end within {seconds:.0f} s") from None
    finally:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
    took = time.monotonic() - started
    if log.exists() and (said := log.read_text(errors="replace").splitlines()):
        progress(f"k6 said {len(said)} lines (in {log}), first: {said[0][:300]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return code, used, took


def server_figures(server: Server) -> dict[str, Any]:
    """Return what the server counted, and what is in it now that nobody asks any more."""
    until = time.monotonic() + 5
    found = harness.gauges(server.port)
    while found["ccu"] and time.monotonic() < until:
        time.sleep(0.05)
        found = harness.gauges(server.port)
    wanted = ("ccu", "workers_ready", "http_requests_flow", "http_requests_shed")
    return {name: value for name, value in found.items() if name.startswith(wanted)}


def measure(
    script: str, scale: float, results: Path, workers: int, options: Sequence[str]
) -> tuple[int, dict[str, Any]]:
    """Start the service, run the script, and return its exit code and what both used."""
    with service(workers, options) as (server, database):
        postmaster = harness.postmaster_of(database)
        before = harness.cpu_seconds(server.pid)
        before_database = harness.cpu_seconds(postmaster) if postmaster else {}
        code, used, took = run_k6(script, f"http://127.0.0.1:{server.port}", scale, results)
        memory = harness.memory_of(server.tree)
        if not server.alive:
            raise Failed(f"the service ended: {server.tail()}")
        used_database = harness.cpu_since(before_database, postmaster) if postmaster else 0.0
        return code, {
            "seconds": took,
            "k6_cores": used / took,
            "server_cores": harness.cpu_since(before, server.pid) / took,
            "database_cores": used_database / took,
            "server_pss_bytes": memory.pss,
            "server_rss_bytes": memory.rss,
            "server": server_figures(server),
            "workers": workers,
            "options": list(options),
        }


def complete(path: Path, resources: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Add to k6's summary what it cannot know, and return the whole."""
    report: dict[str, Any] = json.loads(path.read_text())
    report["resources"] = resources
    report["machine"] = before
    report["versions"] = harness.versions("fluxor-fast", "uvloop", "httptools", "k6")
    harness.write_json(path, report)
    return report


@click.command()
@click.argument("script", type=click.Choice(list(SCRIPTS)))
@click.option("--scale", default=1.0, envvar="SCALE", type=click.FloatRange(0, min_open=True))
@click.option("--base-url", envvar="BASE_URL", help="A running instance; nothing is started.")
@click.option("--workers", default=len(os.sched_getaffinity(0)), type=click.IntRange(1))
@click.option("--results", default=HERE / "results", type=click.Path(path_type=Path))
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(
    script: str,
    scale: float,
    base_url: str | None,
    workers: int,
    results: Path,
    options: tuple[str, ...],
) -> None:
    """Run SCRIPT; OPTIONS after -- go to fluxor-fast serve."""
    results = results.absolute()
    results.mkdir(parents=True, exist_ok=True)
    summary = results / f"{script}.json"
    summary.unlink(missing_ok=True)  # an old one must not pass for this run's
    files = harness.claim_files()
    users = round(SCRIPTS[script][0] * scale)
    if users + 500 > files:
        progress(f"{users} users need more than {files} open files (ulimit -n): some will fail")
    before = harness.machine()
    try:
        with harness.interruptible():
            if base_url:
                base_url = base_url.rstrip("/")
                await_ready(base_url)
                code, used, took = run_k6(script, base_url, scale, results)
                resources: dict[str, Any] = {"seconds": took, "k6_cores": used / took}
            else:
                code, resources = measure(script, scale, results, workers, options)
    except Failed as error:
        raise click.ClickException(str(error)) from None
    if not summary.exists():
        raise click.ClickException(f"k6 ended with {code} and left no summary")
    complete(summary, resources, before)
    print(f"  k6 used {resources['k6_cores']:.2f} of {len(before['cores'])} cores", end="")
    if "server" in resources:
        pss = resources["server_pss_bytes"] or resources["server_rss_bytes"]
        print(
            f", the server {resources['server_cores']:.2f},"
            f" the database {resources['database_cores']:.2f}; server memory {pss / 1e6:.0f} MB;"
            f" {resources['server']['ccu']:.0f} requests left in the system",
            end="",
        )
        if resources["server"]["ccu"]:
            code = code or 1
    print()
    sys.exit(code)


if __name__ == "__main__":
    main()
