"""The API keys of who is signed in: make, list, revoke.

It takes a token: a key that was stolen makes no further ones. A key has at most the roles of its
owner, at each use: what was taken from the owner is taken from the key (see ``auth.apikeys`` for
how fast). Only administrators give a key another tier than ``standard``.
"""

from __future__ import annotations

from typing import Final, cast

from fluxor_fast.app import App
from fluxor_fast.auth.apikeys import new_key
from fluxor_fast.auth.roles import authenticated
from fluxor_fast.auth.tokens import Claims, unauthorized
from fluxor_fast.contract import Answer, Contract
from fluxor_fast.errors import HTTPError
from fluxor_fast.http.request import Request
from fluxor_fast.http.response import Response
from fluxor_fast.service.answers import BUSY_DATABASE, INVALID, Key, KeyList, MadeKey
from fluxor_fast.service.forms import NewKey, parse
from fluxor_fast.service.runtime import runtime, tokens_of

__all__ = ["add_routes"]

MOST: Final = 50
"""Keys of one user; two requests at once may make one more."""


def add_routes(app: App) -> None:
    """Register these routes on ``app``."""
    signed_in = (authenticated(tokens_of),)
    app.post(
        "/api/auth/keys",
        middleware=signed_in,
        contract=Contract(
            {
                201: Answer("The key; it is shown this once.", MadeKey),
                403: Answer("It asks for a role or a tier that you may not give."),
                409: Answer(f"You have {MOST} keys."),
                422: INVALID,
                503: BUSY_DATABASE,
            },
            body=NewKey,
            auth="bearer",
        ),
    )(make_key)
    app.get(
        "/api/auth/keys",
        middleware=signed_in,
        contract=Contract(
            {200: Answer("Your keys.", KeyList), 503: BUSY_DATABASE},
            auth="bearer",
        ),
    )(list_keys)
    app.delete(
        "/api/auth/keys/{id:int}",
        middleware=signed_in,
        contract=Contract(
            {
                204: Answer("The key is revoked."),
                404: Answer("You have no key with this id."),
                503: BUSY_DATABASE,
            },
            auth="bearer",
        ),
    )(revoke_key)


async def make_key(request: Request) -> tuple[int, MadeKey]:
    """Make an API key; it is in this answer, and nowhere else."""
    form = parse(NewKey, request)
    claims: Claims = request.state["user"]
    parts = runtime(request)
    if not set(form.roles).issubset(claims.roles):
        raise HTTPError(403, "a key can only have roles of yours")
    if form.tier != "standard" and "admin" not in claims.roles:
        raise HTTPError(403, "only administrators give this tier")
    text, prefix, digest = new_key()
    row = await parts.database.fetch_one(
        "insert into api_keys (user_id, prefix, digest, name, tier, roles, expires_at)"
        " select id, %s, %s, %s, %s, %s, now() + %s::int * interval '1 s' from users"
        " where id = %s and"
        " (select count(*) from api_keys where user_id = users.id and revoked_at is null) < %s"
        " returning id, prefix, name, tier, roles, created_at, expires_at",
        prefix,
        digest,
        form.name,
        form.tier,
        form.roles,
        form.expires_in,
        claims.user_id,
        MOST,
    )
    if row is None:
        owner = await parts.database.fetch_one("select id from users where id = %s", claims.user_id)
        if owner is not None:
            raise HTTPError(409, f"you have {MOST} keys, revoke one first")
        raise unauthorized("there is no such user any more")
    return 201, cast(MadeKey, {**row, "key": text})


async def list_keys(request: Request) -> KeyList:
    """Return the keys that are not revoked, without their secrets, by id."""
    rows = await runtime(request).database.fetch_all(
        "select id, prefix, name, tier, roles, created_at, expires_at from api_keys"
        " where user_id = %s and revoked_at is null order by id",
        request.state["user"].user_id,
    )
    return {"keys": cast(list[Key], rows)}


async def revoke_key(request: Request, id: int) -> Response:
    """Revoke a key."""
    parts = runtime(request)
    row = await parts.database.fetch_one(
        "update api_keys set revoked_at = now()"
        " where id = %s and user_id = %s and revoked_at is null returning prefix",
        id,
        request.state["user"].user_id,
    )
    if row is None:
        raise HTTPError(404, f"you have no key {id}")
    parts.keys.forget(row["prefix"])
    return Response(status=204)
