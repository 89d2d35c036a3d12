"""The description of an application: true to its routes, whole, and for anyone's application."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any

import msgspec
import orjson
import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field

from fluxor_fast import App, Header, HTTPError, Query, Request, Response
from fluxor_fast.contract import Answer, Contract
from fluxor_fast.http.response import error_response
from fluxor_fast.middleware.cors import CORS
from fluxor_fast.middleware.timeout import Timeout
from fluxor_fast.middleware.trusted_hosts import TrustedHosts
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


@dataclass
class Part:
    size: int


@dataclass
class Whole:
    name: str
    parts: list[Part]


class Packed(msgspec.Struct, forbid_unknown_fields=True):
    parts: list[PackedPart]


class PackedPart(msgspec.Struct, forbid_unknown_fields=True, rename={"size": "grams"}):
    size: int


def annotated(
    request: Request,
    id: Annotated[int, Field(ge=1)],
    body: Whole,
    page: Query[int] = 1,
    tags: Query[list[str]] = (),  # type: ignore[assignment]
    day: Query[date | None] = None,
    x_token: Header[str] = "",
) -> Part:
    return Part(1)


def test_annotations_are_described() -> None:
    app = App()
    app.post("/things/{id:int}")(annotated)
    made = document(app)
    operation = made["paths"]["/things/{id}"]["post"]
    most = 10**18 - 1
    assert [(one["in"], one["name"], one["required"], one["schema"])
            for one in operation["parameters"]] == [
        ("path", "id", True, {"type": "integer", "minimum": 1, "maximum": most}),
        ("query", "page", False,
         {"type": "integer", "minimum": -most, "maximum": most, "default": 1}),
        ("query", "tags", False, {"type": "array", "items": {"type": "string"}, "default": []}),
        ("query", "day", False, {"type": "string", "format": "date"}),
        ("header", "x-token", False, {"type": "string", "default": ""}),
    ]  # fmt: skip
    reference = {"$ref": "#/components/schemas/Whole"}
    assert operation["requestBody"]["content"]["application/json"]["schema"] == reference
    for name in ("Whole", "Part"):  # closed at every depth
        assert made["components"]["schemas"][name]["additionalProperties"] is False
    assert {"415", "422", "200"} <= operation["responses"].keys()
    content = operation["responses"]["200"]["content"]["application/json"]
    assert content == {"schema": {"$ref": "#/components/schemas/Part"}}


def test_a_default_that_cannot_be_hashed_is_described() -> None:
    def listed(request: Request, tags: Query[list[str]] = []) -> None: ...  # noqa: B006

    app = App()
    app.get("/a")(listed)
    (parameter,) = document(app)["paths"]["/a"]["get"]["parameters"]
    assert parameter["schema"]["default"] == []


def test_a_path_is_described_by_the_router_and_the_annotation() -> None:
    def limited(request: Request, id: Annotated[int, Field(le=9)]) -> None: ...

    app = App()
    app.get("/a/{id:int}")(limited)
    app.get("/b/{id}")(limited)
    paths = document(app)["paths"]
    schemas = [paths[path]["get"]["parameters"][0]["schema"] for path in ("/a/{id}", "/b/{id}")]
    assert schemas == [
        {"type": "integer", "minimum": 0, "maximum": 9},
        {"type": "integer", "minLength": 1, "minimum": -(10**18) + 1, "maximum": 9},
    ]


def test_refusals_are_as_described() -> None:
    app = App()
    app.post("/things/{id:int}")(annotated)
    description = Description(document(app))

    async def main() -> None:
        asker = Asker(app)
        json = {"Content-Type": "application/json"}
        for status, body, headers in (
            (200, b'{"name": "x", "parts": []}', json),
            (422, b"{}", json),
            (415, b"{}", {}),
            (400, b"{", json),
        ):
            answer = await asker.ask("POST", "/things/1", body=body, headers=headers)
            assert answer.status == status
            description.check("POST", "/things/{id}", answer)

    run(main())


def same_name() -> type:
    class PackedPart(BaseModel):
        a: int

    return PackedPart


def test_structs_are_described_beside_models_of_the_same_name() -> None:
    def make(request: Request, body: Packed) -> Packed:
        return body

    def other(request: Request, body: Whole) -> list[Packed]:
        return []

    app = App()
    app.post("/a")(make)
    app.post("/b", contract=Contract({200: Answer("It.", same_name())}))(other)
    made = document(app)
    schemas = made["components"]["schemas"]
    assert "a" in schemas["PackedPart"]["properties"]
    assert schemas["PackedPartStruct"]["properties"] == {"grams": {"type": "integer"}}
    assert schemas["PackedPartStruct"]["additionalProperties"] is False
    assert schemas["Packed"]["properties"]["parts"]["items"] == {
        "$ref": "#/components/schemas/PackedPartStruct"
    }
    for reference in references(made):
        assert reference.split("/")[-1] in made["components"][reference.split("/")[2]]


def test_what_is_returned_need_not_be_describable() -> None:
    def response(request: Request) -> Response: ...
    def either(request: Request) -> Part | Response: ...
    def unknown(request: Request) -> Missing: ...  # type: ignore[name-defined] # noqa: F821
    def strange(request: Request) -> App: ...

    for one in (response, either, unknown, strange):
        app = App()
        app.get("/a")(one)
        answers = document(app)["paths"]["/a"]["get"]["responses"]
        assert "default" in answers
        assert "200" not in answers


def test_layers_say_what_they_answer() -> None:
    app = App()
    app.add_middleware(TrustedHosts(["example.com"]))
    app.add_middleware(CORS(["https://example.com"]))

    async def slow(request: Request) -> None: ...

    app.get("/slow", middleware=[Timeout(2)])(slow)
    app.get("/health", priority="exempt")(handler)
    app.route("/own", methods=("OPTIONS",))(handler)
    paths = document(app)["paths"]
    slow_answers = paths["/slow"]["get"]["responses"]
    assert slow_answers["400"]["description"].startswith("The host is not one that is served.")
    assert slow_answers["504"]["description"] == "The answer took longer than 2 s."
    assert "$ref" in paths["/health"]["get"]["responses"]["400"]
    assert "403" not in slow_answers
    assert "403" in paths["/own"]["options"]["responses"]


def test_what_a_layer_and_the_route_both_answer_is_either() -> None:
    app = App()
    contract = Contract({504: Answer("Mine.", Part), 200: Answer("Good.")})

    async def slow(request: Request) -> None: ...

    app.get("/slow", middleware=[Timeout(2)], contract=contract)(slow)
    answer = document(app)["paths"]["/slow"]["get"]["responses"]["504"]
    assert answer["description"] == "Mine. The answer took longer than 2 s."
    assert len(answer["content"]["application/json"]["schema"]["anyOf"]) == 2
