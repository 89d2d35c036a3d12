"""Accounts: register, log in, and how someone becomes an administrator.

The answer to a wrong password and to an unknown user is the same, in words and in time, and after
too many attempts too (see ``attempts``). Nobody
becomes an administrator over HTTP: ``python -m fluxor_fast.service grant EMAIL admin`` does it,
for who holds the database's credentials.
"""

from __future__ import annotations

import contextlib

import psycopg

from fluxor_fast.app import App
from fluxor_fast.auth.tokens import unauthorized
from fluxor_fast.contract import Answer, Contract
from fluxor_fast.errors import HTTPError
from fluxor_fast.http.request import Request
from fluxor_fast.http.response import Response
from fluxor_fast.service.answers import INVALID, LoggedIn
from fluxor_fast.service.forms import Login, Registration, parse
from fluxor_fast.service.runtime import Runtime, runtime
from fluxor_fast.service.sessions import begin_session
from fluxor_fast.service.users import CREATED, created, insert_user

__all__ = ["add_routes", "grant_role"]


def add_routes(app: App) -> None:
    """Register these routes on ``app``."""
    app.post("/api/auth/register", contract=Contract(CREATED, body=Registration))(register)
    app.post(
        "/api/auth/login",
        contract=Contract(
            {
                200: Answer("The tokens of a new session.", LoggedIn),
                401: Answer(
                    "The email address or the password is wrong.",
                    headers={"WWW-Authenticate": "The challenge, `Bearer`."},
                ),
                422: INVALID,
                429: Answer(
                    "There were too many attempts for this account, or from this address.",
                    headers={"Retry-After": "Seconds until counting begins anew."},
                ),
                503: CREATED[503],
            },
            body=Login,
        ),
    )(login)


async def register(request: Request) -> Response:
    """Make an account; 409 when the email address is taken."""
    form = parse(Registration, request)
    return created(await insert_user(runtime(request), form.email, form.name, form.password))


async def login(request: Request) -> LoggedIn:
    """Begin a session: return its tokens for good credentials."""
    form = parse(Login, request)
    parts, address = runtime(request), request.client
    await parts.attempts.begin(form.email, address)
    user = await parts.database.fetch_one(
        "select id, email, roles, password_hash from users where lower(email) = lower(%s)",
        form.email,
    )
    hashed = None if user is None else user["password_hash"]
    try:
        matches = await parts.passwords.verify(hashed, form.password)
    except HTTPError:  # too many are being hashed
        await parts.attempts.take_back(form.email, address)
        raise
    if user is None or hashed is None or not matches:
        raise unauthorized("the email address or the password is wrong", "WRONG_CREDENTIALS")
    if parts.passwords.needs_rehash(hashed):
        await _rehash(parts, user["id"], hashed, form.password)
    await parts.attempts.take_back(form.email, address)
    return await begin_session(request, user)


async def _rehash(parts: Runtime, user_id: int, hashed: str, password: str) -> None:
    """Store the password with today's parameters, unless someone has changed it meanwhile."""
    with contextlib.suppress(HTTPError):  # busy: the next login will do
        await parts.database.execute(
            "update users set password_hash = %s where id = %s and password_hash = %s",
            await parts.passwords.hash(password),
            user_id,
            hashed,
        )


def grant_role(url: str, email: str, role: str) -> bool:
    """Give a user a role, once; return whether there is such a user.

    :param url: PostgreSQL URL.
    :raises psycopg.Error: when the database cannot be asked.
    """
    with psycopg.connect(url) as connection:
        cursor = connection.execute(
            "update users set roles = array_append(array_remove(roles, %(role)s), %(role)s)"
            " where lower(email) = lower(%(email)s)",
            {"role": role, "email": email},
        )
        return cursor.rowcount > 0
