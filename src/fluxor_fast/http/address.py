"""Whose an address is: what clients are counted by.

An IPv4 address in IPv6 clothes (RFC 4291, section 2.5.5.2) is what it is, and an IPv6 one is its
/64, which is what one client is given (RFC 6177).
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

__all__ = ["network_of", "read_address"]


def read_address(text: str) -> IPv4Address | IPv6Address | None:
    """Return the address that ``text`` is; None if it is none, as of who uses a Unix socket."""
    try:
        known = ip_address(text)
    except ValueError:
        return None
    return known.ipv4_mapped or known if isinstance(known, IPv6Address) else known


def network_of(known: IPv4Address | IPv6Address) -> bytes:
    """Return what tells its client from others."""
    return known.packed[:8] if isinstance(known, IPv6Address) else known.packed
