"""Arguments of handlers, checked: from a request to values of the annotated types, or 422.

What comes from where is read off the signature (see ``parameters``); here it is compiled, once per
route, into one function. Pydantic checks everything, in Rust; what holds a ``msgspec.Struct``,
msgspec does.

Rules:

1. All that is wrong is told at once, each with where it is: ``{"in": "body", "path": ["items", 3,
   "price"], "message": …}``. At most ``MOST_TOLD`` problems with ``MOST_STEPS`` steps; names, which
   are the client's own words, are cut; values are never repeated, as one may be a password. Of what
   msgspec checks the first fault is told. Of more than ``MOST_LISTED`` only that they are many: to
   list them would cost more than to find them.
2. Bodies are JSON in name too: another ``Content-Type``, or none, is 415. Browsers send JSON to
   other origins only after a preflight, but text, forms, and blobs without a type, without one.
3. What is no JSON is 400, by orjson's measure (RFC 8259): no NaN, no number beyond a double, no
   lone surrogate, UTF-8 alone, nested at most 1,024 deep; pydantic stops at 200. Of a name that
   comes twice in an object the last counts, with orjson, pydantic and msgspec alike.
4. JSON has types: ``"1"`` is no int. Text has none, and is read narrowly: an int is up to 18 digits
   with ``-`` before or not, a float a number of JSON, a bool ``true``, ``false``, ``1`` or ``0``;
   dates and times are those of RFC 3339, never a number of seconds.
5. Fields that the type does not have are refused at every depth, whatever its own configuration;
   what may hold anything is a ``dict``. A ``Struct`` must say so itself, which is asked at start.
6. An integer in a body fits into 64 bits with its sign, in every field, also of those that take
   anything: a longer one would be an error deep in a database.
7. A query parameter or header that takes one value and comes twice is refused: two readers of it
   would not see the same. Unknown query parameters are ignored unless the route is
   ``strict_query``: links are decorated on their way.
8. What a handler returns is not checked: mypy does that before it runs, and a wrong answer is no
   client's fault. The annotation describes (see ``openapi``).

Cost: a body of five fields 3.1 µs as a dataclass, 3.2 as a ``TypedDict``, 3.4 as a pydantic model,
2.2 as a Struct, where only to decode it takes 0.7; two query parameters 1.9
(``python -m pytest bench/test_micro.py -k checked --benchmark-only``).
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Annotated, Any, Final, NotRequired, Union, get_args, get_origin

from pydantic import BeforeValidator, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from fluxor_fast.errors import HTTPError, InvalidRequest, RouteError
from fluxor_fast.http.request import Request
from fluxor_fast.parameters import Parameter, is_struct
from fluxor_fast.routing import MAX_DIGITS

__all__ = ["MAX_BODY", "Arguments", "holds_struct", "problems_of"]

MAX_BODY: Final = 65_536
"""Bytes of a checked body, unless the route or a ``BodyLimit`` says other: a body may be made of
nothing but faults, and to find one costs far more than to read two bytes."""
MOST_LISTED: Final = 200
MOST_TOLD: Final = 20
MOST_STEPS: Final = 32
MOST_NAME: Final = 100

Problem = dict[str, Any]
Call = Callable[[Request], Any]


class Arguments:
    """What a handler takes beside the request and the path's own values."""

    def __init__(
        self, path: str, parameters: Sequence[Parameter], *, strict_query: bool = False
    ) -> None:
        """Compile ``parameters``.

        :raises RouteError: for a type that cannot be checked.
        """
        self.parameters = tuple(one for one in parameters if one.where != "body")
        self.strict_query = strict_query
        self.body = next((one for one in parameters if one.where == "body"), None)
        self._texts: _Texts | None = None
        self._document: _Document | _StructDocument | None = None
        try:
            if self.parameters or strict_query:
                self._texts = _Texts(self.parameters, strict_query)
            if self.body is not None:
                reads = _StructDocument if holds_struct(self.body.type) else _Document
                self._document = reads(self.body)
        except (PydanticUserError, TypeError, NameError) as error:
            raise RouteError(f"{path}: its arguments cannot be checked: {error}") from None

    def bind(self, handler: Callable[..., Any]) -> Call:
        """Return ``handler`` as a function of the request alone."""
        texts, document = self._texts, self._document

        def bound(request: Request) -> Any:
            values = dict(request.head.params)
            problems: list[Problem] = []
            if texts is not None:
                texts.read(request, values, problems)
            if document is not None:
                document.read(request, values, problems)
            if problems:
                raise InvalidRequest(problems[:MOST_TOLD])
            return handler(request, **values)

        return bound


# text: path, query and headers


class _Texts:
    """The arguments that come as text, checked together."""

    def __init__(self, parameters: Sequence[Parameter], strict_query: bool) -> None:
        self._path = [one for one in parameters if one.where == "path"]
        self._query = {one.key: one for one in parameters if one.where == "query"}
        self._headers = [one for one in parameters if one.where == "header"]
        self._strict = strict_query
        self._by_name = {one.name: one for one in parameters}
        fields = {}
        for one in parameters:
            kind = _of_text(one.type)
            fields[one.name] = kind if one.required else NotRequired[kind]
        self._check = TypeAdapter(TypedDict("Arguments", fields)).validator.validate_python  # type: ignore[operator]

    def read(self, request: Request, values: dict[str, Any], problems: list[Problem]) -> None:
        """Put what is there into ``values``, and what is wrong into ``problems``."""
        head = request.head
        found: dict[str, Any] = {one.name: head.params[one.name] for one in self._path}
        if self._query or self._strict:
            for key, text in head.query_items:
                one = self._query.get(key)
                if one is None:
                    if self._strict:
                        problems.append(_problem("query", (key,), "is not known here"))
                elif one.several:
                    found.setdefault(one.name, []).append(text)
                elif one.name in found:
                    problems.append(_problem("query", (key,), "comes more than once"))  # rule 7
                else:
                    found[one.name] = text
        for one in self._headers:
            lines = head.headers.get_all(one.key)
            if one.several:
                if lines:  # one line or several mean the same (RFC 9110, section 5.3)
                    items = (item.strip(" \t") for item in ",".join(lines).split(","))
                    found[one.name] = [item for item in items if item]
            elif lines:
                found[one.name] = lines[0]
                if len(lines) > 1:
                    problems.append(_problem("header", (one.key,), "comes more than once"))
        try:
            values.update(self._check(found))
        except ValidationError as error:
            for place, message in _faults(error):
                at = self._by_name.get(str(place[0])) if place else None
                where, key = (at.where, at.key) if at else ("query", "")
                problems.append(_problem(where, (key, *place[1:]), message))


_WHOLE = re.compile(rf"-?[0-9]{{1,{MAX_DIGITS}}}")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TRUTH: Final[Mapping[str, bool]] = {"true": True, "1": True, "false": False, "0": False}


def _int(text: object) -> object:
    if isinstance(text, str):
        if not _WHOLE.fullmatch(text):
            raise PydanticCustomError(
                "int_text",
                f"must be a whole number of at most {MAX_DIGITS} digits",
            )
        return int(text)
    return text


def _float(text: object) -> object:
    if isinstance(text, str):
        number = float(text) if _NUMBER.fullmatch(text) else float("inf")
        if abs(number) == float("inf"):
            raise PydanticCustomError("float_text", "must be a number")
        return number
    return text


def _bool(text: object) -> object:
    if isinstance(text, str):
        truth = _TRUTH.get(text)
        if truth is None:
            raise PydanticCustomError("bool_text", "must be true or false")
        return truth
    return text


def _moment(text: object) -> object:
    # pydantic would take seconds since 1970, too
    if isinstance(text, str) and not _MOMENT.match(text):
        raise PydanticCustomError("moment_text", "must be as in RFC 3339, such as 2024-06-30")
    return text


_READERS: Final[Mapping[Any, Callable[[object], object]]] = {
    int: _int,
    float: _float,
    bool: _bool,
    date: _moment,
    datetime: _moment,
}


def _of_text(kind: Any) -> Any:
    """Return ``kind`` with its numbers read from text as rule 4 says."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        bare, *metadata = arguments
        if bare in _READERS:
            return Annotated[(bare, *metadata, BeforeValidator(_READERS[bare]))]
        return Annotated[(_of_text(bare), *metadata)]
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_of_text, arguments))]  # noqa: UP007
    if kind in _READERS:
        return Annotated[kind, BeforeValidator(_READERS[kind])]
    if arguments and origin in (list, tuple, set, frozenset):
        return origin[tuple(one if one is ... else _of_text(one) for one in arguments)]
    return kind


# the body


class _Document:
    """The body, read by pydantic."""

    def __init__(self, body: Parameter) -> None:
        self._name = body.name
        self._required = body.required
        self._check = TypeAdapter(body.type).validator.validate_json

    def read(self, request: Request, values: dict[str, Any], problems: list[Problem]) -> None:
        """Put the document into ``values``, or what is wrong with it into ``problems``.

        :raises HTTPError: 415 for another ``Content-Type``, 400 for what is not JSON.
        """
        raw = _json_of(request, required=self._required)
        if raw is None:
            return
        try:
            values[self._name] = self._check(raw, strict=True, extra="forbid")
        except ValidationError as error:
            problems += problems_of("body", error)
        else:
            _check_integers(raw, problems)


class _StructDocument:
    """The body, read by msgspec."""

    def __init__(self, body: Parameter) -> None:
        import msgspec

        self._name = body.name
        self._required = body.required
        _want_closed(msgspec.inspect.type_info(body.type), set())
        self._decode = msgspec.json.Decoder(body.type).decode
        self._fault = msgspec.ValidationError
        self._malformed = msgspec.DecodeError

    def read(self, request: Request, values: dict[str, Any], problems: list[Problem]) -> None:
        """Do what ``_Document.read`` does."""
        raw = _json_of(request, required=self._required)
        if raw is None:
            return
        try:
            values[self._name] = self._decode(raw)
        except self._fault as error:
            problems.append(_struct_problem(str(error)))
        except (self._malformed, RecursionError):
            raise _too_deep() from None
        else:
            _check_integers(raw, problems)


def _json_of(request: Request, *, required: bool) -> bytes | None:
    """Return the body, which is JSON (rules 2 and 3); None if there is none, nor need be."""
    raw = request.body
    if not raw and not required:
        return None
    _want_json(request)
    request.json()
    return raw


def _want_json(request: Request) -> None:
    """Refuse a body that is not called JSON (rule 2)."""
    text = request.head.headers.get("content-type", "")
    if text == "application/json":
        return
    kind, *parameters = (part.strip(" \t").lower() for part in text.split(";"))
    family, _, name = kind.partition("/")
    good = family == "application" and (name == "json" or name.endswith("+json"))
    for parameter in parameters:
        attribute, _, value = parameter.partition("=")
        if attribute == "charset" and value.strip('"') != "utf-8":
            good = False
    if not good:
        raise HTTPError(
            415,
            "the body must be JSON, in UTF-8, with the Content-Type application/json",
            headers={"Accept": "application/json"},
        )


def _too_deep() -> HTTPError:
    return HTTPError(400, "the body is nested too deeply", code="BAD_JSON")


_DIGITS: Final = bytes.maketrans(b"123456789", b"0" * 9)
_LONG: Final = b"0" * 19


def _check_integers(raw: bytes, problems: list[Problem]) -> None:
    """Refuse integers beyond 64 bits (rule 6): slow only where 19 digits stand in a row."""
    if _LONG not in raw.translate(_DIGITS):
        return
    try:
        json.loads(raw, parse_int=_fitting)
    except OverflowError:
        problems.append(_problem("body", (), "has an integer that does not fit into 64 bits"))
    except RecursionError:
        raise _too_deep() from None


def _fitting(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise OverflowError
    return 0


# what is wrong

_WORDS: Final[Mapping[str, str]] = {
    "extra_forbidden": "is not known here",
    "model_type": "must be an object",
    "unexpected_keyword_argument": "is not known here",
    "union_tag_invalid": "must have a tag that is known",
    "uuid_parsing": "must be a UUID",
    "url_parsing": "must be a URL",
    "bytes_invalid_encoding": "must be bytes in the wanted encoding",
}
"""Other words for pydantic's that may repeat some of the value, or are those of Python."""


def _faults(error: ValidationError) -> list[tuple[tuple[int | str, ...], str]]:
    """Return where and what is wrong.

    :raises HTTPError: if the document was not read to its end for its depth.
    """
    count = error.error_count()
    if count > MOST_LISTED:
        return [((), f"has {count} faults")]
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    if faults[0]["type"] == "json_invalid":  # it is JSON by orjson's measure
        raise _too_deep()
    return [(fault["loc"], _WORDS.get(fault["type"], fault["msg"])) for fault in faults[:MOST_TOLD]]


def problems_of(where: str, error: ValidationError) -> list[Problem]:
    """Return what pydantic has found wrong with a whole document, as ``InvalidRequest`` tells it.

    :param where: body, query or header.
    :raises HTTPError: if the document was not read to its end for its depth.
    """
    return [_problem(where, place, message) for place, message in _faults(error)]


def _problem(where: str, place: Sequence[int | str], message: str) -> Problem:
    path = [one[:MOST_NAME] if isinstance(one, str) else one for one in place[:MOST_STEPS]]
    return {"in": where, "path": path, "message": message}


_STEP = re.compile(r"\.([^.\[\]`]+)|\[(\d+)\]|\[(\.\.\.)\]")


def _struct_problem(text: str) -> Problem:
    """Return the problem that msgspec tells in a sentence."""
    message, _, place = text.rpartition(" - at `") if text.endswith("`") else (text, "", "")
    if not message:
        message, place = text, ""
    path: list[int | str] = []
    key = place.startswith("key")
    for name, index, some in _STEP.findall(place):
        path.append(int(index) if index else name or some)
    if message.startswith(("Invalid enum value", "Invalid value")):  # which they repeat
        message = "must be a value that is known"
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", message, re.DOTALL)
    if unknown:
        path.append(unknown[1])
        message = "is not known here"
    return _problem("body", path, f"a key: {message}" if key else message)


# structs


def holds_struct(kind: Any) -> bool:
    """Whether ``kind`` is a ``msgspec.Struct``, or a container of some."""
    return is_struct(get_origin(kind) or kind) or any(map(holds_struct, get_args(kind)))


def _want_closed(info: Any, seen: set[Any]) -> None:
    """Raise a ``TypeError`` for what would let unknown fields pass (rule 5)."""
    kind = type(info).__name__
    of: Any = getattr(info, "cls", None)
    if kind == "StructType":
        if of in seen:
            return
        seen.add(of)
        if not info.forbid_unknown_fields:
            raise TypeError(f"{of.__name__} must have forbid_unknown_fields=True")
    elif kind in ("DataclassType", "TypedDictType"):
        raise TypeError(f"{of.__name__}: among Structs all objects with fields must be Structs")
    for field in getattr(info, "fields", ()):
        _want_closed(field.type, seen)
    for name in ("item_type", "key_type", "value_type", "type"):
        part = getattr(info, name, None)
        if part is not None:
            _want_closed(part, seen)
    for name in ("types", "item_types"):
        for part in getattr(info, name, None) or ():
            _want_closed(part, seen)
