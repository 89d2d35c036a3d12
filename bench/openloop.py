"""An open-loop HTTP load generator: requests leave on a schedule, whatever the server does.

A closed-loop generator waits for an answer before it sends the next request, so a slow server
slows the load and hides its own delay (coordinated omission: Gil Tene, "How NOT to Measure
Latency"). Here request i is due at a fixed time. Its latency counts from then, also when no
connection was free or the generator itself was late; how late it was is reported.

Each connection has one request under way. When all are busy another is opened, up to
``connections``; beyond that, requests wait here, and their latency runs.

Run as a program it prints one JSON document: counts and latencies by outcome, a time line, and
the generator's own use of the CPU.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import resource
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import click
import uvloop

OUTCOMES = ("ok", "late", "shed", "error", "unanswered")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(slots=True)
class Step:
    """A constant rate for a while."""

    rate: float  # requests a second
    seconds: float


@dataclass(slots=True)
class Record:
    """What happened to each request: when it was due, when it was answered, the status."""

    due: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    status: list[int] = field(default_factory=list)


class _Connection(asyncio.Protocol):
    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.transport: Any = None
        self.request = -1
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.generator.idle(self)

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer + data if self.buffer else data
        end = buffer.find(b"\r\n\r\n")
        if end >= 0:
            match = _LENGTH.search(buffer, 0, end)
            if len(buffer) >= end + 4 + (int(match[1]) if match else 0):
                self.buffer = b""
                self.generator.answered(self, int(buffer[9:12]))
                return
        self.buffer = buffer

    def connection_lost(self, exc: Exception | None) -> None:
        self.generator.lost(self)


class Generator:
    """Drives one server with the given steps.

    :param head: the whole request as bytes.
    :param jitter: a seeded source of exponential gaps (Poisson arrivals), or None for even ones.
    """

    def __init__(
        self,
        host: str,
        port: int,
        head: bytes,
        steps: list[Step],
        connections: int,
        jitter: random.Random | None,
    ) -> None:
        self.host, self.port, self.head = host, port, head
        self.record = Record()
        self.connections = connections
        self.opened = 0
        self.connect_errors = 0
        self._due = self._schedule(steps, jitter)
        self._next = 0
        self._idle: list[_Connection] = []
        self._waiting: deque[int] = deque()
        self._outstanding = 0
        self._connecting = 0

    @staticmethod
    def _schedule(steps: list[Step], jitter: random.Random | None) -> list[float]:
        due: list[float] = []
        start = 0.0
        for step in steps:
            at = start
            while at < start + step.seconds:
                due.append(at)
                at += jitter.expovariate(step.rate) if jitter else 1 / step.rate
            start += step.seconds
        return due

    async def run(self, patience: float) -> None:
        """Send everything on time, then wait up to ``patience`` seconds for what is owed."""
        record, count = self.record, len(self._due)
        record.due = self._due
        record.sent = [0.0] * count
        record.done = [0.0] * count
        record.status = [0] * count
        self.started = time.perf_counter()
        while self._next < count:
            now = time.perf_counter() - self.started
            while self._next < count and self._due[self._next] <= now:
                self._waiting.append(self._next)
                self._next += 1
            self._dispatch()
            await asyncio.sleep(0.0005)
        until = time.perf_counter() + patience
        while (self._outstanding or self._waiting) and time.perf_counter() < until:
            self._dispatch()
            await asyncio.sleep(0.005)

    def _dispatch(self) -> None:
        while self._waiting and self._idle:
            connection = self._idle.pop()
            if connection.transport.is_closing():
                continue
            request = self._waiting.popleft()
            connection.request = request
            self._outstanding += 1
            self.record.sent[request] = time.perf_counter() - self.started
            connection.transport.write(self.head)
        wanted = min(len(self._waiting) - self._connecting, self.connections - self.opened, 64)
        for _ in range(wanted):
            self.opened += 1
            self._connecting += 1
            asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self), self.host, self.port
            )
        except OSError:
            self.opened -= 1
            self.connect_errors += 1
            await asyncio.sleep(0.05)
        finally:
            self._connecting -= 1

    def idle(self, connection: _Connection) -> None:
        self._idle.append(connection)
        if self._waiting:
            self._dispatch()

    def answered(self, connection: _Connection, status: int) -> None:
        request, connection.request = connection.request, -1
        if request >= 0:
            self._outstanding -= 1
            self.record.done[request] = time.perf_counter() - self.started
            self.record.status[request] = status
            self.idle(connection)
        else:  # said unasked: a refused connection, which will now be closed
            self.connect_errors += 1

    def lost(self, connection: _Connection) -> None:
        self.opened -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.request >= 0:
            self._outstanding -= 1
            self.record.done[connection.request] = time.perf_counter() - self.started
            self.record.status[connection.request] = -1
            connection.request = -1


def percentile(values: list[float], share: float) -> float | None:
    """Return the value below which ``share`` of the sorted ``values`` lie."""
    return values[min(int(len(values) * share), len(values) - 1)] if values else None


def outcome(status: int, latency: float, deadline: float) -> str:
    """Sort one request: answered in time, answered late, refused, broken, or never answered."""
    if status == 0:
        return "unanswered"
    if status == 503:
        return "shed"
    if status != 200:
        return "error"
    return "ok" if latency <= deadline else "late"


def summarise(
    record: Record, seconds: float, deadline: float, bin_seconds: float
) -> dict[str, Any]:
    """Return counts, latencies in milliseconds by outcome, and a time line by due time."""
    latencies: dict[str, list[float]] = {name: [] for name in OUTCOMES}
    bins: list[dict[str, Any]] = [
        {**dict.fromkeys(OUTCOMES, 0), "latencies": []} for _ in range(int(seconds / bin_seconds))
    ]
    for due, done, status in zip(record.due, record.done, record.status, strict=True):
        latency = done - due
        name = outcome(status, latency, deadline)
        latencies[name].append(latency)
        at = min(int(due / bin_seconds), len(bins) - 1)
        bins[at][name] += 1
        if status == 200:
            bins[at]["latencies"].append(latency)
    for entry in bins:
        values = sorted(entry.pop("latencies"))
        entry["p99_ms"] = None if not values else round(1e3 * (percentile(values, 0.99) or 0), 2)
    result: dict[str, Any] = {
        "offered": len(record.due),
        "offered_rps": len(record.due) / seconds,
        "goodput_rps": len(latencies["ok"]) / seconds,
        "bin_seconds": bin_seconds,
        "timeline": bins,
    }
    accepted = sorted(latencies["ok"] + latencies["late"])
    late = sorted(max(s - d, 0) for s, d in zip(record.sent, record.due, strict=True) if s)
    for name, values in (("accepted", accepted), ("shed", sorted(latencies["shed"]))):
        for share in (0.5, 0.95, 0.99):
            value = percentile(values, share)
            result[f"{name}_p{round(share * 100)}_ms"] = value and round(value * 1e3, 2)
    for name in OUTCOMES:
        result[name] = len(latencies[name])
    result["generator_late_p99_ms"] = round(1e3 * (percentile(late, 0.99) or 0), 2)
    return result


@click.command()
@click.option("--host", default="127.0.0.1")
@click.option("--port", type=int, required=True)
@click.option("--path", "target", default="/")
@click.option("--rate", type=float, multiple=True, required=True, help="Requests/s; one per step.")
@click.option("--seconds", type=float, multiple=True, required=True, help="Length of each step.")
@click.option("--connections", type=int, default=2000, help="Most connections.")
@click.option("--deadline", type=float, default=1.0, help="Later answers are no goodput.")
@click.option("--patience", type=float, default=3.0, help="How long to wait at the end.")
@click.option("--bin", "bin_seconds", type=float, default=0.25, help="Time line step, seconds.")
@click.option("--header", multiple=True, help="A further header field.")
@click.option("--seed", type=int, default=1, help="Of the arrival times; 0: evenly spaced.")
def main(
    host: str,
    port: int,
    target: str,
    rate: tuple[float, ...],
    seconds: tuple[float, ...],
    connections: int,
    deadline: float,
    patience: float,
    bin_seconds: float,
    header: tuple[str, ...],
    seed: int,
) -> None:
    """Send GET requests at a fixed rate and print what became of them as JSON."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, connections + 256)), hard))
    lines = [f"GET {target} HTTP/1.1", f"Host: {host}", *header, "", ""]
    steps = [Step(r, s) for r, s in zip(rate, seconds, strict=True)]
    jitter = random.Random(seed) if seed else None
    generator = Generator(host, port, "\r\n".join(lines).encode(), steps, connections, jitter)

    async def drive() -> None:
        await generator.run(patience)

    wall = time.perf_counter()
    uvloop.run(drive())
    wall = time.perf_counter() - wall
    usage = resource.getrusage(resource.RUSAGE_SELF)
    result = summarise(generator.record, sum(seconds), deadline, bin_seconds)
    result["connect_errors"] = generator.connect_errors
    result["generator_cpu_share"] = round((usage.ru_utime + usage.ru_stime) / wall, 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
