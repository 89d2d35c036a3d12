"""The targets by name: each takes the bytes of one input and raises where something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.fuzz.inputs import split
from tests.fuzz.parsers import chunked, heads, reader
from tests.fuzz.stage import Stage

__all__ = ["TARGETS", "Target"]

Target = Callable[[bytes], None]


def make_protocol() -> Target:
    """Return the target that plays a whole connection (see ``stage``)."""
    stage = Stage()

    def protocol(data: bytes) -> None:
        stage.run(*split(data))

    return protocol


def make_cache() -> Target:
    """Return the target that holds the cache of heads against none: the same bytes leave.

    The cache is new, and then has seen every head of the input.
    """
    without, stage = Stage(entries=0), Stage()

    def cache(data: bytes) -> None:
        plan, wire = split(data)
        expected = without.run(plan, wire)
        for warm in (False, True):
            answers = stage.run(plan, wire, warm=warm)
            assert answers == expected, (plan, wire, warm, answers, expected)

    return cache


TARGETS: Final[dict[str, Callable[[], Target]]] = {
    "heads": lambda: heads,
    "chunked": lambda: chunked,
    "reader": lambda: reader,
    "protocol": make_protocol,
    "cache": make_cache,
}
"""What makes each target."""
