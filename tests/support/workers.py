"""Workers without processes: the real runner and protocol, everything around them by hand.

The loop goes round when told to, the clock is a number, the transport only records. Several
workers live in one process on one ``SharedMemory``, as many processes would; one can be killed.
"""

from __future__ import annotations

import re
from typing import Any

from fluxor_fast import App
from fluxor_fast.arbiter.shared import REGION, SharedMemory
from fluxor_fast.server.admission import KernelLock, SharedLimit, full_fence
from fluxor_fast.server.batch import BatchRunner
from fluxor_fast.server.common import Service
from fluxor_fast.server.counters import Counters
from fluxor_fast.server.protocol import HttpProtocol
from tests.support.inprocess import head, make_runner, make_service
from tests.support.turns import HandLoop, Mute, figures


class Client(Mute):
    """A connection as its client sees it; a *slow* one does not take in large answers."""

    def __init__(self, service: Service, slow: bool = False) -> None:
        self.slow = slow
        self.stuck = False  # an answer is not taken in
        self.gone = False
        self.answers: list[tuple[int, str]] = []  # status and, of a 503, the reason
        self.protocol = HttpProtocol(service)
        transport: Any = self
        self.protocol.connection_made(transport)

    def ask(self, path: str) -> None:
        self.protocol.data_received(head(path))

    def take_in(self) -> None:
        """Read what was not taken in."""
        self.stuck = False
        self.protocol.resume_writing()

    def leave(self) -> None:
        self.gone = True
        self.protocol.connection_lost(None)

    # what the protocol asks of a transport

    def write(self, data: bytes) -> None:
        assert not self.gone, "written to who is gone"
        found = re.match(rb"HTTP/1\.1 ([0-9]{3}) ", data)
        assert found, data[:100]
        reason = re.search(rb'"reason": ?"([a-z_]+)"', data) if found[1] == b"503" else None
        self.answers.append((int(found[1]), reason[1].decode() if reason else ""))
        if self.slow and len(data) >= 64 * 1024:
            self.stuck = True
            self.protocol.pause_writing()

    def close(self) -> None:
        raise AssertionError("no connection is closed by the server here")

    abort = close


class Worker:
    """What a worker process has, by index. ``knobs`` are those of ``make_runner``."""

    def __init__(self, app: App, memory: SharedMemory, index: int, **knobs: Any) -> None:
        self.index = index
        self.memory = memory
        self.loop = HandLoop()
        limited = [route for route in app.routes if route.max_in_flight is not None]
        self.runner: BatchRunner = make_runner(
            self.loop,
            memory,
            index,
            routes={
                route: self._share(memory.routes[at], 3 + at) for at, route in enumerate(limited)
            },
            **knobs,
        )
        self.service = make_service(app, self.runner, memory, index, max_connections=10_000)

    def _share(self, words: memoryview[int], byte: int) -> SharedLimit:
        return SharedLimit(words, self.index, full_fence(), KernelLock(self.memory.fd, byte))

    def figures(self) -> dict[str, int]:
        """Return what the worker has published."""
        return figures(self.memory.region(self.index).tolist())

    def cut_off(self) -> None:
        """Have nothing that this worker still does reach shared memory: it is dead."""
        words = memoryview(bytearray(8 * REGION)).cast("Q")
        words[0] = 1 << 32

        def nowhere() -> SharedLimit:
            return SharedLimit(words, 0, full_fence(), KernelLock(self.memory.fd, 1 << 20))

        runner = self.runner
        runner.limit, runner.slots = nowhere(), nowhere()
        runner._routes = {route: nowhere() for route in runner._routes}
        runner._claims, runner._index = words, 1
        runner.counters = Counters(words)
        for connection in self.service.open:
            connection.closed = True
        for task in runner._tasks:
            task.cancel()
