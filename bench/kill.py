"""What a killed worker costs: whose requests fail, for how long, and whether permits come back.

Clients on keep-alive connections ask a light route and one that waits for the database. One
worker after another gets SIGKILL. Then it is told:

1. how many requests were sent, answered and failed, apart for connections of killed workers and
   for all others; of the latter none may fail;
2. how long it took until a successor was ready, and until one of its answers arrived;
3. whether the count of requests in the system is 0 when the load rests: a killed worker's
   permits must come back.

Each worker's request ids begin with digits of its own, so a connection's last answer tells its
worker; those that it never answered are known by their ports, looked up in /proc just before.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import secrets
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import click
import harness
import uvloop
from harness import Failed, Server, process_tree, progress

RESULTS = Path(__file__).resolve().parent / "results"
SEED = 20_240_601
PREFIX = 16
"""Leading characters of a request id that tell the worker."""
ANSWER_SECONDS = 10.0
REPLACED_SECONDS = 60.0
REST_SECONDS = 5.0

_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}).*?\r\n\r\n", re.DOTALL)
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_ID = re.compile(rb"\r\nx-request-id: ([^\r]+)", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """One client connection; at most one request is unanswered."""

    def __init__(self) -> None:
        self.port = 0
        self.prefix = ""  # of the worker that answered last
        self.closed = False
        self._data = bytearray()
        self._waiter: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.port = transport.get_extra_info("sockname")[1]

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ConnectionError(str(exc or "closed without an answer")))

    def data_received(self, data: bytes) -> None:
        self._data += data
        head = _HEAD.match(self._data)
        if head is None or self._waiter is None or self._waiter.done():
            return
        # copies: a match of a bytearray looks into it, and it is about to change
        fields, status = bytes(head[0]), int(head[1])
        length = _LENGTH.search(fields)
        end = len(fields) + (int(length[1]) if length else 0)
        if len(self._data) >= end:
            rid = _ID.search(fields)
            self.prefix = rid[1][:PREFIX].decode() if rid else ""
            del self._data[:end]
            self._waiter.set_result(status)

    async def ask(self, request: bytes) -> int:
        """Send a request and return the status of its answer."""
        self._waiter = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        async with asyncio.timeout(ANSWER_SECONDS):
            return await self._waiter


@dataclass
class Kill:
    """One SIGKILL and what followed. Times in seconds from the kill."""

    pid: int
    prefix: str
    connections: int
    at: float
    ports: set[int]
    """The clients' ends of its connections."""
    ready_seconds: float = 0.0
    first_answer_seconds: float | None = None
    ccu_at_rest: int | None = None


@dataclass
class Failure:
    """A request that was sent and not answered."""

    port: int
    prefix: str
    kind: str


@dataclass
class Tally:
    """What became of the requests."""

    sent: int = 0
    answered: Counter[int] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    closed_idle: int = 0
    """Connections closed by the server while nothing was asked on them."""
    refused_connects: int = 0
    seen: dict[str, float] = field(default_factory=dict)
    """When the first answer of each worker arrived."""


class Clients:
    """The load: ``count`` clients, each with a connection that it makes anew when it is lost."""

    def __init__(self, port: int, requests: list[bytes], count: int, think: float) -> None:
        self.port = port
        self.requests = requests
        self.think = think
        self.count = count
        self.tally = Tally()
        self.open: dict[int, Connection] = {}
        self.asking = 0
        self._go = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._random = random.Random(SEED)

    async def __aenter__(self) -> Clients:
        self._go.set()
        self._tasks = [asyncio.create_task(self._client(at)) for at in range(self.count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def rest(self) -> None:
        """Let what is asked be answered, and ask nothing more until ``resume``."""
        self._go.clear()
        await until(lambda: self.asking == 0, ANSWER_SECONDS + 1, "the clients come to rest")

    async def newcomer(self, known: int) -> None:
        """Wait until more than ``known`` workers have answered; ``Failed`` if none comes."""
        await until(lambda: len(self.tally.seen) > known, 2, "a new worker answers")

    def resume(self) -> None:
        """Go on."""
        self._go.set()

    def raise_errors(self) -> None:
        """Raise what ended a client, which nothing should."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def _client(self, at: int) -> None:
        loop = asyncio.get_running_loop()
        request = self.requests[at % len(self.requests)]
        tally = self.tally
        while True:
            try:
                _, connection = await loop.create_connection(Connection, "127.0.0.1", self.port)
            except OSError:
                tally.refused_connects += 1
                await asyncio.sleep(0.05)
                continue
            self.open[connection.port] = connection
            try:
                while not connection.closed:
                    await self._go.wait()
                    if connection.closed:
                        break
                    await self._ask(connection, request)
                    await asyncio.sleep(self.think * self._random.uniform(0.5, 1.5))
                else:
                    tally.closed_idle += 0 if self._failed_last(connection) else 1
            finally:
                del self.open[connection.port]
                connection.transport.abort()

    def _failed_last(self, connection: Connection) -> bool:
        failures = self.tally.failures
        return any(failure.port == connection.port for failure in failures[-self.count :])

    async def _ask(self, connection: Connection, request: bytes) -> None:
        tally = self.tally
        tally.sent += 1
        self.asking += 1
        try:
            status = await connection.ask(request)
        except TimeoutError:
            tally.failures.append(Failure(connection.port, connection.prefix, "timeout"))
            connection.closed = True
        except ConnectionError as error:
            tally.failures.append(Failure(connection.port, connection.prefix, str(error)))
        else:
            tally.answered[status] += 1
            tally.seen.setdefault(connection.prefix, time.monotonic())
        finally:
            self.asking -= 1


async def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until ``condition`` holds; ``Failed`` when it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Failed(f"waited {seconds:g} s in vain: {what}")
        await asyncio.sleep(0.005)


def ports_of(pid: int, port: int) -> set[int]:
    """Return the clients' ports of the connections to ``port`` that process ``pid`` has open."""
    own = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(entry.readlink())
            if target.startswith("socket:["):
                own.add(target[8:-1])
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        # local address, remote address, state (01: established), …, inode
        local, remote, inode = fields[1], fields[2], fields[9]
        if inode in own and fields[3] == "01" and int(local.rpartition(":")[2], 16) == port:
            found.add(int(remote.rpartition(":")[2], 16))
    return found


def workers_of(server: Server) -> dict[int, set[int]]:
    """Return the clients' ports by pid, of the processes that have connections."""
    found = {pid: ports_of(pid, server.port) for pid in server.tree[1:]}
    return {pid: ports for pid, ports in found.items() if ports}


def account(port: int) -> str:
    """Register a user and return a token."""
    user = {"email": f"kill-{secrets.token_hex(6)}@example.org", "password": secrets.token_hex(8)}
    for path, wanted in (("/api/auth/register", 201), ("/api/auth/login", 200)):
        answer = harness.fetch(port, path, method="POST", body=json.dumps(user).encode())
        if answer.status != wanted:
            raise Failed(f"{path} answers {answer.status}: {answer.body!r}")
    token: str = json.loads(answer.body)["token"]
    return token


async def kill_one(server: Server, clients: Clients, workers: int, chosen: random.Random) -> Kill:
    """Kill a worker and wait until it is replaced."""
    # in threads: a client that stands still meanwhile would send to a worker long dead
    before = set(await asyncio.to_thread(process_tree, server.pid))
    serving = await asyncio.to_thread(workers_of, server)
    if not serving:
        raise Failed("no worker has a connection")
    pid = chosen.choice(sorted(serving))
    ports = serving[pid]
    prefixes = {c.prefix for p, c in clients.open.items() if p in ports and c.prefix}
    if len(prefixes) > 1:
        raise Failed(f"one worker answered with several prefixes: {prefixes}")
    prefix = prefixes.pop() if prefixes else ""
    os.kill(pid, signal.SIGKILL)
    at = time.monotonic()
    kill = Kill(pid, prefix, len(ports), at, ports)

    async def replaced() -> bool:
        if (
            not set(await asyncio.to_thread(process_tree, server.pid)) - before
        ):  # until then the figures may be those before the reap
            return False
        with contextlib.suppress(OSError, ValueError, KeyError):
            now = await asyncio.to_thread(harness.gauges, server.port)
            return now["workers_ready"] == workers
        return False

    while not await replaced():
        if time.monotonic() - at > REPLACED_SECONDS:
            raise Failed(f"worker {pid} was not replaced within {REPLACED_SECONDS:g} s")
        await asyncio.sleep(0.005)
    kill.ready_seconds = time.monotonic() - at
    return kill


async def ccu_at_rest(clients: Clients, port: int) -> int:
    """Return the requests in the system while nothing is asked; 0 as soon as it is seen."""
    await clients.rest()
    end = time.monotonic() + REST_SECONDS
    while True:
        with contextlib.suppress(OSError, ValueError):
            ccu = int((await asyncio.to_thread(harness.gauges, port))["ccu"])
            if ccu == 0 or time.monotonic() > end:
                return ccu
        await asyncio.sleep(0.01)


async def run(server: Server, token: str, options: dict[str, Any]) -> dict[str, Any]:
    """Load the server, kill its workers, and return the report."""
    host = f"Host: 127.0.0.1:{server.port}\r\n"
    requests = [
        f"GET / HTTP/1.1\r\n{host}\r\n".encode(),
        f"GET /api/users HTTP/1.1\r\n{host}Authorization: Bearer {token}\r\n\r\n".encode(),
    ]
    chosen = random.Random(SEED)
    kills: list[Kill] = []
    think = options["think_ms"] / 1000
    clients = Clients(server.port, requests, options["connections"], think)
    async with clients:
        await until(lambda: len(clients.tally.seen) >= 2, 10, "two workers answer")
        begun = time.monotonic()
        for number in range(options["kills"]):
            last = kills[-1].at if kills else begun
            await asyncio.sleep(max(0.0, last + 1 - time.monotonic()))
            known = set(clients.tally.seen)
            kill = await kill_one(server, clients, options["workers"], chosen)
            with contextlib.suppress(Failed):  # its connections may all stay with the others
                await clients.newcomer(len(known))
            news = [at for prefix, at in clients.tally.seen.items() if prefix not in known]
            kill.first_answer_seconds = min(news) - kill.at if news else None
            kill.ccu_at_rest = await ccu_at_rest(clients, server.port)
            clients.resume()
            clients.raise_errors()
            kills.append(kill)
            progress(
                f"kill {number + 1}: worker {kill.pid} with {kill.connections} connections,"
                f" replaced after {kill.ready_seconds:.2f} s, at rest {kill.ccu_at_rest} in the"
                " system"
            )
        await asyncio.sleep(0.5)
        final = await ccu_at_rest(clients, server.port)
    flow = await asyncio.to_thread(harness.gauges, server.port)
    return report(clients.tally, kills, final, flow)


def report(
    tally: Tally, kills: list[Kill], final_ccu: int, flow: dict[str, float]
) -> dict[str, Any]:
    """Return the figures."""
    prefixes = {kill.prefix for kill in kills} - {""}
    ports = set().union(*(kill.ports for kill in kills))

    def of_killed(failure: Failure) -> bool:
        # a connection that was never answered is known by its port alone
        return failure.prefix in prefixes or (not failure.prefix and failure.port in ports)

    ours = [failure for failure in tally.failures if of_killed(failure)]
    others = [failure for failure in tally.failures if not of_killed(failure)]
    ready = harness.spread([kill.ready_seconds for kill in kills])
    return {
        "sent": tally.sent,
        "answered": sum(tally.answered.values()),
        "answered_by_status": {str(status): n for status, n in sorted(tally.answered.items())},
        "failed_on_killed_workers": len(ours),
        "failed_on_others": len(others),
        "failures_on_others": [asdict(failure) for failure in others[:20]],
        "kinds": Counter(failure.kind for failure in tally.failures),
        "connections_closed_idle": tally.closed_idle,
        "connects_refused": tally.refused_connects,
        "ready_seconds": asdict(ready),
        "ccu_after_load": final_ccu,
        "server": {
            stage: int(flow[f'http_requests_flow_total{{stage="{stage}"}}'])
            for stage in ("offered", "accepted", "completed", "aborted", "lost")
        },
        "kills": [
            {key: value for key, value in asdict(kill).items() if key not in ("at", "ports")}
            for kill in kills
        ],
    }


@click.command()
@click.option("--kills", default=5, type=click.IntRange(1), help="One a second, if replaced.")
@click.option("--workers", default=2, type=click.IntRange(2))
@click.option("--connections", default=64, type=click.IntRange(2))
@click.option("--think-ms", default=10.0, type=click.FloatRange(0), help="Mean pause of a client.")
@click.option("--json", "target", default=RESULTS / "kill.json", type=click.Path(path_type=Path))
def main(kills: int, workers: int, connections: int, think_ms: float, target: Path) -> None:
    """Kill workers under load and tell what it costs; exit code 1 if it costs others anything."""
    harness.claim_files()
    before = harness.machine()
    options = {
        "kills": kills, "workers": workers, "connections": connections, "think_ms": think_ms,
        "seed": SEED,
    }  # fmt: skip
    port = harness.free_port()
    try:
        with harness.interruptible(), harness.scratch() as database:
            command = harness.fluxor_command(port, database, workers=workers)
            with Server("fluxor", command, port, ready=harness.all_ready(workers)) as server:
                found = uvloop.run(run(server, account(port), options))
    except Failed as error:
        raise click.ClickException(f"no report: {error}") from None
    packages = ("fluxor-fast", "uvloop", "httptools")
    harness.write_json(
        target,
        {
            "machine": before,
            "versions": harness.versions(*packages),
            "settings": options,
            "figures": found,
        },
    )
    ready = found["ready_seconds"]
    print(
        f"{kills} kills, {workers} workers, {connections} connections\n"
        f"  sent {found['sent']:,}, answered {found['answered']:,}"
        f" {found['answered_by_status']}\n"
        f"  failed: {found['failed_on_killed_workers']} on connections of killed workers,"
        f" {found['failed_on_others']} on others\n"
        f"  replaced after {ready['median']:.2f} s"
        f" ({ready['least']:.2f}–{ready['greatest']:.2f})\n"
        f"  in the system after the load: {found['ccu_after_load']},"
        f" after each kill: {[kill['ccu_at_rest'] for kill in found['kills']]}"
    )
    leaked = found["ccu_after_load"] or any(kill["ccu_at_rest"] for kill in found["kills"])
    unexpected = set(found["answered_by_status"]) - {"200"}
    if found["failed_on_others"] or leaked or unexpected:
        raise click.ClickException("a kill cost more than the killed worker's own requests")


if __name__ == "__main__":
    main()
