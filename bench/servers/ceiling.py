"""The ceiling: a uvloop protocol that writes one constant answer for whatever arrives.

It parses nothing and decides nothing, so what it costs is the kernel's and the loop's share of
a request; the rest of a real server's cost is its own work. The answer is handed in, so that it
has the very bytes that the server under test writes.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
from typing import cast

import click
import uvloop

END = b"\r\n\r\n"


async def serve(port: int, answer: bytes, share: bool, pipelined: bool) -> None:
    """Answer on ``port`` until the process is told to stop."""

    class Constant(asyncio.Protocol):
        __slots__ = ("write",)

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.write = cast(asyncio.Transport, transport).write

        def data_received(self, data: bytes) -> None:
            self.write(answer)

    class Several(Constant):
        __slots__ = ()

        def data_received(self, data: bytes) -> None:
            self.write(answer * data.count(END))

    loop = asyncio.get_running_loop()
    kind = Several if pipelined else Constant
    await loop.create_server(kind, "127.0.0.1", port, backlog=4096, reuse_port=share)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


@click.command()
@click.option("--port", type=int, required=True)
@click.option("--workers", type=int, default=1)
@click.option("--answer", required=True, help="The whole answer, in base64.")
@click.option("--pipelined", is_flag=True, help="Count the heads that arrive together.")
def main(port: int, workers: int, answer: str, pipelined: bool) -> None:
    """Serve the constant ANSWER."""
    children: list[int] = []
    for _ in range(workers - 1):
        pid = os.fork()
        if pid == 0:
            children.clear()
            break
        children.append(pid)
    uvloop.run(serve(port, base64.b64decode(answer), workers > 1, pipelined))
    for pid in children:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
