"""The corpus of wire files, each in many ways (see ``support/corpus.py``).

Every file is cut in each of ``WAYS``, alone and followed by another request, and meets each of
``CACHES``; then it goes over a real socket, whole and cut. The server has the small limits of
``LIMITS``.

Invariants: what is read depends neither on how the bytes were cut nor on what the head cache
knows; answers owed before an error leave first and in order; behind an error, and behind an
answer that closes, nothing is treated as a request.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from fluxor_fast import HTTPError
from fluxor_fast.server.framing import Reader
from fluxor_fast.server.heads import HeadCache
from tests.support.corpus import AFTER, FOLDER, LIMITS, WAYS, Case, cases, groups, make_app, ways
from tests.support.inprocess import Answer, Server, in_loop, serving, turns
from tests.support.recorded import Outcome, Stage
from tests.support.seeds import cut, seeded

CACHES = ("off", "empty", "filled by the same file", "filled by all files")
GROUPS = sorted(groups())


def test_there_are_enough_cases_each_with_its_outcome() -> None:
    files = {path.with_suffix("") for path in FOLDER.glob("*/*")}
    assert {path.with_suffix("") for path in FOLDER.glob("*/*.json")} == files
    assert len(files) == len(cases())
    valid = sum(case.valid for case in cases())
    runs = len(WAYS) * 2 * len(CACHES)
    print(
        f"{len(cases())} cases ({valid} valid, {len(cases()) - valid} invalid) x {runs} runs"
        f" ({len(WAYS)} ways of cutting, alone and followed, {len(CACHES)} states of the cache)"
        f" = {len(cases()) * runs}"
    )
    assert valid >= 150
    assert len(cases()) - valid >= 150


def test_every_outcome_says_what_it_is_about() -> None:
    for path in FOLDER.glob("*/*.json"):
        outcome = json.loads(path.read_text())
        closes = {"closes"} if path.parent.name == "valid" else set()
        early = {"may_end_behind"} & set(outcome) if closes else set()
        assert set(outcome) == {"about", "requests", "statuses"} | closes | early, path.stem
        assert outcome["about"]
        owed = len(outcome["requests"]) + (path.parent.name == "invalid")
        assert len(outcome["statuses"]) == owed, path.stem


def run_all(group: str, check: Callable[[Case], None]) -> None:
    wrong = []
    for case in groups()[group]:
        try:
            check(case)
        except AssertionError as error:
            wrong.append(f"{case.name}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("group", GROUPS)
def test_framing(group: str) -> None:
    """The reader alone finds the requests that the outcome lists, however the bytes are cut."""
    router = make_app().router()

    def check(case: Case) -> None:
        for way, pieces in ways(case.name, case.wire):
            found, status, partial = read(Reader(HeadCache(router, LIMITS, lambda: 0)), pieces)
            assert found == case.requests, way
            assert status == (None if case.valid else case.statuses[-1]), way
            assert not (case.valid and partial), way

    run_all(group, check)


def read(reader: Reader, pieces: list[bytes]) -> tuple[list[dict[str, str]], int | None, bool]:
    """Return the requests, the status of the refusal, and whether anything is left over."""
    found: list[dict[str, str]] = []
    early = False  # the last was handed over before its body
    for piece in pieces:
        reader.feed(piece)
        try:
            while True:
                if early:
                    found[-1]["body"] += reader.piece().decode("latin-1")
                    early = reader.in_body
                if early or (message := reader.next()) is None:
                    break
                head, body = message
                early = body is None
                found.append(
                    {
                        "method": head.method,
                        "path": head.path,
                        "query": head.query.decode(),
                        "body": (body or b"").decode("latin-1"),
                    }
                )
                if not head.keep_alive:
                    return found, None, False  # what follows is not read
        except HTTPError as error:
            return found, error.status, False
    return found, None, reader.partial


def check_answers(answers: list[Answer], case: Case) -> None:
    """Check all answers to ``case`` itself."""
    assert [answer.status for answer in answers] == case.statuses
    for answer, request in zip(answers, case.requests, strict=False):
        if request["path"] == "/echo" and answer.status == 200:
            assert answer.body == request["body"].encode("latin-1")
    closing = [answer.headers.get("connection") == "close" for answer in answers]
    assert closing == [False] * (len(answers) - 1) + [case.closes]
    if not case.valid:
        assert set(answers[-1].json()) == {"error", "message", "code"}


def check_outcome(outcome: Outcome, case: Case, followers: int) -> None:
    """Check what came of ``case`` with so many requests for ``/after`` behind it."""
    case = case.as_it_came(outcome.answers)
    own = len(case.statuses)
    check_answers(outcome.answers[:own], case)
    assert outcome.closed == case.closes
    behind = [(answer.status, answer.json()) for answer in outcome.answers[own:]]
    assert behind == [(200, {"after": True})] * (0 if case.closes else followers)


@pytest.mark.parametrize("group", GROUPS)
@in_loop
async def test_over_a_recorded_connection(group: str) -> None:
    """Every way, alone and followed, whatever the cache knows; one more request at the end."""
    stage = Stage(make_app(), LIMITS)
    everything = stage.new_cache()
    stage.fill(everything, (case.wire for case in cases()))
    wrong = []
    for case in groups()[group]:
        methods = [request["method"] for request in case.requests]
        for followers, wire in ((1, case.wire), (2, case.wire + AFTER)):
            for way, pieces in ways(case.name, wire):
                said = []
                for state in CACHES:
                    if state == "filled by all files":
                        stage.use_cache(everything)
                    else:
                        stage.use_cache(stage.new_cache(entries=0 if state == "off" else 1024))
                    if state == "filled by the same file":
                        stage.fill(stage.bench.service.heads, [wire, wire])
                    stage.app.state.after = 0
                    try:
                        outcome = await stage.play(pieces, methods, behind=AFTER)
                        check_outcome(outcome, case, followers)
                        assert stage.app.state.after == (0 if outcome.closed else followers)
                        said.append(outcome.said)
                    except AssertionError as error:
                        wrong.append(f"{case.name}, {way}, cache {state}, {followers}: {error}")
                if any(one != said[0] for one in said):
                    wrong.append(f"{case.name}, {way}: another answer by the state of the cache")
    assert not wrong, "\n".join(wrong)
    stage.finish()


async def over_a_socket(server: Server, case: Case, pieces: list[bytes], followed: bool) -> None:
    """Send ``pieces``, and ``AFTER`` in the packet of the last, or when the answers have come."""
    client = await server.connect()
    server.app.state.after = 0
    await client.send_pieces([*pieces[:-1], pieces[-1] + AFTER] if followed else pieces)
    answers: list[Answer] = []
    if case.valid:
        for one in case.requests:
            answers.append(await client.answer(head=one["method"] == "HEAD"))
            case = case.as_it_came(answers)
            if len(answers) == len(case.requests):
                break
    if case.closes and case.valid:
        assert await client.at_end()
    elif case.valid:
        if not followed:
            await client.send(AFTER)
        assert (await client.answer()).json() == {"after": True}
    else:
        answers = await client.rest()
        await client.send(AFTER)  # the server reads on for a while, but not as requests
        await turns(3)
        assert client.buffer == b""
    check_answers(answers, case)
    assert server.app.state.after == (0 if case.closes else 1)
    client.close()


@pytest.mark.parametrize("group", GROUPS)
@in_loop
async def test_over_a_socket(group: str) -> None:
    """The kernel between: whole and cut, the next request behind the answer or in one packet."""
    wrong: list[Any] = []
    async with serving(make_app(), limits=LIMITS) as server:
        for case in groups()[group]:
            rng = seeded(case.name)
            for pieces, followed in (([case.wire], False), (cut(case.wire, rng), True)):
                try:
                    await over_a_socket(server, case, pieces, followed)
                except AssertionError as error:
                    wrong.append(f"{case.name}, followed {followed}: {error}")
    assert not wrong, "\n".join(map(str, wrong))
