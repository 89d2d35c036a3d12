"""Frames of a WebSocket, as a client sends them."""

from __future__ import annotations

from websockets.frames import Frame, Opcode


def frame(opcode: Opcode, data: bytes = b"", fin: bool = True) -> bytes:
    """Return a frame, masked with zeros: the same bytes in every run."""
    plain = Frame(opcode, data, fin).serialize(mask=False)
    at = len(plain) - len(data)
    return plain[:1] + bytes([plain[1] | 0x80]) + plain[2:at] + bytes(4) + data
