"""Requests made by a grammar, whole and hurt, through the real protocol.

Invariants: what is valid by construction is read as it was built, over any cut; what is hurt is
answered or refused with a status of ``DOCUMENTED``, without an exception and without end; and
neither the cut nor the state of the head cache changes what is answered. One thing may depend on
the cut: what is answered before its body, because the client waits to be asked for it and nothing
would read it (RFC 9110, section 10.1.1), ends the connection unless that body has come meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import uvloop
from hypothesis import example, given

from fluxor_fast import App, Request
from fluxor_fast.server.heads import Limits
from tests.support.grammar import Built, at_places, hurt, pipelines, places, wounds
from tests.support.recorded import Outcome, Stage
from tests.support.seeds import examples

LIMITS = Limits(head=2048, target=1024, headers=12, body=200)
TAKEN = {200, 204, 404, 405}
DOCUMENTED = {400, 408, 413, 414, 417, 431, 501, 505}
EARLY = {204, 404, 405}  # of what is answered before its body, if the client waits to be asked


def make_app() -> App:
    """Return an application that answers with what it was asked."""
    app = App()

    @app.route("/{rest:path}", methods=("GET", "POST", "PUT", "PATCH", "DELETE"))
    def told(request: Request, rest: str) -> Any:
        return {
            "method": request.method,
            "path": request.path,
            "query": request.head.query.decode(),
            "fields": [
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in request.head.raw_headers
            ],
            "body": request.body.decode("latin-1"),
        }

    return app


Play = Callable[..., Outcome]


@contextlib.contextmanager
def stage() -> Iterator[tuple[Stage, Play]]:
    """Yield a stage, and how to play on it from outside of its loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:

        async def make() -> Stage:
            return Stage(make_app(), LIMITS)

        made = runner.run(make())
        yield made, lambda *args, **named: runner.run(made.play(*args, **named))

        async def finish() -> None:
            made.finish()

        runner.run(finish())


def expected(built: Built) -> tuple[int, Any]:
    """Return status and document that answer ``built``."""
    if built.method == "HEAD":
        return 200, None
    if built.method == "OPTIONS":
        return 204, None
    if built.method in ("TRACE", "PROPFIND"):
        return 405, None
    return 200, {
        "method": built.method,
        "path": built.path,
        "query": built.query,
        "fields": [[n.decode("latin-1"), v.decode("latin-1")] for n, v in built.fields],
        "body": built.body.decode("latin-1"),
    }


def told(outcome: Outcome) -> list[tuple[int, Any]]:
    return [
        (answer.status, orjson.loads(answer.body) if answer.status == 200 and answer.body else None)
        for answer in outcome.answers
    ]


def agree(one: Outcome, other: Outcome, wire: bytes) -> None:
    """Check that two ways to cut ``wire`` came to the same.

    If something in it may be answered before its body, one may have ended with such an answer: then
    the other says the same so far.
    """
    if b"100-continue" not in wire.lower():
        assert (told(one), one.closed) == (told(other), other.closed)
        return
    short, long = sorted((one, other), key=lambda outcome: len(outcome.answers))
    assert told(long)[: len(short.answers)] == told(short)
    if len(short.answers) < len(long.answers):
        assert short.closed
    if (len(short.answers), short.closed) != (len(long.answers), long.closed):
        assert short.statuses[-1] in EARLY


def simple(method: str, *lines: bytes, body: bytes = b"") -> list[Built]:
    """Return a pipeline of one request."""
    fields = (b"Host: a", *lines)
    head = b"%b /a HTTP/1.1\r\n%b\r\n\r\n" % (method.encode(), b"\r\n".join(fields))
    read = tuple((n.lower(), v) for n, v in (line.split(b": ") for line in fields))
    return [Built(head + body, method, "/a", "", read, body)]


WAITS = (b"Content-Length: 3", b"Expect: 100-continue")
EARLY_ONES = simple("TRACE", *WAITS, body=b"abc") + simple("GET")
UNHURT = ("swap", 0, 0)


def test_what_is_valid_by_construction_is_read_as_it_was_built() -> None:
    with stage() as (made, play):
        shared = made.new_cache(entries=50)
        off = made.new_cache(entries=0)

        @examples(120)
        @given(built=pipelines(), marks=places)
        @example(built=EARLY_ONES, marks=[71])  # cut between head and body
        @example(built=EARLY_ONES, marks=[])
        @example(built=simple("OPTIONS", *WAITS, body=b"abc") + simple("GET"), marks=[73])
        @example(built=simple("POST", *WAITS, body=b"abc") + simple("GET"), marks=[70])
        def check(built: list[Built], marks: list[int]) -> None:
            wire = b"".join(one.wire for one in built)
            methods = [one.method for one in built]
            made.use_cache(shared)
            cut = play(at_places(wire, marks), methods)
            outcome = play([wire], methods)
            agree(cut, outcome, wire)
            assert told(outcome) == [expected(one) for one in built]
            assert outcome.closed == (not built[-1].keep_alive)
            again = play([wire], methods)  # heads are known now
            made.use_cache(off)
            assert again.said == outcome.said == play([wire], methods).said
            agree(cut, play(at_places(wire, marks), methods), wire)

        check()


def test_what_is_hurt_is_answered_or_refused_and_nothing_else() -> None:
    seen: set[int] = set()
    with stage() as (made, play):
        shared = made.new_cache(entries=50)
        off = made.new_cache(entries=0)

        @examples(350)
        @given(built=pipelines(), done=wounds, marks=places)
        @example(built=simple("GET"), done=[UNHURT], marks=[])
        @example(built=simple("OPTIONS"), done=[UNHURT], marks=[3])
        @example(built=simple("TRACE"), done=[UNHURT], marks=[3])
        @example(built=simple("GET"), done=[("put", 15, 2)], marks=[3])  # a bare CR
        @example(built=simple("GET"), done=[("flip", 0, 0x15)], marks=[1])  # RET
        @example(built=EARLY_ONES, done=[UNHURT], marks=[71])
        @example(built=EARLY_ONES, done=[("put", 72, 3)], marks=[71])  # NUL in the body
        @example(built=EARLY_ONES, done=[("put", 74, 3)], marks=[71])  # NUL behind it
        def check(built: list[Built], done: list[tuple[str, int, int]], marks: list[int]) -> None:
            wire = hurt(b"".join(one.wire for one in built), done)
            made.use_cache(off)
            outcome = play([wire], made.methods_of(wire))
            assert set(outcome.statuses) <= TAKEN | DOCUMENTED
            refused = [status in DOCUMENTED for status in outcome.statuses]
            assert True not in refused[:-1]  # nothing is answered behind a refusal
            if refused[-1:] == [True]:
                assert outcome.closed
                assert set(outcome.answers[-1].json()) == {"error", "message", "code"}
            seen.update(outcome.statuses)
            made.use_cache(shared)
            known = play([wire], made.methods_of(wire))
            assert (told(known), known.closed) == (told(outcome), outcome.closed)
            agree(play(at_places(wire, marks), made.methods_of(wire)), outcome, wire)

        check()
    print(f"statuses seen: {sorted(seen)}")
    assert seen >= {200, 204, 400, 405, 501}
