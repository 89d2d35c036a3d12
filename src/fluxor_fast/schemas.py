"""The JSON Schemas of all that an application's routes name, for their description.

They are made together, so that each shape stands once under a name that is its own: pydantic's by
pydantic, ``msgspec.Struct`` by msgspec.

Rules:

1. Of a checked body all objects with fields are closed, as they are when it is read.
2. A text in query, path or header that is read as an int has its bounds (``validation``, rule 4).
3. What cannot be described is not, if a route works without: the annotation of what it returns.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final, NotRequired, get_args, get_origin

from pydantic import Field, TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import to_jsonable_python
from typing_extensions import TypedDict

from fluxor_fast.contract import Contract
from fluxor_fast.http.response import Response
from fluxor_fast.parameters import Parameter, returned
from fluxor_fast.routing import MAX_DIGITS, Route
from fluxor_fast.validation import holds_struct

__all__ = ["Error", "Shapes"]


Problem = TypedDict(  # "in" is a word of Python
    "Problem",
    {
        "in": Annotated[str, Field(description="path, query, header or body.")],
        "path": Annotated[list[int | str], Field(description="The steps: names and positions.")],
        "message": Annotated[str, Field(description="A sentence for people.")],
    },
)


class Error(TypedDict):
    """What every error says."""

    error: Annotated[str, Field(description="The code in small letters, or a wider kind.")]
    message: Annotated[str, Field(description="A sentence for people.")]
    code: Annotated[str, Field(description="A word for programs.", examples=["NOT_FOUND"])]
    reason: NotRequired[Annotated[str, Field(description="Of a refusal: which limit it was.")]]
    details: NotRequired[Annotated[Any, Field(description="All that is wrong, one by one.")]]
    problems: NotRequired[
        Annotated[list[Problem], Field(description="Of `VALIDATION_FAILED`: what is wrong.")]
    ]


RETURNED: Final = "returned"
_REF: Final = "#/components/schemas/"


class _Generator(GenerateJsonSchema):
    """Pydantic's, without a title for each field that only repeats its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class Shapes:
    """The schemas of some routes; ``components`` are those that have a name."""

    def __init__(self, routes: Iterable[Route]) -> None:
        wanted: list[tuple[Any, Any, TypeAdapter[Any]]] = [
            ("error", "serialization", TypeAdapter(Error))
        ]
        structs: dict[Any, Any] = {}

        def want(key: Any, mode: str, kind: Any) -> None:
            if holds_struct(kind):
                structs[key] = kind
            else:
                wanted.append((key, mode, TypeAdapter(kind)))

        for route in routes:
            contract = route.contract or Contract()
            if contract.query is not None:
                want((route, "query"), "validation", contract.query)
            arguments = route.arguments
            body = arguments.body.type if arguments and arguments.body else contract.body
            if body is not None:
                want((route, "body"), "validation", body)
            for one in arguments.parameters if arguments else ():
                want((route, one.where, one.key), "validation", one.type)
            for status, answer in contract.answers.items():
                if answer.body is not None:
                    want((route, status), "serialization", answer.body)
            kind = None if contract.answers else _describable(returned(route.handler))
            if kind is not None:
                want((route, RETURNED), "serialization", kind)
        schemas, definitions = TypeAdapter.json_schemas(
            wanted, ref_template=_REF + "{model}", schema_generator=_Generator
        )
        self.components: dict[str, Any] = definitions.get("$defs", {})
        self._found = {key: schema for (key, _), schema in schemas.items()}
        self._add_structs(structs)
        self.error = self._found["error"]
        for key, schema in self._found.items():
            if key[1:] == ("body",) and key[0].arguments and key[0].arguments.body:
                self._close(schema, set())

    def get(self, route: Route, what: str | int) -> dict[str, Any] | None:
        """Return the schema of a route's ``body``, ``query``, answer with a status, or return."""
        return self._found.get((route, what))

    def argument(self, route: Route, one: Parameter) -> dict[str, Any]:
        """Return the schema of what comes as text."""
        schema = dict(self._found[route, one.where, one.key])
        either = [some for some in schema.pop("anyOf", ()) if some != {"type": "null"}]
        if len(either) == 1:  # there is no null in a text: it may be left out
            schema |= either[0]
        elif either:
            schema["anyOf"] = either
        for inner in (schema, schema.get("items")):
            if isinstance(inner, dict) and inner.get("type") == "integer":  # rule 2
                most = 10**MAX_DIGITS - 1
                if "exclusiveMinimum" not in inner:
                    inner.setdefault("minimum", -most)
                if "exclusiveMaximum" not in inner:
                    inner.setdefault("maximum", most)
        if not one.required and one.default is not None:
            schema["default"] = to_jsonable_python(one.default, fallback=str)
        return schema

    def fields(self, route: Route) -> tuple[dict[str, Any], list[str]]:
        """Return the schemas of the query's parameters by name, and which must be there."""
        schema = self.get(route, "query") or {}
        if "$ref" in schema:
            schema = self.components[schema["$ref"].removeprefix(_REF)]
        return schema.get("properties", {}), schema.get("required", [])

    def _add_structs(self, structs: dict[Any, Any]) -> None:
        if not structs:
            return
        import msgspec

        schemas, components = msgspec.json.schema_components(
            structs.values(), ref_template=_REF + "{name}"
        )
        names = {name: name for name in components}
        for name in components:
            while names[name] in self.components:  # another shape has it
                names[name] += "Struct"
        self._found |= {
            key: _renamed(schema, names) for key, schema in zip(structs, schemas, strict=True)
        }
        self.components |= {names[name]: _renamed(one, names) for name, one in components.items()}

    def _close(self, schema: Any, seen: set[str]) -> None:
        """Refuse other fields in all objects of ``schema`` that have some (rule 1)."""
        if isinstance(schema, list):
            for one in schema:
                self._close(one, seen)
        if not isinstance(schema, dict):
            return
        if isinstance(schema.get("properties"), dict):
            schema["additionalProperties"] = False
        name = schema.get("$ref")
        if isinstance(name, str) and name not in seen:
            seen.add(name)
            self._close(self.components[name.removeprefix(_REF)], seen)
        for part in schema.values():
            self._close(part, seen)


def _renamed(schema: Any, names: dict[str, str]) -> Any:
    if isinstance(schema, dict):
        return {
            key: _REF + names[value.removeprefix(_REF)]
            if key == "$ref" and isinstance(value, str)
            else _renamed(value, names)
            for key, value in schema.items()
        }
    return [_renamed(one, names) for one in schema] if isinstance(schema, list) else schema


def _describable(kind: Any) -> Any:
    """Return what a handler returns if it becomes JSON of a known shape, else None (rule 3)."""
    bare = get_origin(kind) or kind
    parts = (bare, *get_args(kind))
    if kind in (None, type(None), Any, object) or bare in (str, bytes, tuple):
        return None
    if any(isinstance(one, type) and issubclass(one, Response) for one in parts):
        return None
    try:
        if not holds_struct(kind):
            TypeAdapter(kind).json_schema(mode="serialization")
    except (PydanticUserError, TypeError, NameError):
        return None
    return kind
