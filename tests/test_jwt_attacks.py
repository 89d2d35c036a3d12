"""Tokens that somebody made up: each is refused, over HTTP, by services with every kind of key.

Each attack is made against a service whose verifier holds keys of the kinds that matter to it, and
beside each the good token that it was made from is let in, so that nothing is refused for a
reason that was not meant.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable
from typing import Any

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from fluxor_fast import App, Request
from fluxor_fast.auth.keys import Key, KeySet
from fluxor_fast.auth.roles import authenticated
from fluxor_fast.auth.tokens import Tokens
from fluxor_fast.auth.verifying import MAX_TOKEN, Policy
from tests.support.inprocess import Answer, in_loop, serving

SECRET = b"a secret of exactly 32 bytes....."
RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
PUBLIC_PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
PRIVATE_PEM = RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
POLICY = Policy(audience=("api",), issuer="https://us.example")

HS = KeySet([Key("HS256", SECRET)])
RS = KeySet([Key("RS256", PRIVATE_PEM, "rsa")])
MIXED = KeySet([Key("RS256", RSA, "rsa"), Key("HS256", SECRET, "hmac"), Key("ES256", EC, "ec")])


def claims(**change: Any) -> dict[str, Any]:
    now = int(time.time())
    made: dict[str, Any] = {
        "user_id": 1,
        "email": "a@example.com",
        "roles": ["user"],
        "iat": now,
        "exp": now + 600,
        "sub": "1",
        "iss": "https://us.example",
        "aud": "api",
    } | change
    return {name: value for name, value in made.items() if value is not None}


def segment(data: bytes | dict[str, Any]) -> str:
    raw = data if isinstance(data, bytes) else orjson.dumps(data)
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def hs256(header: bytes | dict[str, Any], payload: bytes | dict[str, Any], key: bytes) -> str:
    """Sign by hand: a library would refuse to make most of these."""
    signed = f"{segment(header)}.{segment(payload)}"
    return f"{signed}.{segment(hmac.new(key, signed.encode(), hashlib.sha256).digest())}"


PLAIN = {"alg": "HS256", "typ": "JWT"}


async def answers(keys: KeySet, tokens: list[str]) -> list[Answer]:
    app = App()
    verifier = Tokens(keys, 600, policy=POLICY)

    @app.get("/", middleware=[authenticated(lambda request: verifier)])
    def who(request: Request) -> dict[str, Any]:
        return {"user": request.state["user"].user_id}

    found = []
    async with serving(app) as server:
        for token in tokens:
            client = await server.connect()
            found.append(await client.get("/", f"Authorization: Bearer {token}"))
            client.close()
    return found


def attack(keys: KeySet, good: str, *bad: str, code: str = "UNAUTHORIZED") -> None:
    @in_loop
    async def main() -> None:
        first, *others = await answers(keys, [good, *bad, *bad])  # twice: nothing is remembered
        assert (first.status, first.json()) == (200, {"user": 1})
        assert others
        for one in others:
            assert one.status == 401, one
            assert one.json()["code"] == code
            assert one.headers["www-authenticate"] == 'Bearer error="invalid_token"'

    main()


def good(key: bytes = SECRET) -> str:
    return hs256(PLAIN, claims(), key)


def test_alg_none() -> None:
    body = segment(claims())
    names = ("none", "None", "NONE", "nOnE", "")
    forged = [f"{segment({'alg': name, 'typ': 'JWT'})}.{body}." for name in names]
    signature = good().rpartition(".")[2]
    attack(HS, good(), *forged, *[token + signature for token in forged])
    attack(MIXED, signed_rs(), *forged, f"{segment({'alg': 'none', 'kid': 'hmac'})}.{body}.")


def signed_rs(key: Any = RSA, kid: str | None = "rsa", **change: Any) -> str:
    headers = None if kid is None else {"kid": kid}
    return jwt.encode(claims(**change), key, "RS256", headers)


def test_the_public_key_as_a_secret() -> None:
    """HS/RS confusion: who knows the public key signs with it as if it were a secret."""
    der = RSA.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    forged = [
        hs256({"alg": alg, "kid": kid}, claims(), key)
        for alg in ("HS256", "HS512", "RS256")
        for kid in ("rsa", "hmac", "ec")
        for key in (PUBLIC_PEM, PUBLIC_PEM.strip(), der)
    ]
    attack(MIXED, signed_rs(), *forged)
    attack(RS, signed_rs(), *forged, *[hs256(PLAIN, claims(), PUBLIC_PEM)])


def test_a_key_of_one_kind_is_not_good_for_another() -> None:
    forged = [
        jwt.encode(claims(), key, algorithm, {"kid": kid})
        for key, algorithm in ((RSA, "PS256"), (RSA, "RS512"), (SECRET * 2, "HS512"), (EC, "ES256"),
                               (ED, "EdDSA"))
        for kid in ("rsa", "hmac")
    ]  # fmt: skip
    attack(MIXED, signed_rs(), *forged)


@pytest.mark.parametrize(
    "kid",
    [
        "../../../../dev/null",
        "/etc/passwd",
        "file:///dev/null",
        "http://127.0.0.1:1/keys",
        "' OR '1'='1",
        "x' UNION SELECT 'a secret of exactly 32 bytes.....' -- ",
        "rsa\x00",
        "RSA",
        " rsa",
        "",
        "r" * 3000,
        None,
        0,
        True,
        ["rsa"],
        {"kid": "rsa"},
    ],
)
def test_kid_that_names_no_key(kid: Any) -> None:
    """It is looked up in a dictionary: it opens no file, asks no database, calls nobody."""
    forged = [
        hs256({"alg": "HS256", "kid": kid}, claims(), key)
        for key in (b"", SECRET, PUBLIC_PEM)  # what /dev/null holds; what an injection may give
    ]
    attack(MIXED, signed_rs(), *forged)


def test_kid_of_another_key() -> None:
    attack(MIXED, signed_rs(), signed_rs(kid="ec"), signed_rs(kid="hmac"), signed_rs(kid=None))


def test_keys_that_a_token_brings_along() -> None:
    numbers = OTHER_RSA.public_key().public_numbers()
    jwk = {
        "kty": "RSA",
        "kid": "rsa",
        "n": segment(numbers.n.to_bytes(256, "big")),
        "e": "AQAB",
    }
    forged = [
        jwt.encode(claims(), OTHER_RSA, "RS256", {"kid": "rsa", **more})
        for more in ({}, {"jwk": jwk}, {"jku": "http://127.0.0.1:1/"}, {"x5u": "http://127.0.0.1:1/"},
                     {"x5c": ["MIIB"]})
    ]  # fmt: skip
    attack(MIXED, signed_rs(), *forged)


def test_extensions_that_must_be_understood() -> None:
    forged = [
        hs256(PLAIN | more, claims(), SECRET)
        for more in ({"crit": ["exp"], "exp": 1}, {"crit": []}, {"b64": False, "crit": ["b64"]},
                     {"b64": False}, {"crit": ["x"]})
    ]  # fmt: skip
    attack(HS, good(), *forged)


def test_expired() -> None:
    now = int(time.time())
    old = [{"exp": now}, {"exp": now - 1}, {"exp": 0}, {"exp": -1}]
    attack(HS, good(), *[hs256(PLAIN, claims(**one), SECRET) for one in old], code="TOKEN_EXPIRED")
    attack(RS, signed_rs(), signed_rs(exp=now), code="TOKEN_EXPIRED")


def test_times_that_are_none() -> None:
    now = int(time.time())
    odd = [None, str(now + 600), True, [now + 600], {}]
    forged = [hs256(PLAIN, claims(exp=one), SECRET) for one in odd]
    for text in (b"NaN", b"Infinity", b"1e999", b"-Infinity"):
        raw = orjson.dumps(claims(exp=1)).replace(b'"exp":1', b'"exp":' + text)
        assert text in raw
        forged.append(hs256(PLAIN, raw, SECRET))
    attack(HS, good(), *forged)


def test_not_yet_valid() -> None:
    soon = int(time.time()) + 300
    attack(HS, good(), *[hs256(PLAIN, claims(nbf=at), SECRET) for at in (soon, soon + 0.5, "1")])
    attack(RS, signed_rs(nbf=1), signed_rs(nbf=soon))


def test_wrong_audience() -> None:
    for_others = [
        None,
        "another",
        ["another"],
        [],
        "",
        "API",
        "api ",
        ["x", "api2"],
        1,
        {"a": "api"},
    ]
    forged = [hs256(PLAIN, claims(aud=one), SECRET) for one in for_others]
    attack(HS, hs256(PLAIN, claims(aud=["x", "api"]), SECRET), *forged)


def test_wrong_issuer() -> None:
    by_others = [None, "https://us.example/", "https://US.example", "", 1, ["https://us.example"]]
    forged = [hs256(PLAIN, claims(iss=one), SECRET) for one in by_others]
    attack(HS, good(), *forged)


def test_a_huge_token() -> None:
    long = claims(email="a" * MAX_TOKEN)
    attack(HS, good(), hs256(PLAIN, long, SECRET), "x" * (MAX_TOKEN + 1), "." * MAX_TOKEN)


def test_a_token_within_a_token() -> None:
    inner = good()
    forged = [
        hs256(PLAIN | {"cty": "JWT"}, inner.encode(), SECRET),
        hs256(PLAIN, inner.encode(), SECRET),
        hs256(PLAIN, orjson.dumps(inner), SECRET),
        hs256(PLAIN | {"cty": "jwt"}, claims(), SECRET),
        hs256(PLAIN, b"[" * 3000, SECRET),
        hs256(PLAIN, b'{"a":' * 1000 + b"1" + b"}" * 1000, SECRET),
        hs256(b"[" * 3000, claims(), SECRET),
    ]
    attack(HS, inner, *forged)


def test_claims_that_stand_twice() -> None:
    """Two readers that take different ones of them would see different users."""
    raw = orjson.dumps(claims())
    forged = [
        hs256(PLAIN, raw[:-1] + more, SECRET)
        for more in (b',"user_id":2}', b',"sub":"1"}', b',"roles":["admin"]}',
                     b',"exp":9999999999}', b',"us\\u0065r_id":2}', b',"x":{"a":1,"a":2}}')
    ]  # fmt: skip
    forged.append(hs256(b'{"alg":"none","alg":"HS256","typ":"JWT"}', raw, SECRET))
    forged.append(hs256(b'{"alg":"HS256","kid":"a","kid":"b"}', raw, SECRET))
    attack(HS, good(), *forged)


def test_signature_stripped() -> None:
    token = good()
    head, body, signature = token.split(".")
    forged = [f"{head}.{body}.", f"{head}.{body}", f"{head}..{signature}", f".{body}.{signature}"]
    forged += [f"{head}.{body}.{signature[:-1]}", f"{token}.", f"{token}.{signature}", "..", "."]
    forged += [
        f"{head}.{segment(claims(user_id=2, sub='2'))}.{signature}",
        f"{token}=",
        f"{token}A",
    ]
    forged.append(f"{head}.{body}.{segment(bytes(32))}")
    attack(HS, token, *forged)
    attack(RS, signed_rs(), signed_rs().rpartition(".")[0] + ".", signed_rs().rpartition(".")[0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Key("HS256", PUBLIC_PEM.decode()), "bytes"),
        (lambda: Key("HS256", RSA), "bytes"),
        (lambda: Key("none", b""), "no such algorithm"),
        (lambda: Key("HS512", b"k" * 63), "64 bytes"),
        (lambda: Key("RS256", EC), "no key for RS256"),
        (lambda: Key("ES384", EC), "no key for ES384"),
        (lambda: Key("EdDSA", EC), "no key for EdDSA"),
        (lambda: Key("RS256", rsa.generate_private_key(65537, 1024)), "too short"),
        (lambda: KeySet([]), "at least one"),
        (lambda: KeySet([Key("HS256", SECRET, "a"), Key("HS256", SECRET, "a")]), "of its own"),
        (lambda: KeySet([Key("HS256", SECRET, "a"), Key("HS256", SECRET)]), "of its own"),
        (lambda: Tokens(KeySet([Key("RS256", PUBLIC_PEM)]), 60), "private"),
    ],
)
def test_keys_that_would_confuse_cannot_be_made(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
