"""What trusted proxies say of a client: its address, its scheme, the host it asked for.

Rules:

1. Only a trusted proxy is believed. The peer of the connection is a fact. If it is trusted, the
   last entry of the forwarding field is its word; if the address in it is trusted too, the entry
   before that is that one's word; and so on. The first address that is not trusted is the
   client's: what stands left of it the client may have made up, and it is not looked at.
2. Only one family of fields is looked at, the one that the proxies are known to keep:
   ``X-Forwarded-For``, ``-Proto`` and ``-Host``, or ``Forwarded`` (RFC 7239). A proxy passes
   the other one on as the client wrote it.
3. What cannot be read ends the walk at the last address that could: never an exception, and never
   a look beyond. So do an empty entry, ``unknown`` and obfuscated names (RFC 7239, section 6).
4. Addresses come out in one form (see ``addresses``), without ports; a scheme is ``http`` or
   ``https``; a host is a name or an address with or without a port. Nothing else gets out, so
   that neither logs nor limits by address see a client's own text.
5. The work is bounded: ``HOPS`` entries.

``X-Forwarded-Proto`` and ``-Host`` are no lists by intent. Where they have several entries the
last one counts, the nearest proxy's. In ``Forwarded`` an entry says all of it together, and those
of the outermost trusted proxy count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Final, Literal

from fluxor_fast.http.grammar import TCHAR, TOKEN
from fluxor_fast.http.request import Head, Headers
from fluxor_fast.server.addresses import Trust, canonical

__all__ = ["HOPS", "Proxies", "elements", "node"]

HOPS: Final = 32
"""Most entries looked at."""
_PARAMETERS: Final = 16  # most of one element; four are defined

# An address that may have a port, which may be obfuscated (RFC 7239, section 6).
_WITH_PORT = re.compile(
    r"(?:\[([^\[\]]+)\]|([0-9.]+))(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?"
).fullmatch
_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?").fullmatch
# One parameter of an element, read from its end, that is, from right to left in a reversed text:
# only so an element that a proxy has added means the same whatever the client wrote before it.
# Escapes in quotes could not be read so; none is needed in what counts here. Unquoted, a value may
# hold what stands in addresses: not all senders put the quotes around them that they should.
_REVERSED = re.compile(rf'[ \t;]*(?:"([^"\\]*)"|([{TCHAR}:\[\]]+))=({TOKEN})([ \t;]*)(,|\Z)?').match


def node(text: str) -> str | None:
    """Return the address in one entry, without its port; None if there is none."""
    text = text.strip(" \t")
    match = _WITH_PORT(text)
    if match is None:
        return canonical(text)  # IPv6 without brackets, so without a port
    inside, plain = match.groups()
    if plain is not None:
        return canonical(plain)
    return canonical(inside) if ":" in inside else None


def elements(field: str) -> Iterator[dict[str, str]]:
    """Yield the elements of a ``Forwarded`` field from the last to the first.

    The names are in lower case. The first one that is malformed ends it.
    """
    text, at = field[::-1], 0
    found: dict[str, str] = {}
    while match := _REVERSED(text, at):
        quoted, plain, name, gap, end = match.groups()
        name = name[::-1].lower()
        if name in found or len(found) == _PARAMETERS:
            return
        found[name] = (plain if quoted is None else quoted)[::-1]
        at = match.end()
        if end is not None:
            yield found
            found = {}
        elif ";" not in gap:
            return


def _scheme(text: str) -> str | None:
    text = text.lower()
    return text if text in ("http", "https") else None


def _host(text: str) -> str | None:
    return text if _HOST(text) else None


def _last(field: str) -> str:
    return field.rpartition(",")[2].strip(" \t")


class Proxies:
    """What to believe of what proxies say.

    :param trust: whose word counts.
    :param header: the field that the proxies keep.
    """

    def __init__(
        self,
        trust: Trust,
        header: Literal["x-forwarded-for", "forwarded"] = "x-forwarded-for",
    ) -> None:
        self.trusts = trust.includes
        self._rfc7239 = header == "forwarded"

    def client(self, peer: str, head: Head) -> str:
        """Return the address of the client; ``peer`` if no trusted proxy says another."""
        if not self.trusts(peer):
            return peer
        if self._rfc7239:
            return self._walk(peer, head.headers)[0]
        client = peer
        for hop in reversed(head.headers.get("x-forwarded-for", "").rsplit(",", HOPS)[-HOPS:]):
            address = node(hop)
            if address is None:
                break
            client = address
            if not self.trusts(client):
                break
        return client

    def scheme(self, peer: str, own: str, head: Head) -> str:
        """Return the scheme that the client used; ``own`` if no trusted proxy says."""
        if not self.trusts(peer):
            return own
        if self._rfc7239:
            return self._walk(peer, head.headers)[1] or own
        return _scheme(_last(head.headers.get("x-forwarded-proto", ""))) or own

    def host(self, peer: str, head: Head) -> str:
        """Return the host that the client asked for; the request's if no trusted proxy says."""
        if not self.trusts(peer):
            return head.host
        if self._rfc7239:
            return self._walk(peer, head.headers)[2] or head.host
        return _host(_last(head.headers.get("x-forwarded-host", ""))) or head.host

    def _walk(self, peer: str, headers: Headers) -> tuple[str, str | None, str | None]:
        """Return client, scheme and host by ``Forwarded``; None for what it does not say."""
        client, scheme, host = peer, None, None
        for element in islice(elements(headers.get("forwarded", "")), HOPS):
            scheme = _scheme(element.get("proto", "")) or scheme
            host = _host(element.get("host", "")) or host
            address = node(element.get("for", ""))
            if address is None:
                break
            client = address
            if not self.trusts(client):
                break
        return client, scheme, host
