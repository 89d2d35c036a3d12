"""One limit over the workers of a real instance, through kills, reloads and an upgrade."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from tests.process.test_upgrade import serving, upgraded
from tests.support.server import LiveServer, eventually, get

RATE = 1000 / 60
WORKERS = 4
PIPELINED = 16
FLAGS = ("--max-connections-per-client=0",)


class Flood:
    """Connections that ask as fast as they are answered, from one address."""

    def __init__(self, port: int, source: str = "127.0.0.1", lines: str = "") -> None:
        self.port, self.source = port, source
        self.request = f"GET / HTTP/1.1\r\nHost: test\r\n{lines}\r\n".encode() * PIPELINED
        self.passed = self.refused = 0
        self.begun = self.counted = self.asked = self.ended = 0.0
        """When it began, had its first answers, asked for the last time, and had the last ones."""

    def ask(self, connections: int, seconds: float) -> None:
        """Ask for so long; count what is answered."""
        self.begun = self.begun or time.monotonic()
        socks = [
            socket.create_connection(("127.0.0.1", self.port), 10, (self.source, 0))
            for _ in range(connections)
        ]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.asked = time.monotonic()
            for sock in socks:
                sock.sendall(self.request)
            for sock in socks:
                self._read(sock)
            self.ended = time.monotonic()
            self.counted = self.counted or self.ended
        for sock in socks:
            sock.close()

    def _read(self, sock: socket.socket) -> None:
        data, answers = b"", 0
        while answers < PIPELINED:
            more = sock.recv(1 << 18)
            assert more, "closed without an answer"
            data += more
            answers = data.count(b"HTTP/1.1 ")
            if not data.endswith(b"}"):
                answers = min(answers, PIPELINED - 1)
        passed = data.count(b"HTTP/1.1 200")
        self.passed += passed
        self.refused += answers - passed


@contextmanager
def instance(burst: int, *flags: str) -> Iterator[LiveServer]:
    environ = {"LIMIT_BURST": str(burst)}
    with LiveServer("limited:app", f"--workers={WORKERS}", *FLAGS, *flags, env=environ) as server:
        eventually(lambda: len(server.workers) == WORKERS, "all workers are there")
        yield server


def replaced(server: LiveServer, pid: int) -> bool:
    return pid not in server.workers and len(server.workers) == WORKERS


def assert_exact(flood: Flood, burst: int, more: int = WORKERS - 1) -> None:
    """From the first request to the last: burst + rate x time, and one for each other worker."""
    most = burst + RATE * (flood.ended - flood.begun)
    least = burst + RATE * (flood.asked - flood.counted)
    print(f"{flood.passed} passed; by {RATE:.2f}/s from {least:.1f} to {most:.1f}")
    assert flood.passed <= most + more
    assert flood.passed >= int(least) - 2


def test_over_four_workers_the_limit_is_one_limit() -> None:
    with instance(100) as server:
        flood = Flood(server.port)
        flood.ask(32, 2.0)
        rate = (flood.passed + flood.refused) / (flood.ended - flood.begun)
        print(f"{rate:.0f} requests/s")
        assert flood.refused > 5000
        assert_exact(flood, 100)


def test_what_a_client_claims_to_be_changes_nothing_and_each_address_has_its_own() -> None:
    with instance(50) as server:
        flood = Flood(
            server.port, lines="X-Forwarded-For: 192.0.2.1\r\nForwarded: for=192.0.2.1\r\n"
        )
        for n in range(5):
            flood.request = flood.request.replace(b"192.0.2.%d" % (n + 1), b"192.0.2.%d" % (n + 2))
            flood.ask(8, 0.2)
        assert_exact(flood, 50)
        for last in (2, 3):
            another = Flood(server.port, f"127.0.0.{last}")
            another.ask(8, 0.2)
            assert_exact(another, 50)


def test_kills_and_a_reload_give_nobody_a_fresh_start() -> None:
    with instance(100, "--graceful-timeout=2") as server:
        flood = Flood(server.port)
        flood.ask(8, 0.2)
        for _ in range(2):
            pid = server.workers[0]
            os.kill(pid, signal.SIGKILL)
            eventually(partial(replaced, server, pid), "it is replaced")
            flood.ask(8, 0.1)
        before = set(server.workers)
        server.signal(signal.SIGHUP)
        eventually(lambda: not before & set(server.workers), "reloaded")
        flood.ask(8, 0.2)
        assert_exact(flood, 100)


def test_nor_does_an_upgrade() -> None:
    flags = ("--workers=2", *FLAGS)
    with serving("limited:app", *flags, env={"LIMIT_BURST": "100"}) as server:
        flood = Flood(server.port)
        flood.ask(8, 0.2)
        arbiter = upgraded(server, server.process.pid)
        assert get(server.port, "/who").status == 200
        flood.ask(8, 0.2)
        print(f"arbiter {arbiter}")
        assert_exact(flood, 100)
