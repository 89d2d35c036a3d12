"""Texts that go into the log: nothing secret, nothing that forges."""

from __future__ import annotations

import random
import unicodedata

import pytest

from fluxor_fast.observability.redaction import MASK, escape, scrubber, sensitive
from tests.support.seeds import seeded

SECRET = "s3cr3t-Word"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain, with ümlauts and 日本", "plain, with ümlauts and 日本"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("\x1b[2J\x9b2J\x7f\0", r"\x1b[2J\x9b2J\x7f\x00"),
        ("\u2028\u2029\u202e\u2066\x85", r"\u2028\u2029\u202e\u2066\x85"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_could_forge_is_escaped(text: str, escaped: str) -> None:
    assert escape(text) == escaped


def test_escaped_text_has_no_control_characters_whatever_it_was() -> None:
    generator = seeded("escape")
    for _ in range(300):
        text = "".join(chr(generator.randrange(0x3000)) for _ in range(40))
        done = escape(text)
        assert len(done.splitlines()) == 1
        assert not any(unicodedata.category(one) == "Cc" for one in done)
        done.encode()
        assert escape(done) == done


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"authorization: Basic {SECRET} {SECRET}",
        f"{{'authorization': '{SECRET}', 'host': 'a'}}",
        f'{{"Cookie": "session={SECRET}; b=\\"{SECRET}\\""}}',
        f"(b'cookie', b'session={SECRET}')",
        f"[('set-cookie', 'session={SECRET}; Path=/')]",
        f"Set-Cookie: session={SECRET}; HttpOnly",
        f"cannot connect to postgresql://app:{SECRET}@db.example.org/app",
        f"postgres://:{SECRET}@db",
        f"host=db password={SECRET} user=app",
        f"host=db password='{SECRET} {SECRET}' user=app",
        f"?access_token={SECRET}&a=b",
        f'{{"client_secret": "{SECRET}"}}',
        f"X-API-Key={SECRET}",
        f"got bearer {SECRET}",
        f"JWT_SECRET={SECRET}",
        f"the key {SECRET} is named",
    ],
)
def test_secrets_are_hidden(text: str) -> None:
    scrub = scrubber([SECRET] if "named" in text else [])
    done = scrub(text)
    assert SECRET not in done
    assert MASK in done
    assert scrub(done) == done


def test_a_token_is_hidden_wherever_it_stands() -> None:
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-_def"
    assert scrubber()(f"decoding {token} failed") == f"decoding {MASK} failed"


@pytest.mark.parametrize(
    "text",
    [
        "worker 1 (pid 17) left with code 3; replaced at once",
        "GET http://127.0.0.1:8080/users failed",
        "cannot listen on [::1]:8080: the port is in use",
        "two tokens were refused",
        "the cookie jar is full",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert scrubber(["short", ""])(text) == text


def test_a_long_hostile_text_is_scrubbed_in_a_moment() -> None:
    scrub = scrubber([SECRET])
    for piece in ("password", "://a:", "eyJaaaaaaaaa.", "cookie:'\\", "bearer ", "a-", "token'"):
        scrub(piece * 3000)  # the test's time limit is the assertion


def test_names_of_secrets() -> None:
    for name in ("password", "db_password", "Authorization", "cookie", "api_key", "refresh-token"):
        assert sensitive(name), name
    for name in ("user", "path", "tokens_left", "passenger"):
        assert not sensitive(name), name


def test_secrets_are_found_among_random_text() -> None:
    generator = random.Random(5)
    scrub = scrubber([SECRET])
    for _ in range(200):
        at = generator.randrange(30)
        noise = "".join(chr(generator.randrange(32, 127)) for _ in range(30))
        assert SECRET not in scrub(noise[:at] + SECRET + noise[at:])
