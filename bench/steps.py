"""Single steps of a request in this process, each as a function to be timed.

``reference`` is a fixed piece of Python: what a step takes is told as a multiple of it, because
both speed up and slow down with the machine.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fluxor_fast import App, Request, Response
from fluxor_fast.arbiter.shared import SharedMemory
from fluxor_fast.asgi.serve import AsgiApp
from fluxor_fast.auth.tokens import Tokens
from fluxor_fast.routing import Route, Router
from fluxor_fast.server.admission import KernelLock, SharedLimit, full_fence
from tests.support.turns import Bench, HandLoop, Silent

__all__ = ["STEPS", "measure", "reference"]

HEAD = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nAccept: application/json\r\n\r\n"
DOCUMENT = {"status": "healthy", "service": "fluxor-fast", "numbers": [1, 2, 3], "timestamp": 0}
Step = tuple[Callable[[], object], int]
"""What is timed, and how many requests it is."""


def reference() -> None:
    """Do a fixed piece of work: some calls, dict operations, and JSON."""
    for n in range(4):
        made = {**DOCUMENT, "n": n}
        made["service"] = str(n)
    orjson.dumps(made)


def _batch(connections: int, depth: int, path: str = "/", *, cold: bool = False) -> Step:
    app = App()

    @app.get("/")
    def home(request: Request) -> dict[str, object]:
        return {**DOCUMENT, "timestamp": int(time.time())}

    @app.get("/text")
    def text(request: Request) -> str:
        return "Hello, World!"

    @app.get("/response")
    def response(request: Request) -> Response:
        document = {**DOCUMENT, "timestamp": int(time.time())}
        return Response.json(document, 201, {"Cache-Control": "no-store"})

    bench = Bench(app, HandLoop(), slice_seconds=60)  # never cut: a slow machine has as many turns
    bench.runner.block = b"Date: Mon, 03 Jun 2024 08:00:00 GMT\r\nX-Request-ID: "
    protocols = [bench.connect(Silent) for _ in range(connections)]
    head = HEAD.replace(b" / ", b" %b " % path.encode())
    data = head * depth
    numbers = count()

    def known() -> None:
        for protocol in protocols:
            protocol.data_received(data)
        while bench.runner.busy:
            bench.loop.turn()

    def new() -> None:
        for protocol in protocols:
            protocol.data_received(head[:-2] + b"X-Number: %d\r\n\r\n" % next(numbers))
        while bench.runner.busy:
            bench.loop.turn()

    protocols[0].data_received(head)  # the head is known from now on
    bench.loop.run()
    return (new if cold else known), connections * depth


def _bodies(size: int) -> Step:
    """Return requests whose bodies come with their heads, in new objects as from a socket."""
    app = App()

    @app.post("/")
    def received(request: Request) -> dict[str, object]:
        return {"bytes": len(request.body)}

    bench = Bench(app, HandLoop(), slice_seconds=60)
    bench.runner.block = b"Date: Mon, 03 Jun 2024 08:00:00 GMT\r\nX-Request-ID: "
    protocols = [bench.connect(Silent) for _ in range(16)]
    head = HEAD.replace(b"GET", b"POST")[:-2] + b"Content-Length: %d\r\n\r\n" % size
    data = memoryview(head + b"x" * size)

    def ask() -> None:
        for protocol in protocols:
            protocol.data_received(bytes(data))
        while bench.runner.busy:
            bench.loop.turn()

    ask()  # the head is known from now on
    return ask, len(protocols)


def _tasks(app: App, data: bytes) -> Step:
    """Of coroutines, which need a loop; none of them has to wait for it."""
    bench = Bench(app, HandLoop(), slots=100)
    bench.runner.block = b"Date: Mon, 03 Jun 2024 08:00:00 GMT\r\nX-Request-ID: "
    protocols = [bench.connect(Silent) for _ in range(16)]
    loop = uvloop.new_event_loop()

    def ask() -> None:
        asyncio._set_running_loop(loop)
        try:
            for protocol in protocols:
                protocol.data_received(data)
            while bench.runner.busy:
                bench.loop.turn()
        finally:
            asyncio._set_running_loop(None)

    ask()  # the head is known from now on
    return ask, len(protocols)


def _coroutine() -> Step:
    app = App()

    @app.get("/")
    async def home(request: Request) -> dict[str, object]:
        return {**DOCUMENT, "timestamp": int(time.time())}

    return _tasks(app, HEAD)


def _asgi(body: bytes = b"") -> Step:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        answer = message["body"] or orjson.dumps({**DOCUMENT, "timestamp": int(time.time())})
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(answer)),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    head = HEAD if not body else HEAD[:-2] + b"Content-Length: %d\r\n\r\n" % len(body)
    return _tasks(AsgiApp(application), head.replace(b"GET", b"POST" if body else b"GET") + body)


def _routing(path: str) -> Step:
    router = Router(
        Route("GET", f"/r{n}/items/{{item:int}}", lambda request, item: None) for n in range(300)
    )
    return lambda: router.match("GET", path), 1


def _admission() -> Step:
    memory = SharedMemory(2)
    limit = SharedLimit(memory.permits, 0, full_fence(), KernelLock(memory.fd, 0))

    def take() -> None:
        limit.acquire(16, 5000)
        limit.release(16)

    return take, 1


def _tokens() -> dict[str, Step]:
    tokens = Tokens(b"a secret of exactly 32 bytes.....", 3600)
    roles = ["user", "admin"]
    token = tokens.issue(4711, "user@example.org", roles)

    def verify() -> None:
        tokens._verified.clear()
        tokens.verify(token)

    return {
        "token_issued": (lambda: tokens.issue(4711, "user@example.org", roles), 1),
        "token_verified": (verify, 1),
        "token_remembered": (lambda: tokens.verify(token), 1),
    }


STEPS: dict[str, Callable[[], Step]] = {
    "short_16": lambda: _batch(16, 1),
    "short_1": lambda: _batch(1, 1),
    "pipelined": lambda: _batch(16, 16),
    "cold_16": lambda: _batch(16, 1, cold=True),
    "text_16": lambda: _batch(16, 1, "/text"),
    "response_16": lambda: _batch(16, 1, "/response"),
    "body_16": lambda: _bodies(1000),
    "large_16": lambda: _bodies(17_000),
    "coroutine_16": _coroutine,
    "asgi_16": _asgi,
    "asgi_body_16": lambda: _asgi(b"x" * 1000),
    "routed": lambda: _routing("/r150/items/42"),
    "admission_16": _admission,
    "token_issued": lambda: _tokens()["token_issued"],
    "token_verified": lambda: _tokens()["token_verified"],
    "token_remembered": lambda: _tokens()["token_remembered"],
}


def _timed(call: Callable[[], object], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - started) / times * 1e6


def measure(name: str, rounds: int, seconds: float = 0.02) -> tuple[list[float], float]:
    """Return the ratios to the reference of ``rounds`` pairs, and the least µs per request."""
    call, requests = STEPS[name]()
    for _ in range(200):
        call()
        reference()
    times = max(1, int(seconds * 1e6 / max(_timed(call, 10), 0.01)))
    several = max(1, int(seconds * 1e6 / _timed(reference, 100)))
    ratios, least = [], float("inf")
    for _ in range(rounds):
        base = min(_timed(reference, several) for _ in range(3))
        mine = min(_timed(call, times) for _ in range(3)) / requests
        ratios.append(mine / base)
        least = min(least, mine)
    return ratios, least
