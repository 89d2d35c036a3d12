"""Arguments made at random: what fits is taken, and nothing is ever an error of the server.

Invariants: a document made of the type is taken, with its value; one that was changed at a random
place is taken, 422 or 400; so is any text in query and path, and any bytes as a body. The three
kinds of pydantic's models agree on every document, and with msgspec's Struct.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field
from typing import Any, NotRequired
from urllib.parse import quote

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from typing_extensions import TypedDict

from fluxor_fast import App, Query, Request
from tests.support.pure import Asker, document, run
from tests.support.seeds import examples, seeded


@dataclass
class PartData:
    size: int
    ratio: float = 1.0


@dataclass
class WholeData:
    name: str
    parts: list[PartData] = field(default_factory=list)
    by_name: dict[str, PartData] = field(default_factory=dict)
    flag: bool | None = None


class PartDict(TypedDict):
    size: int
    ratio: NotRequired[float]


class WholeDict(TypedDict):
    name: str
    parts: NotRequired[list[PartDict]]
    by_name: NotRequired[dict[str, PartDict]]
    flag: NotRequired[bool | None]


class PartModel(BaseModel):
    size: int
    ratio: float = 1.0


class WholeModel(BaseModel):
    name: str
    parts: list[PartModel] = []
    by_name: dict[str, PartModel] = {}
    flag: bool | None = None


class PartStruct(msgspec.Struct, forbid_unknown_fields=True):
    size: int
    ratio: float = 1.0


class WholeStruct(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    parts: list[PartStruct] = []
    by_name: dict[str, PartStruct] = {}
    flag: bool | None = None


KINDS = (WholeData, WholeDict, WholeModel, WholeStruct)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
PART = st.fixed_dictionaries(
    {"size": st.integers(-(2**63), 2**63 - 1)},
    optional={"ratio": st.floats(allow_nan=False, allow_infinity=False)},
)
WHOLE = st.fixed_dictionaries(
    {"name": TEXT},
    optional={
        "parts": st.lists(PART, max_size=4),
        "by_name": st.dictionaries(TEXT, PART, max_size=3),
        "flag": st.none() | st.booleans(),
    },
)
OTHER = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def make() -> dict[type, Asker]:
    made = {}
    for kind in KINDS:
        app = App()

        def handler(
            request: Request,
            id: int,
            body: Any,
            n: Query[int] = 0,
            t: Query[list[float] | None] = None,
        ) -> Any:
            return {"name": body["name"] if isinstance(body, dict) else body.name}

        handler.__annotations__["body"] = kind
        app.post("/{id:int}", strict_query=True)(handler)
        made[kind] = Asker(app)
    return made


ASKERS = make()


def statuses(body: bytes, target: str = "/1") -> set[int]:
    found = set()
    for asker in ASKERS.values():
        headers = {"Content-Type": "application/json"}
        answer = run(asker.ask("POST", target, body=body, headers=headers))
        if answer.status == 422:
            assert 1 <= len(document(answer)["problems"]) <= 20
        found.add(answer.status)
    return found


@examples(100)
@given(WHOLE)
def test_what_fits_is_taken(whole: Any) -> None:
    assert statuses(orjson.dumps(whole)) == {200}


@examples(150)
@given(WHOLE, OTHER, st.integers(0, 2**32))
def test_what_was_changed_is_taken_or_refused(whole: Any, other: Any, seed: int) -> None:
    changed = change(whole, other, random.Random(seed))
    body = json.dumps(changed).encode()  # which writes NaN, and integers of any length
    assert len(found := statuses(body)) == 1, found
    assert found <= {200, 400, 422}


def change(value: Any, other: Any, rng: random.Random) -> Any:
    """Return ``value`` with something in it replaced, removed or added."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(sorted(value))
        rest = {key: one for key, one in value.items() if key != name}
        return rest if rng.random() < 0.2 else rest | {name: change(value[name], other, rng)}
    if isinstance(value, dict) and rng.random() < 0.5:
        return value | {"other": other}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], change(value[at], other, rng), *value[at + 1 :]]
    return other


def test_bytes_are_never_an_error_of_the_server() -> None:
    rng = seeded("arguments, bytes")
    good = orjson.dumps(asdict(WholeData("x", [PartData(1)], {"y": PartData(2)}, True)))
    for _ in range(500):
        body = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(body))
            action = rng.randrange(3)
            if action == 0:
                body[at] = rng.randrange(256)
            elif action == 1:
                del body[at : at + rng.randint(1, 4)]
            else:
                body[at:at] = rng.choice((b"[", b"}", b'"', b"9" * 30, b"\\u0000", b"{", b"null"))
            body = body or bytearray(b"x")
        found = statuses(bytes(body))
        assert len(found) == 1, bytes(body)
        assert found <= {200, 400, 422}, bytes(body)


@examples(150)
@given(st.lists(st.tuples(st.sampled_from(["n", "t", "x"]), TEXT), max_size=4), TEXT)
def test_texts_are_never_an_error_of_the_server(query: list[tuple[str, str]], step: str) -> None:
    asked = "&".join(f"{name}={quote(value)}" for name, value in query)
    body = b'{"name": "x"}'
    assert statuses(body, f"/1?{asked}") <= {200, 422}
    assert statuses(body, f"/{quote(step, safe='')}?{asked}") <= {200, 404, 405, 422}


@pytest.mark.parametrize("number", [-(10**18) + 1, -1, 0, 10**18 - 1])
def test_every_int_of_18_digits_is_read_as_itself(number: int) -> None:
    assert statuses(b'{"name": "x"}', f"/1?n={number}") == {200}
