"""Sessions: what a login begins, a refresh goes on with, and a logout ends.

A session is one row. Its access tokens (``auth.tokens``) name it as ``sid``, and it has one refresh
token that is good, ``fxr_<session>_<64 hex>``, of which only a SHA-256 is stored (256 random bits
need no more, see ``auth.apikeys``). Rules kept here:

1. A refresh token is good once: with the new access token comes the next one. One that was used
   before, or is wrong, ends the session: either the client or somebody else has a copy (RFC 9700,
   section 4.14.2). So does a client that repeats a refresh whose answer it has lost.
2. A session ends ``refresh_seconds`` after its login, however often it is refreshed. Roles are read
   anew at each refresh.
3. When a session has ended so have its access tokens: in this worker at once, elsewhere within the
   second or so that ``auth.revocation`` says.
"""

from __future__ import annotations

import re
import secrets
from typing import Any

from fluxor_fast.app import App
from fluxor_fast.auth.apikeys import digest
from fluxor_fast.auth.roles import authenticated
from fluxor_fast.auth.tokens import Claims, unauthorized
from fluxor_fast.contract import Answer, Contract
from fluxor_fast.errors import HTTPError
from fluxor_fast.http.request import Request
from fluxor_fast.http.response import Response
from fluxor_fast.service.answers import BUSY_DATABASE, INVALID, LoggedIn
from fluxor_fast.service.forms import Refresh, parse
from fluxor_fast.service.runtime import runtime, tokens_of

__all__ = ["add_routes", "begin_session"]

_FORM = re.compile(r"fxr_([0-9a-f]{32})_[0-9a-f]{64}")


def add_routes(app: App) -> None:
    """Register these routes on ``app``."""
    app.post(
        "/api/auth/refresh",
        contract=Contract(
            {
                200: Answer("The next tokens.", LoggedIn),
                401: Answer(
                    "The refresh token is not good; if it was, its session has ended.",
                    headers={"WWW-Authenticate": "The challenge, `Bearer`."},
                ),
                422: INVALID,
                503: BUSY_DATABASE,
            },
            body=Refresh,
        ),
    )(refresh)
    app.post(
        "/api/auth/logout",
        middleware=(authenticated(tokens_of),),
        contract=Contract(
            {
                204: Answer("The session has ended, with all its tokens."),
                409: Answer("The token belongs to no session: it ends when it expires."),
                503: BUSY_DATABASE,
            },
            auth="bearer",
        ),
    )(logout)


async def refresh(request: Request) -> LoggedIn:
    """Return new tokens for a refresh token, which is good once."""
    token = parse(Refresh, request).refresh_token
    form = _FORM.fullmatch(token)
    if form is None:
        raise _refused()
    session, parts = form[1], runtime(request)
    following, stored = _new_token(session)
    # hashes of random texts are compared: how long that takes tells nothing of use
    row = await parts.database.fetch_one(
        "update sessions s set refresh_digest = %s from users u"
        " where s.id = %s and u.id = s.user_id and s.refresh_digest = %s"
        " and s.revoked_at is null and s.expires_at > now()"
        " returning u.id, u.email, u.roles,"
        " extract(epoch from s.expires_at - now())::float8 as left",
        stored,
        session,
        digest(token),
    )
    if row is None:
        ended = await parts.database.execute(
            "update sessions set revoked_at = now()"
            " where id = %s and refresh_digest <> %s and revoked_at is null",
            session,
            digest(token),
        )
        if ended:
            parts.revocations.add(session)
        raise _refused()
    return _logged_in(request, row, session, following, int(row["left"]))


async def logout(request: Request) -> Response:
    """End the session of the token, with all its tokens."""
    claims: Claims = request.state["user"]
    if claims.session is None:
        raise HTTPError(409, "this token belongs to no session: it ends when it expires")
    parts = runtime(request)
    await parts.database.execute(
        "update sessions set revoked_at = now() where id = %s and revoked_at is null",
        claims.session,
    )
    parts.revocations.add(claims.session)
    return Response(status=204)


async def begin_session(request: Request, user: dict[str, Any]) -> LoggedIn:
    """Return the tokens of a new session of ``user``, a row with id, email and roles."""
    parts = runtime(request)
    session = secrets.token_hex(16)
    token, stored = _new_token(session)
    await parts.database.execute(
        "insert into sessions (id, user_id, refresh_digest, expires_at)"
        " values (%s, %s, %s, now() + %s * interval '1 s')",
        session,
        user["id"],
        stored,
        parts.refresh_seconds,
    )
    return _logged_in(request, user, session, token, parts.refresh_seconds)


def _logged_in(
    request: Request, user: dict[str, Any], session: str, refresh_token: str, left: int
) -> LoggedIn:
    tokens = runtime(request).tokens
    return {
        "token": tokens.issue(user["id"], user["email"], user["roles"], session=session),
        "expires_in": tokens.lifetime,
        "refresh_token": refresh_token,
        "refresh_expires_in": left,
        "request_id": request.id,
    }


def _new_token(session: str) -> tuple[str, bytes]:
    """Return a refresh token of a session, and what is stored of it."""
    token = f"fxr_{session}_{secrets.token_hex(32)}"
    return token, digest(token)


def _refused() -> HTTPError:
    return unauthorized("the refresh token is not good, log in again", "REFRESH_REFUSED")
