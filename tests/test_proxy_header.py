"""The PROXY header, versions 1 and 2, as HAProxy's specification has it; section numbers are its.

Each header is read whole, byte by byte and in random pieces, alone and with what follows it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import random

import pytest

from fluxor_fast.server.proxy_header import (
    MOST,
    SIGNATURE,
    Origin,
    ProxyHeader,
    ProxyHeaderError,
    crc32c,
)
from tests.support.seeds import cut, seeded, single

V4 = bytes([203, 0, 113, 9, 192, 0, 2, 1, 0x12, 0x67, 0, 80])
V6 = ipaddress.IPv6Address("2001:db8::1").packed * 2 + bytes(4)
MAPPED = ipaddress.IPv6Address("::ffff:203.0.113.9").packed * 2 + bytes(4)
UNIX = b"/run/client".ljust(108, b"\0") + b"/run/us".ljust(108, b"\0")
CLIENT = Origin("203.0.113.9")
UNCHANGED = Origin(None)
LONG6 = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"


def v2(block: bytes, family: int = 0x11, command: int = 0x21, length: int | None = None) -> bytes:
    size = len(block) if length is None else length
    return SIGNATURE + bytes([command, family]) + size.to_bytes(2) + block


def tlv(kind: int, value: bytes, length: int | None = None) -> bytes:
    return bytes([kind]) + (len(value) if length is None else length).to_bytes(2) + value


def summed(block: bytes, before: bytes = b"", after: bytes = b"", wrong: int = 0) -> bytes:
    """Return a header with a checksum between other additions."""
    empty = v2(block + before + tlv(3, bytes(4)) + after)
    crc = crc32c(empty) ^ wrong
    return v2(block + before + tlv(3, crc.to_bytes(4)) + after)


def tls(client: int) -> bytes:
    return tlv(0x20, bytes([client, 0, 0, 0, 0]) + tlv(0x21, b"TLSv1.3"))


VALID: dict[str, tuple[bytes, Origin]] = {
    # 2.1
    "tcp4": (b"PROXY TCP4 203.0.113.9 192.0.2.1 56324 443\r\n", CLIENT),
    "longest-tcp4": (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        Origin("255.255.255.255"),
    ),
    "port-0": (b"PROXY TCP4 203.0.113.9 192.0.2.1 0 0\r\n", CLIENT),
    "tcp6": (b"PROXY TCP6 2001:DB8:0::1 2001:db8::2 1 2\r\n", Origin("2001:db8::1")),
    "tcp6-mapped": (b"PROXY TCP6 ::ffff:203.0.113.9 ::ffff:192.0.2.1 1 2\r\n", CLIENT),
    "longest-tcp6": (f"PROXY TCP6 {LONG6} {LONG6} 65535 65535\r\n".encode(), Origin(LONG6)),
    "unknown": (b"PROXY UNKNOWN\r\n", UNCHANGED),
    "longest-unknown": (f"PROXY UNKNOWN {LONG6} {LONG6} 65535 65535\r\n".encode(), UNCHANGED),
    "unknown-and-anything": (b"PROXY UNKNOWN \0\xff PROXY TCP4 1.1.1.1\r\n", UNCHANGED),
    # 2.2
    "v2-tcp4": (v2(V4), CLIENT),
    "v2-tcp6": (v2(V6, 0x21), Origin("2001:db8::1")),
    "v2-tcp6-mapped": (v2(MAPPED, 0x21), CLIENT),
    "v2-local": (v2(b"", 0, 0x20), UNCHANGED),
    "v2-local-with-a-block": (v2(V4, 0x11, 0x20), UNCHANGED),
    "v2-local-whatever-the-family": (v2(b"any", 0xFF, 0x20), UNCHANGED),
    "v2-unspecified": (v2(b"", 0), UNCHANGED),
    "v2-unspecified-with-a-block": (v2(b"abc", 0), UNCHANGED),
    "v2-unspecified-protocol": (v2(V4, 0x10), UNCHANGED),
    "v2-udp4": (v2(V4, 0x12), UNCHANGED),
    "v2-udp6": (v2(V6, 0x22), UNCHANGED),
    "v2-unix": (v2(UNIX, 0x31), UNCHANGED),
    "v2-unix-datagram": (v2(UNIX, 0x32), UNCHANGED),
    "v2-additions": (v2(V4 + tlv(1, b"h2") + tlv(4, b"") + tlv(0xEE, b"x" * 300)), CLIENT),
    "v2-longest": (v2(V4 + tlv(4, bytes(MOST - 16 - 12 - 3))), CLIENT),
    "v2-tls": (v2(V4 + tls(1)), Origin("203.0.113.9", True)),
    "v2-tls-certificate": (v2(V6 + tls(7), 0x21), Origin("2001:db8::1", True)),
    "v2-tls-not-used": (v2(V4 + tls(0)), CLIENT),
    "v2-tls-unix": (v2(UNIX + tls(1), 0x31), Origin(None, True)),
    "v2-tls-of-a-local-one": (v2(V4 + tls(1), 0x11, 0x20), UNCHANGED),
    "v2-checksum": (summed(V4), CLIENT),
    "v2-checksum-among-others": (
        summed(V4, tls(1), tlv(2, b"a.example")),
        Origin("203.0.113.9", True),
    ),
    "v2-zero-address": (v2(bytes(12)), Origin("0.0.0.0")),
}

INVALID: dict[str, bytes] = {
    "nothing-of-it": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "tls-hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "empty-lines": b"\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    "lower-case": b"proxy TCP4 203.0.113.9 192.0.2.1 1 2\r\n",
    "lower-case-family": b"PROXY tcp4 203.0.113.9 192.0.2.1 1 2\r\n",
    "space-before": b" PROXY TCP4 203.0.113.9 192.0.2.1 1 2\r\n",
    "tab": b"PROXY\tTCP4 203.0.113.9 192.0.2.1 1 2\r\n",
    "two-spaces": b"PROXY TCP4  203.0.113.9 192.0.2.1 1 2\r\n",
    "space-behind": b"PROXY TCP4 203.0.113.9 192.0.2.1 1 2 \r\n",
    "one-more-field": b"PROXY TCP4 203.0.113.9 192.0.2.1 1 2 3\r\n",
    "one-field-less": b"PROXY TCP4 203.0.113.9 192.0.2.1 1\r\n",
    "no-fields": b"PROXY TCP4\r\n",
    "no-family": b"PROXY \r\n",
    "other-family": b"PROXY UDP4 203.0.113.9 192.0.2.1 1 2\r\n",
    "unknown-and-more": b"PROXY UNKNOWNS\r\n",
    "bare-lf": b"PROXY TCP4 203.0.113.9 192.0.2.1 1 2\n",
    "bare-cr": b"PROXY TCP4 203.0.113.9 192.0.2.1 1 2\rGET",
    "lf-in-unknown": b"PROXY UNKNOWN a\nb\r\n",
    "cr-in-unknown": b"PROXY UNKNOWN a\rb\r\n",
    "cr-cr-lf": b"PROXY UNKNOWN\r\r\n",
    "nul": b"PROXY TCP4 203.0.113.9 192.0.2.1 1 2\0\r\n",
    "too-long": b"PROXY UNKNOWN " + b"a" * 92 + b"\r\n",
    "no-end": b"PROXY UNKNOWN " + b"a" * 93,
    "address-of-the-other-family": b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
    "address-of-the-other-family-6": b"PROXY TCP6 203.0.113.9 192.0.2.1 1 2\r\n",
    "destination-of-the-other-family": b"PROXY TCP4 203.0.113.9 2001:db8::2 1 2\r\n",
    "address-leading-zero": b"PROXY TCP4 203.0.113.09 192.0.2.1 1 2\r\n",
    "address-octal": b"PROXY TCP4 0203.0.113.9 192.0.2.1 1 2\r\n",
    "address-short": b"PROXY TCP4 203.113.9 192.0.2.1 1 2\r\n",
    "address-out-of-range": b"PROXY TCP4 203.0.113.256 192.0.2.1 1 2\r\n",
    "address-with-two-gaps": b"PROXY TCP6 2001::db8::1 2001:db8::2 1 2\r\n",
    "address-with-zone": b"PROXY TCP6 fe80::1%eth0 2001:db8::2 1 2\r\n",
    "address-in-brackets": b"PROXY TCP6 [2001:db8::1] 2001:db8::2 1 2\r\n",
    "address-too-long": b"PROXY TCP6 1:2:3:4:5:6:7:8:9 2001:db8::2 1 2\r\n",
    "destination-malformed": b"PROXY TCP4 203.0.113.9 192.0.2 1 2\r\n",
    "port-leading-zero": b"PROXY TCP4 203.0.113.9 192.0.2.1 01 2\r\n",
    "port-00": b"PROXY TCP4 203.0.113.9 192.0.2.1 1 00\r\n",
    "port-65536": b"PROXY TCP4 203.0.113.9 192.0.2.1 65536 2\r\n",
    "port-of-the-destination-65536": b"PROXY TCP4 203.0.113.9 192.0.2.1 1 65536\r\n",
    "port-negative": b"PROXY TCP4 203.0.113.9 192.0.2.1 -1 2\r\n",
    "port-plus": b"PROXY TCP4 203.0.113.9 192.0.2.1 +1 2\r\n",
    "port-hex": b"PROXY TCP4 203.0.113.9 192.0.2.1 0x1 2\r\n",
    "port-empty": b"PROXY TCP4 203.0.113.9 192.0.2.1  2\r\n",
    "port-not-ascii": "PROXY TCP4 203.0.113.9 192.0.2.1 \u0661 2\r\n".encode(),
    "signature-wrong-at-the-end": SIGNATURE[:-1] + b"\r" + v2(V4)[12:],
    "v2-version-1": v2(V4, command=0x11),
    "v2-version-3": v2(V4, command=0x31),
    "v2-version-0": v2(V4, command=0x01),
    "v2-command-2": v2(V4, command=0x22),
    "v2-command-15": v2(V4, command=0x2F),
    "v2-family-4": v2(V4, 0x41),
    "v2-family-15": v2(V4, 0xF1),
    "v2-protocol-3": v2(V4, 0x13),
    "v2-protocol-of-unspecified-3": v2(b"", 0x03),
    "v2-tcp4-short": v2(V4[:-1]),
    "v2-tcp4-empty": v2(b""),
    "v2-tcp6-short": v2(V6[:-1], 0x21),
    "v2-tcp6-as-long-as-tcp4": v2(V4, 0x21),
    "v2-udp-short": v2(V4[:-1], 0x12),
    "v2-unix-short": v2(UNIX[:-1], 0x31),
    "v2-too-long": v2(V4 + tlv(4, bytes(MOST - 16 - 12 - 2))),
    "v2-much-too-long": v2(V4, length=65535),
    "v2-local-too-long": v2(V4, command=0x20, length=65535),
    "v2-addition-of-one-byte": v2(V4 + b"\x04"),
    "v2-addition-of-two-bytes": v2(V4 + b"\x04\0"),
    "v2-addition-too-long": v2(V4 + tlv(4, b"ab", 3)),
    "v2-addition-too-long-behind-another": v2(V4 + tlv(4, b"ab") + tlv(0xEE, b"", 1)),
    "v2-addition-to-unix-too-long": v2(UNIX + tlv(4, b"", 1), 0x31),
    "v2-tls-too-short": v2(V4 + tlv(0x20, bytes(4))),
    "v2-tls-empty": v2(V4 + tlv(0x20, b"")),
    "v2-tls-twice": v2(V4 + tls(0) + tls(1)),
    "v2-checksum-wrong": summed(V4, wrong=1),
    "v2-checksum-wrong-in-its-first-byte": summed(V4, wrong=1 << 31),
    "v2-checksum-too-short": v2(V4 + tlv(3, bytes(3))),
    "v2-checksum-too-long": v2(V4 + tlv(3, bytes(5))),
    "v2-checksum-twice": summed(V4, tlv(3, bytes(4))),
}

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def read(pieces: list[bytes]) -> tuple[Origin | None, bytes]:
    """Return what the header says, and what is left over; None if it is not whole."""
    header = ProxyHeader()
    for at, piece in enumerate(pieces):
        origin = header.feed(piece)
        if origin is not None:
            return origin, header.rest + b"".join(pieces[at + 1 :])
    return None, b""


def ways(data: bytes, rng: random.Random) -> list[list[bytes]]:
    return [[data], single(data), *(cut(data, rng) for _ in range(20))]


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("behind", [b"", REQUEST, b"\r\n", b"\0", VALID["v2-tcp6"][0]])
def test_a_header_is_read_however_it_is_cut(name: str, behind: bytes) -> None:
    header, origin = VALID[name]
    for pieces in ways(header + behind, seeded(f"{name} {behind!r}")):
        assert read(pieces) == (origin, behind)


@pytest.mark.parametrize("name", VALID)
def test_a_part_of_a_header_is_none(name: str) -> None:
    header, _ = VALID[name]
    for end in range(len(header)):
        reader = ProxyHeader()
        assert not reader.begun
        assert reader.feed(header[:end]) is None
        assert reader.begun is (end > 0)


@pytest.mark.parametrize("name", INVALID)
@pytest.mark.parametrize("behind", [b"", REQUEST])
def test_what_is_no_header_is_refused_however_it_is_cut(name: str, behind: bytes) -> None:
    data = INVALID[name] + behind
    for pieces in ways(data, seeded(f"{name} {behind!r}")):
        with pytest.raises(ProxyHeaderError) as caught:
            read(pieces)
        assert str(caught.value).isascii() and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("data", "at"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 1),
        (b"PROXX TCP4", 5),
        (b"PROXYTCP4", 6),
        (b"PROXY TCP4\n", 11),
        (b"PROXY TCP4\rx", 12),
        (b"\r\n\r\nGET", 5),
        (v2(V4, command=0x22), 13),
        (v2(V4, 0x41), 14),
        (v2(V4, length=65535), 16),
    ],
)
def test_it_is_refused_with_the_first_byte_that_shows_it(data: bytes, at: int) -> None:
    header = ProxyHeader()
    for byte in single(data[: at - 1]):
        assert header.feed(byte) is None
    with pytest.raises(ProxyHeaderError):
        header.feed(data[at - 1 : at])


def test_every_value_of_the_two_bytes_that_say_what_it_is() -> None:
    block = UNIX + tls(1)
    for command in range(256):
        for family in range(256):
            valid = command == 0x20 or (command == 0x21 and family >> 4 < 4 and family & 15 < 3)
            if family >> 4 == 1 and command == 0x21 and family & 15 in (1, 2):
                valid = False  # what stands behind the short addresses is no addition
            if family >> 4 == 2 and command == 0x21 and family & 15 in (1, 2):
                valid = False
            try:
                read([v2(block, family, command)])
            except ProxyHeaderError:
                assert not valid, (command, family)
            else:
                assert valid, (command, family)


def test_no_bit_of_a_header_with_a_checksum_can_be_flipped() -> None:
    """But those that make it LOCAL, of another family, or longer than what is there."""
    header = summed(V4, tls(1))
    for bit in range(8 * 16, 8 * len(header)):
        data = bytearray(header)
        data[bit // 8] ^= 1 << bit % 8
        if bit // 8 == header.index(tlv(3, b"")[:1], 28 + len(tls(1))):
            continue  # its type: then it is another addition, which nobody looks at
        with pytest.raises(ProxyHeaderError):
            read([bytes(data)])


def test_mutated_headers_are_read_or_refused_the_same_way_however_they_are_cut() -> None:
    """Never another exception, never a header of two meanings, never more held than allowed."""
    rng = seeded("mutated PROXY headers")
    outcomes = {"read": 0, "refused": 0, "waits": 0}
    good = [header for header, _ in VALID.values()]

    def outcome(pieces: list[bytes]) -> object:
        try:
            found = read(pieces)
        except ProxyHeaderError:
            return "refused"
        return found if found[0] is not None else "waits"

    for _ in range(6000):
        data = bytearray(rng.choice(good) + rng.choice((b"", REQUEST)))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(min(len(data), 60))
            match rng.randrange(4):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    del data[at : at + rng.randint(1, 3)]
                case 2:
                    data[at:at] = rng.choice((b" ", b"\r", b"\n", b"\0", b"0", b":", b"."))
                case 3:
                    data[at] ^= 1 << rng.randrange(8)
        whole = outcome([bytes(data)])
        assert outcome(cut(bytes(data), rng)) == whole, bytes(data)
        assert outcome(single(bytes(data[:200]))) in (whole, "waits"), bytes(data)
        if isinstance(whole, str):
            outcomes[whole] += 1
        else:
            outcomes["read"] += 1
            origin = whole[0]
            assert origin.address is None or str(ipaddress.ip_address(origin.address))
    print(outcomes)
    assert min(outcomes.values()) > 200, outcomes


def test_random_bytes_raise_nothing_else() -> None:
    rng = seeded("random bytes")
    for _ in range(5000):
        start = rng.choice((b"", b"P", b"PROXY ", b"\r\n\r\n\0", SIGNATURE + b"\x21\x11"))
        with contextlib.suppress(ProxyHeaderError):
            read([start + rng.randbytes(rng.randint(1, 200))])


def test_no_more_is_held_than_a_header_may_have() -> None:
    for start, most in ((b"PROXY UNKNOWN ", 107), (v2(V4, length=MOST - 16), MOST)):
        header = ProxyHeader()
        fed = header.feed(start)
        count = len(start)
        while fed is None and count < 2 * MOST:
            try:
                fed = header.feed(b"a")
            except ProxyHeaderError:
                break
            count += 1
        assert count <= most


def test_the_checksum_is_that_of_rfc_4960() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"") == 0
