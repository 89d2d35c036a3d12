"""Serving leaves nothing behind: the number of allocated blocks does not grow with requests."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

import pytest

from fluxor_fast import App, Request
from tests.support.inprocess import head
from tests.support.turns import Bench, HandLoop, Silent

REQUESTS = 10_000
SLACK = 200
"""Blocks that may come or go: caches of the interpreter, a dict that has grown once."""


def make() -> Bench:
    app = App()

    @app.get("/")
    def home(request: Request) -> dict[str, str]:
        return {"id": request.id}

    @app.post("/echo")
    def echo(request: Request) -> bytes:
        return request.body

    @app.get("/text")
    def text(request: Request) -> str:
        return "x"

    return Bench(app, HandLoop())


def short(bench: Bench) -> Callable[[int], None]:
    protocol = bench.connect(Silent)

    def ask(number: int) -> None:
        protocol.data_received(head("/"))
        bench.loop.turn()

    return ask


def pipelined(bench: Bench) -> Callable[[int], None]:
    protocol = bench.connect(Silent)

    def ask(number: int) -> None:
        protocol.data_received(head("/") + head("/text") + head("/"))
        bench.loop.turn()

    return ask


def with_a_body(bench: Bench) -> Callable[[int], None]:
    protocol = bench.connect(Silent)
    body = b"x" * 1000
    lines = b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(body)

    def ask(number: int) -> None:
        protocol.data_received(lines)
        protocol.data_received(body[:500])
        protocol.data_received(body[500:])
        bench.loop.turn()

    return ask


def cold(bench: Bench) -> Callable[[int], None]:
    """Every head is new: the cache of heads fills, and no more."""
    protocol = bench.connect(Silent)

    def ask(number: int) -> None:
        protocol.data_received(head("/")[:-2] + b"X-Number: %d\r\n\r\n" % number)
        bench.loop.turn()

    return ask


def refused(bench: Bench) -> Callable[[int], None]:
    bench.memory.permits[1] = 10**6  # another worker holds all there is
    return short(bench)


def dropped(bench: Bench) -> Callable[[int], None]:
    """Connections that end in the middle of a head, of a body, and of a wait."""
    beginnings = (
        b"GET / HT",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab",
        head("/"),
    )

    def ask(number: int) -> None:
        protocol = bench.connect(Silent)
        protocol.data_received(beginnings[number % 3])
        protocol.connection_lost(None)
        bench.loop.turn()

    return ask


@pytest.mark.parametrize("kind", [short, pipelined, with_a_body, cold, refused, dropped])
def test_ten_thousand_requests_leave_no_block_behind(
    kind: Callable[[Bench], Callable[[int], None]],
) -> None:
    bench = make()
    ask = kind(bench)
    for number in range(3_000):  # caches fill
        ask(number)
    gc.collect()
    before = sys.getallocatedblocks()
    for number in range(3_000, 3_000 + REQUESTS):
        ask(number)
    gc.collect()
    assert sys.getallocatedblocks() - before < SLACK
