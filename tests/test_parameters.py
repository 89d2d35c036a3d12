"""Where arguments come from, and what is no way to ask for one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import Field

from fluxor_fast import App, Body, Header, Path, Query, Request, Source
from fluxor_fast.errors import RouteError
from fluxor_fast.parameters import parameters_read


@dataclass
class Thing:
    name: str


def read(handler: Callable[..., Any], **in_path: str) -> list[tuple[str, str, str, bool, bool]]:
    found = parameters_read("/", handler, in_path, methods=("POST",), stream=False)
    return [(one.name, one.where, one.key, one.required, one.several) for one in found]


def test_each_place() -> None:
    def handler(
        request: Request,
        id: Annotated[int, Field(ge=1)],
        body: Thing,
        page: Query[int] = 1,
        tags: Query[list[str] | None] = None,
        x_token: Header[str] = "",
        size: Annotated[int, Source("query", "page-size")] = 1,
        own: int = 3,
        **more: int,
    ) -> None: ...

    assert read(handler, id="int") == [
        ("id", "path", "id", True, False),
        ("body", "body", "body", True, False),
        ("page", "query", "page", False, False),
        ("tags", "query", "tags", False, True),
        ("x_token", "header", "x-token", False, False),
        ("size", "query", "page-size", False, False),
    ]


def test_a_document_may_have_another_name() -> None:
    def handler(request: Request, thing: Body[list[Thing]]) -> None: ...

    assert read(handler) == [("thing", "body", "thing", True, True)]


def test_what_the_router_made_is_not_checked_again() -> None:
    def handler(request: Request, a: int, b: UUID, c: str, d: Any, e, f: Path[int]): ...  # type: ignore[no-untyped-def]

    assert read(handler, a="int", b="uuid", c="path", d="int", e="str", f="int") == []


def test_a_plain_handler_is_called_as_it_is() -> None:
    app = App()

    @app.get("/health")
    def health(request: Request) -> dict[str, str]:
        return {"status": "healthy"}

    @app.get("/users/{id:int}")
    def user(request: Request, id: int, own: int = 3) -> int:
        return id

    app.router()
    assert app.routes[0].call is health
    assert not app.routes[0].wrapped
    assert [route.arguments for route in app.routes] == [None, None]


def test_annotations_are_read_where_the_handler_was_written() -> None:
    class Handler:
        def __call__(self, request: Request, body: Thing) -> None: ...

        def method(self, request: Request, body: Thing) -> None: ...

    def plain(request: Request, body: Thing, flag: bool = True) -> None: ...

    @functools.wraps(plain)
    def wrapped(*args: Any, **kwargs: Any) -> None: ...

    for handler in (Handler(), Handler().method, functools.partial(plain, flag=False), wrapped):
        assert read(handler)[0] == ("body", "body", "body", True, False)


def two_bodies(request: Request, body: Thing, other: Body[Thing]) -> None: ...
def raw(request: Request, body: bytes) -> None: ...
def document_in_query(request: Request, thing: Query[Thing]) -> None: ...
def documents_in_query(request: Request, things: Query[list[Thing]]) -> None: ...
def not_in_path(request: Request, id: Path[int]) -> None: ...
def twice(request: Request, a: Annotated[int, Source("query"), Source("header")]) -> None: ...
def unknown(request: Request, body: Missing) -> None: ...  # type: ignore[name-defined] # noqa: F821
def by_place(request: Request, a: Query[int], /) -> None: ...
def one_name(request: Request, a: Query[int], b: Annotated[int, Source("query", "a")]) -> None: ...
def unmarked(request: Request, thing: Thing) -> None: ...
def no_schema(request: Request, body: Request) -> None: ...


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (two_bodies, "there is one body, not 2"),
        (raw, "never bytes"),
        (document_in_query, "thing is one text of the query, not a document"),
        (documents_in_query, "not a document"),
        (not_in_path, "id is not a parameter of the path"),
        (twice, "a comes from one place, not 2"),
        (unknown, "the annotation of body cannot be read"),
        (by_place, "a is positional only"),
        (one_name, "two parameters have one name on the wire"),
        (unmarked, "missing a required argument: 'thing'"),
        (no_schema, "its arguments cannot be checked"),
    ],
)
def test_what_cannot_be_is_told_at_registration(handler: Any, said: str) -> None:
    app = App()
    with pytest.raises(RouteError, match=said):
        app.post("/a")(handler)
    assert app.routes == ()


def test_bodies_where_there_is_none() -> None:
    async def handler(request: Request, body: Thing) -> None: ...

    app = App()
    with pytest.raises(RouteError, match="the body of a GET means nothing"):
        app.get("/a")(handler)
    with pytest.raises(RouteError, match="a route that streams reads its body itself"):
        app.post("/a", stream=True)(handler)


def test_a_parameter_of_the_path_comes_from_there_alone() -> None:
    def elsewhere(request: Request, id: Query[int]) -> None: ...
    def several(request: Request, id: list[str]) -> None: ...

    for handler, said in ((elsewhere, "id is a parameter of the path"), (several, "one segment")):
        with pytest.raises(RouteError, match=said):
            App().get("/{id}")(handler)
