"""Tokens: the same as PyJWT's, and good for nothing else."""

from __future__ import annotations

import base64
import time
from typing import Any

import jwt
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxor_fast.auth import tokens as module
from fluxor_fast.auth import verifying
from fluxor_fast.auth.tokens import Claims, Tokens
from fluxor_fast.errors import HTTPError

SECRET = b"a secret of exactly 32 bytes....."
NOW = 1_800_000_000

ascii_text = st.text(st.characters(max_codepoint=126))  # PyJWT escapes DEL as well
secrets = st.binary(min_size=32, max_size=200)
users = st.tuples(st.integers(0, 2**63 - 1), st.text(), st.lists(st.text(), max_size=5))


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def claims_of(user_id: int, email: str, roles: list[str], now: int, life: int) -> dict[str, Any]:
    return {
        "user_id": user_id,
        "email": email,
        "roles": roles,
        "iat": now,
        "exp": now + life,
        "sub": str(user_id),
    }


def signed(claims: dict[str, Any], secret: bytes = SECRET, **options: Any) -> str:
    return jwt.encode(claims, secret, algorithm="HS256", **options)


@given(secrets, users)
def test_pyjwt_takes_what_we_issue(secret: bytes, user: tuple[int, str, list[str]]) -> None:
    now = int(time.time())
    token = Tokens(secret, 60, lambda: now).issue(*user)
    assert jwt.decode(token, secret, algorithms=["HS256"]) == claims_of(*user, now, 60)


@given(secrets, st.integers(0, 2**63 - 1), ascii_text, st.lists(ascii_text, max_size=5))
def test_ascii_claims_give_the_bytes_of_pyjwt(
    secret: bytes, user_id: int, email: str, roles: list[str]
) -> None:
    ours = Tokens(secret, 3600, Clock()).issue(user_id, email, roles)
    assert ours == signed(claims_of(user_id, email, roles, NOW, 3600), secret)


@given(secrets, users)
def test_we_take_what_pyjwt_issues(secret: bytes, user: tuple[int, str, list[str]]) -> None:
    user_id, email, roles = user
    token = signed(claims_of(*user, NOW, 60), secret)
    expected = Claims(user_id, email, tuple(roles), NOW, NOW + 60)
    assert Tokens(secret, 60, Clock()).verify(token) == expected


def refusal(tokens: Tokens, token: str) -> HTTPError:
    with pytest.raises(HTTPError) as caught:
        tokens.verify(token)
    assert caught.value.status == 401
    assert caught.value.headers["WWW-Authenticate"].startswith("Bearer")
    return caught.value


def test_a_token_ends_with_its_last_second_even_if_it_is_remembered() -> None:
    clock = Clock()
    tokens = Tokens(SECRET, 60, clock)
    token = tokens.issue(1, "a@example.com", ["user"])
    clock.now += 59.9
    assert tokens.verify(token).user_id == 1
    clock.now += 0.1
    for _ in range(2):
        assert refusal(tokens, token).code == "TOKEN_EXPIRED"
    assert not tokens._verified


def test_an_old_token_with_a_wrong_signature_is_not_called_expired() -> None:
    token = signed(claims_of(1, "a", [], NOW - 100, 10), b"b" * 32)
    assert refusal(Tokens(SECRET, 60, Clock()), token).code == "UNAUTHORIZED"


@pytest.mark.parametrize(
    "change",
    [
        {"user_id": "1"},
        {"user_id": True, "sub": "True"},
        {"user_id": None},
        {"email": None},
        {"roles": "admin"},
        {"roles": ["admin", 1]},
        {"iat": "1"},
        {"iat": None},
        {"exp": None},
        {"exp": float(NOW + 60)},
        {"exp": "never"},
        {"sub": "2"},
        {"sub": 1},
        {"aud": "someone else"},
        {"nbf": "x"},
    ],
)
def test_claims_that_are_not_ours_are_refused(change: dict[str, Any]) -> None:
    claims = claims_of(1, "a@example.com", ["user"], NOW, 60) | change
    token = signed({name: value for name, value in claims.items() if value is not None})
    assert refusal(Tokens(SECRET, 60, Clock()), token).code == "UNAUTHORIZED"


def test_no_other_algorithm_is_taken() -> None:
    claims = claims_of(1, "a", [], NOW, 60)
    tokens = Tokens(b"k" * 64, 60, Clock())
    refusal(tokens, jwt.encode(claims, "", algorithm="none"))
    refusal(tokens, jwt.encode(claims, b"k" * 64, algorithm="HS512"))
    refusal(tokens, signed(claims, b"k" * 64, headers={"crit": ["b64"], "b64": True}))


def test_a_long_token_is_refused_before_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("it was parsed")

    monkeypatch.setattr(verifying.json, "loads", never)
    monkeypatch.setattr(module, "a2b_base64", never)
    tokens = Tokens(SECRET, 60, Clock())
    refusal(tokens, "x" * (module.MAX_TOKEN + 1))
    refusal(tokens, "é.é.é")


@given(st.text() | st.from_regex(r"[A-Za-z0-9_=-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*"))
def test_any_text_is_refused_and_nothing_else_is_raised(text: str) -> None:
    refusal(Tokens(SECRET, 60, Clock()), text)


def test_deep_json_in_a_forged_header_is_refused() -> None:
    header = base64.urlsafe_b64encode(b"[" * 5000).rstrip(b"=").decode()
    refusal(Tokens(SECRET, 60, Clock()), f"{header}.e30.AAAA")


@given(st.data())
def test_a_changed_character_is_noticed(data: st.DataObject) -> None:
    tokens = Tokens(SECRET, 60, Clock())
    token = tokens.issue(1, "a@example.com", ["user"])
    at = data.draw(st.integers(0, len(token) - 2))  # of the last one two bits carry nothing
    other = data.draw(st.sampled_from("ABCxyz019-_.").filter(lambda c: c != token[at]))
    refusal(tokens, token[:at] + other + token[at + 1 :])


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 3)
    tokens = Tokens(SECRET, 60, Clock())
    for user_id in range(10):
        tokens.verify(tokens.issue(user_id, "a", []))
    long = tokens.issue(1, "a" * module.REMEMBERED_LENGTH, [])
    tokens.verify(long)
    assert len(tokens._verified) == 3
    assert long not in tokens._verified


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Tokens(b"short", 60)


def test_the_payload_is_in_utf_8() -> None:
    token = Tokens(SECRET, 60, Clock()).issue(1, "zoë@example.com", [])
    payload = token.split(".")[1]
    raw = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
    assert orjson.loads(raw)["email"] == "zoë@example.com"
    assert "zoë".encode() in raw


@given(secrets, users, st.sampled_from(["nbf", "aud", "jti", "extra"]), st.integers(0, 9))
def test_our_own_path_agrees_with_pyjwt_about_claims_that_are_not_ours(
    secret: bytes, user: tuple[int, str, list[str]], name: str, value: int
) -> None:
    """What PyJWT refuses (not yet valid, an audience, a number for an id) we refuse."""
    more = NOW * 2 if name == "nbf" else value
    token = signed(claims_of(*user, NOW, 60) | {name: more}, secret)
    try:
        jwt.decode(token, secret, algorithms=["HS256"], options={"verify_exp": False,
                                                                "verify_iat": False})  # fmt: skip
        good = True
    except jwt.PyJWTError:
        good = False
    try:
        Tokens(secret, 60, Clock()).verify(token)
        ours = True
    except HTTPError as error:
        assert error.status == 401
        ours = False
    assert ours == good


def test_a_signed_payload_that_is_not_canonical_base64_is_refused_like_pyjwt_does_or_read() -> None:
    tokens = Tokens(SECRET, 60, Clock())
    signer = module._Signer(SECRET, None)
    for payload in (b"", b"!!!!", b"e30", b"W10", b"bnVsbA", b"+/+/", b"e"):
        token = (signer.header + payload + b"." + signer.sign(payload)).decode()
        with pytest.raises(HTTPError) as refused:
            tokens.verify(token)
        assert refused.value.status == 401


def test_a_good_token_with_another_header_is_left_to_pyjwt() -> None:
    token = signed(claims_of(7, "a@b", [], NOW, 60), headers={"kid": "one"})
    assert Tokens(SECRET, 60, Clock()).verify(token).user_id == 7


def test_what_is_remembered_is_not_honoured_with_another_key_or_when_revoked() -> None:
    revoked: set[int] = set()
    tokens = Tokens(SECRET, 60, Clock(), lambda claims: claims.user_id in revoked)
    token = tokens.issue(7, "a@b", [])
    for _ in range(2):
        assert tokens.verify(token).user_id == 7
    with pytest.raises(HTTPError):
        Tokens(SECRET[::-1], 60, Clock()).verify(token)
    revoked.add(7)
    with pytest.raises(HTTPError) as refused:
        tokens.verify(token)
    assert (refused.value.status, refused.value.code) == (401, "UNAUTHORIZED")


def test_a_signature_written_in_another_way_is_refused() -> None:
    """The last character of 32 bytes has two bits to spare: four texts decode to the same."""
    tokens = Tokens(SECRET, 60, Clock())
    token = tokens.issue(7, "a@b", [])
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for last in alphabet[alphabet.index(token[-1]) + 1 :][:3]:
        with pytest.raises(HTTPError):
            tokens.verify(token[:-1] + last)
