"""What all benchmarks share: servers started and stopped, wrk, /proc, figures and tables.

Rules kept here:

1. A server is ready when it answers, never after a sleep. It runs in a session of its own, so
   that Ctrl-C reaches the benchmark alone, which then stops what it started, by pid.
2. A round with any error is a ``Failed`` and ends the whole report: a server that drops
   requests must not look fast.
3. CPU is the kernel's own account of the server's processes (user and system), not an estimate
   from a load average; the generator's is recorded too, so that a figure that measured the
   generator can be told from one that measured the server.
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

HERE = Path(__file__).resolve().parent
READY_SECONDS = 60.0  # an embedded database may have to be set up first
STOP_SECONDS = 15.0
SLICE = 0.1
"""Seconds for which one of several servers runs before it is another's turn."""
GENERATOR_BOUND = 0.95
"""From this share of its cores on, a generator measures itself."""

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Failed(Exception):
    """A measurement that must not be reported, in one line."""


def progress(text: str) -> None:
    """Tell on standard error what goes on; standard output is for the report."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that what was started is stopped."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def claim_files() -> int:
    """Raise the soft limit of open files to the hard one, and return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


# processes


def _stat(pid: int) -> list[bytes]:
    """Return the fields of /proc/PID/stat after the name: state, ppid, …"""
    # the name may hold spaces and brackets, so the last bracket ends it (proc(5))
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()


def process_tree(root: int) -> list[int]:
    """Return ``root`` and all its descendants that live, ``root`` first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            pid = int(entry.name)
            with suppress(OSError, IndexError):
                children.setdefault(int(_stat(pid)[1]), []).append(pid)
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def session_of(leader: int) -> list[int]:
    """Return the pids of a session: also those whose parent died, which are in no tree."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if os.getsid(int(entry.name)) == leader:
                    found.append(int(entry.name))
    return found


def cpu_seconds(root: int) -> dict[int, float]:
    """Return user and system seconds by pid, of ``root`` and its descendants.

    What descendants had used that are gone is in their parent's own share of waited-for time,
    which is left out: a server's short-lived helpers are not its requests.
    """
    found = {}
    for pid in process_tree(root):
        with suppress(OSError, IndexError):
            fields = _stat(pid)
            found[pid] = (int(fields[11]) + int(fields[12])) / _TICKS
    return found


def cpu_since(before: Mapping[int, float], root: int) -> float:
    """Return the CPU seconds used since ``before`` (by ``cpu_seconds``)."""
    return sum(used - before.get(pid, 0.0) for pid, used in cpu_seconds(root).items())


def idle_seconds() -> dict[int, float]:
    """Return the seconds each core has been idle, waiting for a disk included."""
    found = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name != "cpu":
            found[int(name[3:])] = (int(ticks[3]) + int(ticks[4])) / _TICKS
    return found


@dataclass(frozen=True)
class Memory:
    """Bytes of several processes together. ``pss`` divides shared pages among their users."""

    pss: int | None
    rss: int
    processes: int


def memory_of(pids: Iterable[int]) -> Memory:
    """Return the memory of ``pids``; those that have left meanwhile count nothing."""
    pss: int | None = 0
    rss = processes = 0
    for pid in pids:
        try:
            rss += int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE
        except (OSError, IndexError):
            continue
        processes += 1
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines()
            share = sum(int(line.split()[1]) * 1024 for line in rollup if line[:4] == b"Pss:")
            pss = None if pss is None else pss + share
        except OSError:  # another user's process, or a kernel without it
            pss = None
    return Memory(pss, rss, processes)


@contextmanager
def pinned(cpus: Iterable[int] | None) -> Iterator[None]:
    """Run the block, and what it starts, on ``cpus``; None changes nothing."""
    if cpus is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def command_of(name: str) -> str:
    """Return the program ``name`` of this Python's own environment, or of the PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise Failed(f"{name} is not installed (pip install 'fluxor-fast[bench,loadtest]')")
    return found


def names_of(text: str, known: Sequence[str]) -> list[str]:
    """Return the names in a list with commas; ``all`` is all that are known."""
    if text == "all":
        return list(known)
    names = [name.strip().strip("/") for name in text.split(",")]
    unknown = set(names) - set(known)
    if unknown:
        raise click.BadParameter(f"{', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return names


# one request


@dataclass(frozen=True)
class Answer:
    """An answer as it stood on the wire."""

    raw: bytes
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def content_type(self) -> str:
        """``Content-Type`` without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip()


def fetch(
    port: int,
    path: str,
    *,
    method: str = "GET",
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    timeout: float = 5.0,
) -> Answer:
    """Send one request on a connection of its own; the answer must carry its length.

    :raises OSError: if nobody answers in time.
    :raises ValueError: if the answer is cut short or has no length.
    """
    fields = {"Host": f"127.0.0.1:{port}", **(headers or {})}
    if body:
        fields["Content-Length"] = str(len(body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body)
        raw = bytearray()
        end = -1
        while end < 0 or len(raw) < end:
            data = connection.recv(65536)
            if not data:
                raise ValueError("the answer was cut short")
            raw += data
            if end < 0 and b"\r\n\r\n" in raw:
                head = bytes(raw).partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
                found = {
                    name.lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in head[1:])
                }
                start = raw.index(b"\r\n\r\n") + 4
                end = start + int(found.get("content-length", "no length"))
    return Answer(bytes(raw), int(head[0].split()[1]), found, bytes(raw[start:end]))


def answers(port: int) -> bool:
    """Return whether a server is there."""
    return fetch(port, "/health", timeout=1.0).status == 200


def gauges(port: int, timeout: float = 1.0) -> dict[str, float]:
    """Return the figures of ``/metrics``, which is never refused and not counted itself."""
    text = fetch(port, "/metrics", timeout=timeout).body.decode()
    return {
        name: float(value)
        for name, _, value in (
            line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")
        )
    }


def all_ready(workers: int) -> Callable[[int], bool]:
    """Return the test whether fluxor-fast has all its workers, and the database.

    The first worker answers before the others are there; connections made then would all be its.
    """

    def ready(port: int) -> bool:
        return (
            fetch(port, "/ready", timeout=1.0).status == 200
            and gauges(port)["workers_ready"] == workers
        )

    return ready


class Server:
    """A server process and its descendants, from start to end of the ``with`` block.

    :param command: program and arguments.
    :param port: where it will listen on 127.0.0.1.
    :param ready: polled with the port until it is true.
    :param cpus: cores it may use; None for all.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        *,
        ready: Callable[[int], bool] = answers,
        cpus: Iterable[int] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.port = port
        self.ready = ready
        self.cpus = cpus
        self.environ = dict(environ or {})
        self.pid = 0

    def __enter__(self) -> Server:
        self._log = tempfile.TemporaryFile()
        with pinned(self.cpus):
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **self.environ},
            )
        self.pid = self._process.pid
        try:
            self._await_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _await_ready(self) -> None:
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise Failed(f"{self.name} ended with {self._process.returncode}: {self.tail()}")
            with suppress(OSError, ValueError):
                if self.ready(self.port):
                    return
            time.sleep(0.05)
        raise Failed(f"{self.name} was not ready after {READY_SECONDS:g} s: {self.tail()}")

    def said(self) -> str:
        """Return all that the server has said."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def tail(self) -> str:
        """Return the last lines of what the server has said."""
        return " | ".join(self.said().split("\n")[-6:]).strip(" |")

    @property
    def alive(self) -> bool:
        """Whether the process we started still runs."""
        return self._process.poll() is None

    @property
    def tree(self) -> list[int]:
        """Pids of the server's processes."""
        return process_tree(self.pid)

    def stop(self) -> None:
        """End the server: asked first, then by force, every process of it."""
        tree = self.tree
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            progress(f"{self.name} does not stop: SIGKILL")
        finally:
            # a descendant that outlived its parent still is in the session we made, which
            # tells it from a stranger that was given the same pid meanwhile
            for pid in reversed(list(dict.fromkeys([*tree, *session_of(self.pid)]))):
                with suppress(OSError):
                    if os.getsid(pid) == self.pid:
                        os.kill(pid, signal.SIGKILL)
            self._process.wait()
            self._log.close()


def fluxor_command(
    port: int, database: Path, *, workers: int = 1, extra: Sequence[str] = ()
) -> list[str]:
    """Return the command that serves the reference service on an embedded database."""
    return [
        command_of("fluxor-fast"), "serve", "--dev",
        "--port", str(port), "--workers", str(workers),
        "--database-embedded", str(database),
        "--log-level", "warning", "--backlog", "4096", "--graceful-timeout", "3",
        *extra,
    ]  # fmt: skip


def postmaster_of(database: Path) -> int | None:
    """Return the pid of the embedded database's first process; None if it does not run."""
    try:
        return int((database / "data" / "postmaster.pid").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a folder for a database, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="fluxor-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)  # PostgreSQL runs as a user of its own when we are root
        yield folder / "database"


# wrk


def wrk_path() -> str:
    """Return the program; without it there is nothing to measure with."""
    found = shutil.which("wrk")
    if found is None:
        print("wrk is missing: apt-get install wrk", file=sys.stderr)
        sys.exit(2)
    return found


@dataclass(frozen=True)
class Load:
    """What wrk reports: latencies in milliseconds, CPU as a share of the cores it may use."""

    requests: int
    seconds: float
    rps: float
    p50: float
    p95: float
    p99: float
    max: float
    generator_cpu: float


def run_wrk(
    port: int,
    path: str,
    *,
    connections: int,
    seconds: float,
    cores: Cores,
    threads: int = 1,
    think_ms: tuple[int, int] | None = None,
    script: Sequence[str] = (),
    refused: bool = False,
    scheme: str = "http",
    near_end: Callable[[], None] = lambda: None,
    running: Callable[[int], object] = lambda _: None,
) -> Load:
    """Load a server and return what came of it.

    :param cores: what wrk runs on.
    :param think_ms: pause of each connection between answer and next request; None for none.
    :param script: another script than ``report.lua``, and its arguments.
    :param refused: every answer is a refusal, as it should be.
    :param near_end: called shortly before the end, while all connections are open.
    :param running: called with wrk's process id.
    :raises Failed: at any error: of a connection, of an answer, or of wrk itself.
    """
    command = [
        wrk_path(), f"-t{threads}", f"-c{connections}", f"-d{max(1, round(seconds))}s",
        "--timeout", "10s", "-s", str(HERE / (script[0] if script else "report.lua")),
        f"{scheme}://127.0.0.1:{port}{path}",
    ]  # fmt: skip
    if script[1:]:
        command += ["--", *script[1:]]
    if think_ms is not None:
        command += ["--", *map(str, think_ms)]
    before = _children_seconds()
    started = time.monotonic()
    with pinned(cores.generator):
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C is ours: we end it
        )
    running(process.pid)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.5, seconds - 0.5))
        near_end()
        output, _ = process.communicate(timeout=seconds + 30)
    except subprocess.TimeoutExpired:
        raise Failed("wrk did not end in time") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    took = time.monotonic() - started
    used = _children_seconds() - before
    if process.returncode != 0:
        raise Failed(f"wrk ended with {process.returncode}: {output.strip()[-300:]}")
    return _read_report(output, used / took / threads, refused)


def _children_seconds() -> float:
    """Return the CPU seconds of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _read_report(output: str, generator_cpu: float, refused: bool = False) -> Load:
    """Return the line of ``report.lua`` in wrk's output; errors in it are a ``Failed``."""
    lines = [line for line in output.splitlines() if line.startswith("REPORT ")]
    if not lines:
        raise Failed(f"wrk reported nothing: {output.strip()[-300:]}")
    report = json.loads(lines[-1].removeprefix("REPORT "))
    errors = {name: count for name, count in report["errors"].items() if count}
    # what wrk then calls an error of status is what was wanted
    if refused and errors.pop("status", 0) != report["requests"]:
        raise Failed("not every answer was a refusal")
    if errors or not report["requests"]:
        raise Failed(f"{report['requests']} requests, errors: {errors or 'no answer at all'}")
    seconds = report["duration_us"] / 1e6
    return Load(
        requests=report["requests"],
        seconds=seconds,
        rps=report["requests"] / seconds,
        p50=report["p50_us"] / 1e3,
        p95=report["p95_us"] / 1e3,
        p99=report["p99_us"] / 1e3,
        max=report["max_us"] / 1e3,
        generator_cpu=generator_cpu,
    )


@dataclass(frozen=True)
class Round:
    """One counted run of wrk against a server."""

    load: Load
    cpu_us: float
    """The server's user and system time per request, in microseconds."""
    cores: float
    """The server's user and system time per second of the run."""
    memory: Memory
    busy: tuple[float, float] | None
    """How busy the server's core and wrk's were, whoever used them; None if not pinned."""


def measured(server: Server, path: str, *, cores: Cores, **options: Any) -> Round:
    """Run wrk against ``server`` (options as for ``run_wrk``) and account for the server too."""
    memory: list[Memory] = []
    if cores.server is not None and os.sched_getaffinity(server.pid) != cores.server:
        raise Failed(f"{server.name} is not on its core")
    before = cpu_seconds(server.pid)
    idle_before = idle_seconds()
    started = time.monotonic()
    load = run_wrk(
        server.port,
        path,
        cores=cores,
        near_end=lambda: memory.append(memory_of(server.tree)),
        **options,
    )
    used = cpu_since(before, server.pid)
    took = time.monotonic() - started
    idle = idle_seconds()
    busy = None
    if cores.server and cores.generator:
        own, its = (
            1 - sum(idle[core] - idle_before[core] for core in group) / took / len(group)
            for group in (cores.server, cores.generator)
        )
        busy = (own, its)
    if not server.alive or before.keys() - cpu_seconds(server.pid).keys():
        raise Failed(f"{server.name} lost a process: {server.tail()}")
    return Round(load, used / load.requests * 1e6, used / took, memory[0], busy)


def measured_in_slices(
    servers: Mapping[str, Server], path: str, **options: Any
) -> dict[str, Round]:
    """Load all servers in the same seconds, but one at a time (options as for ``measured``).

    Each has a wrk of its own, and SLICE after SLICE the kernel stops one server with its wrk and
    lets the next go on. So each runs alone, and what the machine does in these seconds it does to
    all: CPU per request can be compared where nothing else can. What a second brings is a share of
    it, and latencies are the slices'. ``generator_cpu`` is that of all wrks together.
    """
    before = _children_seconds()
    started = time.monotonic()
    with ExitStack() as stack, ThreadPoolExecutor(len(servers)) as pool:
        held: dict[str, list[int]] = {name: [] for name in servers}

        def hold(name: str, pid: int) -> None:
            handle = os.pidfd_open(pid)
            stack.callback(os.close, handle)
            held[name].append(handle)

        running: dict[str, Future[Round]] = {}
        for name, server in servers.items():
            for pid in server.tree:
                hold(name, pid)
            running[name] = pool.submit(
                measured, server, path, running=partial(hold, name), **options
            )
        _take_turns(held, lambda: not all(one.done() for one in running.values()))
    took = time.monotonic() - started
    used = _children_seconds() - before
    found = {name: _said(name, one.result) for name, one in running.items()}
    cores = sum(one.cores for one in found.values())

    def alone(one: Round) -> Round:
        """Return it as if the others were not there: else they would be strangers."""
        busy = one.busy and (one.busy[0] - (cores - one.cores), one.busy[1])
        return replace(one, busy=busy, load=replace(one.load, generator_cpu=used / took))

    return {name: alone(one) for name, one in found.items()}


def _take_turns(held: Mapping[str, list[int]], go_on: Callable[[], bool]) -> None:
    """Let the processes of one at a time run, SLICE after SLICE, and in the end all.

    :param held: their descriptors (``pidfd_open``): an id may be another's by now.
    """
    try:
        while go_on():
            for name in held:
                for other in held:
                    _signal(held[other], signal.SIGCONT if other == name else signal.SIGSTOP)
                time.sleep(SLICE)
    finally:
        for each in held.values():
            _signal(each, signal.SIGCONT)


def _signal(handles: Sequence[int], number: signal.Signals) -> None:
    for handle in list(handles):
        with suppress(ProcessLookupError):  # a wrk that has ended
            signal.pidfd_send_signal(handle, number)


def measured_in_turn(servers: Mapping[str, Server], path: str, **options: Any) -> dict[str, Round]:
    """Load one server after the other (options as for ``measured``)."""
    return {
        name: _said(name, partial(measured, server, path, **options))
        for name, server in servers.items()
    }


def _said(name: str, measurement: Callable[[], Round]) -> Round:
    try:
        return measurement()
    except Failed as error:
        raise Failed(f"{name}: {error}") from None


# figures


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of several rounds."""

    median: float
    least: float
    greatest: float


def times_as_fast(ours: Sequence[Round], theirs: Sequence[Round], *, slices: bool) -> list[float]:
    """Return how many times as fast we are, in each round.

    By the CPU of a request if they were measured in slices, else by what each did in a second.
    """
    return [
        its.cpu_us / mine.cpu_us if slices else mine.load.rps / its.load.rps
        for mine, its in zip(ours, theirs, strict=True)
    ]


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of ``values``."""
    return Spread(statistics.median(values), min(values), max(values))


def generator_bound(rounds: Iterable[Round]) -> bool:
    """Return whether the generator, not the server, may have been at its end.

    Its own CPU is looked at, and its core's: what others took there it could not use.
    """
    shares = [max(r.load.generator_cpu, r.busy[1] if r.busy else 0.0) for r in rounds]
    return statistics.median(shares) > GENERATOR_BOUND


def strangers(rounds: Iterable[Round]) -> float:
    """Return the share of the server's core that was used by others than the server.

    Work of the kernel that it charges to nobody counts as a stranger's.
    """
    shares = [r.busy[0] - r.cores for r in rounds if r.busy is not None]
    return max(0.0, statistics.median(shares)) if shares else 0.0


def busy_of(rounds: Sequence[Round]) -> tuple[float, ...]:
    """Return the medians of how busy the two cores were; nothing if the server was not pinned."""
    both = [r.busy for r in rounds if r.busy is not None]
    return tuple(statistics.median(part) for part in zip(*both, strict=True))


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """Return median and spread of every figure, for the JSON report."""
    figures: dict[str, Callable[[Round], float]] = {
        "rps": lambda r: r.load.rps,
        "p50_ms": lambda r: r.load.p50,
        "p95_ms": lambda r: r.load.p95,
        "p99_ms": lambda r: r.load.p99,
        "cpu_us_per_request": lambda r: r.cpu_us,
        "server_cores": lambda r: r.cores,
        "generator_cpu_share": lambda r: r.load.generator_cpu,
        "rss_bytes": lambda r: float(r.memory.rss),
    }
    if all(r.memory.pss is not None for r in rounds):
        figures["pss_bytes"] = lambda r: float(r.memory.pss or 0)
    found: dict[str, Any] = {
        name: asdict(spread([of(r) for r in rounds])) for name, of in figures.items()
    }
    found["generator_bound"] = generator_bound(rounds)
    found["strangers_on_server_core"] = strangers(rounds)
    found["processes"] = rounds[-1].memory.processes
    return found


def _cpuinfo(key: str, default: str) -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return default


def vendor() -> str:
    """Return the maker of the processor as it names itself: ``AuthenticAMD``, ``GenuineIntel``."""
    return _cpuinfo("vendor_id", "")


def _python() -> str:
    jit = getattr(sys, "_jit", None)  # 3.14 and later; servers inherit PYTHON_JIT
    on = jit is not None and jit.is_enabled()
    return f"{platform.python_implementation()} {platform.python_version()}{' with its JIT' * on}"


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {
        "cpu": _cpuinfo("model name", platform.processor() or platform.machine()),
        "cores": sorted(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": _python(),
        "load_average_before": os.getloadavg()[0],
    }


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of installed packages, by name."""
    found = {}
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def wrk_version() -> str:
    """Return what wrk says of itself."""
    done = subprocess.run([wrk_path(), "-v"], capture_output=True, text=True, check=False)
    return " ".join((done.stdout or done.stderr).split()[1:2])


def megabytes(memory: Memory) -> str:
    """Return PSS in MB, or RSS where there is no PSS."""
    if memory.pss is None:
        return f"{memory.rss / 1e6:.0f} (RSS)"
    return f"{memory.pss / 1e6:.0f}"


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(report, indent=2) + "\n")
    part.replace(path)
    progress(f"wrote {path}")


def report(
    target: Path,
    program: str,
    before: Mapping[str, Any],
    of: Mapping[str, str],
    found: Iterable[tuple[Mapping[str, Any], Sequence[Round]]],
) -> None:
    """Write what was measured, and print how.

    :param before: what ``machine`` said before.
    :param of: versions.
    :param found: for each cell what it is of, and its rounds.
    """
    command = " ".join([f"python bench/{program}", *sys.argv[1:]])
    results = [
        {**cell, "figures": summary(rounds), "rounds": [asdict(one) for one in rounds]}
        for cell, rounds in found
    ]
    write_json(target, {"machine": before, "versions": of, "command": command, "results": results})
    print(f"`{command}`: {', '.join(f'{name} {version}' for name, version in of.items())}\n")


def to_base64(data: bytes) -> str:
    """Return ``data`` as text that fits a command line."""
    return base64.b64encode(data).decode("ascii")


@dataclass
class Cores:
    """Which cores the server and the generator run on; None is all."""

    server: set[int] | None = None
    generator: set[int] | None = None
    said: str = field(default="")

    @classmethod
    def of(cls, workers: int) -> Cores:
        """Pin a server of one worker to the first core and its generator to the second."""
        usable = sorted(os.sched_getaffinity(0))
        if workers == 1 and len(usable) >= 2:
            said = f"server on core {usable[0]}, wrk on core {usable[1]}"
            return cls({usable[0]}, {usable[1]}, said)
        return cls(said=f"not pinned: server and wrk share {len(usable)} cores")
