"""The description of an application: true to its routes, whole, and for anyone's application."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field

from fluxor_fast import App, HTTPError, Request
from fluxor_fast.contract import Answer, Contract
from fluxor_fast.http.response import error_response
from fluxor_fast.openapi import document, publish
from fluxor_fast.routing import _CONVERTERS, Router
from fluxor_fast.service import build
from tests.support.described import Description
from tests.support.pure import Asker, run


class Wanted(BaseModel):
    name: str
    count: int = Field(default=1, le=9)


@dataclass
class Made:
    id: int


def handler(request: Request, **params: Any) -> None:
    """Do it.

    And ``more``.
    """


def described(**contract: Any) -> Any:
    app = App()
    app.post("/things", contract=Contract(**contract))(handler)
    return document(app)["paths"]["/things"]["post"]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


@pytest.mark.parametrize("app", [App(), build()])
def test_every_reference_leads_somewhere_and_every_schema_is_one(app: App) -> None:
    made = document(app)
    assert made["openapi"] == "3.1.0"
    for reference in references(made):
        found = made
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
    for schema in made["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    assert orjson.loads(orjson.dumps(made)) == made


def test_title_and_version_are_the_applications() -> None:
    assert (
        document(App(title="Shop", version="2.1"))["info"].items()
        >= {
            "title": "Shop",
            "version": "2.1",
        }.items()
    )


def test_a_route_without_a_contract_is_described_by_what_is_known() -> None:
    app = App()
    app.delete("/things/{id:int}")(handler)
    operation = document(app)["paths"]["/things/{id}"]["delete"]
    assert operation["operationId"] == "handler"
    assert operation["summary"] == "Do it."
    assert operation["description"] == "And ``more``."
    assert "requestBody" not in operation
    assert "security" not in operation
    assert operation["responses"]["default"] == {"description": "What the handler returns."}
    assert operation["responses"]["404"] == {"$ref": "#/components/responses/404"}
    assert "securitySchemes" not in document(app)["components"]


@pytest.mark.parametrize(
    ("kind", "text"),
    [(kind, text) for kind in ("int", "uuid", "str") for text in (
        "0", "7", "9" * 18, "1" + "0" * 18, "-1", "x", "123e4567-e89b-12d3-a456-426614174000",
        "123e4567e89b12d3a456426614174000", "",
    )],
)  # fmt: skip
def test_a_parameter_is_described_as_the_router_takes_it(kind: str, text: str) -> None:
    app = App()
    app.get(f"/a/{{p:{kind}}}" if kind != "str" else "/a/{p}")(handler)
    (parameter,) = document(app)["paths"]["/a/{p}"]["get"]["parameters"]
    assert (parameter["name"], parameter["in"], parameter["required"]) == ("p", "path", True)
    schema = parameter["schema"]
    value: Any = text
    if schema["type"] == "integer" and text.lstrip("-").isdecimal():
        value = int(text)
    checker = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    taken = Router(app.routes).match("GET", f"/a/{text}")[0].path != "*"
    assert checker.is_valid(value) == taken


def test_every_type_of_parameter_is_described() -> None:
    app = App()
    for kind in (*_CONVERTERS, "path"):
        pattern = "{p}" if kind == "str" else f"{{p:{kind}}}"
        app.get(f"/{kind}/{pattern}")(handler)
    assert len(document(app)["paths"]) == len(_CONVERTERS) + 1


def test_body_and_query() -> None:
    operation = described(body=Wanted, query=Wanted)
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Wanted"}}}
    assert operation["requestBody"] == {"required": True, "content": content}
    assert operation["parameters"] == [
        {"name": "name", "in": "query", "required": True, "schema": {"type": "string"}},
        {
            "name": "count",
            "in": "query",
            "required": False,
            "schema": {"type": "integer", "default": 1, "maximum": 9},
        },
    ]
    assert described(body=Any)["requestBody"]["content"] == {"application/json": {"schema": {}}}


def test_answers_of_the_route_and_of_the_server() -> None:
    answers = described(
        answers={
            201: Answer("It was made.", Made, headers={"Location": "Where."}),
            204: Answer("There was nothing to do."),
            409: Answer("It is there."),
            503: Answer("It is closed.", Made),
        }
    )["responses"]
    assert answers["201"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/Made"
    }
    assert answers["201"]["headers"]["Location"]["required"]
    assert "content" not in answers["204"]
    error = {"$ref": "#/components/schemas/Error"}
    assert answers["409"]["content"]["application/json"]["schema"] == error
    either = [{"$ref": "#/components/schemas/Made"}, error]
    assert answers["503"]["content"]["application/json"]["schema"] == {"anyOf": either}
    assert not answers["503"]["headers"]["Retry-After"]["required"]
    assert "default" not in answers
    assert answers["413"] == {"$ref": "#/components/responses/413"}
    for answer in answers.values():
        assert "$ref" in answer or "X-Request-ID" in answer["headers"]


def test_a_token_is_wanted_where_the_contract_says_so() -> None:
    app = App()
    app.get("/open", contract=Contract({200: Answer("Good.")}))(handler)
    app.get("/closed", contract=Contract({200: Answer("Good.")}, auth="bearer"))(handler)
    made = document(app)
    assert "security" not in made["paths"]["/open"]["get"]
    assert "401" not in made["paths"]["/open"]["get"]["responses"]
    closed = made["paths"]["/closed"]["get"]
    assert closed["security"] == [{"bearer": []}]
    assert closed["responses"]["401"]["headers"]["WWW-Authenticate"]["required"]
    assert made["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


def test_shapes_of_one_name_do_not_become_one() -> None:
    class Error(BaseModel):
        mine: int

    answers = described(answers={200: Answer("Good.", Error), 409: Answer("Bad.")})["responses"]
    mine, shared = (answers[status]["content"]["application/json"]["schema"]["$ref"]
                    for status in ("200", "409"))  # fmt: skip
    assert mine != shared


def test_names_of_operations_are_unique() -> None:
    app = App()
    app.route("/a", methods=("GET", "POST"))(handler)
    app.get("/b")(handler)
    app.get("/c")(handler)
    app.get("/d")(lambda request: None)
    app.route("/e", methods=("PURGE",))(handler)  # has no name in OpenAPI
    paths = document(app)["paths"]
    found = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert found == ["handler", "handler_post", "handler_get", "handler_get_2", "lambda"]
    assert "/e" not in paths


def test_of_two_patterns_for_one_place_the_first_is_described() -> None:
    app = App()
    app.get("/a/{p:int}")(handler)
    app.get("/a/{p}")(handler)
    app.post("/a/{p}")(handler)
    operations = document(app)["paths"]["/a/{p}"]
    assert operations["get"]["parameters"][0]["schema"]["type"] == "integer"
    assert operations["post"]["parameters"][0]["schema"]["type"] == "string"


@pytest.mark.parametrize("details", [None, [{"field": "x"}]])
def test_errors_have_the_shape_that_is_described(details: object) -> None:
    app = App()
    description = Description(document(app))
    for status in (400, 404, 413, 500):
        description.check(
            "GET", "/nowhere", error_response(HTTPError(status, "why", details=details))
        )


def test_it_is_published_whole_and_describes_itself() -> None:
    async def main() -> None:
        app = App(title="Shop")
        publish(app, "/description")
        app.get("/later")(handler)
        asker = Asker(app)
        await app.start()
        answer = await asker.ask("GET", "/description")
        assert answer.content_type == "application/json"
        made = orjson.loads(answer.body)
        assert made == document(app)
        assert set(made["paths"]) == {"/description", "/later"}
        Description(made).check("GET", "/description", answer)

    run(main())
