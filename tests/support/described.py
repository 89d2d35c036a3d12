"""Answers held against an OpenAPI description.

Objects are closed here: a field that the description does not name is a fault, though the
description leaves clients to expect more.
"""

from __future__ import annotations

import copy
from typing import Any

import orjson
from jsonschema import Draft202012Validator

from fluxor_fast import Response


class Description:
    """A description, and which of its answers were seen."""

    def __init__(self, document: Any) -> None:
        self.document = document
        self.seen: set[tuple[str, str, str]] = set()
        self._components = copy.deepcopy(document["components"])
        for schema in self._components["schemas"].values():
            if schema.get("type") == "object":
                schema.setdefault("additionalProperties", False)

    def answers(self) -> set[tuple[str, str, str]]:
        """Return method, path and status of every answer that is a route's own."""
        return {
            (method, path, status)
            for path, operations in self.document["paths"].items()
            for method, operation in operations.items()
            for status, answer in operation["responses"].items()
            if "$ref" not in answer
        }

    def check(self, method: str, path: str, response: Response) -> None:
        """Fail unless ``response`` is one that the description has for this route.

        ``path`` is the route's, as in the description; one that is not there has the answers
        that any path may have.
        """
        status = str(response.status)
        operation = self.document["paths"].get(path, {}).get(method.lower())
        if operation is None:
            answer = self.document["components"]["responses"][status]
        else:
            answer = operation["responses"].get(status)
            assert answer is not None, f"{method} {path} answers {status}, which is not described"
            self.seen.add((method.lower(), path, status))
            if "$ref" in answer:
                answer = self.document["components"]["responses"][status]
        for name, header in answer["headers"].items():
            if header.get("required"):  # the request id is put in on the wire
                assert name in response.headers, f"{method} {path} {status} has no {name}"
        content = answer.get("content")
        if not content:
            assert not response.body
            return
        assert response.content_type in content, f"{method} {path} {status}"
        schema = content[response.content_type]["schema"]
        value = (
            orjson.loads(response.body)
            if response.content_type == "application/json"
            else response.body.decode()
        )
        self.validate(schema, value)

    def validate(self, schema: Any, value: Any) -> None:
        """Fail unless ``value`` has the shape of ``schema``."""
        closed = {"components": self._components, "allOf": [schema]}
        Draft202012Validator(closed).validate(value)
