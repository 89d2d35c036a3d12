"""``server.pile``: what is put in comes out, and takes hardly more room than it has bytes."""

from __future__ import annotations

import tracemalloc

import pytest

from fluxor_fast.server.pile import BLOCK, Pile
from tests.support.seeds import seeded


def test_pieces_of_any_size_come_out_as_one_time_and_again() -> None:
    rng = seeded("piles")
    pile = Pile()
    for _ in range(50):
        lengths = [
            rng.choice((0, 1, 2, 100, BLOCK - 1, BLOCK, BLOCK + 1, 50_000)) for _ in range(20)
        ]
        pieces = [rng.randbytes(length) for length in lengths]
        for piece in pieces:
            pile.add(piece)
        assert pile.size == sum(lengths)
        assert pile.take() == b"".join(pieces)
        assert (pile.size, pile.take()) == (0, b"")


@pytest.mark.parametrize("length", [1, 700, BLOCK, 3 * BLOCK])
def test_it_takes_little_more_room_than_its_bytes(length: int) -> None:
    total = 100 * BLOCK
    tracemalloc.start()
    try:
        pile = Pile()
        for _ in range(total // length):
            pile.add(bytes(length))
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert pile.size == total // length * length
    assert held < 1.1 * total
    assert most < 1.1 * total + 4 * BLOCK  # nothing is copied as a whole on the way
