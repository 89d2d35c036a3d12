"""What all connections of a worker share, and what the worker asks of each."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol

from fluxor_fast.server.admission import SharedLimit
from fluxor_fast.server.batch import BatchRunner
from fluxor_fast.server.bodies import Bodies
from fluxor_fast.server.clients import ClientLimit, Place
from fluxor_fast.server.forwarded import Proxies
from fluxor_fast.server.heads import HeadCache

__all__ = ["Behind", "Open", "Service", "Timeouts"]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds, kept to about a second, and bytes per second."""

    head: float
    body: float
    keep_alive: float
    write: float
    age: float = inf
    """Of a connection; the request after it is the last."""
    body_rate: int = 0
    """The least at which a body comes, on average since it began."""
    write_rate: int = 0
    """The least at which a full buffer is taken in, on average since it was full."""


class Open(Protocol):
    """An open connection, as the worker sees it: it counts, and must end some time."""

    closed: bool

    def check(self, tick: int) -> None:
        """End it if it has outlived a timeout."""

    def close_idle(self) -> None:
        """Close it if nothing is owed on it."""

    def abort(self) -> None:
        """Drop it."""


class Behind(Protocol):
    """A protocol that can take over a connection behind its PROXY header."""

    def take_over(self, transport: asyncio.Transport, peer: str | None, *, tls: bool) -> None:
        """Take a connection that has its place; see ``HttpProtocol.take_over``."""

    def data_received(self, data: bytes) -> None:
        """Take in bytes."""


@dataclass(slots=True)
class Service:
    """What all connections of a worker share."""

    app: Any
    runner: BatchRunner
    heads: HeadCache
    timeouts: Timeouts
    connections: SharedLimit
    max_connections: int
    max_pipeline: int
    proxies: Proxies
    open: set[Open]
    room: int = sys.maxsize
    """How many connections this process has descriptors for."""
    clients: ClientLimit | None = None
    """None: a client may have any number of connections."""
    keep_alive_requests: int = 0
    """Requests on a connection; 0: any number."""
    bodies: Bodies = field(default_factory=Bodies)

    def take_place(self) -> bool:
        """Count one connection more, if there is room; who calls this puts it among ``open``."""
        return len(self.open) < self.room and bool(
            self.connections.acquire(1, self.max_connections)
        )

    def leave(self, one: Open, client: Place = ()) -> bool:
        """Give back the place of ``one``, and that among its client's; return whether it had one.

        A second time does nothing, nor does it for one that has handed its place over.
        """
        if one not in self.open:
            return False
        self.open.discard(one)
        self.connections.release(1)
        if client:
            assert self.clients is not None
            self.clients.release(client)
        return True
