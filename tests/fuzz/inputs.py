"""What the bytes of an input mean, and where inputs come from.

An input is ``plan LF wire``; one without a line feed is all wire. The wire is what a client sends;
the plan says how it is cut, and for the protocol what else happens meanwhile (see ``stage``).
A plan of its own makes a found case readable, and lets a fuzzer change one without the other.

Where a wire is a stream of requests, a byte from 128 to 159 stands for a whole one (``STOCK``): a
fuzzer finds pipelines of different requests with one byte each.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

__all__ = ["CORPUS", "HERE", "LONGEST", "STOCK", "dictionary", "expanded", "found",
           "longest", "pieces", "seeds", "split"]  # fmt: skip

HERE = Path(__file__).parent
CORPUS = HERE.parent / "corpus"
LONGEST = 1536


def longest(target: str) -> int:
    """Return how many bytes an input of ``target`` may have: more than its limits allow.

    Whole requests are a byte each; and the cache's inputs are played three times.
    """
    return {"heads": 768, "chunked": 512, "reader": 768, "protocol": 512, "cache": 320}[target]


def _stock() -> Iterator[bytes]:
    for path in (
        "", "items/7", "text", "none", "burn", "big", "wait", "blocking", "fail", "fails-later",
        "teapot", "health", "critical", "one", "one-waits", "nowhere", "echo",
    ):  # fmt: skip
        yield f"GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    for line, lines, body in (
        ("GET /burn", "X-Request-Timeout-Ms: 4", ""),
        ("GET /wait", "X-Request-Timeout-Ms: 200", ""),
        ("GET /text", "X-Request-ID: mine", ""),
        ("GET /text", "Connection: close", ""),
        ("HEAD /big", "X: y", ""),
        ("OPTIONS /echo", "X: y", ""),
        ("OPTIONS *", "X: y", ""),
        ("POST /echo", "Content-Length: 3", "abc"),
        ("POST /later", "Content-Length: 3", "abc"),
        ("POST /small", "Content-Length: 5", "abcde"),
        ("POST /echo", "Transfer-Encoding: chunked", "2;x\r\nab\r\n1\r\nc\r\n0\r\nX: y\r\n\r\n"),
        ("POST /later", "Transfer-Encoding: chunked", "3\r\nabc\r\n0\r\n\r\n"),
        ("POST /echo", "Expect: 100-continue\r\nContent-Length: 3", "abc"),
        ("POST /later", "Expect: 100-continue\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
    ):
        yield f"{line} HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n{body}".encode()
    yield b"GET /text HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"


STOCK = tuple(_stock())
_MOST = 16  # requests that are put in, of which 8 may be in the system; the rest stays as it is

PLANS = (b"", b"\x00", b"\x06\x21\x00", b"\x24\x14\x05", b"\x23\x05\x36\x05", b"\x22\x07\x14\x05")
"""Plans that are tried with each wire file: how to begin, no more."""

_LETTER = re.compile(rb"[\x80-\x9f]")
_ENTRY = re.compile(r'(?:\w+=)?("(?:[^"\\]|\\.)*")')


def split(data: bytes) -> tuple[bytes, bytes]:
    """Return plan and wire."""
    plan, separator, wire = data.partition(b"\n")
    return (plan, wire) if separator else (b"", data)


def expanded(wire: bytes) -> bytes:
    """Return ``wire`` with the requests that single bytes stand for."""
    return _LETTER.sub(lambda letter: STOCK[letter[0][0] - 128], wire, count=_MOST)


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
    wires = [wire for wire in wires if len(wire) < longest(target) - 16]
    if target == "heads":
        return wires
    if target == "chunked":
        wires = [body for wire in wires if (body := wire.partition(b"\r\n\r\n")[2])]
    found = [plan + b"\n" + wire for wire in wires for plan in PLANS]
    if target in ("protocol", "cache", "reader"):
        found += _scenes()
    return found


def _scenes() -> list[bytes]:
    """Return inputs of stock requests: each alone and in a row, and some at random."""
    letters = [bytes((128 + at,)) for at in range(len(STOCK))]
    found = [plan + b"\n" + letter * 6 for letter in letters for plan in PLANS]
    rng = random.Random(7)
    for _ in range(200):
        plan = rng.randbytes(rng.randint(0, 24)).replace(b"\n", b"\x05")
        found.append(plan + b"\n" + b"".join(rng.choices(letters, k=rng.randint(2, 12))))
    return found


def found(target: str) -> list[Path]:
    """Return the kept cases of ``target``: each made it fail once."""
    return sorted((HERE / "regressions" / target).glob("*.input"))


def dictionary() -> list[bytes]:
    """Return the words of ``http.dict``, which has libFuzzer's form."""
    lines = (HERE / "http.dict").read_text().splitlines()
    entries = [_ENTRY.fullmatch(line) for line in lines if line and not line.startswith("#")]
    return [ast.literal_eval("b" + entry[1]) for entry in entries if entry]
