"""The connection in memory does what a transport of uvloop does, as far as a protocol can tell."""

from __future__ import annotations

import asyncio
from contextvars import copy_context

import pytest

from fluxor_fast.testing.wire import HIGH, READ, Wire
from tests.support.inprocess import in_loop, turns


class Recording(asyncio.Protocol):
    """Notes how it is called, and that it never is from within a call of its own."""

    def __init__(self, half_open: bool = False) -> None:
        self.calls: list[str] = []
        self.sizes: list[int] = []
        self.lost: list[Exception | None] = []
        self.half_open = half_open
        self.transport: Wire
        self._inside = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, Wire)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.sizes.append(len(data))

    def eof_received(self) -> bool:
        self.calls.append("eof")
        return self.half_open

    def pause_writing(self) -> None:
        assert not self._inside
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        assert not self._inside
        self.lost.append(exc)

    def do(self, name: str, *arguments: object) -> None:
        """Call the transport, as a protocol would."""
        self._inside = True
        getattr(self.transport, name)(*arguments)
        self._inside = False


def connected(half_open: bool = False) -> tuple[Wire, Recording]:
    protocol = Recording(half_open)
    return Wire(protocol, copy_context(), ("192.0.2.1", 1)), protocol


@in_loop
async def test_what_is_sent_comes_in_pieces_and_not_while_reading_is_paused() -> None:
    wire, protocol = connected()
    protocol.do("pause_reading")
    sending = asyncio.create_task(wire.send(b"a" * (READ + 1)))
    await turns()
    assert protocol.sizes == [] and not sending.done()
    protocol.do("resume_reading")
    await sending
    await turns()
    assert protocol.sizes == [READ, 1]


@in_loop
async def test_who_does_not_read_is_waited_for() -> None:
    wire, protocol = connected()
    protocol.do("write", b"a" * HIGH)
    await turns()
    assert protocol.calls == []
    protocol.do("write", b"b")
    await turns()
    assert protocol.calls == ["pause"]
    assert wire.get_write_buffer_size() == HIGH + 1
    assert wire.readable
    while wire.get_write_buffer_size() > HIGH // 4:
        assert await wire.receive(1000)
    await turns()
    assert protocol.calls == ["pause", "resume"]


@in_loop
async def test_what_was_written_is_read_after_the_close() -> None:
    wire, protocol = connected()
    protocol.do("write", b"the last")
    protocol.do("close")
    await turns()
    assert protocol.lost == []  # not before it is taken in
    with pytest.raises(BrokenPipeError):
        await wire.send(b"more")
    assert await wire.receive(100) == b"the last"
    assert await wire.receive(100) == b""
    await turns()
    assert protocol.lost == [None]


@in_loop
async def test_who_waits_is_woken_by_the_end() -> None:
    wire, protocol = connected()
    reading = asyncio.create_task(wire.receive(1))
    protocol.do("pause_reading")
    writing = asyncio.create_task(wire.send(b"a" * (2 * READ)))
    await turns()
    protocol.do("abort")
    assert await reading == b""
    with pytest.raises(BrokenPipeError):
        await writing
    await turns()
    assert protocol.lost == [None]


@in_loop
async def test_one_end_can_be_closed_by_itself() -> None:
    wire, protocol = connected()
    protocol.do("write", b"the answer")
    protocol.do("write_eof")
    assert await wire.receive(100) == b"the answer"
    assert await wire.receive(100) == b""
    await wire.send(b"still read")
    await turns()
    assert protocol.sizes == [10] and protocol.lost == []


@in_loop
async def test_a_client_that_leaves_is_lost_once() -> None:
    wire, protocol = connected()
    wire.leave()
    wire.leave()
    await turns()
    assert (protocol.calls, protocol.lost) == (["eof"], [None])
    protocol.do("write", b"dropped")
    assert wire.get_write_buffer_size() == 0


@in_loop
async def test_what_was_sent_before_leaving_is_read_before_the_end() -> None:
    wire, protocol = connected()
    await wire.send(b"the last words")
    wire.leave()
    await turns()
    assert (protocol.sizes, protocol.calls) == ([14], ["eof"])


@in_loop
async def test_one_that_leaves_while_it_is_owed_an_answer_is_a_reset() -> None:
    wire, protocol = connected(half_open=True)
    wire.leave()
    await turns()
    (error,) = protocol.lost
    assert isinstance(error, ConnectionResetError)
