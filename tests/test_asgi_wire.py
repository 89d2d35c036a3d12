"""A WebSocket as bytes and messages, without a connection."""

from __future__ import annotations

import pytest
from websockets.frames import Frame, Opcode

from fluxor_fast.asgi.wire import Wire, shake_hands
from fluxor_fast.errors import HTTPError
from fluxor_fast.http.request import Head
from fluxor_fast.routing import Route
from fluxor_fast.server.heads import HeadCache, Limits, parse_head
from tests.support.frames import frame
from tests.support.seeds import cut, seeded, single

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # that of RFC 6455, section 1.3
PLAIN = (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: " + KEY)
OFFER = (*PLAIN, b"Sec-WebSocket-Version: 13")


class _One:
    """A router to whom all is one."""

    def match(self, method: str, path: str) -> tuple[Route, dict[str, object]]:
        return Route("*", "/*", lambda request: None, stream=True, websocket=True), {}


def get(*lines: bytes) -> bytes:
    return b"\r\n".join((b"GET / HTTP/1.1", b"Host: a", *lines, b"", b""))


def parse(*lines: bytes, method: bytes = b"GET") -> Head:
    return parse_head(get(*lines).replace(b"GET", method, 1), _One(), Limits())  # type: ignore[arg-type]


def test_the_answer_to_the_handshake_of_section_1_3() -> None:
    agreed = shake_hands(parse(*OFFER), compression=False)
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in agreed.lines
    assert b"Extensions" not in agreed.lines


def test_subprotocols_are_those_of_all_fields_in_order() -> None:
    head = parse(*OFFER, b"Sec-WebSocket-Protocol: a, b", b"Sec-WebSocket-Protocol: c")
    assert shake_hands(head, compression=False).subprotocols == ["a", "b", "c"]


def test_compression_is_agreed_only_where_asked_for() -> None:
    head = parse(*OFFER, b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits")
    assert b"Extensions" not in shake_hands(head, compression=False).lines
    assert b"Extensions: permessage-deflate" in shake_hands(head, compression=True).lines


@pytest.mark.parametrize(
    ("status", "head"),
    [
        (400, parse(*OFFER[:2], OFFER[3])),
        (400, parse(*OFFER[:2], b"Sec-WebSocket-Key: c2hvcnQ=", OFFER[3])),
        (400, parse(*OFFER[:2], b"Sec-WebSocket-Key: ***", OFFER[3])),
        (400, parse(*OFFER, PLAIN[2])),
        (400, parse(*PLAIN)),
        (400, parse(*OFFER, b"Content-Length: 3")),
        (400, parse(*OFFER, b"Transfer-Encoding: chunked")),
        (400, parse(*OFFER, method=b"POST")),
        (400, parse(*OFFER, b"Sec-WebSocket-Protocol: a,,;")),
        (426, parse(*PLAIN, b"Sec-WebSocket-Version: 8")),
        (426, parse(*PLAIN, b"Sec-WebSocket-Version: 13, 8")),
        (426, parse(*OFFER, b"Sec-WebSocket-Version: 13")),
    ],
)
def test_what_is_no_handshake_is_refused(status: int, head: Head) -> None:
    assert head.upgrade and not head.keep_alive
    with pytest.raises(HTTPError) as caught:
        shake_hands(head, compression=True)
    assert caught.value.status == status
    if status == 426:
        assert caught.value.headers["Sec-WebSocket-Version"] == "13"


@pytest.mark.parametrize(
    ("lines", "offered"),
    [
        (PLAIN, True),
        ((b"Connection: close, UPGRADE", b"Upgrade: h2c, WebSocket"), True),
        ((b"Connection: keep-alive", b"Connection: upgrade", b"Upgrade: websocket"), True),
        ((b"Connection: keep-alive", b"Upgrade: websocket"), False),
        ((b"Connection: upgrade", b"Upgrade: h2c"), False),
        ((b"Connection: upgrade", b"Upgrade: websockets"), False),
        ((b"Connection: upgrade",), False),
    ],
)
def test_what_is_an_offer(lines: tuple[bytes, ...], offered: bool) -> None:
    assert parse(*lines).upgrade == offered


def test_heads_with_an_offer_are_not_remembered_as_none_comes_again() -> None:
    cache = HeadCache(_One(), Limits(), lambda: 10**9)  # type: ignore[arg-type]
    assert cache.parse(get(*OFFER)).upgrade
    cache.parse(get())
    assert list(cache.found) == [get()]


def test_an_offer_in_http_1_0_is_ignored() -> None:
    raw = get(*OFFER, b"Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0")
    head = parse_head(raw, _One(), Limits())  # type: ignore[arg-type]
    assert not head.upgrade and head.keep_alive


def conversation() -> tuple[bytes, list[str | bytes]]:
    """Return bytes and what they say: fragments, pings between them, empty ones, both kinds."""
    stream = b"".join(
        [
            frame(Opcode.TEXT, b"whole"),
            frame(Opcode.TEXT, "grü".encode(), fin=False),
            frame(Opcode.PING, b"here?"),
            frame(Opcode.CONT, b"", fin=False),
            frame(Opcode.PONG, b"never asked"),
            frame(Opcode.CONT, "ße €".encode()),
            frame(Opcode.BINARY, bytes(range(256)) * 4),
            frame(Opcode.BINARY, b"", fin=False),
            frame(Opcode.CONT, b""),
            frame(Opcode.TEXT, b"x" * 70_000),
            frame(Opcode.CLOSE, b"\x03\xe8bye"),
        ]
    )
    return stream, ["whole", "grüße €", bytes(range(256)) * 4, b"", "x" * 70_000]


def test_messages_are_the_same_however_the_bytes_are_cut() -> None:
    stream, expected = conversation()
    rng = seeded("cuts of frames")
    for pieces in [[stream], single(stream), *(cut(stream, rng, 40) for _ in range(20))]:
        wire = Wire(1 << 20, [])
        got: list[str | bytes] = []
        out = b""
        for piece in pieces:
            got += wire.receive(piece)
            out += wire.output()
        assert got == expected
        assert out == b"\x8a\x05here?" + b"\x88\x05\x03\xe8bye"
        assert wire.over and not wire.open and wire.ending == (1000, "bye")


@pytest.mark.parametrize(
    ("code", "stream"),
    [
        (1002, Frame(Opcode.TEXT, b"no mask").serialize(mask=False)),
        (1002, frame(Opcode.CONT, b"of nothing")),
        (1002, frame(Opcode.TEXT, b"a", fin=False) + frame(Opcode.TEXT, b"b")),
        (1002, b"\xf1\x80\0\0\0\0"),  # reserved bits
        (1002, b"\x83\x80\0\0\0\0"),  # a reserved opcode
        (1002, b"\x09\x80\0\0\0\0"),  # a ping in fragments
        (1002, b"\x89\xfe\x00\x7e" + bytes(4 + 126)),  # a ping of 126 bytes
        (1002, frame(Opcode.CLOSE, b"\x03")),
        (1002, frame(Opcode.CLOSE, b"\x03\xed")),  # 1005 is never sent
        (1007, frame(Opcode.CLOSE, b"\x03\xe8\xff")),
        (1007, frame(Opcode.TEXT, b"\xff\xfe")),
        (1007, frame(Opcode.TEXT, b"\xed\xa0\x80")),  # a surrogate
        (1007, frame(Opcode.TEXT, b"\xe2", fin=False) + frame(Opcode.CONT, b"\x82")),
        (1009, frame(Opcode.BINARY, b"x" * 1001)),
        (1009, frame(Opcode.BINARY, b"x" * 600, False) + frame(Opcode.CONT, b"x" * 401)),
        (1009, b"\x82\xff" + b"\x00\x00\x00\xff\xff\xff\xff\xff"),  # known before it comes
    ],
)
def test_what_breaks_the_protocol_ends_it(code: int, stream: bytes) -> None:
    for pieces in ([stream], single(stream)):
        wire = Wire(1000, [])
        got = [message for piece in pieces for message in wire.receive(piece)]
        assert got == []
        assert wire.over and wire.ending[0] == code
        out = wire.output()
        assert out[0] == 0x88 and int.from_bytes(out[2:4], "big") == code
        assert wire.receive(frame(Opcode.TEXT, b"more")) == []
        assert wire.output() == b""


def test_a_message_of_just_the_limit_is_taken() -> None:
    wire = Wire(1000, [])
    got = wire.receive(frame(Opcode.BINARY, b"x" * 600, False) + frame(Opcode.CONT, b"x" * 400))
    assert got == [b"x" * 1000]


def test_a_message_that_grows_beyond_the_limit_when_it_is_unpacked_is_refused() -> None:
    offer = b"Sec-WebSocket-Extensions: permessage-deflate"
    wire = Wire(1000, shake_hands(parse(*OFFER, offer), compression=True).extensions)
    packed = Wire(1 << 20, shake_hands(parse(*OFFER, offer), compression=True).extensions)
    packed.binary(b"x" * 100_000)
    bomb = packed.output()
    assert len(bomb) < 1000
    masked = bytes([bomb[0], 0x80 | bomb[1]]) + bomb[2:4] * (bomb[1] == 126) + bytes(4)
    assert wire.receive(masked + bomb[4 if bomb[1] == 126 else 2 :]) == []
    assert wire.ending[0] == 1009


def test_messages_behind_one_that_is_not_utf_8_are_not_there() -> None:
    wire = Wire(1000, [])
    bad = frame(Opcode.TEXT, b"\xff")
    got = wire.receive(frame(Opcode.TEXT, b"a") + bad + frame(Opcode.TEXT, b"b"))
    assert got == ["a"]


def test_a_code_that_must_not_be_sent_is_an_error_of_the_application() -> None:
    wire = Wire(1000, [])
    for code, reason in ((1005, ""), (999, ""), (1000, "x" * 124)):
        with pytest.raises(ValueError, match="cannot close"):
            wire.close(code, reason)
    wire.close(3000, "x" * 123)
    assert not wire.open and not wire.over
    wire.close(1000)  # it has been told
    wire.receive(frame(Opcode.CLOSE, b"\x0b\xb8"))
    assert wire.over


def test_whatever_comes_is_messages_or_an_end_and_never_an_exception() -> None:
    stream, _ = conversation()
    stream = stream[:1400]
    rng = seeded("frames at random")
    ends: set[int] = set()
    for _ in range(1500):
        data = bytearray(stream)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        wire = Wire(1000, [])
        for piece in cut(bytes(data), rng):
            assert all(len(message) <= 1000 for message in wire.receive(piece))
            wire.output()
        if wire.over:
            ends.add(wire.ending[0])
            assert wire.receive(stream) == []
    assert {1002, 1009} <= ends
