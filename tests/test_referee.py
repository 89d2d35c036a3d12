"""Beside h11: what both take is read alike, and every other difference is known and explained.

``DIFFERENCES`` holds all of them, by what each of the two did with the message on which they
part. One that is not listed fails, and so does one that no file of the corpus shows any more.
"""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given

from tests.support import docs
from tests.support.corpus import AFTER, LIMITS, cases, make_app
from tests.support.grammar import Built, hurt, pipelines, wounds
from tests.support.referee import CLOSES, GOES_ON, by_h11, by_us, difference
from tests.support.seeds import examples

ROUTER = make_app().router()
MALFORMED = "400: the head is malformed: "

_LIMIT = "a limit of ours, small in the corpus; h11 leaves it to the server around it"
_POLICY = "what is served is the server's choice; h11 leaves it to the server around it"
_BOTH = "RFC 9112, 6.1: one of the two would be ignored, and the next server may ignore the other"
_NUMBER = "RFC 9112, 6.3: h11 takes a length that is said twice if it is the same; one is enough"
_TARGET = "RFC 9112, 3.2: h11 hands on any target that is visible characters"
_LARGE = "a length that no body may have; h11 would read on without end"

DIFFERENCES: dict[tuple[str, str], str] = {
    # what we refuse
    ("400: a line of the head does not end with CRLF", GOES_ON): (
        "RFC 9112, 2.2: a recipient may take a bare LF; who does not reads another message"
    ),
    ("400: the head holds a NUL or a folded line", GOES_ON): (
        "RFC 9112, 5.2: h11 unfolds obs-fold, a server may refuse it; the next may see two fields"
    ),
    (MALFORMED + "Invalid header value char", GOES_ON): (
        "RFC 9110, 5.5: h11 lets control characters but NUL, CR and LF stand in a value"
    ),
    ("400: the request line is malformed", GOES_ON): (
        "h11 waits for the end of a line that already cannot be a request line"
    ),
    ("400: the Host field is malformed", GOES_ON): (
        "RFC 9112, 3.2: an invalid Host is a 400; h11 does not look at what it says"
    ),
    ("400: the request target is malformed", GOES_ON): _TARGET,
    ("400: the request target has a fragment", GOES_ON): _TARGET,
    (MALFORMED + "Unexpected char in url schema", GOES_ON): _TARGET,
    (MALFORMED + "Unexpected start char in url", GOES_ON): _TARGET,
    (MALFORMED + "Unexpected char in url server", GOES_ON): _TARGET,
    (MALFORMED + "Invalid characters in url", GOES_ON): _TARGET,
    (MALFORMED + "Expected HTTP/2 Connection Preface", GOES_ON): (
        "RFC 9113, 3.4: PRI is for the preface of HTTP/2 alone"
    ),
    ("505: this server speaks HTTP/1.1 and HTTP/1.0", GOES_ON): (
        "RFC 9110, 15.6.6: h11 reads any version as HTTP/1.1 or HTTP/1.0"
    ),
    ("501: the method is not known here", GOES_ON): _POLICY,
    ("501: CONNECT is not served", GOES_ON): _POLICY,
    ("417: the only expectation met here is 100-continue", GOES_ON): _POLICY,
    (MALFORMED + "Content-Length can't be present with Transfer-Encoding", GOES_ON): _BOTH,
    (MALFORMED + "Transfer-Encoding can't be present with Content-Length", GOES_ON): _BOTH,
    ("400: Transfer-Encoding in an HTTP/1.0 request", GOES_ON): (
        "RFC 9112, 6.1: its framing is faulty; h11 decodes it, a server of 1.0 would not"
    ),
    (MALFORMED + "Request has invalid `Transfer-Encoding`", GOES_ON): (
        "a tab behind the coding: allowed, but llhttp takes it for part of it, and so may others"
    ),
    (MALFORMED + "Duplicate Content-Length", GOES_ON): _NUMBER,
    (MALFORMED + "Invalid character in Content-Length", GOES_ON): _NUMBER,
    (MALFORMED + "Content-Length overflow", GOES_ON): _LARGE,
    ("400: Content-Length is malformed or comes more than once", GOES_ON): _LARGE,
    ("400: a chunk size is malformed", GOES_ON): (
        "RFC 9112, 7.1: h11 takes white space behind a size, control characters in an extension"
        " and sizes of 20 digits"
    ),
    ("400: a line of the chunked body does not end with CRLF", GOES_ON): (
        "RFC 9112, 2.2: h11 ends the lines of trailers with a bare LF too"
    ),
    ("400: a trailer is malformed", GOES_ON): (
        "RFC 9112, 5.2: h11 unfolds trailers, and lets control characters stand in them"
    ),
    ("400: a line of the chunked body is too long", GOES_ON): _LIMIT,
    ("400: too much in chunk extensions", GOES_ON): _LIMIT,
    ("413: the body is longer than N bytes", GOES_ON): _LIMIT,
    ("414: the request line is too long", GOES_ON): _LIMIT,
    ("414: the request target is longer than N bytes", GOES_ON): _LIMIT,
    ("431: more than N header fields", GOES_ON): _LIMIT,
    ("431: the head is longer than N bytes", GOES_ON): _LIMIT,
    ("431: the trailers are too long", GOES_ON): _LIMIT,
    # what h11 refuses
    (GOES_ON, "no request line received"): (
        "RFC 9112, 2.2: empty lines before a request line should be ignored; h11 does not"
    ),
    (GOES_ON, "illegal chunk header"): (
        "RFC 9112, 7.1.1: white space may stand before an extension; h11 takes none"
    ),
    (GOES_ON, "Only Transfer-Encoding: chunked is supported"): (
        "RFC 9110, 6.5.1: a trailer is no framing, whatever its name; we drop it, h11 judges it"
    ),
    (GOES_ON, CLOSES): "RFC 9112, 9.3: a connection of HTTP/1.0 may be kept; h11 never keeps it",
}


def of(wire: bytes) -> tuple[str, str] | None:
    return difference(by_us(wire, ROUTER, LIMITS), by_h11(wire))


def test_the_corpus_is_read_as_h11_reads_it_but_for_known_differences() -> None:
    shown: dict[tuple[str, str], set[str]] = defaultdict(set)
    for case in cases():
        for wire in (case.wire, case.wire + AFTER):
            found = of(wire)
            if found is not None:
                shown[found].add(case.name)
    unlisted = {found: names for found, names in shown.items() if found not in DIFFERENCES}
    assert not unlisted
    assert set(DIFFERENCES) == set(shown), "a difference that is no more"
    alike = len(cases()) - len(set.union(*shown.values()))
    rows = [
        (ours, theirs, f"{len(shown[ours, theirs])}", f"`{min(shown[ours, theirs])}`", reason)
        for (ours, theirs), reason in DIFFERENCES.items()
    ]
    text = docs.table("| we | h11 | files | such as | why |", rows)
    docs.check(
        "HTTP.md", "h11", f"Of {len(cases())} files {alike} are taken or refused by both.\n\n{text}"
    )


@examples(500)
@given(built=pipelines(), done=wounds)
def test_made_requests_are_read_as_h11_reads_them_but_for_known_differences(
    built: list[Built], done: list[tuple[str, int, int]]
) -> None:
    wire = b"".join(one.wire for one in built)
    found = of(wire)
    assert found is None or found[0] == GOES_ON, "valid by construction"
    assert found is None or found in DIFFERENCES
    found = of(hurt(wire, done))
    assert found is None or found in DIFFERENCES


def test_what_both_take_would_be_seen_to_differ() -> None:
    """The referee sees two readings that part, though nobody refuses."""
    one = by_us(AFTER, ROUTER, LIMITS)
    other = by_h11(AFTER.replace(b"/after", b"/other"))
    try:
        difference(one, other)
    except AssertionError:
        return
    raise AssertionError("it did not see it")
