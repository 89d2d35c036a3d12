"""Slow clients of our own: heads, bodies and readers that go on, a byte at a time.

What slowhttptest does with thousands, in one thread and without the tool.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

DRIP: Final = 0.1
"""Seconds between two bytes, or sips."""
SIP: Final = 200
"""Bytes read at a time: what had come before a reset is read first."""
_HEAD: Final = b"GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: "
_BODY: Final = b"POST /api/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n["
_READ: Final = b"GET /attacked/large HTTP/1.1\r\nHost: a\r\n\r\n"
FIRST: Final = {"head": _HEAD, "body": _BODY, "read": _READ}


async def _attack(kind: str, port: int) -> str:
    """Hold a connection until the server ends it; return how: a status, or ``aborted``."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        if kind == "read":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        try:
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, FIRST[kind])
            if kind == "read":
                while await loop.sock_recv(client, SIP):
                    await asyncio.sleep(DRIP)
                return "aborted"
            answer = loop.create_task(loop.sock_recv(client, 4096))
            while not (await asyncio.wait([answer], timeout=DRIP))[0]:
                await loop.sock_sendall(client, b"1")
            return answer.result().split()[1].decode() if answer.result() else "closed"
        except ConnectionError:
            return "aborted"


@contextmanager
def attacking(port: int, each: int) -> Iterator[Counter[tuple[str, str]]]:
    """Attack with ``each`` clients of every kind; yield what becomes of them, filled as it comes.

    The block ends when the server has ended all of them.
    """
    ended: Counter[tuple[str, str]] = Counter()

    async def one(kind: str) -> None:
        ended[kind, await _attack(kind, port)] += 1

    async def everybody() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(each):
                for kind in FIRST:
                    group.create_task(one(kind))

    thread = threading.Thread(target=lambda: asyncio.run(everybody()), daemon=True)
    thread.start()
    yield ended
    thread.join(30)
    if thread.is_alive():
        raise AssertionError(f"not all were ended: {ended}")
