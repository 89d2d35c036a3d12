"""Bytes read by h11 and by us, and how the two differ.

A *difference* is a pair: what we did with the first message on which we part, and what h11 did.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import h11

from fluxor_fast import HTTPError
from fluxor_fast.routing import Router
from fluxor_fast.server.framing import Reader
from fluxor_fast.server.heads import HeadCache, Limits

GOES_ON = "goes on"  # takes the message, or waits for more of it
CLOSES = "closes"  # reads nothing behind the message before

Message = tuple[str, bytes, bytes, bytes]
"""Method, path, query, body."""


@dataclass
class Reading:
    """The messages found in a stream, and why no more are read, if so."""

    messages: list[Message]
    refusal: str | None = None
    closes: bool = False


def by_us(wire: bytes, router: Router, limits: Limits) -> Reading:
    """Return what our reader makes of ``wire``."""
    reader = Reader(HeadCache(router, limits, lambda: 0, entries=0))
    reader.feed(wire)
    found: list[Message] = []
    try:
        while (message := reader.next()) is not None:
            head, body = message
            if body is None:  # it is answered before its body has come
                body = b""
                while reader.in_body and (piece := reader.piece()):
                    body += piece
                if reader.in_body:
                    break
            found.append((head.method, head.path.encode(), head.query, body))
            if not head.keep_alive:
                return Reading(found, closes=True)
    except HTTPError as error:
        # limits and lengths are not part of what is said
        text = re.sub(r"(than) \d+", r"\1 N", error.message)
        return Reading(found, f"{error.status}: {text}")
    return Reading(found)


def by_h11(wire: bytes) -> Reading:
    """Return what h11 makes of ``wire``, where every request is answered at once."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=64 * 1024)
    connection.receive_data(wire)
    found: list[Message] = []
    request: h11.Request | None = None
    body = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                request, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                found.append((request.method.decode(), *split(bytes(request.target)), body))
                if connection.our_state is h11.SEND_RESPONSE:
                    # an offer to leave HTTP is not taken up
                    status = 501 if request.method == b"CONNECT" else 200
                    answer = h11.Response(status_code=status, headers=[("Content-Length", "0")])
                    connection.send(answer)
                    connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE:
                    return Reading(found, closes=True)
                connection.start_next_cycle()
            else:
                return Reading(found)  # it needs more
    except h11.RemoteProtocolError as error:
        return Reading(found, re.sub(r":? ?(bytearray\(|b').*", "", str(error)))


def split(target: bytes) -> tuple[bytes, bytes]:
    """Return path and query of a target."""
    absolute = re.fullmatch(rb"https?://[^/?]*(.*)", target, re.IGNORECASE)
    if absolute is not None:
        target = absolute[1] if absolute[1].startswith(b"/") else b"/" + absolute[1]
    path, _, query = target.partition(b"?")
    return path, query


def difference(ours: Reading, theirs: Reading) -> tuple[str, str] | None:
    """Return how the two differ, or None; what both took must be the same.

    Who refuses a message may do so at another of its bytes than the other: that is no difference.
    """
    common = min(len(ours.messages), len(theirs.messages))
    assert ours.messages[:common] == theirs.messages[:common], "read two ways"
    we_stop = ours.refusal is not None and len(ours.messages) == common
    they_stop = theirs.refusal is not None and len(theirs.messages) == common
    if we_stop and they_stop:
        return None
    if we_stop:
        return str(ours.refusal), GOES_ON
    if they_stop:
        return GOES_ON, str(theirs.refusal)
    if theirs.closes and len(ours.messages) > common:
        return GOES_ON, CLOSES
    assert len(ours.messages) == len(theirs.messages), "not the same number of messages"
    return None
