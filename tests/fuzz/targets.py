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


def _essence(answer: bytes) -> bytes:
    """Return what must be the same: of what cannot be read all but the words for it.

    Which of its faults is told depends on how much of it was there.
    """
    return answer[:12] if answer[9:12] == b"400" else _ID.sub(b"", answer)


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
                    if b"503" not in (a[9:12], b[9:12]):
                        assert _essence(a) == _essence(b), (plan, wire, warm, a, b)

    return cache


TARGETS: Final[dict[str, Callable[[], Target]]] = {
    "heads": lambda: heads,
    "chunked": lambda: chunked,
    "reader": lambda: reader,
    "protocol": make_protocol,
    "cache": make_cache,
}
"""What makes each target."""
