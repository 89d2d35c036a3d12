"""What the bytes of an input mean, and where inputs come from.

An input is ``plan LF wire``; one without a line feed is all wire. The wire is what a client sends;
the plan says how it is cut, and for the protocol what else happens meanwhile (see ``stage``).
A plan of its own makes a found case readable, and lets a fuzzer change one without the other.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

__all__ = ["CORPUS", "HERE", "LONGEST", "dictionary", "found", "pieces", "seeds", "split"]

HERE = Path(__file__).parent
CORPUS = HERE.parent / "corpus"
LONGEST = 1536
"""Bytes of the longest input: several times what any limit of the targets allows."""

PLANS = (b"", b"\x00", b"\x06\x21\x00", b"\x24\x14\x05", b"\x23\x05\x36\x05", b"\x22\x07\x14\x05")
"""Plans that are tried with each wire file: how to begin, no more."""

_ENTRY = re.compile(r'(?:\w+=)?("(?:[^"\\]|\\.)*")')


def split(data: bytes) -> tuple[bytes, bytes]:
    """Return plan and wire."""
    plan, separator, wire = data.partition(b"\n")
    return (plan, wire) if separator else (b"", data)


def pieces(plan: bytes, wire: bytes) -> Iterator[bytes]:
    """Yield ``wire`` in pieces whose lengths go by the bytes of ``plan``, over and over.

    A plan of one 0 cuts it into single bytes; without a plan it comes in two halves.
    """
    at = 0
    for step in cycle(plan or [len(wire) // 2]):
        if at >= len(wire):
            return
        yield wire[at : at + step + 1]
        at += step + 1


def seeds(target: str) -> list[bytes]:
    """Return the inputs that ``target`` begins with, made from the wire files of the corpus."""
    wires = [path.read_bytes() for path in sorted(CORPUS.glob("*/*.http"))]
    wires = [wire for wire in wires if len(wire) < LONGEST - 16]
    if target == "heads":
        return wires
    if target == "chunked":
        wires = [body for wire in wires if (body := wire.partition(b"\r\n\r\n")[2])]
    return [plan + b"\n" + wire for wire in wires for plan in PLANS]


def found(target: str) -> list[Path]:
    """Return the kept cases of ``target``: each made it fail once."""
    return sorted((HERE / "regressions" / target).glob("*.input"))


def dictionary() -> list[bytes]:
    """Return the words of ``http.dict``, which has libFuzzer's form."""
    lines = (HERE / "http.dict").read_text().splitlines()
    entries = [_ENTRY.fullmatch(line) for line in lines if line and not line.startswith("#")]
    return [ast.literal_eval("b" + entry[1]) for entry in entries if entry]
