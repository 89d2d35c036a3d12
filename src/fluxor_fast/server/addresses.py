"""Addresses as text, each in one form, and which of them are trusted.

The same client must not have two names, or a limit for each address counts it twice: an IPv4
address that is mapped into IPv6 (RFC 4291, section 2.5.5.2) is written as IPv4, IPv6 in its
shortest form (RFC 5952), and zone ids (RFC 4007, section 11) are left out.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final, Literal

__all__ = ["UNIX", "Network", "Trust", "canonical", "one_form", "peer_of"]

Network = IPv4Network | IPv6Network

UNIX: Final = "unix"
"""Stands for the address of who came through a Unix socket."""

_LONGEST: Final = 80  # characters: 45 of an IPv6 address, and room for a zone id
_ZONE = re.compile(r"[A-Za-z0-9._~-]+").fullmatch


def one_form(address: IPv4Address | IPv6Address) -> str:
    """Return ``address`` as text, without a zone id; as IPv4 if it is mapped."""
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or IPv6Address(int(address)))
    return str(address)


def canonical(text: str) -> str | None:
    """Return the address that ``text`` is, in its one form; None if it is none."""
    if len(text) > _LONGEST:
        return None
    bare, percent, zone = text.partition("%")
    if percent and not (_ZONE(zone) and ":" in bare):
        return None
    try:
        return one_form(ip_address(bare))
    except ValueError:
        return None


def peer_of(transport: Any) -> str:
    """Return the address of the other end of a transport; the empty string if it is not known."""
    name = transport.get_extra_info("peername")
    if isinstance(name, tuple):
        return canonical(name[0]) or ""
    # a TCP connection that has just been reset has no name either, and must not be trusted as
    # a Unix socket may be
    sock = transport.get_extra_info("socket")
    return UNIX if sock is not None and sock.family == socket.AF_UNIX else ""


class Trust:
    """The addresses whose word counts.

    :param networks: networks, and ``unix`` for who comes through a Unix socket.
    """

    def __init__(self, networks: Iterable[Network | Literal["unix"]] = ()) -> None:
        self._unix = False
        self._networks: list[Network] = []
        for network in networks:
            if isinstance(network, str):
                self._unix = True
            else:
                self._networks.append(network)
        # a proxy asks for each request; bounded, as what is asked about may be made up
        self.includes: Callable[[str], bool] = lru_cache(1024)(self._includes)
        """Whether an address in its one form, or ``UNIX``, is trusted; others are not."""

    def _includes(self, address: str) -> bool:
        if address == UNIX:
            return self._unix
        if not self._networks or not address:
            return False
        known = ip_address(address)
        return any(known in network for network in self._networks)
