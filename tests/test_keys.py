"""Key sets: every algorithm, the newest key signs, the older ones verify."""

from __future__ import annotations

from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fluxor_fast.auth.keys import ALGORITHMS, HASHES, Key, KeySet
from fluxor_fast.auth.tokens import Tokens
from fluxor_fast.auth.verifying import Policy
from fluxor_fast.errors import HTTPError

RSA = rsa.generate_private_key(65537, 2048)
CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
NOW = 1_800_000_000


def material(algorithm: str) -> Any:
    if algorithm in HASHES:
        return b"k" * HASHES[algorithm]
    if algorithm in CURVES:
        return ec.generate_private_key(CURVES[algorithm])
    return ed25519.Ed25519PrivateKey.generate() if algorithm == "EdDSA" else RSA


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kid", [None, "one"])
def test_each_algorithm_signs_and_verifies(algorithm: str, kid: str | None) -> None:
    key = Key(algorithm, material(algorithm), kid)
    tokens = Tokens(KeySet([key]), 60, lambda: NOW)
    token = tokens.issue(7, "a@example.com", ["user"], ["read"], "session")
    assert jwt.get_unverified_header(token).get("kid") == kid
    assert jwt.get_unverified_header(token)["alg"] == algorithm
    for _ in range(2):
        found = tokens.verify(token)
        assert (found.user_id, found.roles, found.permissions) == (7, ("user",), ("read",))
        assert found.session == "session"
    options = {"verify_exp": False, "verify_iat": False}
    assert jwt.decode(token, key.verifying, [algorithm], options)["sid"] == "session"


def test_old_keys_verify_and_the_newest_signs() -> None:
    keys = [Key("HS256", bytes([n]) * 32, f"k{n}") for n in range(3)]
    tokens = Tokens(KeySet(keys[:1]), 60, lambda: NOW)
    first = tokens.issue(1, "a", [])
    tokens.rotate(KeySet([keys[1], keys[0]]))
    second = tokens.issue(2, "b", [])
    assert [tokens.verify(token).user_id for token in (first, second)] == [1, 2]
    assert jwt.get_unverified_header(second)["kid"] == "k1"
    tokens.rotate(KeySet([keys[2], keys[1]]))
    assert tokens.verify(second).user_id == 2
    with pytest.raises(HTTPError):
        tokens.verify(first)  # remembered, and its key is gone


def test_from_a_secret_to_public_keys_without_ending_a_session() -> None:
    old = Tokens(KeySet([Key.named(b"k" * 32)]), 60, lambda: NOW)
    token = old.issue(1, "a", [])
    public = Key("EdDSA", ed25519.Ed25519PrivateKey.generate(), "new")
    tokens = Tokens(KeySet([public, Key.named(b"k" * 32)]), 60, lambda: NOW)
    assert tokens.verify(token).user_id == 1
    assert tokens.verify(tokens.issue(2, "b", [])).user_id == 2


def test_the_name_of_a_secret_is_the_same_everywhere_and_not_the_secret() -> None:
    one, two = Key.named(b"k" * 32), Key.named(b"k" * 32)
    assert one.kid == two.kid != Key.named(b"l" * 32).kid
    assert repr(one) == f"<Key HS256 {one.kid}>"


@pytest.mark.parametrize("leeway", [0, 5])
def test_leeway_is_for_both_ends(leeway: int) -> None:
    clock = [float(NOW)]
    policy = Policy(leeway=leeway)
    tokens = Tokens(b"k" * 32, 60, lambda: clock[0], policy=policy)
    token = tokens.issue(1, "a", [])
    early = jwt.encode(
        {"user_id": 1, "email": "a", "roles": [], "iat": NOW, "exp": NOW + 60, "sub": "1",
         "nbf": NOW + 10}, b"k" * 32)  # fmt: skip
    clock[0] = NOW + 10 - leeway
    assert tokens.verify(early).user_id == 1
    clock[0] -= 1
    with pytest.raises(HTTPError):
        Tokens(b"k" * 32, 60, lambda: clock[0], policy=policy).verify(early)
    clock[0] = NOW + 59.5 + leeway
    assert tokens.verify(token).user_id == 1
    clock[0] += 0.5
    with pytest.raises(HTTPError) as refused:
        tokens.verify(token)
    assert refused.value.code == "TOKEN_EXPIRED"


def test_issuer_and_audience_are_written_and_asked_for() -> None:
    ours = Policy(audience=("api", "old-api"), issuer="us")
    tokens = Tokens(b"k" * 32, 60, lambda: NOW, policy=ours)
    token = tokens.issue(1, "a", [])
    found = jwt.decode(token, options={"verify_signature": False})
    assert (found["aud"], found["iss"]) == ("api", "us")
    assert tokens.verify(token).user_id == 1
    assert tokens._read(token.encode()) is not None  # by our own path
    for policy in (Policy(audience=("x",), issuer="us"), Policy(("iat",), 0, ("api",), "them"),
                   Policy()):  # fmt: skip
        with pytest.raises(HTTPError):
            Tokens(b"k" * 32, 60, lambda: NOW, policy=policy).verify(token)


def test_required_claims() -> None:
    tokens = Tokens(b"k" * 32, 60, lambda: NOW, policy=Policy(required=("iat", "sub", "jti")))
    claims = {"user_id": 1, "email": "a", "roles": [], "iat": NOW, "exp": NOW + 60, "sub": "1"}
    assert tokens.verify(jwt.encode(claims | {"jti": "x"}, b"k" * 32)).user_id == 1
    with pytest.raises(HTTPError):
        tokens.verify(jwt.encode(claims, b"k" * 32))


def jwk(**more: Any) -> dict[str, Any]:
    return {**jwt.algorithms.RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True), **more}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"kty": "oct", "k": "a" * 43}, "no public key"),
        ({"kty": "oct", "k": "a" * 43, "alg": "RS256"}, "no public key"),
        ({}, "no public key"),
        (jwk(use="enc"), "not for signatures"),
        (jwk(key_ops=["encrypt"]), "not for signatures"),
        (jwk(alg="HS256"), "not allowed"),
        (jwk(alg="none"), "not allowed"),
        (jwk(alg="ES256"), "."),
        (jwk(kid=5), "kid"),
        (jwk(n="AQAB"), "."),
        (jwk(n=5), "."),
        ({"kty": "EC", "crv": "P-256", "x": "AQ", "y": "AQ"}, "."),
        ({"kty": "OKP", "crv": "X25519", "x": "AQ"}, "not allowed"),
    ],
)
def test_json_web_keys_that_are_left_out(document: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Key.from_jwk(document, ("RS256", "ES256", "EdDSA"))


def test_json_web_keys_of_each_kind() -> None:
    assert Key.from_jwk(jwk(kid="r"), ("PS256", "RS256")).algorithm == "PS256"
    assert Key.from_jwk(jwk(alg="RS512"), ("RS256", "RS512")).algorithm == "RS512"
    for algorithm in CURVES:
        public = material(algorithm).public_key()
        found = Key.from_jwk(jwt.algorithms.ECAlgorithm.to_jwk(public, as_dict=True))
        assert (found.algorithm, found.signing) == (algorithm, None)
    for kind in (ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey):
        public = kind.generate().public_key()
        found = Key.from_jwk(jwt.algorithms.OKPAlgorithm.to_jwk(public, as_dict=True))
        assert found.algorithm == "EdDSA"
    private = jwt.algorithms.RSAAlgorithm.to_jwk(RSA, as_dict=True) | {"key_ops": ["verify"]}
    assert Key.from_jwk(private).signing is None  # a set with private keys is read as a public one


def test_a_public_key_verifies_only() -> None:
    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    key = Key("RS256", pem.decode(), "r")
    assert key.signing is None
    token = Tokens(KeySet([Key("RS256", RSA, "r")]), 60, lambda: NOW).issue(1, "a", [])
    tokens = Tokens(KeySet([Key.named(b"k" * 32), key]), 60, lambda: NOW)
    assert tokens.verify(token).user_id == 1
