"""What clients may send: models of request bodies and queries, and how faults are told.

A body that is not JSON is 400 ``BAD_JSON``; one that is JSON but not what was asked for is 422
``VALIDATION`` with every fault at once under ``details``: ``[{"field", "problem"}]``. Values are
never repeated, because one of them may be a password.
"""

from __future__ import annotations

import re
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from fluxor_fast.errors import HTTPError
from fluxor_fast.http.request import Request

__all__ = ["Login", "NewUser", "Registration", "page_of", "parse"]

MAX_DETAILS = 20
MAX_PAGE = 100
DEFAULT_PAGE = 20
MAX_ID_DIGITS = 18  # fit bigint

# One @, no spaces or controls, a domain of at least two labels: what RFC 5321 calls a mailbox
# without quoted local parts and address literals. Whether it exists only a mail can tell.
_EMAIL = re.compile(
    r"[^\s@\"(),:;<>\[\]\\\x00-\x1f\x7f]{1,64}"
    r"@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+[^\W_](?:[\w-]{0,61}[^\W_])"
)


def _no_nul(text: str) -> str:
    if "\0" in text:  # PostgreSQL's text cannot hold it
        raise PydanticCustomError("nul", "must not contain NUL characters")
    return text


def _email(text: str) -> str:
    if len(text.encode()) > 254 or not _EMAIL.fullmatch(text):
        raise PydanticCustomError("email", "must be an email address of at most 254 bytes")
    return text


Text = Annotated[str, AfterValidator(_no_nul)]
Email = Annotated[str, AfterValidator(_email)]
Password = Annotated[Text, Field(min_length=8, max_length=128)]
Name = Annotated[Text, Field(min_length=1, max_length=100)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Registration(_Form):
    """Body of ``POST /api/auth/register``."""

    email: Email
    password: Password
    name: Name | None = None


class NewUser(_Form):
    """Body of ``POST /api/users``; without a password the user cannot log in."""

    email: Email
    name: Name
    password: Password | None = None


class Login(_Form):
    """Body of ``POST /api/auth/login``; what could not have been registered is merely wrong."""

    email: Annotated[Text, Field(max_length=254)]
    password: Annotated[Text, Field(max_length=128)]


Form = TypeVar("Form", bound=_Form)


def parse(form: type[Form], request: Request) -> Form:
    """Return the body as a ``form``; its ``Content-Type`` is not looked at.

    :raises HTTPError: 400 ``BAD_JSON`` or 422 ``VALIDATION``.
    """
    document = request.json()
    if not isinstance(document, dict):
        raise _invalid([("", "must be a JSON object")])
    try:
        return form.model_validate(document)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        raise _invalid(
            [(".".join(map(str, fault["loc"])), fault["msg"]) for fault in faults]
        ) from None


def page_of(request: Request) -> tuple[int, int]:
    """Return ``(limit, after)`` of the query: a page's length and the id before it.

    :raises HTTPError: 422 ``VALIDATION`` unless ``limit`` is 1 to 100 and ``after`` an id.
    """
    query = request.query
    limit = _number(query.get("limit", str(DEFAULT_PAGE)))
    after = _number(query.get("after", "0"))
    faults = []
    if limit is None or not 1 <= limit <= MAX_PAGE:
        faults.append(("limit", f"must be a whole number from 1 to {MAX_PAGE}"))
    if after is None:
        faults.append(("after", "must be the id of a user"))
    if faults or limit is None or after is None:
        raise _invalid(faults)
    return limit, after


def _number(text: str) -> int | None:
    fits = text.isascii() and text.isdecimal() and len(text) <= MAX_ID_DIGITS
    return int(text) if fits else None


def _invalid(faults: list[tuple[str, str]]) -> HTTPError:
    return HTTPError(
        422,
        "the request is not valid",
        code="VALIDATION",
        # field names are the client's own words, and may be many and long
        details=[
            {"field": field[:100], "problem": problem} for field, problem in faults[:MAX_DETAILS]
        ],
    )
