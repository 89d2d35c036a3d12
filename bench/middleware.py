"""What each middleware costs a request, in this process, over a bare route.

    python bench/middleware.py [NAME …] [--rounds 300] [--json]

A small JSON answer to a keep-alive GET whose head is known, 16 connections, through the protocol
and the batch (as ``short_16`` of ``bench/steps.py``); bare and wrapped take turns, in slices so
short that some are not disturbed. Figures are the difference of the least times in µs per request,
and in multiples of ``steps.reference``, steadier on a machine that changes its speed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.steps import DOCUMENT, _timed, reference
from fluxor_fast import App, Request
from fluxor_fast.app import Middleware
from fluxor_fast.arbiter.roll import indexes_for
from fluxor_fast.arbiter.shared import SharedMemory
from fluxor_fast.auth.apikeys import ApiKey, ApiKeys, StoredKey, api_key, bearer_or_key, new_key
from fluxor_fast.auth.roles import authenticated, require_role
from fluxor_fast.auth.tokens import Claims, Tokens
from fluxor_fast.cache import Cache
from fluxor_fast.composition import Layer
from fluxor_fast.http.response import Response
from fluxor_fast.limits.table import Table
from fluxor_fast.middleware.access_log import AccessLog
from fluxor_fast.middleware.body_limit import BodyLimit
from fluxor_fast.middleware.compression import Compression
from fluxor_fast.middleware.cors import CORS
from fluxor_fast.middleware.etag import ETag
from fluxor_fast.middleware.rate_limit import RateLimit
from fluxor_fast.middleware.recovery import Recovery
from fluxor_fast.middleware.security_headers import SecurityHeaders
from fluxor_fast.middleware.timeout import Timeout
from fluxor_fast.middleware.trusted_hosts import TrustedHosts
from fluxor_fast.server.admission import KernelLock, full_fence
from tests.support.pure import make_request
from tests.support.turns import Bench, HandLoop, Silent

__all__ = ["CASES", "measure"]

ORIGIN = b"Origin: https://app.example.com\r\n"
GZIP = b"Accept-Encoding: gzip, deflate, br, zstd\r\n"
TOKENS = Tokens(b"a secret of exactly 32 bytes.....", 86_400)
CLAIMS = Claims(4711, "user@example.org", ("user",), 0, 2**40)
AUTHORIZATION = (
    b"Authorization: Bearer %b\r\n" % TOKENS.issue(4711, "user@example.org", ["user"]).encode()
)
SLICE = 500
"""Microseconds."""
LARGE = {"items": [{"id": n, "name": f"name {n}", "active": True} for n in range(100)]}


def _cors() -> CORS:
    return CORS(["https://*.example.com"], credentials=True)


def _chain() -> list[Middleware]:
    limit = RateLimit(10**6, window=86_400)
    return [Recovery(), _cors(), SecurityHeaders(), limit, Compression()]


def _bearer() -> Layer:
    """With a token that is remembered."""
    return authenticated(lambda request: TOKENS)


def _identity(call_next: Any, route: Any) -> Any:
    """What any middleware costs that is no ``Layer``: the value becomes a ``Response``."""
    return lambda request: call_next(request)


Case = tuple[Sequence[Middleware], bytes, dict[str, Any]]

CASES: dict[str, Callable[[], Case]] = {
    "response": lambda: ([_identity], b"", DOCUMENT),
    "recovery": lambda: ([Recovery()], b"", DOCUMENT),
    "security": lambda: ([SecurityHeaders()], b"", DOCUMENT),
    "cors": lambda: ([_cors()], ORIGIN, DOCUMENT),
    "cors_no_origin": lambda: ([_cors()], b"", DOCUMENT),
    "compression": lambda: ([Compression()], b"", DOCUMENT),
    "compression_small": lambda: ([Compression()], GZIP, DOCUMENT),
    "gzip_4k": lambda: ([Compression(codings=["gzip"])], GZIP, LARGE),
    "brotli_4k": lambda: ([Compression(codings=["br"])], GZIP, LARGE),
    "zstd_4k": lambda: ([Compression(codings=["zstd"])], GZIP, LARGE),
    "etag": lambda: ([ETag()], b"", DOCUMENT),
    "bearer": lambda: ([_bearer()], AUTHORIZATION, DOCUMENT),
    "bearer_role": lambda: ([_bearer(), require_role("user")], AUTHORIZATION, DOCUMENT),
    "hosts": lambda: ([TrustedHosts(["127.0.0.1"])], b"", DOCUMENT),
    "rate_limit": lambda: ([RateLimit(10**6, window=86_400)], b"", DOCUMENT),
    "rate_limit_rested": lambda: ([RateLimit(10**6, window=1)], b"", DOCUMENT),
    "rate_limit_refuses": lambda: ([RateLimit(1, window=3600)], b"", DOCUMENT),
    "body_limit": lambda: ([BodyLimit(1000)], b"", DOCUMENT),
    "chain": lambda: (_chain(), ORIGIN, DOCUMENT),
    "chain_gzip": lambda: (_chain(), ORIGIN + GZIP, DOCUMENT),
}


def _accounts() -> Table:
    """The accounts of an instance of four workers."""
    memory = SharedMemory(indexes_for(4), 1024)
    return Table(
        memory.accounts, memory.entries, memory.workers, 0,
        fence=full_fence(), lock=lambda number: KernelLock(memory.fd, number), key=memory.key,
    )  # fmt: skip


ORIGINAL = "original"
"""All that the original has in its order, on a profile from the cache, over a bare plain route."""
COROUTINES = ("timeout", "api_key", "bearer_or_key")
"""What is not for plain handlers; keys and tokens are remembered."""


def _batch(middleware: Sequence[Middleware], lines: bytes, document: dict[str, Any]) -> Any:
    """Return a function that serves 16 requests, as ``steps._batch``."""
    app = App()
    app.accounts = _accounts()
    for one in middleware:
        app.add_middleware(one)

    @app.get("/")
    def home(request: Request) -> dict[str, Any]:
        return {**document, "timestamp": 0}

    return _serving(app, b"/", lines)


def _profiles(*, whole: bool) -> Any:
    """Return a function that serves 16 requests for a profile; with all that is before it."""
    app = App()
    app.accounts = _accounts()
    if not whole:

        @app.get("/api/users/{id:int}")
        def bare(request: Request, id: int) -> dict[str, Any]:
            return DOCUMENT

        return _serving(app, b"/api/users/4711", AUTHORIZATION + ORIGIN)
    for one in _chain():
        app.add_middleware(one)
    cache, lines = Cache(), []

    async def absent(prefix: str) -> StoredKey | None:
        return None

    loop = uvloop.new_event_loop()

    async def keys() -> ApiKeys:
        return ApiKeys(absent)

    made = loop.run_until_complete(keys())
    signed_in = bearer_or_key(lambda request: TOKENS, lambda request: made)

    @app.get("/api/users/{id:int}", middleware=[signed_in])
    @cache.cached(ttl=300, key=lambda request, id: id)
    async def profile(request: Request, id: int) -> dict[str, Any]:
        return DOCUMENT

    loop.run_until_complete(profile(None, 4711))
    loop.close()
    serve = _serving(app, b"/api/users/4711", AUTHORIZATION + ORIGIN)
    AccessLog(lines.append).watch(app.routes)

    def served() -> None:
        lines.clear()
        serve()
        assert len(lines) == 16, lines

    return served


def _serving(app: App, path: bytes, lines: bytes) -> Any:
    bench = Bench(app, HandLoop())
    bench.runner.block = b"Date: Mon, 03 Jun 2024 08:00:00 GMT\r\nX-Request-ID: "
    protocols = [bench.connect(Silent) for _ in range(16)]
    for number, protocol in enumerate(protocols):
        protocol._peer = f"192.0.2.{number}"
    head = b"GET %b HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n%b\r\n" % (path, lines)

    def serve() -> None:
        for protocol in protocols:
            protocol.data_received(head)
        while bench.runner.busy:
            bench.loop.turn()

    protocols[0].data_received(head)  # the head is known from now on
    bench.loop.run()
    return serve


def _paired(bare: Any, wrapped: Any, requests: int, rounds: int) -> tuple[float, float]:
    """Return the difference of the least times in µs per request, and over the reference's."""
    for _ in range(200):
        bare(), wrapped(), reference()
    times = max(1, int(SLICE / _timed(bare, 20)))
    several = max(1, int(SLICE / _timed(reference, 100)))
    base = without = with_it = float("inf")
    for _ in range(rounds):
        base = min(base, _timed(reference, several))
        without = min(without, _timed(bare, times) / requests)
        with_it = min(with_it, _timed(wrapped, times) / requests)
    return with_it - without, (with_it - without) / base


def measure(name: str, rounds: int) -> tuple[float, float]:
    """Return what ``name`` adds to a request: µs, and multiples of the reference."""
    if name in COROUTINES:
        return _coroutine(name, rounds)
    if name == ORIGINAL:
        return _paired(_profiles(whole=False), _profiles(whole=True), 16, rounds)
    middleware, lines, document = CASES[name]()
    return _paired(_batch([], lines, document), _batch(middleware, lines, document), 16, rounds)


def _coroutine(name: str, rounds: int) -> tuple[float, float]:
    """What is for coroutines, beside the handler's own, with a request whose head is known."""
    app = App()

    @app.get("/")
    async def home(request: Request) -> Response:
        return Response()

    (route,) = app.routes
    loop = uvloop.new_event_loop()
    text, prefix, hashed = new_key()
    key = ApiKey(1, prefix, "bench", "standard", CLAIMS, None)

    async def stored(prefix: str) -> StoredKey:
        return StoredKey(key, hashed)

    async def keys() -> ApiKeys:
        return ApiKeys(stored, monotonic=lambda: 0.0)  # never forgotten

    made = loop.run_until_complete(keys())
    layers: dict[str, Layer] = {
        "timeout": Timeout(10),
        "api_key": api_key(lambda request: made),
        "bearer_or_key": bearer_or_key(lambda request: TOKENS, lambda request: made),
    }
    wrapped = layers[name](route.handler, route)
    request = make_request(headers={"X-API-Key": text}, route=route)

    def serve(call: Any) -> Callable[[], None]:
        async def several() -> None:
            for _ in range(100):
                await call(request)

        return lambda: loop.run_until_complete(several())

    try:
        return _paired(serve(route.handler), serve(wrapped), 100, rounds)
    finally:
        loop.close()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if not options.json:
        print("| middleware | µs per request | × reference |\n|---|--:|--:|")
    found: dict[str, dict[str, float]] = {}
    for name in options.names or [*CASES, *COROUTINES, ORIGINAL]:
        us, ratio = measure(name, options.rounds)
        found[name] = {"us": us, "ratio": ratio}
        if not options.json:
            print(f"| {name} | {us:.2f} | {ratio:.2f} |", flush=True)
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
