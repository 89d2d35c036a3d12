"""What ``make attack`` reads from its tools and draws from its seeds; the attacks themselves are
in ``tests/process/test_under_attack.py``."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from tests.attack import drops, tools

H2LOAD = """
finished in 3.00s, 1000.00 req/s, 200.20KB/s
requests: 3000 total, 3050 started, 3000 done, 2990 succeeded, 10 failed, 4 errored, 3 timeout
status codes: 2990 2xx, 0 3xx, 1 4xx, 2 5xx
"""
SLOWHTTPTEST = """
connected:           4000
error:               1
closed:              0
\x1b[1;32mconnected:           0
error:               7
closed:              4000
Test ended on 15th second
Exit status: No open connections left
"""


def test_what_h2load_says() -> None:
    assert tools.read_h2load(H2LOAD) == tools.LoadSaid(good=2990, refused=2, lost=7)
    with pytest.raises(ValueError, match="connection refused"):
        tools.read_h2load("connection refused")


def test_what_slowhttptest_says_last() -> None:
    with tools.running(["printf", "%s", SLOWHTTPTEST]) as tool:
        tool.process.wait(5)
        said = tools.read_slowhttptest(tool.said())
    assert said == tools.SlowSaid(error=7, ended="No open connections left")


def test_a_tool_that_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    lines = tools.missing()
    assert len(lines) == 2
    assert lines[1].startswith("h2load: not installed (Debian: nghttp2-client;")


def test_a_tool_is_ended_with_its_block() -> None:
    with tools.running(["sleep", "60"]) as tool:
        assert tool.running
    assert not tool.running


def test_a_seed_names_the_drops_and_they_are_of_all_kinds() -> None:
    first, again = (list(islice(drops.plan(random.Random(7)), 2000)) for _ in range(2))
    assert first == again
    assert {drop.kind for drop in first} == set(drops.WIRES)
    assert {drop.end for drop in first} == {"fin", "rst", "half"}
    assert any(not drop.pieces for drop in first)  # a connection on which nothing is ever said
    known = {drop.kind: drops.WIRES[drop.kind] for drop in first if drop.kind != "normal"}
    for drop in first:
        if drop.kind in known:
            sent = b"".join(drop.pieces)
            assert known[drop.kind].startswith(sent)
            assert drop.whole == (len(sent) == len(known[drop.kind]))
