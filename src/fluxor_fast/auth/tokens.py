"""JSON Web Tokens of our own (RFC 7519, RFC 7515), issued and verified.

With HS256 (RFC 7518, section 3.2) issuing takes a path of our own, because all but the payload is
the same for every token: the header segment is ready, and so are the two SHA-256 states after the
key's pads (RFC 2104). What comes out is what PyJWT would make of the same claims, byte for byte
where they are ASCII without DEL (PyJWT escapes other characters, we send UTF-8). A token with
that very header and no other claims than ours is verified the same way; every other is judged by
``verifying``, that is by PyJWT, with the one algorithm that its key is for.

Rules kept here:

1. Those of ``verifying``: every failure is one of two answers, and why is not told.
2. What was verified is remembered, bounded, because a client sends the same token with every
   request. Expiry and revocation are looked at each time, and what was remembered goes with the
   keys, as it belongs to them.
3. Our own path refuses whatever PyJWT refuses (what it does not know for sure it leaves to it):
   only a payload that is, byte for byte, what we would write for its claims is taken there, so no
   name stands twice in it. It is stricter in one thing: a signature is compared as text, so that
   of the ways to write the same 32 bytes only the canonical one is taken (RFC 4648, section 3.5).
"""

from __future__ import annotations

import hashlib
import time
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Sequence
from hmac import compare_digest
from typing import Any, Final, NamedTuple, TypeGuard

import jwt
import orjson

from fluxor_fast.auth.keys import Key, KeySet
from fluxor_fast.auth.memory import remember
from fluxor_fast.auth.verifying import (
    MAX_TOKEN,
    Policy,
    bad_token,
    expired,
    read,
    unauthorized,
)

__all__ = ["Claims", "Tokens", "unauthorized"]

REMEMBERED = 4096
"""Tokens remembered per worker; with the length below at most 4 MiB."""
REMEMBERED_LENGTH = 1024

_BLOCK = 64  # of SHA-256, bytes
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_PLAIN = bytes.maketrans(b"-_+/", b"+/!!")  # what is not of the URL-safe alphabet is an error
_PADS: Final = (b"", b"", b"==", b"=")  # by the length modulo 4; 1 is the length of nothing
_SIGNATURE: Final = 43  # characters
_OURS: Final = frozenset(("user_id", "email", "roles", "iat", "exp", "sub"))
_TEXT: Final = frozenset((str,))
_MORE: Final = frozenset(("permissions", "sid"))


class Claims(NamedTuple):
    """Who a token speaks for. Times are Unix seconds."""

    user_id: int
    email: str
    roles: tuple[str, ...]
    issued_at: int
    expires_at: int
    permissions: tuple[str, ...] = ()
    session: str | None = None
    """What the token belongs to, and may be revoked with (claim ``sid``)."""


def _segment(data: bytes) -> bytes:
    return b2a_base64(data, newline=False).translate(_URL_SAFE).rstrip(b"=")


class _Signer:
    """HS256 with one key: all that can be ready before the payload is known."""

    __slots__ = ("_inner", "_outer", "header")

    def __init__(self, secret: bytes, kid: str | None) -> None:
        name = b"" if kid is None else b'"kid":%b,' % orjson.dumps(kid)
        # in the order in which PyJWT writes them
        self.header = _segment(b'{"alg":"HS256",%b"typ":"JWT"}' % name) + b"."
        key = hashlib.sha256(secret).digest() if len(secret) > _BLOCK else secret
        key = key.ljust(_BLOCK, b"\0")
        self._inner = hashlib.sha256(key.translate(_INNER))
        self._outer = hashlib.sha256(key.translate(_OUTER))
        self._inner.update(self.header)

    def sign(self, payload: bytes) -> bytes:
        """Return the signature of the header and this payload segment, as a segment."""
        inner = self._inner.copy()
        inner.update(payload)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return _segment(outer.digest())


class Tokens:
    """Issues and verifies tokens.

    :param keys: the keys, of which the first one signs; or the bytes of one HS256 key, at least
        32, else ``ValueError``.
    :param lifetime: seconds a token is valid.
    :param clock: Unix time in seconds.
    :param revoked: tells whether claims, though good, are no longer to be honoured; None: all are.
    :param policy: what is asked of claims; issuer and (first) audience are also put into what we
        issue. Required besides: ``user_id``, ``email``, ``roles``, ``iat``, ``exp``, ``sub``.
    :raises ValueError: also if the first key cannot sign.
    """

    def __init__(
        self,
        keys: KeySet | bytes,
        lifetime: int,
        clock: Callable[[], float] = time.time,
        revoked: Callable[[Claims], bool] | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.lifetime = lifetime
        self._clock = clock
        self._revoked = revoked
        self._policy = policy or Policy()
        leeway = self._policy.leeway
        # what an end is held against; most have no leeway, and it is asked for each request
        self._past = clock if not leeway else lambda: clock() - leeway
        fixed = {"iss": self._policy.issuer, "aud": next(iter(self._policy.audience), None)}
        self._fixed = {name: value for name, value in fixed.items() if value is not None}
        required = frozenset(self._policy.required)
        self._names = _OURS | self._fixed.keys() | (required & _MORE)
        self._reads = required <= self._names  # else what is asked for is not in tokens of ours
        self.rotate(KeySet([Key("HS256", keys)]) if isinstance(keys, bytes) else keys)

    def rotate(self, keys: KeySet) -> None:
        """Sign and verify with these keys from now on; what was remembered is forgotten.

        :raises ValueError: if the first key cannot sign.
        """
        if keys.signer.signing is None:
            raise ValueError("the first key signs: it must be a private one")
        self._keys = keys
        signers = [
            _Signer(key.secret, key.kid)
            for key in keys
            if key.algorithm == "HS256" and key.secret is not None
        ]
        self._signers = {signer.header[:-1]: signer for signer in signers if self._reads}
        self._signer = signers[0] if keys.signer.algorithm == "HS256" else None
        self._verified: dict[str, Claims] = {}

    def issue(
        self,
        user_id: int,
        email: str,
        roles: Sequence[str],
        permissions: Sequence[str] = (),
        session: str | None = None,
    ) -> str:
        """Return a token for this user, valid from now for ``lifetime`` seconds.

        :param session: what it is revoked with.
        """
        now = int(self._clock())
        claims = {
            "user_id": user_id,
            "email": email,
            "roles": roles,
            "iat": now,
            "exp": now + self.lifetime,
            "sub": str(user_id),
        }
        if self._fixed:
            claims.update(self._fixed)
        if permissions:
            claims["permissions"] = permissions
        if session is not None:
            claims["sid"] = session
        signer = self._signer
        if signer is None:
            key = self._keys.signer
            headers = None if key.kid is None else {"kid": key.kid}
            return jwt.encode(claims, key.signing, key.algorithm, headers)
        payload = _segment(orjson.dumps(claims))
        return (signer.header + payload + b"." + signer.sign(payload)).decode("ascii")

    def verify(self, token: str) -> Claims:
        """Return the claims of a good token.

        :raises HTTPError: 401 ``TOKEN_EXPIRED`` or ``UNAUTHORIZED``.
        """
        verified = self._verified  # before the keys: what they say must not outlast them
        claims = verified.get(token)
        if claims is None:
            claims = self._decode(token)
            if len(token) <= REMEMBERED_LENGTH:
                remember(verified, token, claims, REMEMBERED)
        if claims.expires_at <= self._past():
            verified.pop(token, None)
            raise expired()
        if self._revoked is not None and self._revoked(claims):
            raise bad_token()
        return claims

    def _decode(self, token: str) -> Claims:
        if len(token) > MAX_TOKEN or not token.isascii():
            raise bad_token()
        found = self._read(token.encode())
        if found is None:
            found = read(token, self._keys, self._policy, self._clock())
        try:
            user_id, email, roles = found["user_id"], found["email"], found["roles"]
            issued, expires, subject = found["iat"], found["exp"], found["sub"]
        except KeyError:
            raise bad_token() from None
        # another program may hold the same key and sign other claims
        if not (
            type(user_id) is int
            and isinstance(email, str)
            and _is_texts(roles)
            and type(issued) is int
            and type(expires) is int
            and subject == str(user_id)
        ):
            raise bad_token()
        if len(found) == len(_OURS):
            return Claims(user_id, email, tuple(roles), issued, expires)
        permissions, session = found.get("permissions"), found.get("sid")
        if (permissions is None or _is_texts(permissions)) and (
            session is None or isinstance(session, str)
        ):
            may = tuple(permissions) if permissions else ()
            return Claims(user_id, email, tuple(roles), issued, expires, may, session)
        raise bad_token()

    def _read(self, token: bytes) -> dict[str, Any] | None:
        """Return the claims of a token of the form that we issue; None if it has another."""
        header, _, rest = token.partition(b".")
        signer = self._signers.get(header)
        if signer is None:
            return None
        payload, dot, signature = rest.partition(b".")
        if len(signature) != _SIGNATURE or not dot:
            return None
        if not compare_digest(signer.sign(payload), signature):
            raise bad_token()
        try:
            data = a2b_base64(payload.translate(_PLAIN) + _PADS[len(payload) & 3], strict_mode=True)
            found = orjson.loads(data)
        except ValueError:  # signed, but not by us
            return None
        if not isinstance(found, dict):
            return None
        own = self._names
        if not (len(found) == len(own) and own.issuperset(found)) and not (
            own <= found.keys() <= own | _MORE
        ):
            return None
        if self._fixed and any(found[name] != value for name, value in self._fixed.items()):
            return None
        return found if orjson.dumps(found) == data else None


def _is_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and _TEXT.issuperset(map(type, value))
