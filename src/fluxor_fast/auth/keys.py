"""Keys that sign and verify tokens, each bound to one algorithm, and sets of them.

Rules kept here:

1. A key has exactly one algorithm (RFC 8725, section 3.1), and its material is of the kind that
   this algorithm takes: a public key can never be made a secret of HMAC, so that a token signed
   with the public key as if it were a secret finds no key that takes it.
2. Least sizes are those of RFC 7518: an HMAC key as long as the hash (3.2), RSA 2,048 bits (3.3).
   ES256 wants P-256, ES384 P-384, ES512 P-521 (3.4); EdDSA Ed25519 or Ed448 (RFC 8037).
3. The first key of a set signs; the others, older ones, verify. Which one a token was signed with
   is told by ``kid``, looked up in a dictionary and used for nothing else: it is no path, no query
   and no address. A token without ``kid`` is taken only by a set of one key. A key without ``kid``
   is in a set of its own, and there takes tokens whatever their ``kid`` is.

Public keys need the extra ``fluxor-fast[crypto]``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Self

import jwt

__all__ = ["ALGORITHMS", "HASHES", "Key", "KeySet"]

HASHES: Final[Mapping[str, int]] = {"HS256": 32, "HS384": 48, "HS512": 64}
"""HMAC algorithms with the bytes of their hash, the least length of a key."""
_CURVES: Final[Mapping[str, str]] = {
    "ES256": "secp256r1",
    "ES384": "secp384r1",
    "ES512": "secp521r1",
}
_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
ALGORITHMS: Final = (*HASHES, *_RSA, *_CURVES, "EdDSA")
"""What a key may be for."""
_OF_CURVE: Final[Mapping[str, str]] = {
    "P-256": "ES256",
    "P-384": "ES384",
    "P-521": "ES512",
    "Ed25519": "EdDSA",
    "Ed448": "EdDSA",
}
RSA_BITS: Final = 2048


class Key:
    """One key. Its ``repr`` does not show it.

    :param algorithm: one of ``ALGORITHMS``.
    :param material: for HS* the secret; else a key in PEM, private (signs and verifies) or
        public (verifies only), or one of the package cryptography.
    :param kid: its name in the header of tokens.
    :raises ValueError: for what does not fit (rules 1 and 2), or if cryptography is not there.
    """

    __slots__ = ("algorithm", "kid", "secret", "signing", "verifying")

    def __init__(self, algorithm: str, material: Any, kid: str | None = None) -> None:
        if algorithm not in ALGORITHMS:
            raise ValueError(f"no such algorithm: {algorithm!r}")
        self.algorithm = algorithm
        self.kid = kid
        self.secret: bytes | None = None
        """The key, if it is one of HMAC."""
        if algorithm in HASHES:
            if not isinstance(material, bytes):
                raise ValueError(f"a key for {algorithm} is bytes")
            if len(material) < HASHES[algorithm]:
                raise ValueError(
                    f"the secret must have at least {HASHES[algorithm]} bytes for {algorithm}"
                )
            self.secret = self.signing = self.verifying = material
            return
        self.signing, self.verifying = _asymmetric(algorithm, material)

    @classmethod
    def named(cls, secret: bytes, algorithm: str = "HS256") -> Self:
        """Return an HMAC key whose ``kid`` follows from it, the same in every process.

        It is 64 bits of a hash: it names a key of that length, and does not tell it.
        """
        name = hashlib.blake2b(secret, digest_size=8, person=b"fluxor kid").hexdigest()
        return cls(algorithm, secret, name)

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any], allowed: Sequence[str] = ALGORITHMS) -> Self:
        """Return the public key of a JSON Web Key (RFC 7517).

        Its algorithm is what ``alg`` says; without one what follows from its kind (for RSA the
        first of ``allowed`` that is one of RSA's).

        :raises ValueError: for a symmetric key, one that is not for signatures, an algorithm
            that is not allowed, or what cannot be read.
        """
        kind, kid = jwk.get("kty"), jwk.get("kid")
        if kind not in ("RSA", "EC", "OKP"):
            raise ValueError("it is no public key")
        if jwk.get("use", "sig") != "sig" or "verify" not in jwk.get("key_ops", ["verify"]):
            raise ValueError("it is not for signatures")
        if kid is not None and not isinstance(kid, str):
            raise ValueError("its kid is no text")
        usual = (
            next((name for name in allowed if name in _RSA), None)
            if kind == "RSA"
            else _OF_CURVE.get(str(jwk.get("crv")))
        )
        algorithm = jwk.get("alg", usual)
        if algorithm not in allowed:
            raise ValueError("its algorithm is not allowed")
        public = {name: value for name, value in jwk.items() if name not in _PRIVATE}
        try:
            return cls(algorithm, jwt.PyJWK(public, algorithm).key, kid)
        except (jwt.PyJWTError, TypeError, KeyError) as error:
            raise ValueError(f"it cannot be read: {error}") from None

    def __repr__(self) -> str:
        return f"<Key {self.algorithm} {self.kid}>"


_PRIVATE: Final = frozenset(("d", "p", "q", "dp", "dq", "qi", "oth", "k"))  # RFC 7518, section 6


def _asymmetric(algorithm: str, material: Any) -> tuple[Any, Any]:
    """Return what signs (None for a public key) and what verifies."""
    try:
        from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
        from cryptography.hazmat.primitives.serialization import (
            load_pem_private_key,
            load_pem_public_key,
        )
    except ImportError:
        raise ValueError(f"{algorithm} needs the extra fluxor-fast[crypto]") from None
    if isinstance(material, str):
        material = material.encode()
    if isinstance(material, bytes):
        is_private = b"PRIVATE KEY-----" in material
        material = (
            load_pem_private_key(material, None) if is_private else load_pem_public_key(material)
        )
    private = hasattr(material, "public_key")
    public = material.public_key() if private else material
    if algorithm in _RSA:
        fits = isinstance(public, rsa.RSAPublicKey) and public.key_size >= RSA_BITS
    elif algorithm in _CURVES:
        fits = (
            isinstance(public, ec.EllipticCurvePublicKey)
            and public.curve.name == _CURVES[algorithm]
        )
    else:
        fits = isinstance(public, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey)
    if not fits:
        raise ValueError(f"this is no key for {algorithm}, or too short a one")
    return material if private else None, public


class KeySet:
    """Keys by ``kid``; the first one signs.

    :raises ValueError: for no key, two of one ``kid``, or among several one without.
    """

    __slots__ = ("_by_kid", "_keys")

    def __init__(self, keys: Sequence[Key]) -> None:
        if not keys:
            raise ValueError("a set has at least one key")
        self._keys = tuple(keys)
        self._by_kid = {key.kid: key for key in keys}
        if len(keys) > 1 and (None in self._by_kid or len(self._by_kid) < len(keys)):
            raise ValueError("each of several keys has a kid of its own")

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def signer(self) -> Key:
        """The newest key."""
        return self._keys[0]

    def find(self, header: Mapping[str, Any]) -> Key | None:
        """Return the key that a token with this header must have been signed with, if any."""
        kid = header.get("kid")
        only = self._keys[0] if len(self._keys) == 1 else None
        if only is not None and (kid is None or only.kid is None):
            key: Key | None = only
        else:
            key = self._by_kid.get(kid) if isinstance(kid, str) else None
        return key if key is not None and header.get("alg") == key.algorithm else None
