"""What a route promises: the shapes it takes and the answers it gives.

A contract is declared where the route is registered. It describes, and nothing more: requests
are not checked against it. Shapes are types that pydantic knows (models, ``TypedDict``,
dataclasses, ``dict[str, int]``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fluxor_fast.http.response import JSON

__all__ = ["Answer", "Contract"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a route.

    :param text: when it is given, as a sentence.
    :param body: the shape of its document; without one an error has that of every error
        (``errors.HTTPError.payload``), and any other answer no body.
    :param content_type: of the body.
    :param headers: fields that it always has, by name, with what they say.
    """

    text: str
    body: Any = None
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Contract:
    """What a route takes and answers, beside what the server itself answers on every route.

    :param answers: by status.
    :param body: the shape of the JSON document that it wants, or ``Any``; None: it reads no body.
    :param query: a model with one field for each parameter of the query.
    :param auth: ``bearer`` if it wants a token (RFC 6750), and so answers 401 without a good one;
        ``bearer or key`` if an API key in ``X-API-Key`` will do as well.
    """

    answers: Mapping[int, Answer] = field(default_factory=dict)
    body: Any = None
    query: Any = None
    auth: Literal["bearer", "bearer or key"] | None = None
