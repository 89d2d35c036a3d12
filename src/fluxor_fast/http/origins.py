"""Origins and hosts as settings and middleware name them: read in one way, at the start.

Rules:

1. An origin is ``scheme://host`` or ``scheme://host:port`` (RFC 6454, section 6.2) in ASCII.
   ``https://*.example.com`` names every subdomain at any depth: a wildcard stands for whole labels,
   at the left, before two more at least. ``null`` is none: it is anyone's sandboxed frame.
2. A host is a name, ``*.name`` or an address, without a port.
"""

from __future__ import annotations

import re

__all__ = ["read_host", "read_origin"]

_ORIGIN = re.compile(
    r"[a-z][a-z0-9+.-]*://"
    r"(?P<wild>\*\.)?(?P<host>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?"
)
_HOST = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\]")


def read_origin(text: str) -> tuple[str, bool]:
    """Return an origin in lower case, and whether it has a wildcard.

    :raises ValueError: if it is none.
    """
    origin = text.lower()
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        raise ValueError(f"an origin is scheme://host or scheme://host:port, not {text!r}")
    wild = match["wild"] is not None
    if wild and "." not in match["host"]:
        raise ValueError(f"the origin {text!r} would allow what belongs to anyone")
    return origin, wild


def read_host(text: str) -> str:
    """Return a host in lower case.

    :raises ValueError: if it is none.
    """
    host = text.lower()
    if not _HOST.fullmatch(host):
        raise ValueError(f"a host is a name, *.name or an address, not {text!r}")
    return host
