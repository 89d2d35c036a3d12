"""JSON Web Tokens, signed with HS256 (RFC 7519, RFC 7515, RFC 7518 section 3.2).

Issuing takes a path of our own, because all but the payload is the same for every token: the
header segment is ready, and so are the two SHA-256 states after the key's pads (RFC 2104). What
comes out is what PyJWT would make of the same claims, byte for byte where they are ASCII without
DEL (PyJWT escapes other characters, we send UTF-8). A token with that very header and no other
claims than ours is verified the same way; every other is PyJWT's, with one algorithm allowed.

Rules kept here:

1. A token over 8 KiB, or not ASCII, is refused before anything looks into it.
2. Every failure is one of two answers: 401 ``TOKEN_EXPIRED`` for a good token whose time is
   over, else 401 ``UNAUTHORIZED``. Why it is bad is not told.
3. What was verified is remembered, bounded, because a client sends the same token with every
   request. Expiry and revocation are looked at each time, and what was remembered goes with the
   key, as it belongs to it.
4. Our own path refuses whatever PyJWT refuses (what it does not know for sure it leaves to it).
   It is stricter in one thing: a signature is compared as text, so that of the ways to write the
   same 32 bytes only the canonical one is taken (RFC 4648, section 3.5).
"""

from __future__ import annotations

import hashlib
import time
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any, Final

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
_PLAIN = bytes.maketrans(b"-_+/", b"+/!!")  # what is not of the URL-safe alphabet is an error
_OURS: Final = {"user_id", "email", "roles", "iat", "exp", "sub"}


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
_SIGNATURE: Final = 43  # characters


class Tokens:
    """Issues and verifies tokens.

    :param secret: the HMAC key, at least 32 bytes, else ``ValueError``.
    :param lifetime: seconds a token is valid.
    :param clock: Unix time in seconds.
    :param revoked: tells whether claims, though good, are no longer to be honoured; None: all are.
    """

    def __init__(
        self,
        secret: bytes,
        lifetime: int,
        clock: Callable[[], float] = time.time,
        revoked: Callable[[Claims], bool] | None = None,
    ) -> None:
        if len(secret) < MIN_SECRET:
            raise ValueError(f"the secret must have at least {MIN_SECRET} bytes")
        self.lifetime = lifetime
        self._secret = secret
        self._clock = clock
        self._revoked = revoked
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
        return (_HEADER + payload + b"." + self._sign(payload)).decode("ascii")

    def _sign(self, payload: bytes) -> bytes:
        """Return the signature of our header and this payload segment, as a segment."""
        inner = self._inner.copy()
        inner.update(payload)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return _segment(outer.digest())

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
        if self._revoked is not None and self._revoked(claims):
            raise unauthorized(error="invalid_token")
        return claims

    def _decode(self, token: str) -> Claims:
        if len(token) > MAX_TOKEN or not token.isascii():
            raise unauthorized(error="invalid_token")
        found = self._read(token.encode())
        if found is None:
            found = self._read_any(token)
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

    def _read(self, token: bytes) -> dict[str, Any] | None:
        """Return the claims of a token of the form that we issue; None if it has another."""
        if not token.startswith(_HEADER):
            return None
        payload, dot, signature = token[len(_HEADER) :].partition(b".")
        if len(signature) != _SIGNATURE or not dot:
            return None
        if not compare_digest(self._sign(payload), signature):
            raise unauthorized(error="invalid_token")
        try:
            found = orjson.loads(
                a2b_base64(payload.translate(_PLAIN) + b"=" * (-len(payload) % 4), strict_mode=True)
            )
        except ValueError:  # signed, but not by us
            return None
        return found if isinstance(found, dict) and found.keys() == _OURS else None

    def _read_any(self, token: str) -> dict[str, Any]:
        """Return the claims of any token that is signed with our key; PyJWT judges it."""
        try:
            found: dict[str, Any] = jwt.decode(
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
        return found
