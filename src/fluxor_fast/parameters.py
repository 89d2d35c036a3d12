"""Where a handler's arguments come from: read off its signature, when it is registered.

::

    @app.put("/users/{id:int}/visits")
    def visit(
        request, id: int, body: Visit, dry: Query[bool] = False, tags: Query[list[str]] = (),
        token: Annotated[str | None, Source("header", "X-Visit-Token")] = None,
    ): ...

Rules:

1. The first parameter is the request, and is left alone.
2. One that has the name of a parameter of the path comes from the path; ``Path`` may say so.
3. One that is named ``body``, or marked ``Body``, is the JSON document. There is at most one, never
   on GET (RFC 9110, section 9.3.1), and never on a route that reads its body as a stream.
4. One that is marked ``Query`` or ``Header`` comes from there, under its own name (a header's with
   ``-`` for ``_``) or the one that ``Source`` gives.
5. Any other must have a default, and always gets it.
6. What the annotation adds nothing to costs nothing: an ``int`` of ``{id:int}`` is one already.
7. Annotations that cannot be read are a ``RouteError``: what is not checked must not look as if.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)
from uuid import UUID

from pydantic import BaseModel
from typing_extensions import is_typeddict

from fluxor_fast.errors import RouteError

__all__ = [
    "Body",
    "Header",
    "Parameter",
    "Path",
    "Query",
    "Source",
    "is_struct",
    "parameters_read",
    "returned",
]

Where = Literal["path", "query", "header", "body"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where an argument comes from, as metadata of ``Annotated``.

    :param name: on the wire, where it is not the parameter's own.
    """

    where: Where
    name: str | None = None


T = TypeVar("T")
Path = Annotated[T, Source("path")]
"""``Path[int]``: from the path."""
Query = Annotated[T, Source("query")]
"""``Query[int]``: from the query; ``Query[list[int]]`` may come several times."""
Header = Annotated[T, Source("header")]
"""``Header[str]``: from a header field; ``Header[list[str]]`` is one of a list, with commas."""
Body = Annotated[T, Source("body")]
"""``Body[NewUser]``: the JSON document."""

_GIVEN: Final[Mapping[str, type]] = {"int": int, "uuid": UUID, "str": str, "path": str}
"""What the router makes of a parameter of the path."""
_SEVERAL: Final = (list, tuple, set, frozenset, Sequence, AbstractSet)


@dataclass(frozen=True, slots=True)
class Parameter:
    """An argument that is read from the request, and checked."""

    name: str
    where: Where
    key: str
    """Its name on the wire."""
    type: Any
    required: bool
    default: Any
    several: bool
    """Whether it takes all values that come under its name."""


def parameters_read(
    path: str,
    handler: Callable[..., Any],
    in_path: Mapping[str, str],
    *,
    methods: Sequence[str],
    stream: bool,
) -> tuple[Parameter, ...]:
    """Return the arguments of ``handler`` that need reading or checking; mostly there are none.

    :param in_path: the parameters of the path pattern, with their converters.
    :raises RouteError: for an annotation that cannot be read, or breaks a rule.
    """
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):  # of a few built-in functions
        return ()
    found: list[Parameter] = []
    for one in [*signature.parameters.values()][1:]:
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) or one.annotation is one.empty:
            continue
        kind = _resolved(path, handler, one)
        source = _source_of(path, one.name, kind, in_path)
        if source is None:
            continue
        kind = _without_source(kind)
        if source.where == "path" and kind in (Any, object, _GIVEN[in_path[one.name]]):
            continue  # rule 6
        if one.kind is one.POSITIONAL_ONLY:
            raise RouteError(f"{path}: {one.name} is positional only, and cannot be given by name")
        found.append(
            Parameter(
                one.name,
                source.where,
                source.name or _key(one.name, source.where),
                kind,
                one.default is one.empty,
                None if one.default is one.empty else one.default,
                _is_several(kind),
            )
        )
    _check(path, found, methods, stream)
    return tuple(found)


def _key(name: str, where: Where) -> str:
    return name.replace("_", "-") if where == "header" else name


def _check(path: str, found: Sequence[Parameter], methods: Sequence[str], stream: bool) -> None:
    bodies = [one for one in found if one.where == "body"]
    if len(bodies) > 1:
        raise RouteError(f"{path}: there is one body, not {len(bodies)}")
    if bodies and "GET" in (method.upper() for method in methods):
        raise RouteError(f"{path}: the body of a GET means nothing; ask in the query")
    if bodies and stream:
        raise RouteError(f"{path}: a route that streams reads its body itself")
    if bodies and bodies[0].type in (bytes, bytearray, memoryview):
        raise RouteError(f"{path}: a JSON document is never bytes; they are in `request.body`")
    for one in found:
        if one.where != "body" and _is_document(one.type):
            raise RouteError(f"{path}: {one.name} is one text of the {one.where}, not a document")
        if one.where == "path" and one.several:
            raise RouteError(f"{path}: {one.name} is one segment of the path, not several")
    keys = [(one.where, one.key.lower()) for one in found if one.where in ("query", "header")]
    if len(set(keys)) != len(keys):
        raise RouteError(f"{path}: two parameters have one name on the wire")


def _resolved(path: str, handler: Callable[..., Any], one: inspect.Parameter) -> Any:
    """Return the annotation of a parameter, evaluated where it was written (rule 7)."""
    try:
        return _evaluated(handler, one.annotation)
    except Exception as error:
        raise RouteError(
            f"{path}: the annotation of {one.name} cannot be read where the handler is defined:"
            f" {error}"
        ) from None


def returned(handler: Callable[..., Any]) -> Any:
    """Return the annotation of what a handler returns; None if there is none that can be read."""
    try:
        annotation = inspect.signature(handler).return_annotation
        return None if annotation is inspect.Signature.empty else _evaluated(handler, annotation)
    except Exception:  # it only describes
        return None


def _evaluated(handler: Callable[..., Any], annotation: Any) -> Any:
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    return get_type_hints(holder, _globals_of(handler), include_extras=True)["it"]


def _globals_of(handler: Any) -> dict[str, Any]:
    while True:
        if isinstance(handler, functools.partial):
            handler = handler.func
        elif hasattr(handler, "__wrapped__"):
            handler = handler.__wrapped__
        elif inspect.ismethod(handler):
            handler = handler.__func__
        elif not hasattr(handler, "__globals__") and inspect.ismethod(handler.__call__):
            handler = handler.__call__
        else:
            return getattr(handler, "__globals__", {})


def _source_of(path: str, name: str, kind: Any, in_path: Mapping[str, str]) -> Source | None:
    metadata = getattr(kind, "__metadata__", ())
    sources = [one for one in metadata if isinstance(one, Source)]
    if len(sources) > 1:
        raise RouteError(f"{path}: {name} comes from one place, not {len(sources)}")
    source = sources[0] if sources else None
    if name in in_path:
        if source is not None and (source.where, source.name or name) != ("path", name):
            raise RouteError(f"{path}: {name} is a parameter of the path")
        return source or Source("path")
    if source is not None and source.where == "path":
        raise RouteError(f"{path}: {name} is not a parameter of the path")
    return source or (Source("body") if name == "body" else None)


def _without_source(kind: Any) -> Any:
    kept = tuple(one for one in getattr(kind, "__metadata__", ()) if not isinstance(one, Source))
    bare = getattr(kind, "__origin__", kind) if get_origin(kind) is Annotated else kind
    return Annotated[(bare, *kept)] if kept else bare


def _inner(kind: Any) -> Any:
    """Return a type without ``Annotated`` and ``| None`` around it."""
    while True:
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        elif get_origin(kind) in (Union, types.UnionType):
            others = [one for one in get_args(kind) if one is not types.NoneType]
            if len(others) != 1:
                return kind
            kind = others[0]
        else:
            return kind


def _is_several(kind: Any) -> bool:
    bare = _inner(kind)
    return (get_origin(bare) or bare) in _SEVERAL


def is_struct(kind: Any) -> bool:
    """Whether this is a ``msgspec.Struct``; msgspec need not be there to ask."""
    return isinstance(kind, type) and hasattr(kind, "__struct_fields__")


def _is_document(kind: Any) -> bool:
    bare = _inner(kind)
    if (get_origin(bare) or bare) in _SEVERAL:
        return any(map(_is_document, get_args(bare)))
    bare = get_origin(bare) or bare
    return (
        is_typeddict(bare)
        or is_struct(bare)
        or dataclasses.is_dataclass(bare)
        or (isinstance(bare, type) and issubclass(bare, BaseModel | dict | Mapping))
    )
