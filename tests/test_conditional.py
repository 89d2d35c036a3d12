"""Preconditions, ranges, dates and entity tags; the numbers are sections of RFC 9110."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxor_fast import HTTPError
from fluxor_fast.http.conditional import (
    MOST_RANGES,
    entity_tags,
    http_date,
    parse_date,
    part,
    precondition,
)
from tests.support.seeds import examples

NOW = datetime(2024, 6, 1, tzinfo=UTC).timestamp()
MODIFIED = datetime(2024, 5, 1, 12, 0, 0, 500_000, tzinfo=UTC).timestamp()
SAME, BEFORE, AFTER = (http_date(MODIFIED + more) for more in (0, -1, 1))
TAG = '"a-1"'
OTHER = '"b-2"'


def status(method: str = "GET", etag: str = TAG, **fields: str) -> int:
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    return precondition(method, headers, etag, MODIFIED, NOW)


# dates (5.6.7)

SECONDS = st.integers(
    int(datetime(1975, 1, 1, tzinfo=UTC).timestamp()),
    int(datetime(2070, 12, 31, tzinfo=UTC).timestamp()),
)


@examples(100)
@given(SECONDS)
def test_all_three_forms_of_a_date_say_the_same(seconds: int) -> None:
    moment = time.gmtime(seconds)
    for form in ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"):
        assert parse_date(time.strftime(form, moment), NOW) == seconds
    assert parse_date(http_date(seconds), NOW) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
    ],
)
def test_the_dates_of_the_rfc(text: str) -> None:
    assert parse_date(text, NOW) == 784111777


def test_a_year_of_two_digits_lies_at_most_50_years_ahead() -> None:
    for year, full in ((74, 2074), (75, 1975), (99, 1999), (0, 2000)):
        date = parse_date(f"Monday, 01-Jan-{year:02} 00:00:00 GMT", NOW)
        assert date is not None
        assert time.gmtime(date).tm_year == full


def test_a_leap_second_is_the_next_minute() -> None:
    assert parse_date("Sat, 31 Dec 2016 23:59:60 GMT", NOW) == 1483228800


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "0",
        "Sun, 6 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 UTC",
        "Sun, 06 Nov 1994 08:49:37 +0000",
        "Sun, 06 Nov 1994 24:00:00 GMT",
        "Sun, 06 Nov 1994 08:60:37 GMT",
        "Sun, 06 nov 1994 08:49:37 GMT",
        "Sun, 31 Feb 1994 08:49:37 GMT",
        "Sun, 00 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 0000 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT",
        " Sun, 06 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 GMT\n",
        "Sun, ٠٦ Nov 1994 08:49:37 GMT",
        "Sun Nov 6 08:49:37 1994",
    ],
)
def test_what_is_no_date(text: str) -> None:
    assert parse_date(text, NOW) is None


@examples(100)
@given(st.text(max_size=40))
def test_no_text_breaks_a_parser(text: str) -> None:
    assert parse_date(text, NOW) is None or text
    entity_tags(text)
    fields = dict.fromkeys(
        ("if_match", "if_none_match", "if_modified_since", "if_unmodified_since"), text
    )
    assert status(**fields) in (200, 304, 412)
    part("GET", {"range": text, "if-range": text}, TAG, 10)


# entity tags (8.8.3)

OPAQUE = st.text(st.characters(codec="latin-1", exclude_characters='"', min_codepoint=0x21))
TAGS = st.lists(st.tuples(st.booleans(), OPAQUE.filter(lambda t: "\x7f" not in t)), min_size=1)
COMMAS = st.sampled_from([",", ", ", " ,\t", ",,", " , , "])


@examples(100)
@given(TAGS, st.data())
def test_a_list_of_tags_is_read_as_built(tags: list[tuple[bool, str]], data: st.DataObject) -> None:
    text = ""
    for weak, opaque in tags:
        text += (data.draw(COMMAS) if text else "") + ("W/" if weak else "") + f'"{opaque}"'
    assert entity_tags(text) == [(weak, f'"{opaque}"') for weak, opaque in tags]


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "a",
        '"a',
        'a"',
        'w/"a"',
        'W/ "a"',
        '"a" "b"',
        '"a""b"',
        "*",
        '"a", *',
        '"a";',
        "'a'",
        '"a b"',
        '"a\x7f"',
    ],
)
def test_what_is_no_list_of_tags(text: str) -> None:
    assert entity_tags(text) is None


# preconditions (13.1 and 13.2.2)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 200),
        # 13.1.1: strong comparison
        ({"if_match": "*"}, 200),
        ({"if_match": TAG}, 200),
        ({"if_match": f"{OTHER}, {TAG}"}, 200),
        ({"if_match": OTHER}, 412),
        ({"if_match": f"W/{TAG}"}, 412),
        ({"if_match": "a-1"}, 412),
        # 13.1.4
        ({"if_unmodified_since": SAME}, 200),
        ({"if_unmodified_since": AFTER}, 200),
        ({"if_unmodified_since": BEFORE}, 412),
        ({"if_unmodified_since": "yesterday"}, 200),
        ({"if_unmodified_since": BEFORE, "if_match": TAG}, 200),
        ({"if_unmodified_since": AFTER, "if_match": OTHER}, 412),
        # 13.1.2: weak comparison
        ({"if_none_match": "*"}, 304),
        ({"if_none_match": TAG}, 304),
        ({"if_none_match": f"W/{TAG}"}, 304),
        ({"if_none_match": f"{OTHER},W/{TAG}"}, 304),
        ({"if_none_match": OTHER}, 200),
        ({"if_none_match": "a-1"}, 200),
        # 13.1.3
        ({"if_modified_since": SAME}, 304),
        ({"if_modified_since": AFTER}, 304),
        ({"if_modified_since": BEFORE}, 200),
        ({"if_modified_since": "yesterday"}, 200),
        ({"if_modified_since": f"{SAME}, {SAME}"}, 200),
        ({"if_modified_since": AFTER, "if_none_match": OTHER}, 200),
        ({"if_modified_since": BEFORE, "if_none_match": TAG}, 304),
        # 13.2.2: If-Match before If-None-Match
        ({"if_match": OTHER, "if_none_match": TAG}, 412),
        ({"if_match": TAG, "if_none_match": TAG}, 304),
        ({"if_unmodified_since": BEFORE, "if_modified_since": SAME}, 412),
        ({"if_unmodified_since": SAME, "if_modified_since": SAME}, 304),
    ],
)
def test_preconditions_of_a_get(fields: dict[str, str], expected: int) -> None:
    assert status("GET", **fields) == status("HEAD", **fields) == expected


def test_preconditions_of_an_unsafe_method() -> None:
    assert status("PUT", if_none_match="*") == 412
    assert status("PUT", if_none_match=f"W/{TAG}") == 412
    assert status("PUT", if_none_match=OTHER) == 200
    assert status("PUT", if_none_match="malformed") == 412  # nothing is overwritten by mistake
    assert status("PUT", if_match="malformed") == 412
    assert status("PUT", if_modified_since=AFTER) == 200  # 13.1.3: GET and HEAD only
    assert status("PUT", if_unmodified_since=BEFORE) == 412


def test_a_weak_tag_is_never_matched_strongly() -> None:
    weak = f"W/{TAG}"
    assert status(etag=weak, if_match=TAG) == status(etag=weak, if_match=weak) == 412
    assert status(etag=weak, if_match="*") == 200
    assert status(etag=weak, if_none_match=TAG) == 304


# ranges (14.1.2 and 14.2)


def ranged(text: str, length: int = 100, method: str = "GET") -> tuple[int, int] | int | None:
    """Return the part, or the status of the error."""
    try:
        return part(method, {"range": text}, TAG, length)
    except HTTPError as error:
        assert error.headers == {"Content-Range": f"bytes */{length}"}
        return error.status


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes=0-9", (0, 10)),
        ("bytes=0-0", (0, 1)),
        ("bytes=99-", (99, 1)),
        ("bytes=0-", (0, 100)),
        ("bytes=90-1000", (90, 10)),
        ("bytes=-5", (95, 5)),
        ("bytes=-1000", (0, 100)),
        ("BYTES=0-9", (0, 10)),
        ("bytes= 0-9 ", (0, 10)),
        ("bytes=,0-9,,", (0, 10)),
        ("bytes=000000-000000009", (0, 10)),
        # several that join into one
        ("bytes=0-4,5-9", (0, 10)),
        ("bytes=5-9, 0-6", (0, 10)),
        ("bytes=-5,90-", (90, 10)),
        ("bytes=0-9,200-", (0, 10)),
        # several that do not: the whole
        ("bytes=0-0,-1", None),
        ("bytes=0-4,6-9", None),
        ("bytes=" + "0-," * MOST_RANGES, (0, 100)),
        ("bytes=" + "0-," * (MOST_RANGES + 1), None),
        # beyond the end
        ("bytes=100-", 416),
        ("bytes=100-200,300-", 416),
        ("bytes=-0", 416),
        ("bytes=999999999999999999-", 416),
        # malformed: ignored
        ("bytes=", None),
        ("bytes", None),
        ("bytes=-", None),
        ("bytes=9-0", None),
        ("bytes=0-1,9-0", None),
        ("bytes=200-150", None),
        ("bytes=a-b", None),
        ("bytes=0-9;x", None),
        ("bytes=0 - 9", None),
        ("bytes=--1", None),
        ("bytes=+0-9", None),
        ("bytes=0-9-", None),
        ("bytes=0x0-9", None),
        ("bytes=٠-٩", None),
        ("bytes=0-" + "9" * 5000, None),
        ("bytes =0-9", None),
        ("items=0-9", None),
        ("0-9", None),
    ],
)
def test_ranges(text: str, expected: tuple[int, int] | int | None) -> None:
    assert ranged(text) == expected


def test_where_ranges_do_not_count() -> None:
    assert ranged("bytes=0-9", method="HEAD") is None
    assert ranged("bytes=0-9", method="POST") is None
    assert ranged("bytes=0-9", length=0) is None  # nothing is out of range of nothing
    assert part("GET", {}, TAG, 100) is None


SPECS = st.lists(
    st.tuples(st.integers(0, 40) | st.none(), st.integers(0, 40) | st.none()).filter(
        lambda spec: spec != (None, None)
    ),
    min_size=1,
    max_size=5,
)


@examples(400)
@given(SPECS, st.integers(1, 30))
def test_a_part_is_just_the_bytes_that_were_asked_for(
    specs: list[tuple[int | None, int | None]], length: int
) -> None:
    """The referee marks byte for byte what is asked for."""
    wanted: set[int] = set()
    valid = True
    for first, last in specs:
        if first is None:
            assert last is not None
            wanted |= set(range(max(length - last, 0), length))
        elif last is None:
            wanted |= set(range(first, length))
        else:
            valid = valid and first <= last
            wanted |= set(range(first, min(last + 1, length)))
    text = ",".join(
        f"{'' if first is None else first}-{'' if last is None else last}" for first, last in specs
    )
    found = ranged(f"bytes={text}", length)
    if not valid:
        assert found is None
    elif not wanted:
        assert found == 416
    elif len(wanted) == max(wanted) - min(wanted) + 1:
        assert found == (min(wanted), len(wanted))
    else:
        assert found is None


@pytest.mark.parametrize(
    ("etag", "condition", "counts"),
    [
        (TAG, TAG, True),
        (TAG, OTHER, False),
        (TAG, f"W/{TAG}", False),
        (f"W/{TAG}", f"W/{TAG}", False),
        (f"W/{TAG}", TAG, False),
        (TAG, f"{TAG}, {OTHER}", False),
        (TAG, "", False),
        (TAG, "*", False),
        (TAG, SAME, False),
    ],
)
def test_if_range(etag: str, condition: str, counts: bool) -> None:
    """13.1.5: only the very representation that the client has a part of is answered in part."""
    found = part("GET", {"range": "bytes=1-2", "if-range": condition}, etag, 100)
    assert found == ((1, 2) if counts else None)
    # what is beyond the end of another representation is no error
    beyond = {"range": "bytes=200-", "if-range": condition}
    if not counts:
        assert part("GET", beyond, etag, 100) is None
