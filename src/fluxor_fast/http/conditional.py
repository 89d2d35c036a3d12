"""Conditional and range requests: which answer a client's preconditions ask for. Pure.

The caller knows the representation by its *validators*, an entity tag and the time of its last
change; ``precondition`` says whether to answer in full, 304 or 412, ``part`` which bytes.

Rules kept here (sections of RFC 9110):

1. Preconditions count in the order of 13.2.2: If-Match, else If-Unmodified-Since; then
   If-None-Match, else If-Modified-Since; then If-Range with Range.
2. If-Match and If-Range compare strongly, If-None-Match weakly (8.8.3.2).
3. A date that is not one is ignored (13.1.3 and 13.1.4). A list of entity tags that is malformed
   matches nothing, but for If-None-Match with an unsafe method: there it is 412, so that nothing
   is overwritten on a misunderstanding.
4. A date in If-Range is never strong enough: that a file did not change twice in one second is
   not known (8.8.2.2). Who got an entity tag has to use it anyway (13.1.5).
5. Range counts with GET only (14.2), in bytes only; one that is malformed, has more than
   ``MOST_RANGES`` ranges, or asks for parts that do not join into one, is ignored: the answer is
   whole. So there is no ``multipart/byteranges``, and no request whose answer is larger than the
   file. Nothing is out of range of nothing: an empty file is answered whole.
6. What is out of range altogether is 416 with ``Content-Range: bytes */length`` (15.5.17).
"""

from __future__ import annotations

import re
import time
from calendar import timegm
from collections.abc import Mapping
from email.utils import formatdate
from typing import Final

from fluxor_fast.errors import HTTPError

__all__ = ["MOST_RANGES", "entity_tags", "http_date", "parse_date", "part", "precondition"]

MOST_RANGES: Final = 16

_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_MONTH = "|".join(_MONTHS)
_DAY = "Mon|Tue|Wed|Thu|Fri|Sat|Sun"
_LONG_DAY = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
_CLOCK = r"(?P<hour>[01][0-9]|2[0-3]):(?P<minute>[0-5][0-9]):(?P<second>[0-5][0-9]|60)"
_DATES = tuple(
    re.compile(form)
    for form in (
        rf"(?:{_DAY}), (?P<day>[0-9]{{2}}) (?P<month>{_MONTH}) (?P<year>[0-9]{{4}}) {_CLOCK} GMT",
        rf"(?:{_LONG_DAY}), (?P<day>[0-9]{{2}})-(?P<month>{_MONTH})-(?P<year>[0-9]{{2}})"
        rf" {_CLOCK} GMT",
        rf"(?:{_DAY}) (?P<month>{_MONTH}) (?P<day>[0-9]{{2}}| [0-9]) {_CLOCK} (?P<year>[0-9]{{4}})",
    )
)
_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_BETWEEN = re.compile(r"[ \t]*(?:,[ \t]*)+")
_RANGES = re.compile(r"bytes=(.*)", re.IGNORECASE)
# more digits than any file has bytes are no range: the answer is whole
_RANGE = re.compile(r"([0-9]{0,18})-([0-9]{0,18})")


def http_date(seconds: float) -> str:
    """Return the time in seconds since 1970 as a field value (5.6.7)."""
    return formatdate(seconds, usegmt=True)


def parse_date(text: str, now: float) -> int | None:
    """Return seconds since 1970 of a date in one of the three forms (5.6.7), or None.

    :param now: seconds since 1970; a year of two digits lies at most 50 years beyond it.
    """
    for form in _DATES:
        match = form.fullmatch(text)
        if match is not None:
            break
    else:
        return None
    year, day = int(match["year"]), int(match["day"])
    if len(match["year"]) == 2:
        current = time.gmtime(now).tm_year
        year += current - current % 100
        if year > current + 50:
            year -= 100
    month = _MONTHS.index(match["month"]) + 1
    try:
        midnight = timegm((year, month, day, 0, 0, 0))
    except ValueError:  # the 0th of a month, the year 0
        return None
    if time.gmtime(midnight)[:3] != (year, month, day):  # the 30th of February
        return None
    return midnight + int(match["hour"]) * 3600 + int(match["minute"]) * 60 + int(match["second"])


def entity_tags(text: str) -> list[tuple[bool, str]] | None:
    """Return the entity tags of a list as (weak, opaque tag with its quotes); None: malformed."""
    tags: list[tuple[bool, str]] = []
    at = 0
    text = text.strip(" \t,")  # empty members are allowed (5.6.1.2)
    while at < len(text):
        tag = _TAG.match(text, at)
        if tag is None:
            return None
        tags.append((tag[1] is not None, tag[2]))
        at = tag.end()
        if at == len(text):
            break
        between = _BETWEEN.match(text, at)
        if between is None:
            return None
        at = between.end()
    return tags or None


def _split(etag: str) -> tuple[bool, str]:
    return (True, etag[2:]) if etag.startswith("W/") else (False, etag)


def precondition(
    method: str, headers: Mapping[str, str], etag: str, modified: float, now: float
) -> int:
    """Return the status the preconditions ask for: 200 (go on), 304 or 412.

    :param headers: the request's, looked up in lower case.
    :param etag: entity tag of the representation there is, ``"…"`` or ``W/"…"``.
    :param modified: when it was last changed, in seconds since 1970.
    :param now: in seconds since 1970.
    """
    weak, opaque = _split(etag)
    safe = method in ("GET", "HEAD")
    modified = int(modified)  # a date has no fractions
    match = headers.get("if-match")
    if match is not None:
        if match != "*" and (weak or (False, opaque) not in (entity_tags(match) or ())):
            return 412
    else:
        unmodified = headers.get("if-unmodified-since")
        if unmodified is not None:
            date = parse_date(unmodified, now)
            if date is not None and modified > date:
                return 412
    none_match = headers.get("if-none-match")
    if none_match is not None:
        tags = entity_tags(none_match)
        if (
            none_match == "*"
            or (tags is None and not safe)
            or any(tag == opaque for _, tag in tags or ())
        ):
            return 304 if safe else 412
    elif safe:
        since = headers.get("if-modified-since")
        if since is not None:
            date = parse_date(since, now)
            if date is not None and modified <= date:
                return 304
    return 200


def part(method: str, headers: Mapping[str, str], etag: str, length: int) -> tuple[int, int] | None:
    """Return (offset, count) of the part to answer with 206, or None for the whole.

    :param headers: the request's, looked up in lower case.
    :param etag: entity tag of the representation there is.
    :param length: its length in bytes.
    :raises HTTPError: 416 when all that is asked for lies beyond the end.
    """
    wanted = headers.get("range")
    if wanted is None or method != "GET" or length == 0:
        return None
    condition = headers.get("if-range")
    if condition is not None and (condition != etag or etag.startswith("W/")):
        return None
    ranges = _ranges(wanted, length)
    if ranges is None:
        return None
    if not ranges:
        raise HTTPError(
            416,
            f"the range lies beyond the {length} bytes there are",
            headers={"Content-Range": f"bytes */{length}"},
        )
    ranges.sort()
    first, stop = ranges[0]
    for start, end in ranges[1:]:
        if start > stop:
            return None
        stop = max(stop, end)
    return first, stop - first


def _ranges(text: str, length: int) -> list[tuple[int, int]] | None:
    """Return the ranges that can be satisfied as (start, stop); None: the field is ignored."""
    match = _RANGES.fullmatch(text)
    if match is None:
        return None
    specs = [spec for spec in (one.strip(" \t") for one in match[1].split(",")) if spec]
    if not 0 < len(specs) <= MOST_RANGES:
        return None
    found: list[tuple[int, int]] = []
    for spec in specs:
        numbers = _RANGE.fullmatch(spec)
        if numbers is None or spec == "-":
            return None
        first, last = numbers.groups()
        if not first:
            start, stop = max(length - int(last), 0), length
        else:
            start, stop = int(first), min(int(last) + 1, length) if last else length
            if last and int(last) < start:
                return None
        if start < stop:
            found.append((start, stop))
    return found
