"""The corpus of wire files: what they are, the application they speak to, the ways to cut them.

``corpus/valid`` and ``corpus/invalid`` hold exact bytes (``name.http``) with what must come of
them beside (``name.json``): the requests that are read, the statuses that are answered, and
whether the connection is closed behind them (after an error it always is). Where a request is
answered before its body, ``may_end_behind`` says behind how many answers the connection may end
instead: it does unless that body has come meanwhile, and so by the cut.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from fluxor_fast import App, Request
from fluxor_fast.server.heads import Limits
from tests.support.inprocess import Answer, head
from tests.support.seeds import cut, seeded, single

FOLDER = Path(__file__).parent.parent / "corpus"
LIMITS = Limits(head=4096, target=2048, headers=50, body=4096)
AFTER = head("/after")


@dataclass(frozen=True)
class Case:
    """One wire file with its outcome."""

    name: str
    wire: bytes
    about: str
    requests: list[dict[str, str]]
    statuses: list[int]
    closes: bool
    may_end_behind: int | None = None

    @property
    def valid(self) -> bool:
        return self.name.startswith("valid/")

    def as_it_came(self, answers: list[Answer]) -> Case:
        """Return the case with the one of its outcomes that ``answers`` belong to."""
        count = len(answers)
        if count != self.may_end_behind or answers[-1].headers.get("connection") != "close":
            return self
        return replace(
            self, requests=self.requests[:count], statuses=self.statuses[:count], closes=True
        )


@cache
def cases() -> tuple[Case, ...]:
    """Return the whole corpus, by name."""
    found = []
    for path in sorted(FOLDER.glob("*/*.http")):
        outcome: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
        outcome.setdefault("closes", True)
        name = f"{path.parent.name}/{path.stem}"
        found.append(Case(name=name, wire=path.read_bytes(), **outcome))
    return tuple(found)


@cache
def groups() -> dict[str, tuple[Case, ...]]:
    """Return the corpus by the first word of the names: what is told together runs together."""
    found: dict[str, list[Case]] = {}
    for case in cases():
        found.setdefault(case.name.partition("-")[0], []).append(case)
    return {name: tuple(members) for name, members in found.items()}


def at_line_ends(data: bytes) -> list[bytes]:
    """Return ``data`` cut behind every CRLF."""
    return [piece for piece in re.split(rb"(?<=\r\n)", data) if piece]


def within_line_ends(data: bytes) -> list[bytes]:
    """Return ``data`` cut between CR and LF of every CRLF."""
    return re.split(rb"(?<=\r)(?=\n)", data)


WAYS = ("whole", "by bytes", "by lines", "within line ends", "random", "random 2", "random 3")


def ways(name: str, data: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Yield each of ``WAYS`` with the pieces of ``data``."""
    rng = seeded(name)
    made = (
        [data],
        single(data),
        at_line_ends(data),
        within_line_ends(data),
        cut(data, rng),
        cut(data, rng),
        cut(data, rng, 30),
    )
    yield from zip(WAYS, made, strict=True)


def make_app() -> App:
    """Return what the wire files speak to; ``state.after`` counts requests for ``/after``."""
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
