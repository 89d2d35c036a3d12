"""Arguments checked: what is taken, what is refused, and what is said of it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import orjson
import pytest
from pydantic import BaseModel, ConfigDict, Discriminator, Field
from typing_extensions import TypedDict

from fluxor_fast import App, Body, Header, Query, Request, Source
from fluxor_fast.errors import RouteError
from fluxor_fast.http.response import Response
from fluxor_fast.validation import MAX_BODY, MOST_LISTED, MOST_NAME, MOST_STEPS, MOST_TOLD
from tests.support.pure import Asker, document, run

JSON = {"Content-Type": "application/json"}
SECRET = "hunter2-hunter2"


@dataclass
class ItemData:
    price: int
    note: Any = None


@dataclass
class OrderData:
    name: str
    items: list[ItemData] = field(default_factory=list)


class ItemDict(TypedDict):
    price: int


class OrderDict(TypedDict):
    name: str
    items: list[ItemDict]


class ItemModel(BaseModel):
    model_config = ConfigDict(extra="allow")  # which does not count
    price: int


class OrderModel(BaseModel):
    name: str
    items: list[ItemModel] = []


class ItemStruct(msgspec.Struct, forbid_unknown_fields=True):
    price: int


class OrderStruct(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    items: list[ItemStruct] = []


class Anything(msgspec.Struct, forbid_unknown_fields=True):
    value: Any


class Open(msgspec.Struct):
    a: int


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    inner: dict[str, list[Open]]


class Mixed(msgspec.Struct, forbid_unknown_fields=True):
    inner: ItemData | None


class Colour(Enum):
    RED = "red"


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


KINDS = [OrderData, OrderDict, OrderModel, OrderStruct]


def take(kind: Any, **options: Any) -> Asker:
    app = App()

    async def handler(request: Request, body: Any) -> Any:
        return {"type": type(body).__name__, "value": str(body)}

    handler.__annotations__["body"] = kind
    app.post("/", **options)(handler)
    return Asker(app)


def ask(asker: Asker, target: str = "/", **options: Any) -> Response:
    options.setdefault("headers", JSON)
    return run(asker.ask("POST", target, **options))


def problems(answer: Response) -> list[tuple[str, list[Any]]]:
    told = document(answer)
    assert answer.status == 422, told
    assert (told["error"], told["code"]) == ("validation_failed", "VALIDATION_FAILED")
    assert all(one["message"] for one in told["problems"])
    return [(one["in"], one["path"]) for one in told["problems"]]


# bodies


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_model_is_taken(kind: type) -> None:
    answer = ask(take(kind), json={"name": "x", "items": [{"price": 1}]})
    wanted = "dict" if kind is OrderDict else kind.__name__
    assert document(answer)["type"] == wanted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"name": 1, "items": []}, ["name"]),
        ({"name": "x", "items": [{"price": 1}] * 3 + [{"price": "2"}]}, ["items", 3, "price"]),
        ({"name": "x", "items": [{"price": 1.5}]}, ["items", 0, "price"]),
        ({"name": "x", "items": [{"price": True}]}, ["items", 0, "price"]),
        ({"name": "x", "items": [], "other": 1}, ["other"]),
        ({"name": "x", "items": [{"price": 1, "other": 1}]}, ["items", 0, "other"]),
        ({"name": None, "items": []}, ["name"]),
    ],
)
def test_the_path_of_a_problem(kind: type, body: Any, path: list[Any]) -> None:
    assert problems(ask(take(kind), json=body)) == [("body", path)]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missing_and_what_is_no_object(kind: type) -> None:
    asker = take(kind)
    assert problems(ask(asker, json={"items": []}))[0][0] == "body"
    for body in (b"[]", b"null", b"1", b'"name"'):
        assert problems(ask(asker, body=body)) == [("body", [])]


@pytest.mark.parametrize("kind", [*KINDS, Any, dict[str, Any]])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"name": NaN}',
        b'{"name": Infinity}',
        b'{"name": 1e999}',
        b'{"name": "\\ud800"}',
        b'\xef\xbb\xbf{"name": "x"}',
        b'{"name": "\xff"}',
        b'{"name": "x"} ',
        b"{'name': 1}",
    ],
)
def test_what_is_not_json_is_400(kind: Any, body: bytes) -> None:
    if body.endswith(b" "):
        body = body.strip() + b"x"
    answer = ask(take(kind), body=body)
    assert (answer.status, document(answer)["code"]) == (400, "BAD_JSON")


@pytest.mark.parametrize("kind", [Any, Anything, list[Any]])
@pytest.mark.parametrize("start", ["[", '{"value":'])
def test_depth_is_bounded(kind: Any, start: str) -> None:
    end = "]" if start == "[" else "}"
    for depth in (150, 201, 999, 1024, 1025, 30_000 // len(start)):
        answer = ask(take(kind), body=(start * depth + "1" + end * depth).encode())
        assert answer.status in (200, 400, 422), depth
        if depth > 1024 or (depth > 200 and kind is not Anything):
            assert (answer.status, document(answer)["code"]) == (400, "BAD_JSON"), depth
        if depth == 150 and kind is Any:
            assert answer.status == 200


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_name_that_comes_twice_the_last_counts(kind: type) -> None:
    answer = ask(take(kind), body=b'{"name": "first", "name": "last", "items": []}')
    assert "last" in document(answer)["value"]
    assert "first" not in document(answer)["value"]


@pytest.mark.parametrize("kind", [Any, OrderData, OrderDict, OrderModel, OrderStruct, Anything])
@pytest.mark.parametrize(
    ("number", "fits"),
    [
        (2**63 - 1, True),
        (-(2**63), True),
        (2**63, False),
        (-(2**63) - 1, False),
        (10**25, False),
        (10**300, False),
    ],
)
def test_integers_fit_into_64_bits(kind: Any, number: int, fits: bool) -> None:
    body = f'{{"name": "x", "items": [{{"price": {number}}}]}}'
    if kind is Anything:
        body = f'{{"value": {number}}}'
    answer = ask(take(kind), body=body.encode())
    if fits:
        assert answer.status == 200
    else:
        assert problems(answer) in ([("body", [])], [("body", ["items", 0, "price"])])


def test_long_digits_that_are_no_integers_are_taken() -> None:
    body = b'{"a": "12345678901234567890123", "b": 0.12345678901234567890123}'
    assert ask(take(dict[str, Any]), body=body).status == 200


@pytest.mark.parametrize(
    ("content_type", "good"),
    [
        ("application/json", True),
        ("APPLICATION/JSON; charset=UTF-8", True),
        ('application/json;charset="utf-8"', True),
        ("application/problem+json; profile=x", True),
        ("application/json; charset=latin-1", False),
        ("application/json, text/plain", False),
        ("text/plain", False),
        ("text/json", False),
        ("application/x-www-form-urlencoded", False),
        ("application/jsonp", False),
        ("application/", False),
        ("", False),
        (None, False),
    ],
)
@pytest.mark.parametrize("kind", [OrderData, OrderStruct])
def test_a_body_is_json_in_name_too(kind: type, content_type: str | None, good: bool) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = ask(take(kind), json={"name": "x"}, headers=headers)
    assert answer.status == (200 if good else 415)
    if not good:
        assert answer.headers == {"Accept": "application/json"}


@pytest.mark.parametrize("kind", [OrderData, OrderStruct])
def test_a_body_that_may_be_left_out(kind: type) -> None:
    app = App()

    def handler(request: Request, body: Any = None) -> Any:
        return {"given": body is not None}

    handler.__annotations__["body"] = kind | None
    app.post("/")(handler)
    asker = Asker(app)
    assert document(ask(asker, headers={})) == {"given": False}
    assert document(ask(asker, json={"name": "x"})) == {"given": True}
    assert ask(asker, json={"nam": "x"}).status == 422


def test_a_struct_must_refuse_what_it_does_not_know() -> None:
    for kind, said in (
        (Open, "Open must have forbid_unknown_fields=True"),
        (list[Open], "Open must have"),
        (Outer, "Open must have"),
        (Mixed, "ItemData: among Structs"),
    ):
        with pytest.raises(RouteError, match=said):
            take(kind)


def test_types_of_json_are_strict_and_text_in_it_is_read() -> None:
    class Wide(BaseModel):
        id: UUID
        day: date
        at: datetime
        amount: Decimal
        colour: Colour
        some: set[int]
        pair: tuple[int, str]

    good = {
        "id": "123e4567-e89b-12d3-a456-426614174000",
        "day": "2024-02-29",
        "at": "2024-02-29T12:00:00Z",
        "amount": "1.10",
        "colour": "red",
        "some": [1],
        "pair": [1, "x"],
    }
    asker = take(Wide)
    assert ask(asker, json=good).status == 200
    for name, bad in (
        ("id", "x"),
        ("day", "2023-02-29"),
        ("day", 1),
        ("at", 1),
        ("colour", "RED"),
        ("some", ["1"]),
    ):
        found = problems(ask(asker, json=good | {name: bad}))
        assert found[0][1][0] == name


# what is said


@pytest.mark.parametrize("kind", KINDS)
def test_a_flood_of_faults_gets_a_short_answer(kind: type) -> None:
    asker = take(kind)
    for body in (
        {"name": "x", "items": [{"price": "x"}] * 5000},
        {f"{n}" + "x" * 500: n for n in range(120)},
        {"name": "x", "items": [{"x" * 50_000: 1}]},
    ):
        answer = ask(asker, json=body)
        assert answer.status == 422
        assert 1 <= len(problems(answer)) <= MOST_TOLD
        assert len(answer.body) < 20_000


def test_a_problem_deep_below_has_a_short_path() -> None:
    deep: Any = "x"
    for _ in range(100):
        deep = {"y" * 200: deep}
    nested = TypedDict("nested", {"z": int})  # noqa: UP013
    kind: Any = nested
    for _ in range(100):
        kind = dict[str, kind]
    ((_, path),) = problems(ask(take(kind), json=deep))
    assert len(path) == MOST_STEPS
    assert {len(step) for step in path} == {MOST_NAME}


def test_so_many_faults_are_only_counted() -> None:
    answer = ask(take(list[int]), json=["x"] * (MOST_LISTED + 1))
    assert document(answer)["problems"] == [
        {"in": "body", "path": [], "message": f"has {MOST_LISTED + 1} faults"}
    ]


@pytest.mark.parametrize(
    "kind",
    [
        int,
        UUID,
        date,
        datetime,
        Decimal,
        Colour,
        Literal["a"],
        Annotated[str, Field(max_length=3)],
        Annotated[str, Field(pattern="^a$")],
        list[int],
        Annotated[Cat | Dog, Discriminator("kind")],
        OrderStruct | None,
        list[OrderStruct],
    ],
)
def test_values_are_never_repeated(kind: Any) -> None:
    for body in (SECRET, {"kind": SECRET}, [SECRET], {"name": [SECRET]}, {"name": {"a": SECRET}}):
        answer = ask(take(kind), json=body)
        assert answer.status == 422
        assert SECRET.encode() not in answer.body


def test_msgspec_repeats_no_value_either() -> None:
    class A(msgspec.Struct, tag=True, forbid_unknown_fields=True):
        a: Colour

    class B(msgspec.Struct, tag=True, forbid_unknown_fields=True):
        b: Literal["x"]
        c: dict[int, int] = {}

    asker = take(A | B)
    for body, path in (
        ({"type": SECRET}, ["type"]),
        ({"type": "A", "a": SECRET}, ["a"]),
        ({"type": "B", "b": SECRET}, ["b"]),
        ({"type": "B", "b": "x", "c": {SECRET: 1}}, ["c"]),
        ({"type": "B", "b": "x", "c": {"1": SECRET}}, ["c", "..."]),
    ):
        answer = ask(asker, json=body)
        assert problems(answer) == [("body", path)]
        assert SECRET.encode() not in answer.body


def test_everything_is_told_at_once() -> None:
    app = App()

    @app.post("/{day}", strict_query=True)
    def handler(
        request: Request, day: date, body: OrderData, page: Query[int], x_token: Header[UUID]
    ) -> None: ...

    answer = ask(Asker(app), "/x?page=y&other=1", json={"name": 1}, headers=JSON | {"X-Token": "z"})
    assert problems(answer) == [
        ("query", ["other"]),
        ("path", ["day"]),
        ("query", ["page"]),
        ("header", ["x-token"]),
        ("body", ["name"]),
    ]


# text


def texts(kind: Any, *values: str) -> list[Any]:
    """Return what each value is read as, or the path of the problem."""
    app = App()

    def handler(request: Request, value: Any) -> Any:
        return {"value": value}

    handler.__annotations__["value"] = Annotated[kind, Source("query")]
    app.get("/")(handler)
    asker = Asker(app)
    found = []
    for value in values:
        answer = run(asker.ask("GET", f"/?value={value}"))
        if answer.status == 422:
            assert problems(answer)[0][:1] == ("query",)
            found.append("refused")
        else:
            found.append(document(answer)["value"])
    return found


REFUSED = itertools.repeat("refused")


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (int, {"0": 0, "-7": -7, "007": 7, "9" * 18: 10**18 - 1},
         ["", "x", "+1", "%2B1", "1.0", "1_0", "%20" + "1", "9" * 19, "%D9%A1", "0x1", "1e3"]),
        (int | None, {"1": 1}, ["", "null", "x"]),
        (Annotated[int, Field(ge=1, le=9)], {"1": 1, "9": 9}, ["0", "10", "x"]),
        (float, {"1": 1.0, "-1.5e3": -1500.0}, ["nan", "inf", "1e999", ".5", "5.", "1_0", "", "x"]),
        (bool, {"true": True, "0": False}, ["yes", "True", "", "2"]),
        (str, {"": "", "a%20b+c": "a b c"}, []),
        (UUID, {"123e4567-e89b-12d3-a456-426614174000": "123e4567-e89b-12d3-a456-426614174000"},
         ["x", ""]),
        (date, {"2024-02-29": "2024-02-29"}, ["2023-02-29", "1", "1700000000", "x", ""]),
        (datetime, {"2024-02-29T12:00:00Z": "2024-02-29T12:00:00+00:00"}, ["1700000000", "x"]),
        (Colour, {"red": "red"}, ["RED", ""]),
        (Literal["a", "b"], {"a": "a"}, ["c"]),
        (list[int], {"1": [1]}, ["x", "1,2"]),
        (tuple[str, ...], {"x": ["x"]}, []),
    ],
)  # fmt: skip
def test_text_is_read_narrowly(kind: Any, good: dict[str, Any], bad: list[str]) -> None:
    assert texts(kind, *good) == list(good.values())
    assert texts(kind, *bad) == list(itertools.islice(REFUSED, len(bad)))


def test_repeated_and_unknown_parameters() -> None:
    app = App()

    @app.get("/loose")
    def loose(request: Request, a: Query[int] = 1, tags: Query[list[str]] = []) -> Any:  # noqa: B006
        return {"a": a, "tags": tags}

    @app.get("/strict", strict_query=True)
    def strict(request: Request, a: Query[int] = 1) -> Any:
        return {"a": a}

    @app.get("/nothing", strict_query=True)
    def nothing(request: Request) -> Any:
        return {}

    asker = Asker(app)

    def get(target: str) -> Response:
        return run(asker.ask("GET", target))

    assert document(get("/loose?utm=1&tags=x&tags=y&utm=2")) == {"a": 1, "tags": ["x", "y"]}
    assert problems(get("/loose?a=1&a=1")) == [("query", ["a"])]
    assert document(get("/strict?a=2")) == {"a": 2}
    assert problems(get("/strict?a=2&b=1&b=2")) == [("query", ["b"]), ("query", ["b"])]
    assert document(get("/nothing")) == {}
    assert problems(get("/nothing?a=1")) == [("query", ["a"])]
    assert get("/loose?a=%ff").status == 400
    assert get("/loose?" + "&".join(f"b{n}=1" for n in range(101))).status == 400


def test_headers() -> None:
    app = App()

    @app.get("/")
    def handler(request: Request, x_tags: Header[list[str]], x_once: Header[int] = 0) -> Any:
        return {"tags": x_tags, "once": x_once}

    asker = Asker(app)

    def get(**headers: str) -> Response:
        return run(asker.ask("GET", "/", headers=headers))

    assert document(get(**{"X-Tags": "a, b,,c"})) == {"tags": ["a", "b", "c"], "once": 0}
    assert problems(get()) == [("header", ["x-tags"])]
    assert problems(get(**{"X-Tags": "a", "X-Once": "1", "x-once": "1"})) == [
        ("header", ["x-once"])
    ]


def test_paths() -> None:
    app = App()

    @app.get("/{id:int}/{day}")
    def handler(request: Request, id: Annotated[int, Field(ge=5)], day: date) -> Any:
        return {"id": id, "day": day}

    asker = Asker(app)
    assert document(run(asker.ask("GET", "/5/2024-01-01"))) == {"id": 5, "day": "2024-01-01"}
    answer = run(asker.ask("GET", "/4/x"))
    assert problems(answer) == [("path", ["id"]), ("path", ["day"])]
    assert run(asker.ask("GET", "/x/2024-01-01")).status == 404


# around


def test_middleware_is_asked_before() -> None:
    app = App()

    def closed(call_next: Any, route: Any) -> Any:
        return lambda request: Response("closed", 401)

    @app.post("/", middleware=[closed])
    def handler(request: Request, body: OrderData) -> None: ...

    assert ask(Asker(app), body=b"{").status == 401


@pytest.mark.parametrize("blocking", [True, False])
def test_plain_and_blocking_handlers(blocking: bool) -> None:
    app = App()

    @app.post("/", blocking=blocking)
    def handler(request: Request, thing: Body[OrderData]) -> Any:
        return {"name": thing.name}

    assert document(ask(Asker(app), json={"name": "x"})) == {"name": "x"}


def test_the_size_of_a_checked_body_is_bounded() -> None:
    app = App()

    def handler(request: Request, body: OrderData) -> None: ...
    def other(request: Request) -> None: ...

    app.post("/a")(handler)
    app.post("/b", max_body=10**6)(handler)
    app.post("/c")(other)
    app.router()
    assert [route.max_body for route in app.routes] == [MAX_BODY, 10**6, None]


def test_what_is_returned_is_not_checked() -> None:
    app = App()

    @app.get("/")
    def handler(request: Request) -> OrderData:
        return {"anything": 1}  # type: ignore[return-value]

    assert document(run(Asker(app).ask("GET", "/"))) == {"anything": 1}


def test_orjson_bounds_what_is_no_model_too() -> None:
    with pytest.raises(orjson.JSONDecodeError, match="depth limit"):
        orjson.loads("[" * 1025 + "]" * 1025)
    orjson.loads("[" * 1024 + "]" * 1024)
