"""Is this JSON Web Token good? PyJWT judges signatures and claims; around it stand our own rules.

1. A token over 8 KiB, or not ASCII, is refused before anything looks into it.
2. It is three segments of base64url without padding (RFC 7515, sections 2 and 3.1), of which the
   first two are JSON objects. Neither may have a name twice (RFC 7519, section 4, lets us choose;
   two readers that choose differently can be led to different conclusions).
3. The key is found by ``kid`` and must be of the algorithm that the header names (see ``keys``):
   ``none`` and every confusion of kinds end there. Keys that a token brings along (``jwk``,
   ``jku``, ``x5c``, ``x5u``) are never looked at. ``crit`` and ``b64`` are refused: we know no
   extension (RFC 7515, section 4.1.11).
4. A token within a token (``cty: JWT``, RFC 7519, section 5.2) is refused: nobody here makes one.
5. An audience in the token must be ours; if we have none, it must have none (RFC 7519, 4.1.3).
6. ``exp`` and ``nbf`` are whole or broken numbers of Unix seconds, by the clock that is handed in.
7. Why a token is bad is not told: 401 ``TOKEN_EXPIRED`` for a good one whose time is over, else
   401 ``UNAUTHORIZED``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt
from jwt.utils import base64url_decode

from fluxor_fast.auth.keys import KeySet
from fluxor_fast.errors import HTTPError

__all__ = ["MAX_TOKEN", "Policy", "bad_token", "expired", "header_of", "read", "unauthorized"]

MAX_TOKEN: Final = 8192
"""Longest token that is looked at, in bytes; ours have some hundreds."""


_FORM: Final = re.compile(r"(?:[A-Za-z0-9_-]+\.){2}[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Policy:
    """What is asked of a token's claims.

    :param required: claims that must be there, beside ``exp``.
    :param leeway: seconds that clocks may differ.
    :param audience: who we are: one of these must be in ``aud``; none: there must be no ``aud``.
    :param issuer: what ``iss`` must be; None: whatever it is.
    """

    required: tuple[str, ...] = ("iat", "sub")
    leeway: float = 0
    audience: tuple[str, ...] = ()
    issuer: str | None = None


def unauthorized(
    message: str = "the token is not valid", code: str = "UNAUTHORIZED", error: str | None = None
) -> HTTPError:
    """Return a 401 with its challenge (RFC 6750, section 3)."""
    challenge = f'Bearer error="{error}"' if error else "Bearer"
    return HTTPError(401, message, code=code, headers={"WWW-Authenticate": challenge})


def bad_token() -> HTTPError:
    """Return the 401 for a token that is not good."""
    return unauthorized(error="invalid_token")


def expired() -> HTTPError:
    """Return the 401 for a token that was good."""
    return unauthorized("the token has expired", "TOKEN_EXPIRED", "invalid_token")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name stands twice")
    return made


def _object(segment: str) -> dict[str, Any]:
    found = json.loads(base64url_decode(segment), object_pairs_hook=_once)
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def header_of(token: str) -> dict[str, Any]:
    """Return the header of a token, which nobody has vouched for.

    :raises HTTPError: 401 (rules 1 to 4).
    """
    if len(token) > MAX_TOKEN or not _FORM.fullmatch(token):
        raise bad_token()
    try:
        header = _object(token.partition(".")[0])
    except (ValueError, RecursionError):
        raise bad_token() from None
    if "crit" in header or "b64" in header or str(header.get("cty", "")).upper() == "JWT":
        raise bad_token()
    return header


def read(token: str, keys: KeySet, policy: Policy, now: float) -> dict[str, Any]:
    """Return the claims of a good token.

    :param now: Unix time in seconds.
    :raises HTTPError: 401 ``TOKEN_EXPIRED`` or ``UNAUTHORIZED``.
    """
    key = keys.find(header_of(token))
    if key is None:
        raise bad_token()
    try:
        found: dict[str, Any] = jwt.decode(
            token,
            key.verifying,
            algorithms=[key.algorithm],
            audience=policy.audience or None,
            issuer=policy.issuer,
            options={
                "require": ["exp", *policy.required],
                # the times are compared below, by our own clock
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
            },
        )
        _object(token.split(".")[1])  # signed with our key, so it is worth the look
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise bad_token() from None
    _check_times(found, policy.leeway, now)
    return found


def _check_times(claims: Mapping[str, Any], leeway: float, now: float) -> None:
    expires, begins = claims["exp"], claims.get("nbf", 0)
    # json reads NaN and Infinity, which are numbers and no times
    if not all(type(time) in (int, float) and math.isfinite(time) for time in (expires, begins)):
        raise bad_token()
    if begins > now + leeway:
        raise bad_token()
    if expires <= now - leeway:
        raise expired()
