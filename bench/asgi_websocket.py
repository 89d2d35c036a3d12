"""Messages echoed over WebSockets, under fluxor-fast and its peers: the same ASGI application.

One worker each, pinned to one core; this process, the generator, has the other. Each connection has
one message on its way: it is sent again when its echo is complete. Rounds are interleaved in an
order shuffled with a fixed seed, and ratios are taken within a round.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click
import harness
import uvloop
from compare import SEED
from contestants import Place, fluxor, side_by_side
from harness import Cores, Failed
from websockets.frames import Frame, Opcode

SERVERS = Path(__file__).resolve().parent / "servers"
APP = "asgi_websocket:app"
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def uvicorn(flavour: str, place: Place) -> list[str]:
    """Return uvicorn's command, with one of its two implementations."""
    return [
        harness.command_of("uvicorn"), "--port", str(place.port), "--log-level", "error",
        "--loop", "uvloop", "--http", "httptools", "--ws", flavour, "--no-access-log",
        "--ws-per-message-deflate", "false", "--app-dir", str(SERVERS), APP,
    ]  # fmt: skip


def granian(place: Place) -> list[str]:
    """Return granian's command."""
    return [
        harness.command_of("granian"), "--port", str(place.port), "--log-level", "error",
        "--interface", "asgi", "--loop", "uvloop", "--http", "1", "--ws",
        "--runtime-threads", "1", "--no-access-log", "--working-dir", str(SERVERS), APP,
    ]  # fmt: skip


CONTESTANTS: dict[str, Callable[[Place], list[str]]] = {
    "fluxor-fast": partial(fluxor, app=APP),
    "uvicorn, websockets": partial(uvicorn, "websockets-sansio"),
    "uvicorn, wsproto": partial(uvicorn, "wsproto"),
    "granian": granian,
}


class Echoed(asyncio.Protocol):
    """One connection."""

    def __init__(self, message: bytes, echo: bytes) -> None:
        self.message = message
        self.echo = echo
        self.count = 0
        self.wrong = False
        self._buffer = b""
        self._open = False
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.transport.write(HANDSHAKE)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        if not self._open:
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._buffer = head
                return
            self.wrong = not head.startswith(b"HTTP/1.1 101")
            self._open = True
            self.transport.write(self.message)
        if data == self.echo:
            self._buffer = b""
            self.count += 1
            self.transport.write(self.message)
        else:
            self._buffer = data
            self.wrong = self.wrong or not self.echo.startswith(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.wrong = True


async def talk(port: int, connections: int, size: int, seconds: float) -> float:
    """Return messages per second."""
    text = b"x" * size
    message = Frame(Opcode.TEXT, text).serialize(mask=True)
    echo = Frame(Opcode.TEXT, text).serialize(mask=False)
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(lambda: Echoed(message, echo), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    await asyncio.sleep(0.3)
    begun, before = time.perf_counter(), sum(client.count for client in clients)
    await asyncio.sleep(seconds)
    done, elapsed = sum(client.count for client in clients), time.perf_counter() - begun
    wrong = any(client.wrong for client in clients)
    for client in clients:
        client.transport.abort()
    if wrong or done == before:
        raise Failed("the echo is not what was sent")
    return (done - before) / elapsed


@click.command()
@click.option("--connections", default=64, type=click.IntRange(1))
@click.option("--size", default=1024, type=click.IntRange(126, 65_535), help="Bytes of a message.")
@click.option("--rounds", default=5, type=click.IntRange(1), help="Counted runs of each.")
@click.option("--seconds", default=2.0, type=click.FloatRange(0.1), help="Length of one.")
def main(connections: int, size: int, rounds: int, seconds: float) -> None:
    """Measure echoes of WebSocket messages, and print a table."""
    cores = Cores.of(1)
    shuffled = random.Random(SEED)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTESTANTS}
    try:
        with harness.interruptible(), harness.scratch() as folder, ExitStack() as stack:
            folder.mkdir()
            stack.enter_context(harness.pinned(cores.generator))
            servers = {
                name: stack.enter_context(server)
                for name, server in side_by_side(CONTESTANTS, folder, cores).items()
            }
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                for number in range(rounds + 1):
                    names = list(CONTESTANTS)
                    shuffled.shuffle(names)
                    for name in names:
                        server = servers[name]
                        cpu = harness.cpu_seconds(server.pid)
                        rate = runner.run(
                            talk(server.port, connections, size, seconds if number else 0.5)
                        )
                        used = harness.cpu_since(cpu, server.pid)
                        if number:  # the first warms it up
                            found[name].append((rate, used / (rate * (seconds + 0.3)) * 1e6))
    except Failed as error:
        raise click.ClickException(f"no report: {error}") from None
    print(f"echo of {size} bytes, {connections} connections, {rounds} rounds of {seconds:g} s\n")
    print("| server | messages/s (least–most) | CPU µs/message | ours ÷ its rate |")
    print("|---|--:|--:|--:|")
    for name, results in found.items():
        rates = harness.spread([rate for rate, _ in results])
        cpu_us = statistics.median(cpu for _, cpu in results)
        ratio = statistics.median(
            mine[0] / its[0] for mine, its in zip(found["fluxor-fast"], results, strict=True)
        )
        print(
            f"| {name} | {rates.median:,.0f} ({rates.least:,.0f}–{rates.greatest:,.0f})"
            f" | {cpu_us:.1f} | {ratio:.2f} |"
        )
    packages = ("fluxor-fast", "websockets", "wsproto", "uvicorn", "granian", "uvloop")
    print(f"\n{harness.versions(*packages)}")


if __name__ == "__main__":
    main()
