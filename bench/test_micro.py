"""What single steps of a request cost, without sockets.

``pytest bench --benchmark-only``; microseconds per operation stand at the end of the output and,
with ``--benchmark-json FILE``, under ``extra_info``. Inputs are the same in every run.
"""

from __future__ import annotations

import asyncio
import os
import platform
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import harness
import msgspec
import pytest
import uvloop
from pydantic import BaseModel
from typing_extensions import TypedDict

from fluxor_fast import App, Query, Request
from fluxor_fast import service as reference
from fluxor_fast.arbiter.shared import SharedMemory
from fluxor_fast.auth.tokens import Tokens
from fluxor_fast.config import ServerSettings, Settings
from fluxor_fast.disk import cached, open_below
from fluxor_fast.http.response import Response, encode_json
from fluxor_fast.routing import Route, Router
from fluxor_fast.server.admission import KernelLock, SharedLimit, full_fence
from fluxor_fast.server.heads import HeadCache, Limits, parse_head
from fluxor_fast.server.protocol import HttpProtocol
from fluxor_fast.server.worker import Worker
from tests.support.pure import make_request

SEED = 20_240_601
PACKAGES = (
    "fluxor-fast",
    "orjson",
    "httptools",
    "PyJWT",
    "pydantic",
    "msgspec",
    "pytest-benchmark",
)
HEAD = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: bench/1\r\n"
    b"Accept: application/json\r\nAccept-Encoding: gzip\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n"
)
POST = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\nabc"
BLOCK = b"Date: Mon, 03 Jun 2024 08:00:00 GMT\r\nX-Request-ID: "
RID = b"0123456789abcdef0000000000000001"
DOCUMENT = {
    "message": "Welcome to fluxor-fast",
    "version": "0.1.0",
    "request_id": RID.decode(),
    "features": ["backpressure", "JWT authentication", "health checks", "Prometheus metrics"],
}

Benchmark = Any  # pytest-benchmark has no types


def measure(
    benchmark: Benchmark, operation: str, function: Callable[[], object], *, operations: int = 1
) -> None:
    """Time ``function``, which does ``operations`` of what ``operation`` names."""
    benchmark.extra_info.update(
        operation=operation,
        operations_per_iteration=operations,
        python=platform.python_version(),
        **harness.versions(*PACKAGES),
    )
    benchmark(function)
    if benchmark.stats is not None:  # None with --benchmark-disable
        stats = benchmark.stats.stats
        benchmark.extra_info["us_per_operation_median"] = stats.median * 1e6 / operations
        benchmark.extra_info["us_per_operation_least"] = stats.min * 1e6 / operations


# the whole way of a request through a worker, from the bytes read to the bytes written


class Sink:
    """A transport that counts what is written to it."""

    def __init__(self) -> None:
        self.written = 0
        self.answers = 0

    def write(self, data: bytes) -> None:
        self.written += len(data)
        self.answers += 1

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Loop:
    """Of an event loop what a batch needs: ``run`` has the turns that are due."""

    def __init__(self) -> None:
        self.due: list[Callable[[], object]] = []

    def call_soon(self, callback: Callable[[], object], context: object = None) -> None:
        self.due.append(callback)

    def call_later(self, delay: float, callback: Callable[[], object]) -> None:
        raise AssertionError("nothing waits here")

    def run(self) -> None:
        while self.due:
            self.due.pop()()


@pytest.fixture
def memory() -> SharedMemory:
    return SharedMemory(2)


def connections(
    memory: SharedMemory, count: int, settings: Settings | None = None
) -> tuple[Loop, list[HttpProtocol], list[Sink]]:
    """Return ``count`` open connections of a worker of the reference service."""
    loop = Loop()
    worker = Worker(settings or Settings(), memory, 0, reference.build())
    # put together by the worker itself, so that what is timed is what is served
    service = worker.make_service(cast(asyncio.AbstractEventLoop, loop))
    protocols, sinks = [], []
    for _ in range(count):
        protocol, sink = HttpProtocol(service), Sink()
        protocol.connection_made(cast(asyncio.BaseTransport, sink))
        protocols.append(protocol)
        sinks.append(sink)
    return loop, protocols, sinks


@pytest.mark.parametrize(("batch", "most"), [(1, 0), (16, 0), (16, 2**31 - 1)])
def test_handler_of_home(benchmark: Benchmark, memory: SharedMemory, batch: int, most: int) -> None:
    settings = Settings(server=ServerSettings(keep_alive_requests=most))
    loop, protocols, sinks = connections(memory, batch, settings)
    receive = [protocol.data_received for protocol in protocols]
    run = loop.run

    def turn() -> None:
        for data_received in receive:
            data_received(HEAD)
        run()

    turn()
    assert all(sink.answers == 1 for sink in sinks)
    way = f"batch of {batch}" + (", requests counted" if most else "")
    measure(benchmark, f"GET / from bytes to bytes, {way}", turn, operations=batch)
    assert sinks[0].written % sinks[0].answers == 0, "an answer differs in length"
    assert len({sink.answers for sink in sinks}) == 1
    assert sum(memory.permits) == 0


def test_connection(benchmark: Benchmark, memory: SharedMemory) -> None:
    """What a connection costs us without the kernel's and the loop's share."""
    _, (protocol,), _ = connections(memory, 1)
    service = protocol.service
    transport = cast(asyncio.BaseTransport, Sink())

    def come_and_go() -> None:
        one = HttpProtocol(service)
        one.connection_made(transport)
        one.connection_lost(None)

    measure(benchmark, "connection made and lost, without sockets", come_and_go)
    assert sum(memory.connections) == 1


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "127.0.0.1"])
def test_client_limit(benchmark: Benchmark, memory: SharedMemory, address: str) -> None:
    _, (protocol,), _ = connections(memory, 1)
    clients = protocol.service.clients
    assert clients is not None

    def come_and_go() -> None:
        place = clients.acquire(address)
        assert place is not None
        clients.release(place)

    measure(benchmark, f"connection of {address} counted and released", come_and_go)
    assert not any(memory.clients)


@pytest.mark.parametrize("state", ["idle", "in a head", "in a body"])
def test_sweep(benchmark: Benchmark, memory: SharedMemory, state: str) -> None:
    _, protocols, _ = connections(memory, 5000)
    begun = {"idle": b"", "in a head": b"GET / HT", "in a body": POST}[state]
    for protocol in protocols:
        if begun:
            protocol.data_received(begun)
    tick = protocols[0].runner.tick

    def sweep() -> None:
        for protocol in protocols:
            protocol.check(tick)

    measure(benchmark, f"sweep over 5,000 connections, {state}", sweep)


# its parts


@pytest.mark.parametrize("batch", [1, 16, 64])
def test_admission(benchmark: Benchmark, memory: SharedMemory, batch: int) -> None:
    limit = SharedLimit(memory.permits, 0, full_fence(), KernelLock(memory.fd, 0))

    def enter_and_leave() -> None:
        if limit.acquire(batch, 3350) != batch:
            raise AssertionError("refused")
        limit.release(batch)

    measure(benchmark, f"admission and release of a batch of {batch}, whole", enter_and_leave)
    assert sum(memory.permits) == 0


def test_admission_refused(benchmark: Benchmark, memory: SharedMemory) -> None:
    limit = SharedLimit(memory.permits, 0, full_fence(), KernelLock(memory.fd, 0))
    memory.permits[1] = 3350

    def refused() -> None:
        if limit.acquire(16, 3350):
            raise AssertionError("granted")

    measure(benchmark, "refusal of a batch of 16, whole", refused)


@pytest.fixture(scope="module")
def router() -> Router:
    """300 routes, a third of them with a parameter."""

    def handler(request: Any) -> None:
        return None

    names = [f"{kind}{number}" for kind in ("alpha", "beta", "gamma") for number in range(100)]
    random.Random(SEED).shuffle(names)
    paths = [f"/api/{name}" + ("/{id:int}" if name[0] == "a" else "/list") for name in names]
    return Router(Route("GET", path, handler) for path in paths)


@pytest.mark.parametrize(
    ("kind", "path"), [("static", "/api/beta57/list"), ("parameter", "/api/alpha57/1234")]
)
def test_router(benchmark: Benchmark, router: Router, kind: str, path: str) -> None:
    assert router.match("GET", path)[1] == ({"id": 1234} if kind == "parameter" else {})
    measure(benchmark, f"router, {kind} path of 300", lambda: router.match("GET", path))


def test_head_parsed(benchmark: Benchmark) -> None:
    router, limits = reference.build().router(), Limits()
    measure(benchmark, "head parsed and routed", lambda: parse_head(HEAD, router, limits))


def test_head_of_known_lines(benchmark: Benchmark) -> None:
    # what is timed is one byte too long to be stored whole
    other = HEAD[:-2] + b"X-Number: 1\r\n\r\n"
    cache = HeadCache(reference.build().router(), Limits(), lambda: 0, longest=len(other) - 1)
    cache.parse(HEAD)
    measure(benchmark, "head new in one plain field", lambda: cache.parse(other))


def test_head_cached(benchmark: Benchmark, memory: SharedMemory) -> None:
    _, (protocol,), _ = connections(memory, 1)
    cache = protocol.service.heads
    cache.parse(HEAD)
    # equal bytes, not the same object: each read of a socket makes new ones, not hashed yet
    parts = HEAD[:20], HEAD[20:]
    found = cache.found.get

    def look_up() -> object:
        return found(parts[0] + parts[1])

    assert look_up() is not None
    measure(benchmark, "head found in the cache (with a copy of its bytes)", look_up)


def test_encode_dict(benchmark: Benchmark) -> None:
    measure(benchmark, "dict to answer, short form", lambda: encode_json(DOCUMENT, BLOCK, RID))


def test_encode_response(benchmark: Benchmark) -> None:
    def encode() -> bytes:
        response = Response.json(DOCUMENT, 201, {"Location": "/api/users/1"})
        return response.encode(BLOCK, RID)

    measure(benchmark, "dict to answer, Response with a header", encode)


# files (see disk.py): in the event loop, and what going to a thread costs before it has begun


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "app.js").write_bytes(random.Random(SEED).randbytes(10_000))
    return tmp_path


def test_file_from_the_caches(benchmark: Benchmark, small_file: Path) -> None:
    root = os.fsencode(small_file)

    def read() -> None:
        fd = open_below(root, b"assets/app.js", quick=True)
        os.fstat(fd)
        assert cached(fd, 0, 10_000)
        os.pread(fd, 10_000, 0)
        os.close(fd)

    measure(benchmark, "10 kB file looked up and read, cached", read)


def test_way_to_a_thread_and_back(benchmark: Benchmark) -> None:
    async def hops() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(100):
            await loop.run_in_executor(None, int)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        operation = "nothing, in a thread"
        measure(benchmark, operation, lambda: runner.run(hops()), operations=100)


# arguments (see validation.py), the handler called with a request whose head is known


@dataclass
class OrderData:
    """The body as a dataclass."""

    email: str
    name: str
    age: int
    tags: list[str]
    active: bool


class OrderDict(TypedDict):
    """The body as a TypedDict."""

    email: str
    name: str
    age: int
    tags: list[str]
    active: bool


class OrderModel(BaseModel):
    """The body as a pydantic model."""

    email: str
    name: str
    age: int
    tags: list[str]
    active: bool


class OrderStruct(msgspec.Struct, forbid_unknown_fields=True):
    """The body as a msgspec Struct."""

    email: str
    name: str
    age: int
    tags: list[str]
    active: bool


ORDER = b'{"email":"ada@example.org","name":"Ada","age":36,"tags":["a","b"],"active":true}'


def asked(handler: Callable[..., Any], *, query: bytes = b"", body: bytes = b"") -> Any:
    """Return a function that calls ``handler`` as a route with a request for it."""
    app = App()
    app.post("/")(handler)
    app.router()
    (route,) = app.routes
    headers = {"Content-Type": "application/json"}
    request = make_request("POST", "/", query=query, body=body, headers=headers, route=route)
    return lambda: route.call(request)


@pytest.mark.parametrize("kind", [OrderData, OrderDict, OrderModel, OrderStruct])
def test_checked_body(benchmark: Benchmark, kind: type) -> None:
    def handler(request: Request, body: Any) -> None: ...

    handler.__annotations__["body"] = kind
    measure(benchmark, f"body of 5 fields checked, {kind.__name__}", asked(handler, body=ORDER))


def test_unchecked_body(benchmark: Benchmark) -> None:
    def handler(request: Request) -> None:
        request.json()

    measure(benchmark, "body of 5 fields, only decoded", asked(handler, body=ORDER))


def test_checked_query(benchmark: Benchmark) -> None:
    def handler(request: Request, page: Query[int], order: Query[str] = "id") -> None: ...

    function = asked(handler, query=b"page=2&order=name")
    measure(benchmark, "2 query parameters checked (an int, a text)", function)


# tokens


@pytest.fixture
def tokens() -> Iterator[Tokens]:
    yield Tokens(random.Random(SEED).randbytes(32), 3600)


def test_token_issued(benchmark: Benchmark, tokens: Tokens) -> None:
    roles = ["user", "admin"]
    measure(
        benchmark,
        "JWT issued (HS256; user_id, email, roles; 1 h)",
        lambda: tokens.issue(4711, "user@example.org", roles),
    )


def test_token_verified(benchmark: Benchmark, tokens: Tokens) -> None:
    token = tokens.issue(4711, "user@example.org", ["user", "admin"])

    def verify() -> None:
        tokens._verified.clear()
        tokens.verify(token)

    measure(benchmark, "JWT verified, seen for the first time", verify)


def test_token_remembered(benchmark: Benchmark, tokens: Tokens) -> None:
    token = tokens.issue(4711, "user@example.org", ["user", "admin"])
    tokens.verify(token)
    measure(benchmark, "JWT verified, seen before", lambda: tokens.verify(token))
