"""Connections that are opened and dropped at a random byte of a request, or of its answer.

What is sent, how it is cut, where it ends and how are all drawn from one generator, so a seed
names a run. Nothing here looks at the answers: what counts is what is left behind in the server.
"""

from __future__ import annotations

import asyncio
import errno
import json
import random
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

AT_ONCE: Final = 64
WAIT: Final = 0.02
"""Seconds that a client waits for (the rest of) an answer before it drops the connection."""
_RESET: Final = struct.pack("ii", 1, 0)


def _post(path: str, body: bytes, *fields: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: a", *fields]
    if not any(field.startswith("Transfer-Encoding") for field in fields):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def _get(path: str, *fields: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", *fields, "", ""]).encode()


def _chunked(body: bytes) -> bytes:
    pieces = [body[at : at + 700] for at in range(0, len(body), 700)]
    framed = b"".join(b"%x;some=extension\r\n%b\r\n" % (len(p), p) for p in pieces)
    return framed + b"0\r\nX-Trailer: of it\r\n\r\n"


_BODY: Final = json.dumps([{"item": number, "text": "x" * 30} for number in range(60)]).encode()
_CHUNKS: Final = "Transfer-Encoding: chunked"
WIRES: Final = {
    "light": _get("/health"),
    "normal": _get("/"),
    "head": _get("/", method="HEAD"),
    "many headers": _get("/", *(f"X-Field-{number}: {number * 7}" for number in range(60))),
    "echo": _post("/api/echo", _BODY),
    "echo, chunked": _post("/api/echo", _chunked(_BODY), _CHUNKS),
    "echo, expects 100": _post("/api/echo", _BODY, "Expect: 100-continue"),
    "upload": _post("/attacked/upload", _BODY * 30),
    "upload, chunked": _post("/attacked/upload", _chunked(_BODY * 30), _CHUNKS),
    "large answer": _get("/attacked/large"),
    "slow answer": _get("/attacked/slow-stream"),
    "large answers, pipelined": _get("/attacked/large") * 3,
    "waits": _get("/attacked/waits"),
    "blocks": _get("/attacked/blocks"),
    "pipelined": _get("/") * 8,
    "pipelined, mixed": (
        _get("/attacked/waits") + _post("/api/echo", _BODY) + _get("/") * 3
        + _get("/attacked/blocks") + _get("/attacked/slow-stream") + _get("/nowhere")
    ),
    "closes": _get("/", "Connection: close"),
    "nonsense": b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
}  # fmt: skip
"""Whole messages, by what they are."""


@dataclass(frozen=True)
class Drop:
    """What one client does."""

    kind: str
    pieces: tuple[bytes, ...]
    whole: bool
    """Whether all of the message is sent, so that the drop comes in the midst of the answer."""
    waits: bool
    """Whether it waits for something to come before it drops the connection."""
    end: str
    """``fin``, ``rst``, or ``half``: says that it sends no more, waits, and then closes."""


def plan(rng: random.Random) -> Iterator[Drop]:
    """Draw drops without end."""
    kinds = list(WIRES)
    while True:
        kind = rng.choice(kinds)
        wire = WIRES[kind]
        if kind == "normal" and rng.random() < 0.5:  # a head that was never seen before
            wire = _get(f"/?{rng.getrandbits(60)}")
        whole = rng.random() < 0.3
        sent = wire if whole else wire[: rng.randrange(len(wire))]
        at = sorted(rng.sample(range(len(sent) + 1), min(rng.choice((0, 0, 1, 2)), len(sent))))
        pieces = tuple(
            piece for a, b in zip([0, *at], [*at, len(sent)], strict=True) if (piece := sent[a:b])
        )
        yield Drop(kind, pieces, whole, rng.random() < 0.4, rng.choice(("fin", "rst", "half")))


async def _do(drop: Drop, port: int) -> str:
    """Do as ``drop`` says; return what came of it."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        try:
            await loop.sock_connect(client, ("127.0.0.1", port))
            for number, piece in enumerate(drop.pieces):
                if number:  # or the server would have them as one
                    await asyncio.sleep(0)
                await asyncio.wait_for(loop.sock_sendall(client, piece), 5)
            if drop.end == "half":
                client.shutdown(socket.SHUT_WR)
            if drop.waits or drop.end == "half":
                await asyncio.wait_for(loop.sock_recv(client, 4096), WAIT)
            if drop.end == "rst":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        except TimeoutError:
            return "nothing came"
        except (ConnectionError, BrokenPipeError):
            return "ended by the server"
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.ENOTCONN):
                return "no port" if error.errno == errno.EADDRNOTAVAIL else "ended by the server"
            raise
    return "dropped"


async def _all(port: int, count: int, drops: Iterator[Drop]) -> Counter[str]:
    seen: Counter[str] = Counter()
    left = count

    async def client() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            drop = next(drops)
            while (outcome := await _do(drop, port)) == "no port":
                await asyncio.sleep(0.5)  # all are in TIME_WAIT
            seen[drop.end] += 1
            seen["in the answer" if drop.whole else "in the request"] += 1
            seen[outcome] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(client())
    return seen


def run(port: int, count: int, drops: Iterator[Drop]) -> Counter[str]:
    """Open and drop ``count`` connections, ``AT_ONCE`` at a time; return what was done."""
    return asyncio.run(_all(port, count, drops))
