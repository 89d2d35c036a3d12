"""A worker's turns by hand: the real protocol and runner over a transport that only records."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from fluxor_fast import App, Request
from fluxor_fast.arbiter.shared import BOUNDS, SHED_REASONS, SharedMemory, Word
from fluxor_fast.server.batch import BatchRunner
from fluxor_fast.server.protocol import HttpProtocol
from tests.support.inprocess import head, make_runner, make_service


class Clock:
    """Moved by hand; started far from zero, as a monotonic clock is."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class HandLoop:
    """Of an event loop, what a runner uses; goes round when told to."""

    def __init__(self) -> None:
        self.soon: deque[Callable[[], None]] = deque()
        self.later: list[tuple[float, Callable[[], None]]] = []

    def call_soon(self, call: Callable[[], None], context: Context | None = None) -> None:
        self.soon.append(partial((context or copy_context()).run, call))

    def call_later(self, delay: float, call: Callable[[], None]) -> None:
        self.later.append((delay, call))

    def turn(self) -> None:
        for _ in range(len(self.soon)):
            self.soon.popleft()()

    def run(self) -> int:
        """Turn until nothing is to do; return how many turns it took."""
        turns = 0
        while self.soon:
            self.turn()
            turns += 1
            assert turns < 10_000, "it never comes to rest"
        return turns

    def wake(self) -> None:
        later, self.later = self.later, []
        for _, call in later:
            call()


class Mute:
    """Of a transport, what a protocol asks and nobody here looks at."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> Any:
        return None


class Transport(Mute):
    """Records what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closing = False
        self.protocol: Any = None

    def write(self, data: bytes) -> None:
        assert not self.closing
        self.written.append(data)

    def close(self) -> None:
        self.closing = True

    abort = close

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...

    @property
    def statuses(self) -> list[int]:
        text = b"".join(self.written)
        return [int(part[:3]) for part in text.split(b"HTTP/1.1 ")[1:]]


class Silent(Transport):
    """Takes everything and keeps nothing."""

    def write(self, data: bytes) -> None: ...


class Bench:
    """A runner with connections to it."""

    def __init__(self, app: App, loop: Any, *, memory: SharedMemory | None = None, **knobs: Any):
        self.app = app
        self.loop = loop
        self.memory = memory or SharedMemory(2)
        self.runner: BatchRunner = make_runner(loop, self.memory, **knobs)
        self.service = make_service(app, self.runner, self.memory)

    def connect(self, kind: type[Transport] = Transport) -> HttpProtocol:
        protocol = HttpProtocol(self.service)
        transport: Any = kind()
        transport.protocol = protocol
        protocol.connection_made(transport)
        return protocol

    def ask(self, path: str) -> HttpProtocol:
        protocol = self.connect()
        self.runner.fresh = 0  # as if it had been made long ago
        protocol.data_received(head(path))
        return protocol

    def figures(self) -> dict[str, int]:
        return figures(self.memory.region(0).tolist())

    def shed(self, reason: str) -> int:
        return self.memory.region(0)[Word.SHED + SHED_REASONS.index(reason)]

    def assert_adds_up(self) -> None:
        """What is offered is accepted, shed or waiting; who waits or runs holds a permit."""
        f = self.figures()
        waiting = f["offered"] - f["accepted"] - f["shed"]
        running = f["accepted"] - f["completed"] - f["aborted"]
        assert waiting >= 0 and running >= 0, f
        assert self.memory.permits[0] == waiting + running, (f, self.memory.permits[0])
        assert self.runner.busy == waiting + running + len(self.runner.arrivals)

    def assert_empty(self) -> None:
        self.assert_adds_up()
        f = self.figures()
        assert f["offered"] == f["accepted"] + f["shed"]
        assert f["accepted"] == f["completed"] + f["aborted"]
        assert self.memory.permits.tolist() == [0, 0]
        assert self.memory.slots.tolist() == [0, 0]
        assert self.runner.busy == 0
        self.runner.counters.publish_latencies()
        region = self.memory.region(0)
        observed = sum(region[Word.BUCKETS + at] for at in range(len(BOUNDS) + 1))
        assert observed == f["completed"]


def figures(region: list[int]) -> dict[str, int]:
    """Return the counters of a region by name, and the sum of the refusals as ``shed``."""
    names = ("OFFERED", "ACCEPTED", "COMPLETED", "ABORTED", "LOST")
    found = {name.lower(): region[Word[name]] for name in names}
    found["shed"] = sum(region[Word.SHED : Word.SHED + len(SHED_REASONS)])
    return found


def burning_app(clock: Clock, seconds: float = 0.001) -> tuple[App, list[str]]:
    app, served = App(), []

    @app.get("/burn/{n:int}")
    def burn(request: Request, n: int) -> dict[str, int]:
        clock.now += seconds
        served.append(f"burn {n}")
        return {"n": n}

    @app.get("/bytes/{n:int}")
    def octets(request: Request, n: int) -> bytes:
        clock.now += seconds
        served.append(f"bytes {n}")
        return b"not the short way"

    @app.get("/health", priority="exempt")
    def health(request: Request) -> dict[str, str]:
        served.append("health")
        return {"status": "healthy"}

    @app.get("/wait/{n:int}")
    async def wait(request: Request, n: int) -> dict[str, int]:
        served.append(f"wait {n}")
        await app.state.gate.wait()
        return {"n": n}

    return app, served


async def outside(bench: Bench) -> None:
    """Have the worker's turn come while no task is running, as the loop does."""
    done = asyncio.get_running_loop().create_future()

    def act() -> None:
        try:
            bench.loop.run()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    asyncio.get_running_loop().call_soon(act)
    await done


def asked(app: App, *requests: bytes) -> tuple[Bench, list[Transport]]:
    """Return a worker that has got these in one turn, each on a connection of its own."""
    bench = Bench(app, HandLoop(), slots=100)
    transports = []
    for request in requests:
        protocol: HttpProtocol = bench.connect()
        transports.append(protocol.transport)
        protocol.data_received(request)
    bench.runner.fresh = 0
    return bench, transports


def statuses(transports: list[Transport]) -> list[list[int]]:
    return [transport.statuses for transport in transports]


def body(transport: Transport) -> Any:
    return json.loads(b"".join(transport.written).partition(b"\r\n\r\n")[2])
