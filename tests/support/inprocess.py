"""A worker's server without the worker: the real protocol on a real loop and a real socket.

``serving`` wires everything as ``worker.py`` does, on a loopback port of this process. When it
ends it checks what must hold for every test: no error reached the loop, and nothing is left
over (all shared words are 0, and the counters add up).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import formatdate
from ipaddress import ip_network
from typing import Any

import orjson
import uvloop

from fluxor_fast.app import App
from fluxor_fast.arbiter.shared import CLIENTS, SHED_REASONS, SharedMemory, Word
from fluxor_fast.routing import Route
from fluxor_fast.server.addresses import Trust
from fluxor_fast.server.admission import KernelLock, SharedLimit, Thresholds, full_fence
from fluxor_fast.server.batch import BatchRunner, request_ids
from fluxor_fast.server.clients import ClientLimit
from fluxor_fast.server.common import Service, Timeouts
from fluxor_fast.server.forwarded import Proxies
from fluxor_fast.server.handshake import Handshake
from fluxor_fast.server.heads import HeadCache, Limits
from fluxor_fast.server.protocol import HttpProtocol
from fluxor_fast.server.proxied import Complaints, ProxiedProtocol
from fluxor_fast.server.tls import Certificates

LISTS = ("vary", "ratelimit", "ratelimit-policy")  # fields that may come more than once
PATIENCE = 10.0  # seconds until a test that waits for something gives up

Test = Callable[..., Coroutine[Any, Any, None]]


def in_loop(test: Test) -> Callable[..., None]:
    """Run an ``async def`` test in a uvloop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **named: Any) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(test(*args, **named))

    return run


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until ``condition`` holds; fail with ``what`` if it takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        await asyncio.sleep(0.001)


async def turns(count: int = 20) -> None:
    """Let the loop go round, so that what could happen has happened."""
    for _ in range(count):
        await asyncio.sleep(0)
    await asyncio.sleep(0.005)
    for _ in range(count):
        await asyncio.sleep(0)


@dataclass
class Answer:
    """One answer as it stood on the wire."""

    status: int
    headers: dict[str, str]
    body: bytes
    raw_head: bytes = field(repr=False, default=b"")

    def json(self) -> Any:
        return orjson.loads(self.body)


class Client:
    """One connection. Reads strictly: what is no well-formed answer fails the test."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""
        self.interim: list[int] = []  # 1xx answers seen

    @property
    def port(self) -> int:
        return int(self.sock.getsockname()[1])

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def send_pieces(self, pieces: list[bytes]) -> None:
        """Send each piece by itself; the server reads in between."""
        for piece in pieces:
            try:
                await self.send(piece)
            except (ConnectionResetError, BrokenPipeError):
                return  # an answer may have come already, and the rest is not wanted
            await asyncio.sleep(0)

    async def _more(self) -> bool:
        async with asyncio.timeout(PATIENCE):
            data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 18)
        self.buffer += data
        return bool(data)

    async def answer(self, *, head: bool = False) -> Answer:
        """Return the next answer that is not interim; ``head``: it has no body."""
        while True:
            while b"\r\n\r\n" not in self.buffer:
                assert await self._more(), f"no answer, but the end: {self.buffer!r}"
            raw, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
            line, *lines = raw.split(b"\r\n")
            match = re.fullmatch(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [\x20-\x7e]+", line)
            assert match, f"not a status line: {line!r}"
            status = int(match[1])
            headers: dict[str, str] = {}
            for one in lines:
                found = re.fullmatch(rb"([A-Za-z0-9-]+): ([\x20-\x7e]*)", one)
                assert found, f"not a header line: {one!r}"
                name = found[1].decode().lower()
                assert name in LISTS or name not in headers, f"{name} comes twice"
                before = f"{headers[name]}, " if name in headers else ""
                headers[name] = before + found[2].decode()
            if status < 200:
                self.interim.append(status)
                continue
            if status in (204, 304) or head:
                return Answer(status, headers, b"", raw)
            size = int(headers["content-length"])
            pieces = [self.buffer]
            missing = size - len(self.buffer)
            self.buffer = b""
            while missing > 0:
                assert await self._more(), "the end in the middle of a body"
                pieces.append(self.buffer)
                missing -= len(self.buffer)
                self.buffer = b""
            body = b"".join(pieces)
            self.buffer = body[size:]
            return Answer(status, headers, body[:size], raw)

    async def interim_answer(self) -> None:
        """Wait for a ``100 Continue``."""
        expected = b"HTTP/1.1 100 Continue\r\n\r\n"
        while len(self.buffer) < len(expected):
            assert await self._more(), f"no 100, but the end: {self.buffer!r}"
        assert self.buffer.startswith(expected), self.buffer
        self.buffer = self.buffer.removeprefix(expected)
        self.interim.append(100)

    def read_some(self) -> None:
        """Take in a little of what is there."""
        with contextlib.suppress(BlockingIOError):
            self.buffer += self.sock.recv(16 * 1024)

    async def get(self, path: str = "/", *lines: str, method: str = "GET") -> Answer:
        await self.send(head(path, *lines, method=method))
        return await self.answer(head=method == "HEAD")

    async def at_end(self) -> bool:
        """Wait for what comes next; whether that is the end of the stream."""
        if self.buffer:
            return False
        try:
            return not await self._more()
        except ConnectionResetError:
            return True

    async def rest(self) -> list[Answer]:
        """Return all answers up to the end of the stream."""
        answers = []
        while not await self.at_end():
            answers.append(await self.answer())
        return answers

    async def silent(self) -> bool:
        """Whether nothing comes, not even the end, while the loop goes round."""
        await turns()
        try:
            return not self.buffer and self.sock.recv(1, socket.MSG_PEEK) is None
        except BlockingIOError:
            return not self.buffer

    def shut(self) -> None:
        """Say that nothing more is sent."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Go away so that the server sees it: with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


class TlsClient(Client):
    """The same over TLS."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self.closed_cleanly = False  # the other end has said ``close_notify``

    async def shake_hands(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._take_in()
            else:
                await self._flush()
                return

    async def _flush(self) -> None:
        await super().send(self._outgoing.read())

    async def _take_in(self) -> None:
        async with asyncio.timeout(PATIENCE):
            data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 18)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def send(self, data: bytes) -> None:
        self.tls.write(data)
        await self._flush()

    def _decrypt(self) -> bool | None:
        """Take over what has come: None if that was nothing, False if it was the end."""
        try:
            data = self.tls.read(1 << 18)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            data = b""
        except ssl.SSLEOFError:
            return False
        self.closed_cleanly = not data
        self.buffer += data
        return bool(data)

    async def _more(self) -> bool:
        while (more := self._decrypt()) is None:
            await self._take_in()
        return more

    def read_some(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._incoming.write(self.sock.recv(16 * 1024))
        self._decrypt()

    async def silent(self) -> bool:
        await turns()
        self.read_some()  # session tickets are not the peer's word
        return not self.buffer and self._decrypt() is None

    def shut(self) -> None:
        """Say that nothing more is sent: with a ``close_notify``."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        self.sock.send(self._outgoing.read())


def head(path: str = "/", *lines: str, method: str = "GET", version: str = "1.1") -> bytes:
    """Return the bytes of a head with ``Host`` and the lines given."""
    fields = "".join(line + "\r\n" for line in ("Host: test", *lines))
    return f"{method} {path} HTTP/{version}\r\n{fields}\r\n".encode("latin-1")


def post(path: str, body: bytes, *lines: str) -> bytes:
    """Return the bytes of a POST with its body."""
    return head(path, f"Content-Length: {len(body)}", *lines, method="POST") + body


def make_runner(
    loop_like: Any,
    memory: SharedMemory,
    index: int = 0,
    *,
    max_ccu: int = 1000,
    normal: int | None = None,
    slots: int = 100,
    max_queue: int = 1000,
    deadline: float = 5.0,
    target: float = 0.0,
    interval: float = 0.1,
    pause: float = 0.0,
    routes: dict[Route, SharedLimit] | None = None,
    slice_seconds: float = 0.002,
    threads: Any = None,
) -> BatchRunner:
    """Return a runner as ``worker.py`` makes it; ``loop_like`` has call_soon and call_later."""
    fence = full_fence()
    runner = BatchRunner(
        limit=SharedLimit(memory.permits, index, fence, KernelLock(memory.fd, 0)),
        slots=SharedLimit(memory.slots, index, fence, KernelLock(memory.fd, 1)),
        thresholds=Thresholds.of(
            max_ccu=max_ccu,
            normal=max_ccu if normal is None else normal,
            slots=slots,
            max_queue=max_queue,
        ),
        routes=routes or {},
        claims=memory.claims,
        published=memory.limit,
        index=index,
        region=memory.region(index),
        deadline=deadline,
        target=target,
        interval=interval,
        pause=pause,
        slice_seconds=slice_seconds,
        ids=request_ids(b"0123456789abcdef"),
        call_soon=loop_like.call_soon,
        call_later=loop_like.call_later,
        threads=threads,
    )
    runner.block = f"Date: {formatdate(time.time(), usegmt=True)}\r\nX-Request-ID: ".encode()
    runner.tick = 1000
    return runner


def make_service(
    app: App, runner: BatchRunner, memory: SharedMemory, index: int = 0, **other: Any
) -> Service:
    """Return what ``worker.py`` has the connections of a worker share; ``other`` replaces some."""
    share = SharedLimit(memory.connections, index, full_fence(), KernelLock(memory.fd, 2))
    settings: dict[str, Any] = {
        "heads": HeadCache(app.router(), Limits(), lambda: runner.counters.offered),
        "timeouts": Timeouts(head=10, body=30, keep_alive=75, write=30),
        "max_connections": 1000,
        "max_pipeline": 32,
        "proxies": Proxies(Trust()),
    }
    return Service(app=app, runner=runner, connections=share, open=set(), **{**settings, **other})


def trust(*networks: str) -> Trust:
    """Return the trust in networks, or ``unix``, as they stand in the settings."""
    return Trust(one if one == "unix" else ip_network(one) for one in networks)


class Server:
    """One instance with one worker, served by this process."""

    def __init__(
        self,
        app: App,
        *,
        limits: Limits | None = None,
        max_connections: int = 1000,
        max_pipeline: int = 32,
        max_connections_per_client: int = 0,
        keep_alive_requests: int = 0,
        timeouts: Timeouts | None = None,
        trusted_proxies: tuple[str, ...] = (),
        forwarded_header: Any = "x-forwarded-for",
        memory: SharedMemory | None = None,
        tls: tuple[Certificates, ssl.SSLContext] | None = None,
        **knobs: Any,
    ) -> None:
        self.app = app
        self.tls = tls
        self.memory = memory or SharedMemory(2)
        self.threads = ThreadPoolExecutor(2)
        self.runner = make_runner(
            asyncio.get_running_loop(), self.memory, threads=self.threads, **knobs
        )
        other: dict[str, Any] = {} if timeouts is None else {"timeouts": timeouts}
        self.service = make_service(
            app,
            self.runner,
            self.memory,
            heads=HeadCache(app.router(), limits or Limits(), lambda: self.runner.counters.offered),
            max_connections=max_connections,
            max_pipeline=max_pipeline,
            proxies=Proxies(trust(*trusted_proxies), forwarded_header),
            keep_alive_requests=keep_alive_requests,
            **other,
        )
        if max_connections_per_client:
            self.service.clients = ClientLimit(
                self.memory.clients,
                CLIENTS,
                0,
                full_fence(),
                KernelLock(self.memory.fd, 3),
                key=self.memory.key,
                most=max_connections_per_client,
                exempt=tuple(ip_network(one) for one in trusted_proxies if one != "unix"),
            )
        self.errors: list[str] = []
        self.port = 0
        self.path: str | None = None  # of a Unix socket, instead of the port
        self.clients: list[Client] = []

    def protocol(self) -> asyncio.Protocol:
        """Return what serves a new connection."""
        return self.behind()

    def behind(self) -> HttpProtocol | Handshake:
        """Return what serves a connection, of which a PROXY header may have been read."""
        if self.tls is not None:
            return Handshake(self.service, self.tls[0])
        return HttpProtocol(self.service)

    async def connect(self, *, receive_buffer: int = 0, first: bytes = b"") -> Client:
        """Connect, over TLS if the server wants that; before all else say ``first``."""
        if self.tls is None:
            return await self.connect_plainly(receive_buffer=receive_buffer)
        plain = await self.connect_plainly(receive_buffer=receive_buffer)
        if first:
            await plain.send(first)
        client = TlsClient(plain.sock, self.tls[1])
        self.clients.append(client)
        await client.shake_hands()
        return client

    async def connect_plainly(self, *, receive_buffer: int = 0) -> Client:
        """Connect, and say nothing."""
        sock = socket.socket(socket.AF_INET if self.path is None else socket.AF_UNIX)
        sock.setblocking(False)
        if self.path is None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        place = self.path or ("127.0.0.1", self.port)
        await asyncio.get_running_loop().sock_connect(sock, place)
        client = Client(sock)
        self.clients.append(client)
        return client

    async def pair(self, *, receive_buffer: int = 0) -> tuple[Client, HttpProtocol]:
        """Return a new connection, both ends of it."""
        before = set(self.service.open)
        client = await self.connect(receive_buffer=receive_buffer)

        def new() -> list[HttpProtocol]:
            return [one for one in self.service.open - before if isinstance(one, HttpProtocol)]

        await until(new, "the server takes the connection")
        (protocol,) = new()
        return client, protocol

    async def stuck(self, data: bytes, **options: int) -> tuple[Client, HttpProtocol]:
        """Return a new connection that has sent ``data``, and takes nothing in: buffers are full.

        :param options: those of ``pair``.
        """
        client, protocol = await self.pair(**options)
        await client.send(data)
        await until(lambda: protocol.write_paused, "the buffers are full")
        return client, protocol

    @property
    def permits(self) -> int:
        return self.runner.limit.total()

    def check(self, seconds: int) -> None:
        """Do what the sweep does, ``seconds`` later."""
        self.runner.tick += seconds
        for connection in list(self.service.open):
            connection.check(self.runner.tick)

    def counters(self) -> dict[str, int]:
        region = self.memory.region(0)
        names = ("OFFERED", "ACCEPTED", "COMPLETED", "ABORTED")
        figures = {name.lower(): region[Word[name]] for name in names}
        for at, reason in enumerate(SHED_REASONS):
            figures[reason] = region[Word.SHED + at]
        return figures

    def assert_nothing_left(self) -> None:
        """All words are 0; offered = accepted + Σ shed; accepted = completed + aborted."""
        assert self.errors == []
        assert self.runner.busy == 0
        assert self.memory.permits.tolist() == [0, 0]
        assert self.memory.slots.tolist() == [0, 0]
        assert self.memory.connections.tolist() == [0, 0]
        assert not any(self.memory.clients)
        figures = self.counters()
        shed = sum(figures[reason] for reason in SHED_REASONS)
        assert figures["offered"] == figures["accepted"] + shed, figures
        assert figures["accepted"] == figures["completed"] + figures["aborted"], figures


@contextlib.asynccontextmanager
async def serving(
    app: App, *, proxy_protocol: bool = False, unix: str | None = None, **knobs: Any
) -> AsyncIterator[Server]:
    """Serve ``app`` and yield the ``Server``; at the end, check that nothing is left over.

    :param unix: path of a Unix socket to listen on.
    """
    loop = asyncio.get_running_loop()
    server = Server(app, **knobs)

    def caught(_: object, context: dict[str, Any]) -> None:
        server.errors.append(f"{context.get('message')}: {context.get('exception')!r}")

    loop.set_exception_handler(caught)
    complaints = Complaints()

    def accept() -> asyncio.Protocol:
        if proxy_protocol:
            return ProxiedProtocol(
                server.service, complaints, server.behind, tls=server.tls is not None
            )
        return server.protocol()

    if unix is None:
        listening = await loop.create_server(accept, "127.0.0.1", 0, backlog=512)
        server.port = listening.sockets[0].getsockname()[1]
    else:
        listening = await loop.create_unix_server(accept, unix, backlog=512)
        server.path = unix
    try:
        yield server
        for client in server.clients:
            client.close()
        for connection in list(server.service.open):
            connection.abort()
        await until(lambda: not server.service.open, "all connections are gone")
        await until(lambda: server.runner.busy == 0, "no request is left")
        await turns(5)  # the last turn publishes
        server.assert_nothing_left()
    finally:
        listening.close()
        for client in server.clients:
            client.close()
        server.threads.shutdown(wait=False, cancel_futures=True)
