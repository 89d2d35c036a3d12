"""The header of the PROXY protocol: who a proxy says has connected to it. Pure.

After HAProxy's specification (``proxy-protocol.txt``); sections below are of that.

1. A header is version 1, a line of at most 107 bytes (2.1), or version 2, binary (2.2). What
   cannot become either is refused with the first byte that shows it; so is a part of a header
   at the end of the input.
2. Version 1 is read strictly: single spaces, addresses of the family that is named, ports from 0
   to 65535 without leading zeros, CRLF. What follows UNKNOWN is ignored.
3. Version 2 has at most ``MOST`` bytes, which is more than any sender uses, but much less than
   the 65,551 that can be said. Unknown commands, families and protocols are refused.
4. LOCAL, UNKNOWN, unspecified and Unix addresses, and datagrams, which are not what we serve,
   leave the address of the connection as it is. The block of the first, and what follows
   unspecified addresses, is not looked at, as its form is not defined.
5. Additions (TLVs) must fill the rest exactly. A checksum (CRC32C) must be right, one for TLS
   (2.2.6) must be whole; the others are skipped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from fluxor_fast.server.addresses import one_form

__all__ = ["MOST", "SIGNATURE", "Origin", "ProxyHeader", "ProxyHeaderError", "crc32c"]

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
MOST: Final = 4096
"""Most bytes of a header of version 2. The addresses have at most 216."""
_LINE_MOST: Final = 107
_FIXED: Final = 16  # bytes of version 2 before the addresses
_SIZES: Final = (0, 12, 36, 216)  # of the addresses, by family: unspecified, IPv4, IPv6, Unix
_CRC32C, _TLS = 0x03, 0x20  # types of TLVs

_LINE = re.compile(
    rb"PROXY (?:(UNKNOWN)(?: [^\r\n]*)?"
    rb"|TCP(4|6) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4}))\r\n"
).fullmatch


class ProxyHeaderError(ValueError):
    """What came is no PROXY header; the message says why, in words of our own."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a header says of a connection."""

    address: str | None
    """Address of the client in its one form; None: that of the connection itself."""
    tls: bool = False
    """Whether the client speaks TLS with the proxy."""


_NOBODY: Final = Origin(None)


class ProxyHeader:
    """Reads one header from pieces of any size. Holds at most its bytes, and the last piece."""

    def __init__(self) -> None:
        self._data = b""
        self.rest = b""
        """What came behind the header."""

    @property
    def begun(self) -> bool:
        """Whether a byte has come."""
        return bool(self._data)

    def feed(self, data: bytes) -> Origin | None:
        """Take in bytes; return what the header says as soon as it is whole.

        :raises ProxyHeaderError: if this is no header. Feed nothing more then.
        """
        data = self._data = self._data + data
        end = _end_of_binary(data) if data[:1] == b"\r" else _end_of_line(data)
        if end is None or end > len(data):
            return None
        self.rest = data[end:]
        return (_binary if data[:1] == b"\r" else _line)(data[:end])


def _expect(data: bytes, start: bytes) -> None:
    if data[: len(start)] != start[: len(data)]:
        raise ProxyHeaderError("what came first is no PROXY header")


# version 1


def _end_of_line(data: bytes) -> int | None:
    _expect(data, b"PROXY ")
    data = data[:_LINE_MOST]
    end = data.find(b"\r\n")
    if end >= 0:
        return end + 2
    if len(data) == _LINE_MOST or b"\n" in data or b"\r" in data[:-1]:
        raise ProxyHeaderError("the line is too long or does not end with CRLF")
    return None


def _line(line: bytes) -> Origin:
    match = _LINE(line)
    if match is None:
        raise ProxyHeaderError("the line is malformed")
    unknown, version, source, destination, *ports = match.groups()
    if unknown:
        return _NOBODY
    if any(int(port) > 65535 for port in ports):
        raise ProxyHeaderError("a port is out of range")
    family = IPv4Address if version == b"4" else IPv6Address
    try:
        address, _ = family(source.decode()), family(destination.decode())
    except ValueError:
        raise ProxyHeaderError("an address is malformed, or of the other family") from None
    return Origin(one_form(address))


# version 2


def _end_of_binary(data: bytes) -> int | None:
    """Return where the header ends, if that is known; refuse early what will be refused."""
    _expect(data, SIGNATURE)
    if len(data) > 12 and data[12] not in (0x20, 0x21):
        raise ProxyHeaderError("the version is not 2, or the command is unknown")
    if len(data) > 13 and data[12] == 0x21 and (data[13] >> 4 > 3 or data[13] & 15 > 2):
        raise ProxyHeaderError("the address family or the protocol is unknown")
    if len(data) < _FIXED:
        return None
    end = _FIXED + int.from_bytes(data[14:16])
    if end > MOST:
        raise ProxyHeaderError(f"the header is longer than {MOST} bytes")
    return end


def _binary(header: bytes) -> Origin:
    family, protocol = header[13] >> 4, header[13] & 15
    if header[12] == 0x20 or family == 0 or protocol == 0:
        return _NOBODY
    at = _FIXED + _SIZES[family]
    if at > len(header):
        raise ProxyHeaderError("the addresses are cut off")
    tls = _additions(header, at)
    if protocol != 1:
        return _NOBODY
    if family == 3:
        return Origin(None, tls)
    address = IPv4Address(header[16:20]) if family == 1 else IPv6Address(header[16:32])
    return Origin(one_form(address), tls)


def _additions(header: bytes, at: int) -> bool:
    """Check the TLVs from ``at`` on; return whether one says that the client speaks TLS."""
    seen: set[int] = set()
    tls = False
    while at < len(header):
        kind, value = header[at], at + 3
        at = value + int.from_bytes(header[at + 1 : value])
        if value > len(header) or at > len(header):
            raise ProxyHeaderError("an addition is cut off")
        if kind not in (_CRC32C, _TLS):
            continue
        if kind in seen or at - value < (4 if kind == _CRC32C else 5):
            raise ProxyHeaderError("an addition is too short or comes twice")
        seen.add(kind)
        if kind == _TLS:
            tls = bool(header[value] & 1)
        elif at - value != 4 or int.from_bytes(header[value:at]) != crc32c(
            header[:value] + bytes(4) + header[at:]
        ):
            raise ProxyHeaderError("the checksum is wrong")
    return tls


def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_TABLE: Final = _table()


def crc32c(data: bytes) -> int:
    """Return the CRC32C of ``data`` (RFC 4960, appendix B)."""
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF
