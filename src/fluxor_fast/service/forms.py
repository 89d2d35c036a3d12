"""What clients may send: models of request bodies and queries, and how faults are told.

A body that is not JSON is 400 ``BAD_JSON``; one that is JSON but not what was asked for is 422 and
told as checked arguments are, all faults at once (see ``fluxor_fast.validation``). Those are not
used here, as they want a ``Content-Type`` that ``curl -d`` does not send.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from fluxor_fast.errors import InvalidRequest
from fluxor_fast.http.request import Request
from fluxor_fast.routing import MAX_DIGITS
from fluxor_fast.validation import problems_of

__all__ = ["Login", "NewKey", "NewUser", "Page", "Refresh", "Registration", "page_of", "parse"]

MAX_PAGE = 100
DEFAULT_PAGE = 20

# One @, no spaces or controls, a domain of at least two labels: what RFC 5321 calls a mailbox
# without quoted local parts and address literals, in any script (RFC 6531). Whether it exists only
# a mail can tell. The pattern is in the description too: its classes are spelled out such that they
# mean the same in JavaScript, where \w is ASCII and \s has other members.
_NEVER = r"\s\ufeff\x00-\x1f\x7f-\xa0"
_ENDS = rf"[^{_NEVER}\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e]"  # of ASCII letters and digits
_INNER = rf"[^{_NEVER}\x21-\x2c\x2e\x2f\x3a-\x40\x5b-\x5e\x60\x7b-\x7e]"  # and - and _
_EMAIL = re.compile(
    rf'[^{_NEVER}@"(),:;<>\[\]\\]{{1,64}}'
    rf"@(?:{_ENDS}(?:{_INNER}{{0,61}}{_ENDS})?\.)+{_ENDS}{_INNER}{{0,61}}{_ENDS}"
)


def _no_nul(text: str) -> str:
    if "\0" in text:  # PostgreSQL's text cannot hold it
        raise PydanticCustomError("nul", "must not contain NUL characters")
    return text


def _email(text: str) -> str:
    if len(text.encode()) > 254 or not _EMAIL.fullmatch(text):
        raise PydanticCustomError("email", "must be an email address of at most 254 bytes")
    return text


# What pydantic cannot see in these functions it is told in words of JSON Schema.
Text = Annotated[str, AfterValidator(_no_nul), Field(json_schema_extra={"pattern": r"^[^\x00]*$"})]
Email = Annotated[
    str,
    AfterValidator(_email),
    Field(
        json_schema_extra={"pattern": f"^{_EMAIL.pattern}$", "maxLength": 254},
        description="An address of at most 254 bytes in UTF-8.",
        examples=["ada@example.org"],
    ),
]
Password = Annotated[Text, Field(min_length=8, max_length=128, examples=["correct horse"])]
Name = Annotated[Text, Field(min_length=1, max_length=100, examples=["Ada"])]


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

    email: Annotated[Text, Field(max_length=254, examples=["ada@example.org"])]
    password: Annotated[Text, Field(max_length=128, examples=["correct horse"])]


class Refresh(_Form):
    """Body of ``POST /api/auth/refresh``."""

    refresh_token: Annotated[Text, Field(max_length=128)]


def _whole(value: object) -> object:
    """Take 60.0 for 60, as JSON does (JSON Schema, validation 6.1.1)."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class NewKey(_Form):
    """Body of ``POST /api/auth/keys``."""

    name: Annotated[Name, Field(description="What it is for.")]
    roles: Annotated[
        list[Name], Field(max_length=20, description="Some of your own.", examples=[["user"]])
    ] = ["user"]
    tier: Literal["standard", "premium"] = "standard"
    expires_in: (
        Annotated[
            int,
            Field(ge=60, le=10 * 366 * 86_400, description="Seconds; without it, no end."),
            BeforeValidator(_whole),
        ]
        | None
    ) = None


class Page(_Form):
    """Query of ``GET /api/users``."""

    limit: Annotated[int, Field(ge=1, le=MAX_PAGE, description="Length of the page.")] = (
        DEFAULT_PAGE
    )
    after: Annotated[
        int, Field(ge=0, lt=10**MAX_DIGITS, description="The last id of the page before.")
    ] = 0


Form = TypeVar("Form", bound=_Form)


def parse(form: type[Form], request: Request) -> Form:
    """Return the body as a ``form``; its ``Content-Type`` is not looked at.

    :raises HTTPError: 400 ``BAD_JSON`` or 422 ``VALIDATION_FAILED``.
    """
    return _checked(form, request.json(), "body")


def page_of(request: Request) -> Page:
    """Return what the query asks for; parameters with other names are not looked at.

    :raises HTTPError: 422 ``VALIDATION_FAILED`` unless ``limit`` is 1 to 100 and ``after`` an id.
    """
    query = request.query
    asked = {name: _number(query[name]) for name in Page.model_fields if name in query}
    return _checked(Page, asked, "query")


def _number(text: str) -> int | str:
    """Return the number that ``text`` writes in plain digits, else ``text``: a fault."""
    fits = text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS
    return int(text) if fits else text


def _checked(form: type[Form], document: object, where: str) -> Form:
    try:
        return form.model_validate(document)
    except ValidationError as error:
        raise InvalidRequest(problems_of(where, error)) from None
