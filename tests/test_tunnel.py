"""What stands behind an offer of a WebSocket, before it is answered."""

from __future__ import annotations

import asyncio
from typing import Any

from websockets.frames import Opcode

from fluxor_fast.asgi.serve import AsgiApp
from fluxor_fast.server.streaming import HIGH
from tests.support.frames import frame
from tests.support.inprocess import head, in_loop, serving, turns, until

OFFER = head(
    "/",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
)
MESSAGE = frame(Opcode.BINARY, b"x" * 1000)
BYE = frame(Opcode.CLOSE, b"\x03\xe8")


class Stage:
    """An application that decides late, and counts what comes."""

    def __init__(self, accepts: bool) -> None:
        self.gate = asyncio.Event()
        self.messages = 0
        self.app = AsgiApp(self)
        self._accepts = accepts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.gate.wait()
        if not self._accepts:
            await send({"type": "websocket.close"})
            return
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            self.messages += 1


@in_loop
async def test_what_comes_before_the_answer_is_held_up_to_a_bound_and_nothing_is_lost() -> None:
    stage = Stage(accepts=True)
    async with serving(stage.app) as server:
        client, protocol = await server.pair()
        sending = asyncio.ensure_future(client.send(OFFER + MESSAGE * 5000 + BYE))
        await until(lambda: protocol.paused, "the socket is not read any more")
        await turns()
        assert protocol.tunnel is not None and protocol.tunnel.full
        assert protocol.tunnel._buffered < HIGH + 2 * 256_000  # and what a read brought
        stage.gate.set()
        await sending
        await until(lambda: stage.messages == 5000, "all of them come")
        assert b"HTTP/1.1 101 " in client.buffer or await client._more()


@in_loop
async def test_what_stands_behind_a_refused_offer_is_dropped() -> None:
    stage = Stage(accepts=False)
    async with serving(stage.app) as server:
        client, protocol = await server.pair()
        await client.send(OFFER + head("/smuggled") * 1000)
        await until(lambda: protocol.tunnel, "it came")
        stage.gate.set()
        assert (await client.answer()).status == 403
        await client.send(head("/smuggled"))
        assert await client.at_end()
        assert server.counters()["offered"] == 1
        assert protocol.tunnel is None


@in_loop
async def test_the_client_may_go_while_its_offer_waits() -> None:
    stage = Stage(accepts=True)
    async with serving(stage.app, slots=1) as server:
        first, second = await server.connect(), await server.connect()
        await first.send(OFFER)
        await until(lambda: server.runner.busy == 1, "it runs")
        await second.send(OFFER)
        await until(lambda: server.permits == 2, "it waits")
        second.reset()
        await until(lambda: server.permits == 1, "its permit is back")
        stage.gate.set()
        assert await first._more()
        assert first.buffer.startswith(b"HTTP/1.1 101 ")
