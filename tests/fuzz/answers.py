"""Reads answers strictly: what is no well-formed answer of this server is an ``AssertionError``."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["CONTINUE", "Answer", "take"]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_HEAD = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9]) [ -~]+\r\n((?:[A-Za-z-]+: [ -~]*\r\n)+)\r\n")


@dataclass(slots=True)
class Answer:
    """One answer as it stood on the wire; the names of ``fields`` are as written."""

    status: int
    fields: dict[bytes, bytes]
    body: bytes

    @property
    def closes(self) -> bool:
        """Whether it says that nothing comes behind it."""
        return self.fields.get(b"Connection") == b"close"


def take(wire: bytes, at: int, *, bodiless: bool) -> tuple[Answer, int]:
    """Return the answer that begins at ``at`` and where it ends; ``bodiless``: it is to HEAD."""
    match = _HEAD.match(wire, at)
    assert match, f"not an answer: {wire[at : at + 80]!r}"
    status = int(match[1])
    lines = match[2][:-2].split(b"\r\n")
    fields = dict([line.split(b": ", 1) for line in lines])
    assert len(fields) == len(lines), f"a field comes twice: {match[0]!r}"
    assert b"Date" in fields and b"X-Request-ID" in fields, f"a field is missing: {match[0]!r}"
    assert b"Transfer-Encoding" not in fields
    length = fields.get(b"Content-Length")
    at = match.end()
    if status in (204, 304):
        assert length is None, "a length where there is no body"
        return Answer(status, fields, b""), at
    assert length is not None and length.isdigit(), f"no length: {match[0]!r}"
    if bodiless:
        return Answer(status, fields, b""), at
    stop = at + int(length)
    assert stop <= len(wire), f"a body is cut off: {wire[match.start() :][:80]!r}"
    return Answer(status, fields, wire[at:stop]), stop
