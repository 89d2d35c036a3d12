"""A WebSocket as bytes and messages (RFC 6455), sans I/O, around the core of ``websockets``.

Rules:

1. What is no handshake is refused before the application is asked: 426 for another version
   (section 4.4), 400 for all else. ``Origin`` is not looked at: which pages may connect is the
   application's business.
2. A message is complete or it is not there: at most ``max_message`` bytes (1009), text is UTF-8
   (1007), whatever breaks the protocol is 1002. Then nothing more is read.
3. Pings are answered here, and so is a Close (with the code that came).
4. Compression (RFC 7692) only where asked for: it takes memory for each connection, and time, and
   an attacker who can have text of his own sent beside a secret learns of it by lengths.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake, InvalidMethod, ProtocolError
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import Opcode
from websockets.http11 import Request as Offer
from websockets.protocol import Protocol, Side, State
from websockets.server import ServerProtocol

from fluxor_fast.errors import HTTPError
from fluxor_fast.http.request import Head

__all__ = ["Agreed", "Wire", "shake_hands"]

VERSION = "13"

log = logging.getLogger("fluxor_fast.websocket")
log.setLevel(logging.WARNING)  # the core tells of every connection that closes


class Agreed(NamedTuple):
    """What a handshake comes to."""

    lines: bytes
    """Header lines of the answer, ready made."""
    subprotocols: list[str]
    """What the client offers, in its order."""
    extensions: list[Extension]


def shake_hands(head: Head, *, compression: bool) -> Agreed:
    """Return what is agreed with a client, by the head of its request.

    :raises HTTPError: 400 or 426 (rule 1).
    """
    headers = Headers(
        [(name.decode("latin-1"), value.decode("latin-1")) for name, value in head.raw_headers]
    )
    if head.length:
        raise HTTPError(400, "a WebSocket handshake has no body")
    if headers.get_all("Sec-WebSocket-Version") not in ([VERSION], []):
        raise HTTPError(
            426,
            f"this server speaks version {VERSION} of the WebSocket protocol",
            headers={"Sec-WebSocket-Version": VERSION, "Upgrade": "websocket"},
        )
    factories = None
    if compression:
        # windows of 4 KiB, as most servers: a fourth of the memory for nearly the same lengths
        factories = [
            ServerPerMessageDeflateFactory(
                server_max_window_bits=12,
                client_max_window_bits=12,
                compress_settings={"memLevel": 5},
            )
        ]
    core = ServerProtocol(extensions=factories, logger=log)
    try:
        accept, extensions, _ = core.process_request(Offer(head.path, headers, head.method))
        offered = [
            name.strip()
            for value in headers.get_all("Sec-WebSocket-Protocol")
            for name in value.split(",")
        ]
    except InvalidMethod:
        raise HTTPError(400, "a WebSocket handshake is a GET") from None
    except InvalidHandshake as error:
        raise HTTPError(400, f"this is no WebSocket handshake: {error}") from None
    lines = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n"
    if extensions is not None:
        lines += f"Sec-WebSocket-Extensions: {extensions}\r\n"
    return Agreed(lines.encode("ascii"), [name for name in offered if name], core.extensions)


class Wire:
    """The server's end of an open WebSocket.

    What it has to say stands in ``output``, to be sent after each call.

    :param max_message: the most bytes a message may have, decompressed.
    """

    def __init__(self, max_message: int, extensions: list[Extension]) -> None:
        self._core = Protocol(Side.SERVER, max_size=max_message, logger=log)
        self._core.extensions = extensions
        self._message = bytearray()  # what has come of one in fragments
        self._text = False

    @property
    def open(self) -> bool:
        """Whether messages can be sent."""
        return self._core.state is State.OPEN

    @property
    def over(self) -> bool:
        """Whether nothing more is read: both have closed, or the connection failed."""
        return self._core.eof_sent

    @property
    def speaks(self) -> bool:
        """Whether there is something to be sent, if only the end."""
        return bool(self._core.writes)

    @property
    def ending(self) -> tuple[int, str]:
        """The code and reason for which it closed, once it did."""
        close = self._core.close_rcvd or self._core.close_sent
        return (1006, "") if close is None else (int(close.code), close.reason)

    def receive(self, data: bytes) -> list[str | bytes]:
        """Return the messages that ``data`` completes."""
        core = self._core
        core.receive_data(data)
        messages: list[str | bytes] = []
        for frame in core.events_received():
            opcode = frame.opcode  # type: ignore[union-attr]
            if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
                self._text = opcode is Opcode.TEXT
            elif opcode is not Opcode.CONT:
                continue
            piece = frame.data  # type: ignore[union-attr]
            if self._message or not frame.fin:  # type: ignore[union-attr]
                self._message += piece
                if not frame.fin:  # type: ignore[union-attr]
                    continue
                piece, self._message = self._message, bytearray()
            if not self._text:
                messages.append(bytes(piece))
                continue
            try:
                messages.append(str(piece, "utf-8"))
            except UnicodeDecodeError:
                self.fail(1007, "not UTF-8")
                break
        return messages

    def output(self) -> bytes:
        """Return what is to be sent."""
        writes = self._core.data_to_send()
        return writes[0] if len(writes) == 1 else b"".join(writes)

    def text(self, data: str) -> None:
        """Send text."""
        self._core.send_text(data.encode())

    def binary(self, data: bytes) -> None:
        """Send bytes."""
        self._core.send_binary(data)

    def ping(self) -> None:
        """Ask whether the client is there."""
        self._core.send_ping(b"")

    def close(self, code: int, reason: str = "") -> None:
        """Begin to close, if it is open.

        :raises ValueError: for a code that must not be sent, or a reason of more than 123 bytes.
        """
        if self.open:
            try:
                self._core.send_close(code, reason)
            except ProtocolError as error:
                raise ValueError(f"cannot close with {code} {reason!r}: {error}") from None

    def fail(self, code: int, reason: str) -> None:
        """Close without waiting for the client."""
        if not self.over:
            self._core.fail(code, reason)
