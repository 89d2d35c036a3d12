"""The corpus of wire files, each sent over a real connection in four ways.

``corpus/valid`` and ``corpus/invalid`` hold exact bytes (``name.http``) with what must come of
them beside (``name.json``): the requests that are read, the statuses that are answered, and
whether the connection is closed behind them (after an error it always is). The server here has
the small limits of ``LIMITS``.

Invariants: what is read does not depend on how the bytes were cut; answers owed before an error
leave first and in order; behind an error nothing is treated as a request.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from fluxor_fast import App, HTTPError, Request
from fluxor_fast.server.framing import Reader
from fluxor_fast.server.heads import HeadCache, Limits
from tests.support.inprocess import Answer, Server, head, in_loop, serving, turns
from tests.support.seeds import cut, seeded, single

CORPUS = Path(__file__).parent / "corpus"
LIMITS = Limits(head=4096, target=2048, headers=50, body=4096)
AFTER = head("/after")

FILES = sorted(f"{path.parent.name}/{path.stem}" for path in CORPUS.glob("*/*.http"))


def load(name: str) -> tuple[bytes, dict[str, Any]]:
    wire = (CORPUS / f"{name}.http").read_bytes()
    return wire, json.loads((CORPUS / f"{name}.json").read_text())


def make_app() -> App:
    app = App()
    app.state.after = 0

    @app.get("/")
    def home(request: Request) -> dict[str, bool]:
        return {"home": True}

    @app.post("/echo")
    def echo(request: Request) -> bytes:
        return request.body

    @app.post("/small", max_body=4)
    def small(request: Request) -> bytes:
        return request.body

    @app.get("/slow")
    async def slow(request: Request) -> dict[str, bool]:
        await asyncio.sleep(0.002)
        return {"slow": True}

    @app.get("/items/{item:int}")
    def item(request: Request, item: int) -> dict[str, int]:
        return {"item": item}

    @app.get("/after")
    def after(request: Request) -> dict[str, bool]:
        app.state.after += 1
        return {"after": True}

    return app


def test_every_file_has_its_outcome_and_none_is_alone() -> None:
    outcomes = sorted(f"{path.parent.name}/{path.stem}" for path in CORPUS.glob("*/*.json"))
    assert outcomes == FILES
    assert sum(name.startswith("valid/") for name in FILES) >= 40
    assert sum(name.startswith("invalid/") for name in FILES) >= 60


@pytest.mark.parametrize("name", FILES)
def test_framing(name: str) -> None:
    """The reader alone finds the requests that the outcome lists, however the bytes are cut."""
    wire, outcome = load(name)
    router = make_app().router()
    rng = seeded(name)
    for pieces in ([wire], single(wire), cut(wire, rng), cut(wire, rng), cut(wire, rng, 30)):
        reader = Reader(HeadCache(router, LIMITS, lambda: 0))
        found = []
        status = None
        for piece in pieces:
            reader.feed(piece)
            try:
                while (message := reader.next()) is not None:
                    one, body = message
                    found.append(
                        {
                            "method": one.method,
                            "path": one.path,
                            "query": one.query.decode(),
                            "body": body.decode("latin-1"),
                        }
                    )
            except HTTPError as error:
                status = error.status
                break
        assert found == outcome["requests"]
        if name.startswith("invalid/"):
            assert status == outcome["statuses"][-1]
        else:
            assert status is None and not reader.partial


def check_answers(answers: list[Answer], outcome: dict[str, Any]) -> None:
    assert [answer.status for answer in answers] == outcome["statuses"]
    for answer, request in zip(answers, outcome["requests"], strict=False):
        if request["path"] == "/echo" and answer.status == 200:
            assert answer.body == request["body"].encode("latin-1")


async def check_valid(server: Server, pieces: list[bytes], outcome: dict[str, Any]) -> None:
    client = await server.connect()
    await client.send_pieces(pieces)
    answers = [
        await client.answer(head=request["method"] == "HEAD") for request in outcome["requests"]
    ]
    check_answers(answers, outcome)
    closing = [answer.headers.get("connection") == "close" for answer in answers]
    assert closing == [False] * (len(answers) - 1) + [outcome["closes"]]
    if outcome["closes"]:
        assert await client.at_end()
    else:
        await client.send(AFTER)
        answer = await client.answer()
        assert (answer.status, answer.json()) == (200, {"after": True})
    client.close()


async def check_invalid(server: Server, pieces: list[bytes], outcome: dict[str, Any]) -> None:
    client = await server.connect()
    await client.send_pieces(pieces)
    answers = await client.rest()
    check_answers(answers, outcome)
    closing = [answer.headers.get("connection") == "close" for answer in answers]
    assert closing == [False] * (len(answers) - 1) + [True]
    document = answers[-1].json()
    assert set(document) == {"error", "message", "code"}
    await client.send(AFTER)  # the server reads on for a while, but not as requests
    await turns(3)
    assert server.app.state.after == 0
    assert client.buffer == b""
    client.close()


@pytest.mark.parametrize("name", FILES)
@in_loop
async def test_over_a_connection(name: str) -> None:
    wire, outcome = load(name)
    rng = seeded(name)
    check = check_valid if name.startswith("valid/") else check_invalid
    async with serving(make_app(), limits=LIMITS) as server:
        await check(server, [wire], outcome)
        await check(server, single(wire), outcome)
        for _ in range(3):
            await check(server, cut(wire, rng), outcome)


@pytest.mark.parametrize("name", FILES)
@in_loop
async def test_followed_by_another_request_in_the_same_packet(name: str) -> None:
    wire, outcome = load(name)
    async with serving(make_app(), limits=LIMITS) as server:
        if name.startswith("invalid/"):
            await check_invalid(server, [wire + AFTER], outcome)
            return
        client = await server.connect()
        await client.send(wire + AFTER)
        answers = [
            await client.answer(head=request["method"] == "HEAD") for request in outcome["requests"]
        ]
        check_answers(answers, outcome)
        if outcome["closes"]:
            assert await client.at_end()
            assert server.app.state.after == 0
        else:
            assert (await client.answer()).json() == {"after": True}
