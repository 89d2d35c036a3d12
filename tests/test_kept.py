"""What a connection keeps of a request that was answered: nothing (docs/HTTP.md, "Secrets")."""

from __future__ import annotations

import gc
import sys
import weakref
from typing import Any

import pytest

from fluxor_fast import App, Request
from fluxor_fast.http.request import Head
from fluxor_fast.routing import Route
from fluxor_fast.server.heads import HeadCache, Limits
from fluxor_fast.server.protocol import HttpProtocol
from tests.support.inprocess import head, post
from tests.support.turns import Bench, HandLoop


def make(entries: int = 1024) -> Bench:
    app = App()

    @app.post("/")
    def take(request: Request) -> dict[str, int]:
        return {"n": len(request.body) + len(request.headers)}

    @app.get("/")
    def get(request: Request) -> dict[str, int]:
        return {"n": len(request.headers)}

    bench = Bench(app, HandLoop())
    bench.service.heads = HeadCache(
        app.router(), Limits(), lambda: bench.runner.counters.offered, entries=entries
    )
    return bench


def ask(bench: Bench, protocol: HttpProtocol, *requests: bytes) -> None:
    bench.runner.fresh = 0
    for request in requests:
        protocol.data_received(request)
        bench.loop.run()
        assert protocol.current is None


@pytest.mark.parametrize("behind", [[], [head("/")], [head("/"), head("/", "X-A: 1")]])
def test_an_idle_connection_keeps_no_secret_longer_than_the_entry_of_its_head(
    behind: list[bytes],
) -> None:
    bench = make(entries=3)
    one, other = bench.connect(), bench.connect()
    secret = post("/", b"body", "Authorization: Bearer s3cret")
    ask(bench, one, secret, secret, *behind)  # the second time its head is known
    (kept,) = [
        weakref.ref(entry) for raw, entry in bench.service.heads.found.items() if b"s3cret" in raw
    ]
    ask(bench, other, *(head("/", f"X-Number: {number}") for number in range(5)))
    assert not any(b"s3cret" in raw for raw in bench.service.heads.found)
    gc.collect()
    entry: Any = kept()
    assert entry is None, entry.raw


def size_of(found: list[Head]) -> int:
    seen: dict[int, Any] = {}
    left: list[Any] = list(found)
    while left:
        one = left.pop()
        if id(one) not in seen and not isinstance(one, (type, Route)):
            seen[id(one)] = one
            left.extend(gc.get_referents(one))
    return sum(map(sys.getsizeof, seen.values()))


def test_heads_are_bounded_however_many_connections_are_idle() -> None:
    """As ``test_the_cache_is_bounded…`` has it: 1024 heads, 64 MiB; 5,000 is the default."""
    bench = make()
    bench.service.max_connections = 5000
    protocols = []
    for number in range(4000):
        some = "%x" % (number + 0x10000)
        lines = [f"Connection:{some}{n:x}" for n in range(95)]
        request = post("/", b"x", *lines)
        assert len(request) < 2048
        protocols.append(bench.connect())
        ask(bench, protocols[-1], request, request)
    gc.collect()
    alive = [one for one in gc.get_objects() if type(one) is Head and one.method == "POST"]
    size = size_of(alive)
    assert len(bench.service.heads.found) <= 1024
    assert len(alive) <= 1100 and size < 64 * 2**20, (len(alive), f"{size / 2**20:.0f} MiB")
