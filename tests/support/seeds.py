"""Randomness that can be repeated: every generator is seeded, and says its seed.

``TEST_SEED=… pytest …`` tries another one. What is printed shows when a test fails.
"""

from __future__ import annotations

import os
import random

from hypothesis import settings

SEED = int(os.environ.get("TEST_SEED", "1729"))


def seeded(name: str) -> random.Random:
    """Return a generator of its own for ``name``, so that tests do not shift one another."""
    print(f"seed {SEED} for {name!r}; set TEST_SEED to try another")
    return random.Random(f"{SEED} {name}")


TESTS = settings(derandomize=True, database=None, deadline=None)
"""What Hypothesis does where a test says nothing else; a machine may stand still for a moment."""


def examples(count: int) -> settings:
    """Return Hypothesis settings that try the same ``count`` examples in every run."""
    return settings(TESTS, max_examples=count)


def cut(data: bytes, rng: random.Random, pieces: int | None = None) -> list[bytes]:
    """Return ``data`` in pieces, none of them empty, at random places."""
    if len(data) < 2:
        return [data] if data else []
    count = min(pieces or rng.randint(2, 8), len(data))
    places = sorted(rng.sample(range(1, len(data)), count - 1))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def single(data: bytes) -> list[bytes]:
    """Return ``data`` byte by byte."""
    return [data[at : at + 1] for at in range(len(data))]
