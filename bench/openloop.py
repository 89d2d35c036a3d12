"""An open-loop HTTP load generator: requests leave on a schedule, whatever the server does.

A closed-loop generator waits for an answer before it sends the next request, so a slow server
slows the load and hides its own delay (coordinated omission: Gil Tene, "How NOT to Measure
Latency"). Here request i is due at a fixed time. Its latency counts from then, also when no
connection was free or the generator itself was late; how late it was is reported.

Connections are kept alive and have one request under way. Some are opened before the schedule
starts; when all are busy, more are, up to ``--connections``; beyond that, requests wait here, and
their latency runs. Connections are used in turn: each request stands for another user, and who
was just refused is not the one who asks next.

Users give up after ``--give-up`` seconds: their connection is closed, or if they had none yet, they
never ask. Else what was offered in an overload would keep a server busy for long afterwards, with
answers that nobody waits for.

Beside the load, ``--probe`` asks a route (a health check) at a low rate, each time on a new
connection, as load balancers do; it is measured apart.

Run as a program it prints one JSON document: counts and latencies by outcome, a time line, and
the generator's own use of the CPU.
"""

from __future__ import annotations

import json
import math
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import click
from client import (
    FREE,
    LOST,
    REFUSED,
    Client,
    Connection,
    claim,
    clock,
    cpu_seconds,
    percentiles,
    request,
)

OUTCOMES = ("ok", "late", "shed", "error", "unanswered")
BURST = 64
"""Connections opened in one turn: opening takes time that what is due does not have."""
LEAST_POOL = 4
SHARES = (0.5, 0.95, 0.99)


@dataclass(slots=True)
class Step:
    """A constant rate for a while."""

    rate: float  # requests a second
    seconds: float


@dataclass(slots=True)
class Record:
    """What happened to each request: when it was due, noticed and answered, and the status.

    ``due`` to ``seen`` is the generator's own lateness; what follows is the server's.
    """

    due: list[float] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    status: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, due: list[float]) -> Record:
        """Return a record of requests of which nothing has happened yet."""
        count = len(due)
        return cls(due, [0.0] * count, [0.0] * count, [0] * count)


def schedule(steps: list[Step], jitter: random.Random | None) -> list[float]:
    """Return when requests are due, in seconds from the start.

    :param jitter: a seeded source of exponential gaps (Poisson arrivals), or None for even ones.
    """
    due: list[float] = []
    start = 0.0
    for step in steps:
        if jitter is None:
            due += [start + at / step.rate for at in range(round(step.rate * step.seconds))]
        elif step.rate:
            at = start
            while at < start + step.seconds:
                due.append(at)
                at += jitter.expovariate(step.rate)
        start += step.seconds
    return due


@dataclass(slots=True)
class Probe:
    """A request beside the load, each time on a connection of its own."""

    head: bytes
    timeout: float = 1.0


class Generator(Client):
    """Drives one server by a schedule.

    :param head: the whole request as bytes.
    :param due: when requests are due.
    :param probes: when the probe's are.
    :param pool: connections opened before the start.
    :param most: connections at most, the probe's not counted.
    :param give_up: seconds after which nobody waits for an answer.
    """

    def __init__(
        self,
        host: str,
        port: int,
        head: bytes,
        due: list[float],
        *,
        pool: int,
        most: int,
        give_up: float = math.inf,
        probe: Probe | None = None,
        probes: list[float] | None = None,
    ) -> None:
        super().__init__(host, port)
        self.head = head
        self.most = most
        self.give_up = give_up
        self.pool = min(pool, most)
        self.probe = probe
        self.record = Record.of(due)
        self.probes = Record.of(probes or [])
        self.opened = 0
        self.peak = 0
        self.unasked = 0
        self.cpu_share = 0.0
        self._connecting = 0
        self._outstanding = 0
        self._idle: deque[Connection] = deque()  # may hold some that have closed meanwhile
        self._waiting: deque[int] = deque()  # without a connection, in the order they were due
        self._asked: deque[tuple[int, Connection]] = deque()  # some answered; the same order
        self._probing: deque[Connection] = deque()
        self._start = 0.0

    def run(self, patience: float) -> None:
        """Send everything on time, then wait up to ``patience`` seconds for what is owed."""
        self._fill()
        record, probes = self.record, self.probes
        due, seen, count = record.due, record.seen, len(record.due)
        number = probe = 0
        cpu = cpu_seconds()
        start = self._start = clock()
        last = len(probes.due)
        until = max([*due[-1:], *probes.due[-1:], 0.0]) + patience
        while True:
            now = clock() - start
            while number < count and due[number] <= now:
                seen[number] = now
                self._ask(number)
                number += 1
                now = clock() - start
            if probe < last and probes.due[probe] <= now:
                probes.seen[probe] = now
                self._probing.append(self.connect(probes, probe))
                probe += 1
            if self._probing:
                self._forget_probes(now)
            self._forget(now - self.give_up)
            if self._waiting:
                self._dispatch(now)
            if number < count:
                self.turn(min(due[number] - now, 0.01))
            elif probe < last:
                self.turn(min(probes.due[probe] - now, 0.01))
            elif now < until and (self._outstanding or self._waiting or self._probing):
                self.turn(0.01)
            else:
                break
        self.cpu_share = (cpu_seconds() - cpu) / (clock() - start)
        self.close_all()

    def _fill(self) -> None:
        """Open the first connections; those that the server does not take are done without."""
        until = clock() + 5
        while self.connects < self.pool and clock() < until:
            for _ in range(min(BURST, self.pool - self.connects)):
                self._grow()
            while self._connecting and clock() < until:
                self.turn(0.01)

    def _grow(self) -> None:
        self.opened += 1
        self.peak = max(self.peak, self.opened)
        self._connecting += 1
        self.connect()

    def _ask(self, number: int) -> None:
        """Send a request on the connection that was used last, or let it wait for one."""
        if not self._waiting:
            idle = self._idle
            while idle:
                connection = idle.popleft()
                if self.is_open(connection):
                    self._put(connection, number)
                    return
        self._waiting.append(number)

    def _put(self, connection: Connection, number: int) -> None:
        connection.request = number
        self._asked.append((number, connection))
        self._outstanding += 1
        self.send(connection, self.head)

    def _dispatch(self, now: float) -> None:
        while self._waiting and self._idle:
            connection = self._idle.popleft()
            if self.is_open(connection):
                self._put(connection, self._waiting.popleft())
        if now + self._start >= self.resume_at:
            wanted = min(len(self._waiting) - self._connecting, self.most - self.opened, BURST)
            for _ in range(wanted):
                self._grow()

    def _forget(self, before: float) -> None:
        """Drop what was due before then and is not answered: it stays without a status."""
        due, asked, waiting = self.record.due, self._asked, self._waiting
        while asked:
            number, connection = asked[0]
            if connection.request == number:
                if due[number] > before:
                    break
                self.close(connection)
                connection.request = FREE
                self.opened -= 1
                self._outstanding -= 1
            asked.popleft()
        while waiting and due[waiting[0]] <= before:
            waiting.popleft()

    def _forget_probes(self, now: float) -> None:
        """Forget probes that were answered, and those that nobody would still wait for."""
        timeout = self.probe.timeout if self.probe else 0.0
        while self._probing:
            first = self._probing[0]
            if self.is_open(first):
                if now < self.probes.due[first.request] + timeout:
                    return
                self.close(first)
            self._probing.popleft()

    def ready(self, connection: Connection) -> None:
        if connection.owner is not None:
            assert self.probe is not None
            self.send(connection, self.probe.head)
            return
        self._connecting -= 1
        self._free(connection)

    def _free(self, connection: Connection) -> None:
        if self._waiting:
            self._put(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)

    def answered(self, connection: Connection, status: int, closing: bool, now: float) -> None:
        number = connection.request
        record = connection.owner or self.record
        if number >= 0:
            record.done[number] = now - self._start
            record.status[number] = status
        if record is self.probes:
            if not closing:
                self.close(connection)
            return
        connection.request = FREE
        if number >= 0:
            self._outstanding -= 1
        else:  # said unasked, such as "too many connections": what follows is its end
            self.unasked += 1
            if not closing:
                self.close(connection)
                closing = True
        if closing:
            self.opened -= 1
        else:
            self._free(connection)

    def lost(self, connection: Connection) -> None:
        number = connection.request
        record = connection.owner or self.record
        if number >= 0:
            record.done[number] = clock() - self._start
            record.status[number] = LOST
        if record is self.probes:
            return
        connection.request = FREE
        self.opened -= 1
        if number >= 0:
            self._outstanding -= 1
        if connection.connecting:
            self._connecting -= 1


def outcome(status: int, latency: float, deadline: float) -> str:
    """Sort one request: answered in time, answered late, refused, broken, or never answered."""
    if status == 0:
        return "unanswered"
    if status == REFUSED:
        return "shed"
    if status != 200:
        return "error"
    return "ok" if latency <= deadline else "late"


def summarise(
    record: Record, seconds: float, deadline: float, bin_seconds: float, since: float = 0.0
) -> dict[str, Any]:
    """Return counts, latencies in milliseconds by outcome, and a time line by due time.

    :param since: what was due before then does not count.
    """
    latencies: dict[str, list[float]] = {name: [] for name in OUTCOMES}
    count = max(1, round((seconds - since) / bin_seconds))
    bins: list[dict[str, Any]] = [dict.fromkeys(OUTCOMES, 0) for _ in range(count)]
    accepted: list[list[float]] = [[] for _ in bins]
    noticed: list[float] = []
    for due, seen, done, status in zip(
        record.due, record.seen, record.done, record.status, strict=True
    ):
        if due < since:
            continue
        latency = done - due
        name = outcome(status, latency, deadline)
        latencies[name].append(latency)
        noticed.append(seen - due)
        at = min(int((due - since) / bin_seconds), count - 1)
        bins[at][name] += 1
        if status == 200:
            accepted[at].append(latency)
    for entry, values in zip(bins, accepted, strict=True):
        entry |= percentiles(values, 0.99)
    seconds -= since
    return {
        "offered": len(noticed),
        "offered_rps": round(len(noticed) / seconds, 1),
        "goodput_rps": round(len(latencies["ok"]) / seconds, 1),
        **{name: len(latencies[name]) for name in OUTCOMES},
        "accepted": percentiles(latencies["ok"] + latencies["late"], *SHARES),
        "shed_after": percentiles(latencies["shed"], *SHARES),
        "generator_late": percentiles(noticed, 0.5, 0.99, 1),
        "bin_seconds": bin_seconds,
        "timeline": bins,
    }


def summarise_probes(probes: Record, timeout: float) -> dict[str, Any]:
    """Return the figures of the probe; one without a 200 in time has failed."""
    good = [
        done - due
        for due, done, status in zip(probes.due, probes.done, probes.status, strict=True)
        if outcome(status, done - due, timeout) == "ok"
    ]
    refused = probes.status.count(REFUSED)
    return {
        "asked": len(probes.due),
        "failed": len(probes.due) - len(good),
        "refused": refused,
        **percentiles(good, 0.5, 0.99, 1),
    }


@click.command()
@click.option("--host", default="127.0.0.1")
@click.option("--port", type=int, required=True)
@click.option("--path", "target", default="/")
@click.option(
    "--rate",
    type=click.FloatRange(0),
    multiple=True,
    required=True,
    help="Requests/s; one per step.",
)
@click.option("--seconds", type=float, multiple=True, required=True, help="Length of each step.")
@click.option("--connections", type=int, default=2000, help="Most connections.")
@click.option("--pool", type=int, help="Opened before the start.  [default: highest rate × 0.2 s]")
@click.option("--deadline", type=float, default=1.0, help="Later answers are no goodput.")
@click.option("--patience", type=float, default=3.0, help="How long to wait at the end.")
@click.option("--give-up", type=float, default=math.inf, help="Seconds until a user does.")
@click.option("--bin", "bin_seconds", type=float, default=0.25, help="Time line step, seconds.")
@click.option("--skip", type=float, default=0.0, help="Do not count the first seconds.")
@click.option("--header", multiple=True, help="A further header field.")
@click.option("--probe", "probe_target", help="Route asked apart, on new connections.")
@click.option("--probe-rate", type=float, default=20.0, help="Probes a second.")
@click.option("--seed", type=int, default=1, help="Of the arrival times; 0: evenly spaced.")
def main(
    host: str,
    port: int,
    target: str,
    rate: tuple[float, ...],
    seconds: tuple[float, ...],
    connections: int,
    pool: int | None,
    deadline: float,
    patience: float,
    give_up: float,
    bin_seconds: float,
    skip: float,
    header: tuple[str, ...],
    probe_target: str | None,
    probe_rate: float,
    seed: int,
) -> None:
    """Send GET requests at a fixed rate and print what became of them as JSON."""
    if len(rate) != len(seconds):
        raise click.BadParameter("as many --seconds as --rate are wanted")
    claim(connections)
    probe, probes = None, []
    if probe_target:
        probe = Probe(request(host, port, probe_target, header), deadline)
        probes = schedule([Step(probe_rate, sum(seconds))], None)
    generator = Generator(
        host,
        port,
        request(host, port, target, header),
        schedule(
            [Step(r, s) for r, s in zip(rate, seconds, strict=True)],
            random.Random(seed) if seed else None,
        ),
        pool=max(LEAST_POOL, round(max(rate) * 0.2)) if pool is None else pool,
        most=connections,
        give_up=give_up,
        probe=probe,
        probes=probes,
    )
    generator.run(patience)
    result = summarise(generator.record, sum(seconds), deadline, bin_seconds, skip)
    if probe is not None:
        result["probe"] = summarise_probes(generator.probes, probe.timeout)
    result["connections"] = {
        "peak": generator.peak,
        "opened": generator.connects - len(generator.probes.due),
        "errors": generator.connect_errors,
        "refused_unasked": generator.unasked,
    }
    result["generator_cpu_share"] = round(generator.cpu_share, 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
