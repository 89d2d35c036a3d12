"""Addresses in one form, and who is trusted."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from fluxor_fast.server.addresses import UNIX, canonical, peer_of
from tests.support.inprocess import trust


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("::FFFF:CB00:7109", "203.0.113.9"),
        ("fe80::1%eth0", "fe80::1"),
        ("::1", "::1"),
        ("::ffff:203.0.113.9%eth0", "203.0.113.9"),
        ("", None),
        ("localhost", None),
        ("203.0.113.09", None),
        ("203.0.113.256", None),
        ("203.0.113", None),
        ("3405803785", None),
        ("0x7f.0.0.1", None),
        ("203.0.113.9/32", None),
        ("203.0.113.9%eth0", None),
        ("203.0.113.9 ", None),
        ("\u0661.2.3.4", None),
        ("1.2.3.\u00b2", None),
        ("2001:db8::1::", None),
        ("[::1]", None),
        ("fe80::1%", None),
        ("fe80::1%a b", None),
        ("fe80::1%a\nGET / 200", None),
        ("fe80::1%" + "a" * 100, None),
        ("1" * 100_000, None),
    ],
)
def test_an_address_has_one_form(text: str, form: str | None) -> None:
    assert canonical(text) == form
    if form is not None:
        assert canonical(form) == form


@pytest.mark.parametrize(
    ("networks", "address", "trusted"),
    [
        ((), "127.0.0.1", False),
        ((), UNIX, False),
        ((), "", False),
        (("unix",), UNIX, True),
        (("unix",), "127.0.0.1", False),
        (("unix", "0.0.0.0/0", "::/0"), "", False),
        (("0.0.0.0/0", "::/0"), UNIX, False),
        (("10.0.0.0/8",), "10.255.0.1", True),
        (("10.0.0.0/8",), "11.0.0.1", False),
        (("10.0.0.0/8",), "2001:db8::1", False),
        (("10.0.0.0/8", "2001:db8::/32"), "2001:db8::1", True),
    ],
)
def test_only_who_is_named_is_trusted(
    networks: tuple[str, ...], address: str, trusted: bool
) -> None:
    assert trust(*networks).includes(address) is trusted


def test_what_is_remembered_of_addresses_is_bounded() -> None:
    many = trust("10.0.0.0/8")
    for at in range(5000):
        many.includes(f"192.0.{at // 256}.{at % 256}")
    assert many.includes.cache_info().currsize <= 1024  # type: ignore[attr-defined]


class Transport:
    def __init__(self, name: Any, family: int | None) -> None:
        self.name, self.family = name, family

    def get_extra_info(self, what: str) -> Any:
        return self.name if what == "peername" else self.family and self


@pytest.mark.parametrize(
    ("name", "family", "peer"),
    [
        (("203.0.113.9", 1), socket.AF_INET, "203.0.113.9"),
        (("::ffff:203.0.113.9", 1, 0, 0), socket.AF_INET6, "203.0.113.9"),
        (("fe80::1%eth0", 1, 0, 2), socket.AF_INET6, "fe80::1"),
        ("", socket.AF_UNIX, UNIX),
        (b"", socket.AF_UNIX, UNIX),
        ("/tmp/bound-by-the-client\n", socket.AF_UNIX, UNIX),
        (None, socket.AF_UNIX, UNIX),
        (None, socket.AF_INET, ""),
        (None, None, ""),
    ],
)
def test_who_is_at_the_other_end(name: Any, family: int | None, peer: str) -> None:
    assert peer_of(Transport(name, family)) == peer
