"""Steady load from real clients, and what became of each request.

Rules of the account:

1. A request is *answered* (2xx), *refused* (503), *failed* (another 5xx), *lost* (its connection
   ended without an answer), or *hung* (no answer in ``PATIENCE`` seconds).
2. A connection is placed at a worker by the ids of its answers, which begin with a word of each
   worker's own; the bodies of answers tell whose word it is.
3. A loss is *allowed* on a connection to a worker that was doomed (killed, or made to hang), or
   that was never answered and was open when some worker died. A connection loses at most one
   request, so a dead worker costs at most what it held.
4. A connection that cannot be made is never allowed: the listener outlives each worker.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections import Counter, deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import cast

import uvloop

PATIENCE = 12.0
AFTERMATH = 1.0  # seconds until the end of a killed worker's connections has been noticed by all
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_ID = re.compile(rb"\r\nx-request-id: (.{16})", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: close", re.IGNORECASE)
_PID = re.compile(rb'"pid":(\d+)')


@dataclass
class Doom:
    """A worker that was made to die: from when on, and when it had gone."""

    pid: int
    begun: float
    gone: float = float("inf")


@dataclass(frozen=True)
class Loss:
    """A request without an answer; times are monotonic."""

    word: bytes
    opened: float
    at: float


@dataclass
class Account:
    """What became of the requests."""

    sent: int = 0
    answered: int = 0
    refused: int = 0
    failed: list[str] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    hung: list[Loss] = field(default_factory=list)
    unconnected: list[str] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.opened = time.monotonic()
        self.word = b""
        self.closed = False
        self._data = b""
        self.waiter: asyncio.Future[tuple[int, bytes, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(ConnectionError(str(exc or "closed without an answer")))

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, blank, rest = self._data.partition(b"\r\n\r\n")
        status, length = _STATUS.match(head), _LENGTH.search(head)
        if not blank or status is None or self.waiter is None or self.waiter.done():
            return
        size = int(length[1]) if length else 0
        if len(rest) >= size:
            self._data = rest[size:]
            self.waiter.set_result((int(status[1]), head, rest[:size]))


class Load:
    """Clients in a thread of their own, until the block is left.

    :param keeping: clients that keep their connection; ``fresh``: that have one for each request.
    :param pause: seconds between two requests of a client.
    :param fields: further header fields, each with its line end.
    """

    def __init__(
        self,
        port: int,
        *,
        target: str = "/",
        keeping: int = 30,
        fresh: int = 6,
        pause: float = 0.03,
        fields: str = "",
    ) -> None:
        self.account = Account()
        self.dooms: list[Doom] = []
        self.places: dict[bytes, int] = {}
        self.first: dict[bytes, float] = {}
        self.latencies: deque[tuple[float, bytes, float]] = deque(maxlen=50_000)
        self.good: float = 0.0
        """When the last 2xx came."""
        self._request = f"GET {target} HTTP/1.1\r\nHost: test\r\n{fields}\r\n".encode()
        self._port, self._pause = port, pause
        self._kinds = [False] * keeping + [True] * fresh
        self._open = threading.Event()
        self._open.set()
        self._stop = False
        self.busy = 0
        self._loop: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._main()))

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._open.set()
        self._thread.join(PATIENCE + 10)
        assert not self._thread.is_alive(), "a client hangs"

    def rest(self) -> bool:
        """Send nothing more, and return whether all that was sent has ended."""
        self._open.clear()
        until = time.monotonic() + PATIENCE + 1
        # one turn of the loop later who had seen the gate open has begun
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop.result(PATIENCE)).result(
            PATIENCE
        )
        while self.busy and time.monotonic() < until:
            time.sleep(0.005)
        return not self.busy

    def go_on(self) -> None:
        """End the rest."""
        self._open.set()

    def doomed(self, pid: int) -> Doom:
        """Note that ``pid`` is about to die."""
        doom = Doom(pid, time.monotonic())
        self.dooms.append(doom)
        return doom

    def seen(self, pid: int) -> float | None:
        """Return when the first answer of the worker ``pid`` came."""
        for word, place in list(self.places.items()):
            if place == pid:
                return self.first[word]
        return None

    def excused(self, loss: Loss) -> bool:
        """Return whether a loss is allowed (rule 3)."""
        pid = self.places.get(loss.word)
        for doom in self.dooms:
            if doom.begun <= loss.at and (
                pid == doom.pid
                or (pid is None and loss.opened <= doom.gone and loss.at <= doom.gone + AFTERMATH)
            ):
                return True
        return False

    def p99(self, begun: float, ended: float, but: int = 0) -> float | None:
        """Return the 99th percentile of latencies of workers other than ``but``, in seconds."""
        took = sorted(
            took
            for at, word, took in list(self.latencies)
            if begun <= at <= ended and self.places.get(word, but) != but
        )
        return took[len(took) * 99 // 100] if took else None

    async def _main(self) -> None:
        self._loop.set_result(asyncio.get_running_loop())
        async with asyncio.TaskGroup() as group:
            for fresh in self._kinds:
                group.create_task(self._client(fresh))

    async def _client(self, fresh: bool) -> None:
        loop = asyncio.get_running_loop()
        account = self.account
        connection: _Connection | None = None
        while not self._stop:
            if not self._open.is_set():
                await asyncio.sleep(0.01)
                continue
            self.busy += 1
            try:
                if connection is None or connection.closed:
                    connection = None
                    async with asyncio.timeout(PATIENCE):
                        _, connection = await loop.create_connection(
                            _Connection, "127.0.0.1", self._port
                        )
            except (OSError, TimeoutError) as error:
                account.unconnected.append(f"{time.monotonic():.3f} {error!r}")
                await asyncio.sleep(0.05)
            else:
                if not await self._ask(connection) or fresh:
                    connection.transport.close()
                    connection = None
            finally:
                self.busy -= 1
            await asyncio.sleep(self._pause)
        if connection is not None:
            connection.transport.close()

    async def _ask(self, connection: _Connection) -> bool:
        """Make a request, note what becomes of it, and return whether another may follow."""
        account = self.account
        connection.waiter = asyncio.get_running_loop().create_future()
        begun = time.monotonic()
        account.sent += 1
        connection.transport.write(self._request)
        try:
            async with asyncio.timeout(PATIENCE):
                status, head, body = await connection.waiter
        except (ConnectionError, TimeoutError) as error:
            loss = Loss(connection.word, connection.opened, time.monotonic())
            hung = isinstance(error, TimeoutError)
            (account.hung if hung else account.losses).append(loss)
            return False
        now = time.monotonic()
        if (found := _ID.search(head)) is not None:
            connection.word = found[1]
            self.first.setdefault(found[1], now)
        if status < 300:
            account.answered += 1
            self.good = now
            if (pid := _PID.search(body)) is not None:
                self.places[connection.word] = int(pid[1])
            self.latencies.append((now, connection.word, now - begun))
        elif status == 503:
            account.refused += 1
            code = re.search(rb'"code":"(\w+)"', body)
            account.codes[code[1].decode() if code else "?"] += 1
        else:
            account.failed.append(f"{status} {body[:200]!r}")
        return _CLOSE.search(head) is None
