"""Key sets of another issuer: a real HTTP server on loopback gives them, or fails to."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from fluxor_fast import App, Request, Response
from fluxor_fast.auth import jwks as module
from fluxor_fast.auth.jwks import RemoteIssuer, fetch, remote
from fluxor_fast.auth.roles import require_permission
from fluxor_fast.errors import RouteError
from tests.support.pure import Asker, document, run

ISSUER, AUDIENCE = "https://login.example", "https://api.example"
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())


def jwk(key: Any, kid: str, **more: Any) -> dict[str, Any]:
    kind = jwt.algorithms.ECAlgorithm if key is EC else jwt.algorithms.RSAAlgorithm
    return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid, **more}


def token(key: Any = RSA, kid: str = "one", **change: Any) -> str:
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "ada",
        "exp": int(time.time()) + 600,
        "scope": "reports:read mail",
        "roles": ["editor"],
    } | change
    return jwt.encode(claims, key, "ES256" if key is EC else "RS256", {"kid": kid})


class Source:
    """The server of the keys."""

    def __init__(self) -> None:
        self.body = json.dumps({"keys": [jwk(RSA, "one")]}).encode()
        self.status = 200
        self.fetched = 0
        self.trickle = False
        self.headers: dict[str, str] = {}
        source = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                source.fetched += 1
                self.send_response(source.status)
                for name, value in source.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    if source.trickle:
                        while source.trickle:
                            self.wfile.write(b" ")
                            time.sleep(0.02)
                    self.wfile.write(source.body)
                except OSError:
                    pass

            def log_message(self, *arguments: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys.json"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def keys(self, *keys: dict[str, Any]) -> None:
        self.body = json.dumps({"keys": keys}).encode()

    def close(self) -> None:
        self.trickle = False
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def source() -> Iterator[Source]:
    made = Source()
    try:
        yield made
    finally:
        made.close()


class Service(Asker):
    def __init__(self, source: Source) -> None:
        self.now = 1000.0
        self.issuer = RemoteIssuer(
            source.url, issuer=ISSUER, audience=[AUDIENCE], monotonic=lambda: self.now
        )
        app = App()
        app.on_startup(self.issuer.start)

        @app.get("/", middleware=[remote(self.issuer)])
        async def who(request: Request) -> dict[str, Any]:
            user = request.state["user"]
            return {"user": user.user_id, "roles": user.roles, "may": user.permissions}

        guard = [remote(self.issuer), require_permission("reports:write")]
        app.get("/write", middleware=guard)(who)

        @app.get("/blocking", middleware=[remote(self.issuer)], blocking=True)
        def blocking(request: Request) -> str:
            return str(request.state["user"].user_id)

        super().__init__(app)

    async def status(self, token: str) -> int:
        return (await self.ask("GET", "/", token=token)).status


Test = Callable[[Service], Any]


def with_service(source: Source, test: Test) -> None:
    async def main() -> None:
        service = Service(source)
        await service.app.start()
        await test(service)

    run(main())


def test_a_token_of_the_issuer(source: Source) -> None:
    async def test(service: Service) -> None:
        good = token()
        for _ in range(3):
            answer = await service.ask("GET", "/", token=good)
            assert document(answer) == {
                "user": "ada", "roles": ["editor"], "may": ["reports:read", "mail"]
            }  # fmt: skip
        assert (await service.ask("GET", "/write", token=good)).status == 403
        more = token(permissions=["reports:write"])
        assert (await service.ask("GET", "/write", token=more)).status == 200
        assert source.fetched == 1

    with_service(source, test)


def test_tokens_that_are_not_for_us(source: Source) -> None:
    async def test(service: Service) -> None:
        soon = int(time.time()) + 300
        for change in ({"aud": "https://other.example"}, {"iss": "https://other.example"},
                       {"nbf": soon}, {"sub": None}, {"roles": "editor"}, {"scope": ["a"]},
                       {"permissions": [1]}, {"exp": float("inf")}):  # fmt: skip
            assert await service.status(token(**change)) == 401, change
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": soon}
        assert await service.status(jwt.encode(claims, RSA, "RS256", {"kid": "one"})) == 200
        for name in claims:
            less = {key: value for key, value in claims.items() if key != name}
            assert await service.status(jwt.encode(less, RSA, "RS256", {"kid": "one"})) == 401
        old = await service.ask("GET", "/", token=token(exp=int(time.time()) - 31))
        assert document(old)["code"] == "TOKEN_EXPIRED"
        assert await service.status(token(exp=int(time.time()) - 10)) == 200  # leeway
        assert source.fetched == 1

    with_service(source, test)


def test_a_new_key_is_fetched_when_a_token_names_it_but_not_at_every_guess(
    source: Source,
) -> None:
    async def test(service: Service) -> None:
        source.keys(jwk(EC, "two"), jwk(RSA, "one"))
        service.now += module.PAUSE
        answers = await asyncio.gather(*(service.status(token(EC, "two")) for _ in range(10)))
        assert answers == [200] * 10
        assert source.fetched == 2
        for n in range(20):
            assert await service.status(token(kid=f"guess{n}")) == 401
        assert source.fetched == 2
        service.now += module.PAUSE
        assert await service.status("no token at all") == 401
        assert source.fetched == 2
        assert await service.status(token(kid="guess")) == 401
        assert source.fetched == 3

    with_service(source, test)


def test_a_key_that_was_withdrawn_is_forgotten_with_what_it_signed(source: Source) -> None:
    async def test(service: Service) -> None:
        good = token()
        assert await service.status(good) == 200
        source.keys(jwk(EC, "two"))
        service.now += module.FRESH
        assert await service.status(good) == 200  # the fetch goes on behind it
        await settled(service)
        assert await service.status(good) == 401
        assert await service.status(token(EC, "two")) == 200

    with_service(source, test)


async def settled(service: Service) -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    if service.issuer._fetching is not None:
        await service.issuer._fetching


@pytest.mark.parametrize(
    "fault", ["status", "nonsense", "empty", "huge", "redirect", "list", "oct"]
)
def test_the_last_good_set_stays(
    source: Source, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = source.body
    oct_key = {"kty": "oct", "k": "a" * 43, "kid": "one"}
    bodies = {
        "nonsense": b"<html>",
        "empty": b'{"keys": []}',
        "huge": good + b" " * module.LARGEST,
        "list": b"[]",
        "oct": json.dumps({"keys": [oct_key]}).encode(),
    }

    async def test(service: Service) -> None:
        known = token()
        assert await service.status(known) == 200
        source.body = bodies.get(fault, good)
        source.status = {"status": 500, "redirect": 302}.get(fault, 200)
        source.headers = {"Location": source.url} if fault == "redirect" else {}
        service.now += module.FRESH
        for _ in range(3):
            assert await service.status(known) == 200
            await settled(service)
        assert source.fetched == 2
        assert "the last ones stay" in caplog.text
        source.body, source.status = good, 200
        service.now += module.PAUSE
        assert await service.status(known) == 200
        await settled(service)
        assert source.fetched == 3

    with_service(source, test)


def test_without_any_keys_yet_the_answer_is_503_and_a_blocking_handler_waits_too(
    source: Source,
) -> None:
    source.status = 500

    async def test(service: Service) -> None:
        assert await service.status(token()) == 503
        refused: Response = await service.ask("GET", "/", token=token())
        assert document(refused)["code"] == "KEYS_UNAVAILABLE"
        assert source.fetched == 1
        source.status = 200
        service.now += module.PAUSE
        answer = await asyncio.to_thread(
            lambda: asyncio.run(service.ask("GET", "/blocking", token=token()))
        )
        assert (answer.status, answer.body) == (200, b"ada")

    with_service(source, test)


def test_who_trickles_is_hung_up_on(source: Source) -> None:
    source.trickle = True
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        fetch(source.url, timeout=0.2)
    assert time.monotonic() - started < 2


def test_two_keys_of_one_name_are_none(source: Source) -> None:
    other = rsa.generate_private_key(65537, 2048)
    source.keys(jwk(RSA, "one"), jwk(other, "one"), jwk(EC, "two"), jwk(RSA, "three", use="enc"))

    async def test(service: Service) -> None:
        assert await service.status(token()) == 401
        assert await service.status(token(EC, "two")) == 200
        assert await service.status(token(RSA, "three")) == 401

    with_service(source, test)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://login.example/keys", "https"),
        ("http://10.0.0.1/keys", "https"),
        ("http://127.0.0.1.example/keys", "https"),
        ("ftp://127.0.0.1/keys", "https"),
        ("file:///etc/keys", "host"),
        ("https://user:secret@login.example/", "credentials"),
    ],
)
def test_addresses_that_are_refused(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RemoteIssuer(url, issuer=ISSUER, audience=[AUDIENCE])


def test_options_that_are_refused(source: Source) -> None:
    for options in ({"audience": AUDIENCE}, {"audience": []}, {"algorithms": []},
                    {"algorithms": ["RS256", "HS256"]}):  # fmt: skip
        with pytest.raises(ValueError, match=r"audience|algorithms"):
            RemoteIssuer(source.url, **({"issuer": ISSUER, "audience": [AUDIENCE]} | options))
    for url in ("http://localhost/", "http://[::1]:8080/", "https://login.example/keys"):
        RemoteIssuer(url, issuer=ISSUER, audience=[AUDIENCE])


def test_a_plain_handler_is_refused(source: Source) -> None:
    issuer = RemoteIssuer(source.url, issuer=ISSUER, audience=[AUDIENCE])
    with pytest.raises(RouteError, match="remote may have to wait"):
        App().get("/", middleware=[remote(issuer)])(lambda request: None)
