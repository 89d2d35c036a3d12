"""Users: list, get, create; all need a token or an API key.

The list goes by keyset (``after`` is the last id of the page before), so that a page costs the
same wherever it is, and none is skipped or repeated while users are added.
"""

from __future__ import annotations

from typing import cast

import psycopg

from fluxor_fast.app import App
from fluxor_fast.auth.apikeys import bearer_or_key
from fluxor_fast.cache import Cache
from fluxor_fast.contract import Answer, Contract
from fluxor_fast.errors import HTTPError
from fluxor_fast.http.request import Request
from fluxor_fast.http.response import Response
from fluxor_fast.service import chain
from fluxor_fast.service.answers import BUSY_DATABASE, INVALID, TAKEN, User, UserPage
from fluxor_fast.service.forms import NewUser, Page, page_of, parse
from fluxor_fast.service.runtime import Runtime, keys_of, runtime, tokens_of

__all__ = ["CREATED", "add_routes", "created", "insert_user"]

CREATED = {
    201: Answer("The user was made.", User, headers={"Location": "The user's own path."}),
    409: TAKEN,
    422: INVALID,
    503: Answer("The database is busy or away, or too many passwords are being hashed."),
}
"""The answers of a route that makes a user."""


PROFILE_SECONDS = 300.0
"""For how long a user is answered from the cache. Nothing here changes one; what does (``grant``,
SQL by hand) shows within that time, and in what they may do with their next token."""


def add_routes(app: App, cache: Cache) -> None:
    """Register these routes on ``app``."""
    signed_in = (bearer_or_key(tokens_of, keys_of), chain.by_identity(app))
    app.get(
        "/api/users",
        middleware=signed_in,
        contract=Contract(
            {200: Answer("A page.", UserPage), 422: INVALID, 503: BUSY_DATABASE},
            query=Page,
            auth="bearer or key",
        ),
    )(list_users)
    app.post(
        "/api/users",
        middleware=signed_in,
        contract=Contract(CREATED, body=NewUser, auth="bearer or key"),
    )(create_user)
    app.get(
        "/api/users/{id:int}",
        middleware=signed_in,
        contract=Contract(
            {
                200: Answer("The user.", User),
                404: Answer("There is no user with this id."),
                503: BUSY_DATABASE,
            },
            auth="bearer or key",
        ),
    )(cache.cached(ttl=PROFILE_SECONDS, key=lambda request, id: id, name="users")(get_user))


async def list_users(request: Request) -> UserPage:
    """Return a page of users by id, and under ``next`` the ``after`` of the page that follows."""
    page = page_of(request)
    rows = await runtime(request).database.fetch_all(
        "select id, email, name, roles, created_at from users where id > %s order by id limit %s",
        page.after,
        page.limit + 1,  # one more tells whether a page follows
    )
    users = cast(list[User], rows[: page.limit])
    return {"users": users, "next": users[-1]["id"] if len(rows) > page.limit else None}


async def get_user(request: Request, id: int) -> User:
    """Return one user."""
    user = await runtime(request).database.fetch_one(
        "select id, email, name, roles, created_at from users where id = %s", id
    )
    if user is None:
        raise HTTPError(404, f"there is no user {id}")
    return cast(User, user)


async def create_user(request: Request) -> Response:
    """Make a user; 409 when the email address is taken."""
    form = parse(NewUser, request)
    return created(await insert_user(runtime(request), form.email, form.name, form.password))


async def insert_user(parts: Runtime, email: str, name: str | None, password: str | None) -> User:
    """Store a user with the role ``user`` and return it, without its password.

    :raises HTTPError: 409 ``CONFLICT`` when the address is taken, in whatever case.
    """
    hashed = None if password is None else await parts.passwords.hash(password)
    try:
        user = await parts.database.fetch_one(
            "insert into users (email, name, password_hash) values (%s, %s, %s)"
            " returning id, email, name, roles, created_at",
            email,
            name,
            hashed,
        )
    except psycopg.errors.UniqueViolation:
        raise HTTPError(409, "a user with this email address exists already") from None
    assert user is not None
    return cast(User, user)


def created(user: User) -> Response:
    """Return the answer to having made ``user``."""
    return Response.json(user, 201, {"Location": f"/api/users/{user['id']}"})
