"""Sessions, API keys and counted logins of the reference service, on a real database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fluxor_fast import Response
from fluxor_fast.auth.tokens import Tokens
from fluxor_fast.service import attempts as attempts_module
from fluxor_fast.service.accounts import grant_role
from fluxor_fast.service.store import sweep
from tests.support.pure import FakeConnection, document, run
from tests.test_service import PASSWORD, SECRET, Service

ADA = {"email": "ada@example.com", "password": PASSWORD}

Test = Callable[[Service, Service], Awaitable[None]]


@asynccontextmanager
async def two_workers(url: str) -> AsyncIterator[tuple[Service, Service]]:
    pair = Service(url), Service(url)
    try:
        for service in pair:
            await service.app.start()
        yield pair
    finally:
        for service in pair:
            await service.app.stop()


@pytest.fixture
def with_two(database_url: str) -> Iterator[Callable[[Test], None]]:
    """Run a test against two workers of one service, with one account."""

    def with_it(test: Test) -> None:
        async def main() -> None:
            async with two_workers(database_url) as (one, two):
                database = one.app.state.runtime.database
                await database.execute(
                    "truncate users, sessions, api_keys, login_attempts restart identity"
                )
                assert (await one.post("/api/auth/register", ADA)).status == 201
                await test(one, two)

        run(main())

    yield with_it


async def logged_in(service: Service, account: dict[str, Any] = ADA) -> dict[str, Any]:
    answer = await service.post("/api/auth/login", account)
    assert answer.status == 200
    return document(answer)  # type: ignore[no-any-return]


async def refreshed(service: Service, token: str) -> Response:
    return await service.post("/api/auth/refresh", {"refresh_token": token})


async def users(service: Service, token: str | None = None, key: str | None = None) -> int:
    headers = None if key is None else {"X-API-Key": key}
    return (await service.ask("GET", "/api/users", token=token, headers=headers)).status


async def until(status: int, ask: Callable[[], Awaitable[int]]) -> float:
    started = time.monotonic()
    while await ask() != status:
        assert time.monotonic() - started < 10
        await asyncio.sleep(0.02)
    return time.monotonic() - started


# sessions


def test_a_session_goes_on_by_its_refresh_token_with_the_roles_of_the_day(
    with_two: Callable[[Test], None], database_url: str
) -> None:
    async def test(one: Service, two: Service) -> None:
        first = await logged_in(one)
        assert (first["expires_in"], first["refresh_expires_in"]) == (86_400, 2_592_000)
        assert grant_role(database_url, ADA["email"], "admin")
        answer = await refreshed(two, first["refresh_token"])
        assert answer.status == 200
        second = document(answer)
        assert second["refresh_token"] != first["refresh_token"]
        assert 2_591_000 < second["refresh_expires_in"] <= 2_592_000
        assert (await two.ask("GET", "/api/admin/stats", token=second["token"])).status == 200
        assert (await refreshed(one, second["refresh_token"])).status == 200
        rows = await one.app.state.runtime.database.fetch_all("select * from sessions")
        assert len(rows) == 1
        assert first["refresh_token"] not in str(rows)
        assert first["refresh_token"].rpartition("_")[2] not in str(rows)

    with_two(test)


def test_a_refresh_token_that_is_used_twice_ends_its_session(
    with_two: Callable[[Test], None],
) -> None:
    async def test(one: Service, two: Service) -> None:
        stolen, other = await logged_in(one), await logged_in(one)
        thief = document(await refreshed(two, stolen["refresh_token"]))
        assert await users(one, thief["token"]) == 200
        refused = await refreshed(one, stolen["refresh_token"])
        assert (refused.status, document(refused)["code"]) == (401, "REFRESH_REFUSED")
        # the whole family: what the thief holds too
        assert (await refreshed(two, thief["refresh_token"])).status == 401
        for token in (stolen["token"], thief["token"]):
            assert await users(one, token) == 401
            assert await until(401, lambda token=token: users(two, token)) < 3  # type: ignore[misc]
        assert await users(two, other["token"]) == 200
        assert (await refreshed(two, other["refresh_token"])).status == 200

    with_two(test)


def test_of_two_at_once_one_is_refreshed(with_two: Callable[[Test], None]) -> None:
    async def test(one: Service, two: Service) -> None:
        token = (await logged_in(one))["refresh_token"]
        answers = await asyncio.gather(*(refreshed(w, token) for w in (one, two) * 4))
        assert sorted(answer.status for answer in answers) == [200] + [401] * 7
        good = next(answer for answer in answers if answer.status == 200)
        assert (await refreshed(one, document(good)["refresh_token"])).status == 401

    with_two(test)


def test_logout_ends_the_session_here_at_once_and_elsewhere_within_the_second_or_so(
    with_two: Callable[[Test], None],
) -> None:
    async def test(one: Service, two: Service) -> None:
        session, other = await logged_in(one), await logged_in(one)
        assert await users(two, session["token"]) == 200
        answer = await one.ask("POST", "/api/auth/logout", token=session["token"])
        assert (answer.status, answer.body) == (204, b"")
        assert await users(one, session["token"]) == 401
        assert (await refreshed(two, session["refresh_token"])).status == 401
        assert await until(401, lambda: users(two, session["token"])) < 3
        assert await users(two, other["token"]) == 200
        # a worker that starts later knows as well
        url = one.app.settings.database.effective_url
        late = Service(url)
        await late.app.start()
        try:
            assert await users(late, session["token"]) == 401
            assert await users(late, other["token"]) == 200
        finally:
            await late.app.stop()

    with_two(test)


def test_refresh_tokens_that_are_none(with_two: Callable[[Test], None]) -> None:
    zeros = "fxr_" + "0" * 32 + "_" + "0" * 64

    async def test(one: Service, two: Service) -> None:
        for token in ("", "fxr_", "x" * 128, zeros, zeros.upper(), "' or 1=1 --", "é"):
            refused = await refreshed(one, token)
            assert (refused.status, document(refused)["code"]) == (401, "REFRESH_REFUSED")
            assert refused.headers["WWW-Authenticate"] == "Bearer"

    with_two(test)


def test_a_session_ends_when_its_time_is_over_and_is_swept_when_its_tokens_are_gone(
    with_two: Callable[[Test], None],
) -> None:
    async def test(one: Service, two: Service) -> None:
        database = one.app.state.runtime.database
        token = (await logged_in(one))["refresh_token"]
        await database.execute("update sessions set expires_at = now() - interval '1 s'")
        assert (await refreshed(one, token)).status == 401
        await database.execute("update login_attempts set until = now() - interval '1 s'")
        await sweep(database, 60)
        assert len(await database.fetch_all("select id from sessions")) == 1
        assert not await database.fetch_all("select key from login_attempts")
        await database.execute("update sessions set expires_at = now() - interval '61 s'")
        await sweep(database, 60)
        assert not await database.fetch_all("select id from sessions")

    with_two(test)


def test_who_is_gone_refreshes_nothing_and_has_no_key(with_two: Callable[[Test], None]) -> None:
    async def test(one: Service, two: Service) -> None:
        session = await logged_in(one)
        made = await one.post("/api/auth/keys", {"name": "x"}, session["token"])
        await one.app.state.runtime.database.execute("delete from users")
        assert (await refreshed(one, session["refresh_token"])).status == 401
        assert await users(one, key=document(made)["key"]) == 401
        assert (await one.post("/api/auth/keys", {"name": "x"}, session["token"])).status == 401

    with_two(test)


def test_the_key_before_still_verifies(database_url: str) -> None:
    async def main() -> None:
        service = Service(database_url, "a new secret of 32 bytes or more.")
        auth = service.app.settings.auth.model_copy(
            update={"jwt_previous_secret": type(service.app.settings.auth.jwt_secret)(SECRET)}
        )
        service.app.settings = service.app.settings.model_copy(update={"auth": auth})
        async with Running(service):
            tokens = service.app.state.runtime.tokens
            old = Service(database_url)
            async with Running(old):
                before = old.app.state.runtime.tokens.issue(1, "a@example.com", ["user"])
                assert await users(service, before) == 200
                assert await users(old, tokens.issue(1, "a@example.com", ["user"])) == 401
            forged = Tokens(b"another secret of 32 bytes or so.", 60).issue(1, "a", ["admin"])
            assert await users(service, forged) == 401

    run(main())


class Running:
    """A service between its start and its stop."""

    def __init__(self, service: Service) -> None:
        self.app = service.app

    async def __aenter__(self) -> None:
        await self.app.start()

    async def __aexit__(self, *error: object) -> None:
        await self.app.stop()


# API keys


def test_a_key_from_its_making_to_its_end(with_two: Callable[[Test], None]) -> None:
    async def test(one: Service, two: Service) -> None:
        token = (await logged_in(one))["token"]
        answer = await one.post("/api/auth/keys", {"name": "nightly", "expires_in": 3600}, token)
        assert answer.status == 201
        made = document(answer)
        key = made.pop("key")
        assert made["prefix"] == key[:20]
        assert (made["name"], made["tier"], made["roles"]) == ("nightly", "standard", ["user"])
        assert document(await two.ask("GET", "/api/auth/keys", token=token)) == {"keys": [made]}
        for worker in (one, two):
            assert await users(worker, key=key) == 200
            assert await users(worker, key=key[:-1] + ("1" if key[-1] == "0" else "0")) == 401
        admin = await one.ask("GET", "/api/admin/stats", headers={"X-API-Key": key})
        assert admin.status == 403
        rows = await one.app.state.runtime.database.fetch_all("select * from api_keys")
        assert key not in str(rows)
        assert key[21:] not in str(rows)
        path = f"/api/auth/keys/{made['id']}"
        # a key makes, lists and revokes none
        for method, target in (("POST", "/api/auth/keys"), ("GET", "/api/auth/keys"),
                               ("DELETE", path)):  # fmt: skip
            answer = await one.ask(method, target, headers={"X-API-Key": key}, json={"name": "x"})
            assert answer.status == 401
        assert (await one.ask("DELETE", path, token=one.admin)).status == 404  # it is another's
        assert (await one.ask("DELETE", path, token=token)).status == 204
        assert await users(one, key=key) == 401
        assert (await one.ask("DELETE", path, token=token)).status == 404
        two.app.state.runtime.keys._monotonic = lambda: time.monotonic() + 10
        assert await users(two, key=key) == 401
        assert document(await two.ask("GET", "/api/auth/keys", token=token)) == {"keys": []}

    with_two(test)


def test_a_whole_number_may_be_written_with_a_point(with_two: Callable[[Test], None]) -> None:
    async def test(one: Service, two: Service) -> None:
        body = {"name": "x", "expires_in": 3600.0}
        assert (await one.post("/api/auth/keys", body, one.user)).status == 201
        body["expires_in"] = 3600.5
        assert (await one.post("/api/auth/keys", body, one.user)).status == 422

    with_two(test)


def test_a_key_has_no_more_than_its_owner(
    with_two: Callable[[Test], None], database_url: str
) -> None:
    async def test(one: Service, two: Service) -> None:
        token = (await logged_in(one))["token"]
        for body in ({"name": "x", "roles": ["admin"]}, {"name": "x", "tier": "premium"}):
            refused = await one.post("/api/auth/keys", body, token)
            assert (refused.status, document(refused)["code"]) == (403, "FORBIDDEN")
        grant_role(database_url, ADA["email"], "admin")
        token = (await logged_in(one))["token"]
        body = {"name": "x", "roles": ["admin", "user"], "tier": "premium"}
        key = document(await one.post("/api/auth/keys", body, token))["key"]
        headers = {"X-API-Key": key}
        assert (await one.ask("GET", "/api/admin/stats", headers=headers)).status == 200
        await one.app.state.runtime.database.execute("update users set roles = '{user}'")
        # another worker asks for the first time; this one within ten seconds
        assert (await two.ask("GET", "/api/admin/stats", headers=headers)).status == 403
        one.app.state.runtime.keys._monotonic = lambda: time.monotonic() + 10
        assert (await one.ask("GET", "/api/admin/stats", headers=headers)).status == 403

    with_two(test)


def test_faults_of_a_new_key(with_two: Callable[[Test], None]) -> None:
    bodies: list[dict[str, Any]] = [
        {},
        {"name": ""},
        {"name": "x", "roles": "user"},
        {"name": "x", "roles": ["user"] * 21},
        {"name": "x", "tier": "gold"},
        {"name": "x", "expires_in": 59},
        {"name": "x", "expires_in": 10**12},
        {"name": "x", "user_id": 2},
    ]

    async def test(one: Service, two: Service) -> None:
        for body in bodies:
            assert (await one.post("/api/auth/keys", body, one.user)).status == 422, body

    with_two(test)


# attempts


async def tries(worker: Service, email: str, address: str, password: str = "wrong") -> Response:
    before = FakeConnection.peer
    FakeConnection.peer = address
    try:
        return await worker.post("/api/auth/login", {"email": email, "password": password})
    finally:
        FakeConnection.peer = before


def test_guessing_ends_after_ten_tries_whether_the_account_exists_or_not(
    with_two: Callable[[Test], None],
) -> None:
    async def test(one: Service, two: Service) -> None:
        said = []
        for email in ("ada@example.com", "nobody@example.com"):
            answers = [
                await tries(w, name, "192.0.2.7")
                for w, name in ((one, email), (two, email.upper())) * 6
            ]
            said.append([(answer.status, answer.body) for answer in answers])
            assert [answer.status for answer in answers] == [401] * 10 + [429] * 2
            assert document(answers[-1])["code"] == "TOO_MANY_ATTEMPTS"
            assert 0 < int(answers[-1].headers["Retry-After"]) <= 900
        assert said[0] == said[1]
        # the right password too, as long as it lasts; elsewhere the owner gets in
        assert (await tries(one, ADA["email"], "192.0.2.7", PASSWORD)).status == 429
        assert (await tries(one, ADA["email"], "192.0.2.8", PASSWORD)).status == 200
        await one.app.state.runtime.database.execute(
            "update login_attempts set until = now() - interval '1 s'"
        )
        assert (await tries(one, ADA["email"], "192.0.2.7", PASSWORD)).status == 200

    with_two(test)


def test_attempts_at_once_are_counted_before_they_are_looked_at(
    with_two: Callable[[Test], None],
) -> None:
    async def test(one: Service, two: Service) -> None:
        answers = await asyncio.gather(
            *(tries(worker, "ada@example.com", "192.0.2.1") for worker in (one, two) * 10)
        )
        assert sorted(answer.status for answer in answers) == [401] * 10 + [429] * 10

    with_two(test)


def test_an_address_and_an_account_have_limits_of_their_own(
    with_two: Callable[[Test], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts_module, "ADDRESS", 4)
    monkeypatch.setattr(attempts_module, "ACCOUNT", 6)

    async def test(one: Service, two: Service) -> None:
        # one address, many accounts; of an IPv6 client its /64
        for place in ("192.0.2.{}", "2001:db8:0:1::{}"):
            address = [place.format(n if ":" in place else 7) for n in range(1, 7)]
            found = [(await tries(one, f"u{n}@example.com", address[n])).status for n in range(6)]
            assert found == [401] * 4 + [429] * 2
        # one account, many addresses
        found = [(await tries(two, ADA["email"], f"198.51.100.{n}")).status for n in range(8)]
        assert found == [401] * 6 + [429] * 2
        rows = await one.app.state.runtime.database.fetch_all("select key from login_attempts")
        assert all(len(row["key"]) == 32 for row in rows)  # no name and no address

    with_two(test)


def test_logins_that_nobody_has_time_to_look_at_are_not_counted(
    with_two: Callable[[Test], None],
) -> None:
    async def test(one: Service, two: Service) -> None:
        passwords = one.app.state.runtime.passwords
        passwords._limit = 0
        for _ in range(12):
            assert (await one.post("/api/auth/login", ADA)).status == 503
        passwords._limit = 10
        assert (await one.post("/api/auth/login", ADA)).status == 200

    with_two(test)


def test_logins_that_succeed_are_not_counted(with_two: Callable[[Test], None]) -> None:
    async def test(one: Service, two: Service) -> None:
        for _ in range(12):
            assert (await one.post("/api/auth/login", ADA)).status == 200
        rows = await one.app.state.runtime.database.fetch_all("select count from login_attempts")
        assert [row["count"] for row in rows] == [0, 0, 0]

    with_two(test)
