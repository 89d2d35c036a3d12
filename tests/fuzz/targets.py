"""The targets by name: each takes the bytes of one input and raises where something is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from tests.fuzz.inputs import expanded, split
from tests.fuzz.parsers import chunked, heads, reader
from tests.fuzz.stage import Stage

__all__ = ["TARGETS", "Target"]

Target = Callable[[bytes], None]

# The server's ids: of requests whose time is up together, any may be told first.
_ID = re.compile(rb"0123456789abcdef[0-9a-f]{16}")
_FITFUL = bytes(step for step in range(256) if step & 15 in (8, 9, 12, 13, 14, 15))
"""Steps that cut connections short, or go by time."""
_REFUSAL = b"HTTP/1.1 503"


def make_protocol() -> Target:
    """Return the target that plays a whole connection (see ``stage``)."""
    stage = Stage()

    def protocol(data: bytes) -> None:
        plan, wire = split(data)
        stage.run(plan, expanded(wire))

    return protocol


def make_cache() -> Target:
    """Return the target that holds the cache of heads against none: the same answers leave.

    The cache is new, and then has seen every head of the input. Only refusals may differ: known
    heads take a shorter way, and may so be in an earlier turn.
    """
    without, stage = Stage(entries=0), Stage()

    def cache(data: bytes) -> None:
        plan, wire = split(data)
        plan, wire = plan.translate(None, delete=_FITFUL), expanded(wire)
        expected = without.run(plan, wire)
        for warm in (False, True):
            for one, other in zip(expected, stage.run(plan, wire, warm=warm), strict=True):
                for a, b in zip(one, other, strict=True):
                    refused = _REFUSAL in (a[:12], b[:12])
                    assert refused or _ID.sub(b"", a) == _ID.sub(b"", b), (plan, wire, warm, a, b)

    return cache


TARGETS: Final[dict[str, Callable[[], Target]]] = {
    "heads": lambda: heads,
    "chunked": lambda: chunked,
    "reader": lambda: reader,
    "protocol": make_protocol,
    "cache": make_cache,
}
"""What makes each target."""
