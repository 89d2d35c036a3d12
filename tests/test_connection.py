"""A connection apart from what is said on it: its place, its other end, and what is unsent."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from fluxor_fast import App
from fluxor_fast.server.connection import Connection
from fluxor_fast.server.protocol import HttpProtocol
from tests.support.gates import assert_refused, make_app
from tests.support.inprocess import in_loop, serving, until
from tests.support.turns import Bench, HandLoop

# its place


@in_loop
async def test_a_connection_too_many_is_told_and_closed() -> None:
    async with serving(make_app()[0], max_connections=2) as server:
        first, second = await server.connect(), await server.connect()
        assert (await first.get("/")).status == 200
        assert (await second.get("/")).status == 200
        third = await server.connect()
        (answer,) = await third.rest()
        assert_refused(answer, "connections")
        assert answer.headers["connection"] == "close"
        first.close()
        await until(lambda: len(server.service.open) == 1, "the first is gone")
        fourth = await server.connect()
        assert (await fourth.get("/")).status == 200


# proxies


@pytest.mark.parametrize(
    ("trusted", "forwarded", "client"),
    [
        ((), "203.0.113.9", "127.0.0.1"),
        (("10.0.0.0/8",), "203.0.113.9", "127.0.0.1"),
        (("127.0.0.0/8",), "203.0.113.9", "203.0.113.9"),
        (("127.0.0.0/8",), "", "127.0.0.1"),
        (("127.0.0.0/8",), "made-up, 203.0.113.9", "203.0.113.9"),
        (("127.0.0.0/8", "203.0.113.0/24"), "198.51.100.1, 203.0.113.9", "198.51.100.1"),
        (("127.0.0.0/8",), "203.0.113.9, nonsense", "127.0.0.1"),
    ],
)
@in_loop
async def test_the_client_is_the_first_from_the_right_that_is_no_trusted_proxy(
    trusted: tuple[str, ...], forwarded: str, client: str
) -> None:
    async with serving(make_app()[0], trusted_proxies=trusted) as server:
        connection = await server.connect()
        lines = (f"X-Forwarded-For: {forwarded}",) if forwarded else ()
        assert (await connection.get("/client", *lines)).json() == {"client": client}
        halves = [f"X-Forwarded-For: {hop.strip()}" for hop in forwarded.split(",") if hop]
        assert (await connection.get("/client", *halves)).json() == {"client": client}


# what is unsent


def over(transport: Any) -> Connection:
    connection = HttpProtocol(Bench(App(), HandLoop()).service)
    connection.transport = transport
    return connection


@in_loop
async def test_unsent_is_what_waits_here_and_in_the_kernel() -> None:
    """And it shrinks with every read of the client's, where our own buffer stands still."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    transport.write(b"x" * 1_000_000)
    await until(transport.get_write_buffer_size, "not all fits into the kernel")
    await asyncio.sleep(0)
    here, before = transport.get_write_buffer_size(), over(transport).unsent()
    assert before > here  # on a Unix socket the kernel counts its own overhead too
    assert theirs.recv(2000)
    assert transport.get_write_buffer_size() == here
    theirs.close()
    transport.abort()
    await until(transport.is_closing, "it is closed")
    await asyncio.sleep(0.01)
    assert over(transport).unsent() >= 0


def test_a_transport_without_a_socket_tells_its_own_buffer() -> None:
    class Transport:
        def get_write_buffer_size(self) -> int:
            return 5

        def get_extra_info(self, name: str) -> Any:
            return None

    assert over(Transport()).unsent() == 5
