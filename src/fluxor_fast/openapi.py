"""From an application's routes to their description in OpenAPI 3.1.

Nothing is written twice: paths and the types of their parameters come from the routes, summaries
from the handlers' docstrings, shapes from their annotations (see ``parameters``) and contracts (see
``contract``), what middleware answers from its layers, and what the server itself may answer on any
route stands here once.

Rules kept here (sections of the OpenAPI Specification 3.1):

1. Two patterns that differ only in the type of a parameter are one path there (4.8.8), and only
   eight methods have a name (4.8.9). Of two routes for one place the first registered is
   described, and one with another method is not.
2. ``operationId`` is unique (4.8.10): the handler's name, with the method and then a number
   where that is taken.
3. A status that both the route and the server may answer with is described as either.
4. Shapes are JSON Schema 2020-12, each under its name (see ``schemas``).
5. What a handler's annotations say of body and parameters counts before its contract.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from fluxor_fast.app import App
from fluxor_fast.composition import Layer
from fluxor_fast.contract import Answer, Contract
from fluxor_fast.http.request import Request
from fluxor_fast.http.response import JSON, Response
from fluxor_fast.routing import MAX_DIGITS, Route, parameters_of
from fluxor_fast.schemas import RETURNED, Shapes

__all__ = ["document", "publish"]


_TYPES: Final[Mapping[str, dict[str, Any]]] = {
    "int": {"type": "integer", "minimum": 0, "maximum": 10**MAX_DIGITS - 1},
    "uuid": {"type": "string", "format": "uuid"},
    "str": {"type": "string", "minLength": 1},
    "path": {"type": "string", "description": "the rest of the path, slashes and all"},
}
_METHODS: Final = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_ANYWHERE: Final = {
    400: Answer("The request, its query or its body is malformed."),
    408: Answer("The request took too long to arrive; the connection is closed."),
    413: Answer("The body is too long; the connection is closed."),
    414: Answer("The request target is too long; the connection is closed."),
    417: Answer("The expectation is not `100-continue`; the connection is closed."),
    431: Answer("The header fields are too long or too many; the connection is closed."),
    500: Answer("The request failed; the server's log has the reason under its `X-Request-ID`."),
    501: Answer("The method or the transfer coding is not known; the connection is closed."),
    503: Answer(
        "The server cannot take the request now.",
        headers={"Retry-After": "Seconds after which to try again."},
    ),
    505: Answer("The version is neither HTTP/1.1 nor HTTP/1.0; the connection is closed."),
}
"""What the server answers on every route."""
_BY_PATH: Final = {
    404: Answer("Nothing is at this path."),
    405: Answer("The path does not take this method.", headers={"Allow": "The methods it takes."}),
}
"""What it answers where no route is; also 404 where a path has a parameter."""
_REFUSED: Final = {
    415: Answer("The body is not called JSON.", headers={"Accept": "What it must be."}),
    422: Answer("The request is well-formed, but not what is wanted; `problems` has up to 20."),
}
"""What is answered to arguments that are not what the annotations want."""
_NO_TOKEN: Final = Answer(
    "There is no token (or key), or it is not valid, or has expired.",
    headers={"WWW-Authenticate": "The challenge (RFC 6750, section 3)."},
)
_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_REQUEST_ID: Final = {
    "description": "The request's own `X-Request-ID` if that is 1 to 128 visible ASCII"
    " characters, else a new one.",
    "required": True,
    "schema": {"type": "string", "minLength": 1, "maxLength": 128},
}
_ABOUT: Final = (
    "Errors are JSON of one form, `Error`. HEAD is answered wherever GET is, and OPTIONS, with"
    " `Allow`, on every path; another method is 405, another path 404. A client that waits for a"
    " limited time may say so in `X-Request-Timeout-Ms`: where it would wait longer it is refused"
    " with 503."
)


def document(app: App) -> dict[str, Any]:
    """Return the description of ``app``, ready to be encoded as JSON.

    :raises pydantic.errors.PydanticUserError: for a shape that pydantic cannot describe.
    """
    shapes = Shapes(app.routes)
    paths: dict[str, dict[str, Any]] = {}
    names: set[str] = set()
    for route in app.routes:
        operations = paths.setdefault(re.sub(r":[a-z]+\}", "}", route.path), {})
        method = route.method.lower()
        if method in _METHODS and method not in operations:  # rule 1
            operations[method] = _operation(route, shapes, names, app.layers_of(route))
    components: dict[str, Any] = {
        "schemas": shapes.components,
        "headers": {"X-Request-ID": _REQUEST_ID},
        "responses": {
            str(status): _response(status, answer, None, shapes)
            for status, answer in sorted((_ANYWHERE | _BY_PATH).items())
        },
    }
    wanted = {name for route in app.routes for name in _schemes(route.contract)}
    if wanted:
        components["securitySchemes"] = {name: _SCHEMES[name] for name in sorted(wanted)}
    return {
        "openapi": "3.1.0",
        "info": {"title": app.title, "version": app.version, "description": _ABOUT},
        "paths": {path: operations for path, operations in paths.items() if operations},
        "components": components,
    }


def publish(app: App, path: str = "/openapi.json") -> None:
    """Register a route that answers with the description, made once when the worker starts."""
    made = b""

    def openapi(request: Request) -> Response:
        """Describe this API, in OpenAPI 3.1."""
        return Response(made, content_type=JSON)

    def make() -> None:
        nonlocal made
        made = orjson.dumps(document(app))

    app.get(path, contract=Contract({200: Answer("The description.", dict[str, Any])}))(openapi)
    app.on_startup(make)


def _operation(
    route: Route, shapes: Shapes, names: set[str], layers: Sequence[Layer]
) -> dict[str, Any]:
    contract = route.contract or Contract()
    operation: dict[str, Any] = {"operationId": _operation_id(route, names)}
    summary, _, more = (inspect.getdoc(route.handler) or "").partition("\n")
    if summary:
        operation["summary"] = summary
    if more.strip():
        operation["description"] = more.strip()
    parameters = _parameters(route, shapes)
    if parameters:
        operation["parameters"] = parameters
    body = shapes.get(route, "body")
    if body is not None:
        checked = route.arguments.body if route.arguments else None
        operation["requestBody"] = {
            "required": checked is None or checked.required,
            "content": {JSON: {"schema": body}},
        }
    if contract.auth:
        operation["security"] = [{name: []} for name in _schemes(contract)]
    operation["responses"] = _responses(route, contract, shapes, layers)
    return operation


def _schemes(contract: Contract | None) -> list[str]:
    """Return the names of the ways to say who is asking, any of which will do."""
    return contract.auth.split(" or ") if contract and contract.auth else []


def _parameters(route: Route, shapes: Shapes) -> list[dict[str, Any]]:
    """Return what comes in path, query and headers."""
    found: dict[tuple[str, str], dict[str, Any]] = {
        ("path", name): {"name": name, "in": "path", "required": True, "schema": _TYPES[converter]}
        for name, converter in parameters_of(route.path).items()
    }
    fields, required = shapes.fields(route)
    for name, schema in fields.items():
        found["query", name] = {
            "name": name,
            "in": "query",
            "required": name in required,
            "schema": schema,
        }
    for one in route.arguments.parameters if route.arguments else ():  # rule 5
        schema = shapes.argument(route, one)
        place = (one.where, one.key)
        if one.where == "path":
            given = found[place]["schema"]  # the router has looked at it before
            schema = {**given, **schema}
            if "minimum" in given:
                schema["minimum"] = max(given["minimum"], schema.get("minimum", 0))
        found[place] = {
            "name": one.key,
            "in": one.where,
            "required": one.required or one.where == "path",
            "schema": schema,
        }
    return list(found.values())


def _operation_id(route: Route, names: set[str]) -> str:
    """Return a name that is not in ``names``, and put it there (rule 2)."""
    handler = route.handler
    name = re.sub(r"\W+", "_", getattr(handler, "__name__", type(handler).__name__)).strip("_")
    if name in names:
        name = f"{name}_{route.method.lower()}"
    unique, number = name, 2
    while unique in names:
        unique, number = f"{name}_{number}", number + 1
    names.add(unique)
    return unique


def _responses(
    route: Route, contract: Contract, shapes: Shapes, layers: Sequence[Layer]
) -> dict[str, Any]:
    common = dict(_ANYWHERE)
    if parameters_of(route.path):
        common[404] = _BY_PATH[404]
    own = dict(contract.answers)
    if contract.auth:
        own.setdefault(401, _NO_TOKEN)
    checks: Mapping[int, Answer] = {}
    if route.arguments:
        checks = _REFUSED if route.arguments.body else {422: _REFUSED[422]}
    for answers in (checks, *(layer.answers(route) for layer in layers)):
        for status, answer in answers.items():
            if status in own:  # rule 3
                common[status] = _joined(common.get(status), answer)
            else:
                own[status] = answer
    returned = shapes.get(route, RETURNED)
    found = {
        str(status): _response(
            status, own[status], common.get(status), shapes, shapes.get(route, status)
        )
        if status in own
        else {"$ref": f"#/components/responses/{status}"}
        for status in sorted(common.keys() | own.keys())
    }
    if returned is not None:
        answer = Answer("What the handler returns.")
        found["200"] = _response(200, answer, None, shapes, returned)
    elif not contract.answers:
        found["default"] = {"description": "What the handler returns."}
    return dict(sorted(found.items()))


def _joined(one: Answer | None, other: Answer) -> Answer:
    """Return the answer that is either of two errors."""
    if one is None:
        return other
    return Answer(f"{one.text} {other.text}", headers={**one.headers, **other.headers})


def _response(
    status: int,
    answer: Answer,
    common: Answer | None,
    shapes: Shapes,
    schema: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the response of a status; ``common`` is what the server may answer with it too."""
    is_error = schema is None and status >= 400
    headers: dict[str, Any] = {"X-Request-ID": {"$ref": "#/components/headers/X-Request-ID"}}
    for source in (common, answer):
        for name, text in source.headers.items() if source else ():
            headers[name] = {
                "description": text,
                "required": source is answer or is_error,  # rule 3
                "schema": {"type": "string"},
            }
    content: dict[str, Any] = {}
    if schema is not None:
        content[answer.content_type] = {"schema": schema}
    if is_error or common is not None:
        other = content.get(JSON)
        either = {"anyOf": [other["schema"], shapes.error]} if other else shapes.error
        content[JSON] = {"schema": either}
    found: dict[str, Any] = {
        "description": f"{answer.text} {common.text}" if common else answer.text,
        "headers": headers,
    }
    if content:
        found["content"] = content
    return found
