"""JSON Web Tokens, signed with HS256 (RFC 7519, RFC 7515, RFC 7518 section 3.2).

Issuing takes a path of our own, because all but the payload is the same for every token: the
header segment is ready, and so are the two SHA-256 states after the key's pads (RFC 2104). What
comes out is what PyJWT would make of the same claims, byte for byte where they are ASCII without
DEL (PyJWT escapes other characters, we send UTF-8). Verifying is PyJWT's, with one algorithm
allowed.

Rules kept here:

1. A token over 8 KiB, or not ASCII, is refused before anything looks into it.
2. Every failure is one of two answers: 401 ``TOKEN_EXPIRED`` for a good token whose time is
   over, else 401 ``UNAUTHORIZED``. Why it is bad is not told.
3. What was verified is remembered, bounded, because a client sends the same token with every
   request and PyJWT takes 60 µs for it. The expiry is looked at each time. There is no
   revocation that remembering could miss: a token is good until it expires.
"""

from __future__ import annotations

import hashlib
import time
from binascii import b2a_base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jwt
import orjson

from fluxor_fast.errors import HTTPError

__all__ = ["Claims", "Tokens", "unauthorized"]

MAX_TOKEN = 8192
"""Longest token that is looked at, in bytes; ours have some hundreds."""
REMEMBERED = 4096
"""Tokens remembered per worker; with the length below at most 4 MiB."""
REMEMBERED_LENGTH = 1024
MIN_SECRET = 32
"""Least length of the key in bytes: that of the hash (RFC 7518, section 3.2)."""

_BLOCK = 64  # of SHA-256, bytes
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


@dataclass(frozen=True, slots=True)
class Claims:
    """Who a token speaks for. Times are Unix seconds."""

    user_id: int
    email: str
    roles: tuple[str, ...]
    issued_at: int
    expires_at: int


def unauthorized(
    message: str = "the token is not valid", code: str = "UNAUTHORIZED", error: str | None = None
) -> HTTPError:
    """Return a 401 with its challenge (RFC 6750, section 3)."""
    challenge = f'Bearer error="{error}"' if error else "Bearer"
    return HTTPError(401, message, code=code, headers={"WWW-Authenticate": challenge})


def _segment(data: bytes) -> bytes:
    return b2a_base64(data, newline=False).translate(_URL_SAFE).rstrip(b"=")


_HEADER = _segment(b'{"alg":"HS256","typ":"JWT"}') + b"."


class Tokens:
    """Issues and verifies tokens.

    :param secret: the HMAC key, at least 32 bytes, else ``ValueError``.
    :param lifetime: seconds a token is valid.
    :param clock: Unix time in seconds.
    """

    def __init__(
        self, secret: bytes, lifetime: int, clock: Callable[[], float] = time.time
    ) -> None:
        if len(secret) < MIN_SECRET:
            raise ValueError(f"the secret must have at least {MIN_SECRET} bytes")
        self.lifetime = lifetime
        self._secret = secret
        self._clock = clock
        key = hashlib.sha256(secret).digest() if len(secret) > _BLOCK else secret
        key = key.ljust(_BLOCK, b"\0")
        self._inner = hashlib.sha256(key.translate(_INNER))
        self._outer = hashlib.sha256(key.translate(_OUTER))
        self._inner.update(_HEADER)
        self._verified: dict[str, Claims] = {}

    def issue(self, user_id: int, email: str, roles: Sequence[str]) -> str:
        """Return a token for this user, valid from now for ``lifetime`` seconds."""
        now = int(self._clock())
        payload = _segment(
            orjson.dumps(
                {
                    "user_id": user_id,
                    "email": email,
                    "roles": roles,
                    "iat": now,
                    "exp": now + self.lifetime,
                    "sub": str(user_id),
                }
            )
        )
        inner = self._inner.copy()
        inner.update(payload)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return (_HEADER + payload + b"." + _segment(outer.digest())).decode("ascii")

    def verify(self, token: str) -> Claims:
        """Return the claims of a good token.

        :raises HTTPError: 401 ``TOKEN_EXPIRED`` or ``UNAUTHORIZED``.
        """
        claims = self._verified.get(token)
        if claims is None:
            claims = self._decode(token)
            if len(token) <= REMEMBERED_LENGTH:
                if len(self._verified) >= REMEMBERED:
                    del self._verified[next(iter(self._verified))]
                self._verified[token] = claims
        if claims.expires_at <= self._clock():
            self._verified.pop(token, None)
            raise unauthorized("the token has expired", "TOKEN_EXPIRED", "invalid_token")
        return claims

    def _decode(self, token: str) -> Claims:
        if len(token) > MAX_TOKEN or not token.isascii():
            raise unauthorized(error="invalid_token")
        try:
            found = jwt.decode(
                token,
                self._secret,
                algorithms=["HS256"],
                # the times are compared above, by our own clock
                options={
                    "require": ["exp", "iat", "sub"],
                    "verify_exp": False,
                    "verify_iat": False,
                },
            )
        except (jwt.PyJWTError, ValueError, RecursionError):  # deep JSON in a forged header
            raise unauthorized(error="invalid_token") from None
        user_id, email, roles = found.get("user_id"), found.get("email"), found.get("roles")
        issued, expires = found["iat"], found["exp"]
        # another program may hold the same secret and sign other claims
        if (
            type(user_id) is int
            and isinstance(email, str)
            and isinstance(roles, list)
            and all(isinstance(role, str) for role in roles)
            and type(issued) is int
            and type(expires) is int
            and found["sub"] == str(user_id)
        ):
            return Claims(user_id, email, tuple(roles), issued, expires)
        raise unauthorized(error="invalid_token")
