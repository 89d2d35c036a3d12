"""``server.bodies``: the bound of what all unfinished bodies hold, and who pays for it."""

from __future__ import annotations

import pytest

from fluxor_fast import App
from fluxor_fast.server.bodies import Bodies
from fluxor_fast.server.protocol import HttpProtocol
from fluxor_fast.server.streaming import GRACE
from tests.support.inprocess import in_loop, serving, until


def noted(bodies: Bodies, *found: tuple[int, int]) -> Bodies:
    """Return ``bodies`` after a sweep that found bodies of these bytes and seconds."""
    for received, age in found:
        bodies.note(received, age, judged=age > GRACE)
    bodies.settle()
    return bodies


def test_below_the_bound_and_without_one_nobody_is_too_slow() -> None:
    assert noted(Bodies(1000), (500, 10), (500, 20)).least == 0
    assert noted(Bodies(0), (10**9, 10)).least == 0


def test_the_slowest_that_hold_what_is_too_much_are_below_the_least_rate() -> None:
    found = [(400, 20), (900, 30), (600, 10), (800, 8)]  # 20, 30, 60 and 100 bytes a second
    for most, ended in ((2700, 0), (2699, 1), (2300, 1), (2299, 2), (1400, 2), (1399, 3), (1, 4)):
        least = noted(Bodies(most), *found).least
        assert [received < least * age for received, age in found].count(True) == ended


def test_young_ones_count_and_are_not_judged() -> None:
    bodies = noted(Bodies(1000), (5000, GRACE), (600, 10), (6000, 10))
    assert bodies.least * 10 > 600
    assert noted(Bodies(1000), (5000, GRACE)).least == 0


def test_it_starts_anew_with_each_sweep() -> None:
    bodies = noted(Bodies(1000), (2000, 10))
    assert bodies.least == 201
    assert noted(bodies, (900, 10)).least == 0


def received(protocol: HttpProtocol) -> int:
    return 0 if protocol._reader is None else protocol._reader.received


@pytest.mark.parametrize("chunked", [False, True])
@in_loop
async def test_the_slow_are_ended_and_the_fast_are_served_when_memory_is_short(
    chunked: bool,
) -> None:
    fields = "Transfer-Encoding: chunked" if chunked else "Content-Length: 10000"
    start = f"POST /echo HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n".encode()

    def framed(data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if chunked else data

    app = App()
    app.post("/echo")(lambda request: request.body)
    async with serving(app) as server:
        bodies = server.service.bodies = Bodies(9000)
        (slow, held_slow), (fast, held_fast) = await server.pair(), await server.pair()
        await slow.send(start + framed(b"s" * 4000))
        await fast.send(start + framed(b"f" * 9000))
        await until(lambda: received(held_slow) == 4000, "the slow one has begun")
        await until(lambda: received(held_fast) == 9000, "the fast one has begun")
        server.check(GRACE + 1)
        bodies.settle()
        server.check(0)
        assert (await slow.answer()).status == 408
        assert held_slow._reader is None  # nor is what it held
        await fast.send(framed(b"f" * 1000) + (b"0\r\n\r\n" if chunked else b""))
        assert (await fast.answer()).body == b"f" * 10_000
