"""The reference service on a real database: every endpoint, and every bad input."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import argon2
import orjson
import psycopg
import pytest
from jsonschema import ValidationError

from fluxor_fast import Priority, Response, __version__
from fluxor_fast.auth.tokens import Tokens
from fluxor_fast.config import (
    AuthSettings,
    DatabaseSettings,
    RedisSettings,
    ServerSettings,
    Settings,
)
from fluxor_fast.db.pool import Database
from fluxor_fast.errors import BootError
from fluxor_fast.openapi import document as description_of
from fluxor_fast.service import build
from fluxor_fast.service.accounts import grant_role
from fluxor_fast.service.schema import ensure_schema
from tests.support.described import Description
from tests.support.pure import Asker, FakeMetrics, document, make_request, run
from tests.support.redis import RedisServer

SECRET = "the secret of these tests, 32 bytes"
PASSWORD = "correct horse"

Test = Callable[["Service"], Awaitable[None]]

DESCRIPTION = description_of(build())


class Service(Asker):
    """The service, started, with tokens for a plain user and an administrator.

    Every answer of every test is held against the description.
    """

    def __init__(self, url: str | None, secret: str | None = SECRET) -> None:
        super().__init__(build())
        self.app.settings = Settings(
            server=ServerSettings(workers=4),
            database=DatabaseSettings(url=url, pool_min=4, pool_max=16),  # type: ignore[arg-type]
            auth=AuthSettings(jwt_secret=secret, hash_threads=2),  # type: ignore[arg-type]
        )
        self.metrics = self.app.metrics = FakeMetrics()
        tokens = Tokens(SECRET.encode(), 60)
        self.user = tokens.issue(1, "user@example.com", ["user"])
        self.admin = tokens.issue(2, "admin@example.com", ["user", "admin"])
        self.description = Description(DESCRIPTION)

    async def ask(self, method: str, target: str, **options: Any) -> Response:
        answer = await super().ask(method, target, **options)
        path = self.router.match(method, target.partition("?")[0])[0].path
        self.description.check(method, path.replace(":int}", "}"), answer)
        return answer

    async def post(self, target: str, json: Any, token: str | None = None) -> Response:
        return await self.ask("POST", target, json=json, token=token)


@asynccontextmanager
async def started(url: str) -> AsyncIterator[Service]:
    service = Service(url)
    await service.app.start()
    try:
        yield service
    finally:
        await service.app.stop()


@pytest.fixture
def with_service(database_url: str) -> Iterator[Callable[[Test], None]]:
    """Run a test against the service; the table of users is empty before."""

    def with_it(test: Test) -> None:
        async def main() -> None:
            async with started(database_url) as service:
                database = service.app.state.runtime.database
                await database.execute(
                    "truncate users, sessions, api_keys, login_attempts restart identity"
                )
                await test(service)

        run(main())

    yield with_it


# without waiting


def test_home(with_service: Callable[[Test], None]) -> None:
    async def test(service: Service) -> None:
        answer = document(await service.ask("GET", "/"))
        assert answer["message"]
        assert answer["version"] == __version__
        assert answer["request_id"] == "test-request-id"
        assert all(isinstance(feature, str) for feature in answer["features"])

    with_service(test)


def test_health_depends_on_nothing(with_service: Callable[[Test], None]) -> None:
    async def test(service: Service) -> None:
        before = int(time.time())
        answer = document(await service.ask("GET", "/health"))
        assert (answer["status"], answer["service"]) == ("healthy", "fluxor-fast")
        assert before <= answer["timestamp"] <= time.time()

    with_service(test)


@pytest.mark.parametrize(
    ("queue", "ccu", "server"),
    [(0.0, 0.0, True), (89.99, 89.99, True), (90.0, 0.0, False), (0.0, 90.0, False)],
)
def test_ready_goes_by_utilisation(
    with_service: Callable[[Test], None], queue: float, ccu: float, server: bool
) -> None:
    async def test(service: Service) -> None:
        service.metrics.now.queue_utilization = queue
        service.metrics.now.ccu_utilization = ccu
        answer = await service.ask("GET", "/ready")
        assert answer.status == (200 if server else 503)
        assert document(answer) == {
            "ready": server,
            "checks": {
                "server": {"ready": server, "queue_utilization": queue, "ccu_utilization": ccu},
                "database": {"ready": True},
            },
        }

    with_service(test)


def test_without_its_database_it_starts_and_is_not_ready() -> None:
    async def main() -> None:
        async with started("postgresql://u@127.0.0.1:1/x") as service:
            answer = await service.ask("GET", "/ready")
            assert answer.status == 503
            assert document(answer)["checks"]["database"] == {"ready": False}
            assert document(answer)["checks"]["server"]["ready"]
            assert (await service.ask("GET", "/health")).status == 200
            detailed = await service.ask("GET", "/health/detailed")
            assert detailed.status == 503
            assert document(detailed)["checks"]["database"]["status"] == "down"
            login = await service.post(
                "/api/auth/login", {"email": "a@example.com", "password": PASSWORD}
            )
            assert (login.status, document(login)["code"]) == (503, "DATABASE_BUSY")
            assert login.headers["Retry-After"] == "1"

    run(main())


def test_health_detailed(with_service: Callable[[Test], None]) -> None:
    async def test(service: Service) -> None:
        answer = await service.ask("GET", "/health/detailed")
        assert answer.status == 200
        found = document(answer)
        assert found["status"] == "healthy"
        assert set(found["checks"]) == {"server", "database", "disk"}
        for check in found["checks"].values():
            assert check["status"] == "up"
            assert check["duration_ms"] >= 0

    with_service(test)


def test_metrics(with_service: Callable[[Test], None]) -> None:
    async def test(service: Service) -> None:
        answer = await service.ask("GET", "/metrics")
        assert answer.body == b"# HELP nothing\n"
        assert (answer.content_type or "").startswith("text/plain; version=")
        assert document(await service.ask("GET", "/api/metrics")) == {
            "queued_requests": 2,
            "rejected_requests": 7,
            "queue_capacity": 3015,
            "queue_utilization": 0.07,
            "slots": 335,
            "slots_in_use": 10,
            "workers": 2,
            "connections": 40,
            "normal_ccu": 3350,
            "current_ccu": 12,
            "max_ccu": 5000,
            "ccu_utilization": 0.24,
            "backpressure_active": False,
            "total_requests": 100,
            "successful_requests": 90,
            "error_requests": 1,
        }
        assert service.metrics.published

    with_service(test)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":[1,2.5,"\xc3\xa9",null,true]}',
        b"[]",
        b"0",
        b'"x"',
        b"null",
        b"  [1]  ",
        b"123456789012345678901234567890",
        b"[" * 500 + b"]" * 500,
    ],
)
def test_echo_gives_back_what_came(body: bytes, with_service: Callable[[Test], None]) -> None:
    async def test(service: Service) -> None:
        answer = await service.ask("POST", "/api/echo", body=body)
        assert answer.status == 200
        assert answer.body == b'{"echo":' + body + b"}"
        orjson.loads(answer.body)

    with_service(test)


@pytest.mark.parametrize("body", [b"", b" ", b"{", b"{'a':1}", b'"\xff"', b'"\\ud800"', b"NaN"])
def test_echo_refuses_what_is_not_json(body: bytes, with_service: Callable[[Test], None]) -> None:
    async def test(service: Service) -> None:
        answer = await service.ask("POST", "/api/echo", body=body)
        assert (answer.status, document(answer)["code"]) == (400, "BAD_JSON")

    with_service(test)


# accounts


def test_register_and_log_in(with_service: Callable[[Test], None]) -> None:
    async def test(service: Service) -> None:
        account = {"email": "Ann@Example.com", "password": PASSWORD, "name": "Ann"}
        made = await service.post("/api/auth/register", account)
        assert made.status == 201
        user = document(made)
        created_at = user.pop("created_at")
        assert created_at.startswith("20")
        assert user == {"id": 1, "email": "Ann@Example.com", "name": "Ann", "roles": ["user"]}
        assert made.headers["Location"] == "/api/users/1"

        answer = await service.post(
            "/api/auth/login", {"email": "ann@example.COM", "password": PASSWORD}
        )
        assert answer.status == 200
        login = document(answer)
        assert login["expires_in"] == 86_400
        assert login["request_id"] == "test-request-id"
        found = await service.ask("GET", "/api/users/1", token=login["token"])
        assert document(found) == user | {"created_at": created_at}

    with_service(test)


def test_an_address_is_taken_once_in_whatever_case(
    with_service: Callable[[Test], None],
) -> None:
    async def test(service: Service) -> None:
        answers = await asyncio.gather(
            *(
                service.post(
                    "/api/auth/register", {"email": address, "password": PASSWORD, "name": None}
                )
                for address in ("a@example.com", "A@example.com", "a@EXAMPLE.com")
            ),
            service.post("/api/users", {"email": "a@Example.com", "name": "a"}, token=service.user),
        )
        assert sorted(answer.status for answer in answers) == [201, 409, 409, 409]
        refused = next(answer for answer in answers if answer.status == 409)
        assert document(refused)["code"] == "CONFLICT"
        users = document(await service.ask("GET", "/api/users", token=service.user))["users"]
        assert len(users) == 1

    with_service(test)


def test_wrong_password_unknown_user_and_no_password_look_the_same(
    with_service: Callable[[Test], None],
) -> None:
    async def test(service: Service) -> None:
        await service.post("/api/auth/register", {"email": "a@example.com", "password": PASSWORD})
        await service.post(
            "/api/users", {"email": "none@example.com", "name": "n"}, token=service.user
        )
        answers = [
            await service.post("/api/auth/login", {"email": email, "password": password})
            for email, password in (
                ("a@example.com", "wrong horse"),
                ("nobody@example.com", PASSWORD),
                ("none@example.com", PASSWORD),
                ("not an address", ""),
            )
        ]
        assert {answer.status for answer in answers} == {401}
        assert len({answer.body for answer in answers}) == 1
        assert document(answers[0])["code"] == "WRONG_CREDENTIALS"
        assert answers[0].headers["WWW-Authenticate"] == "Bearer"

    with_service(test)


def test_a_login_renews_a_hash_of_old_parameters(with_service: Callable[[Test], None]) -> None:
    async def test(service: Service) -> None:
        old = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
        database: Database = service.app.state.runtime.database
        await database.execute(
            "insert into users (email, password_hash) values ('a@example.com', %s)", old
        )
        login = {"email": "a@example.com", "password": PASSWORD}
        assert (await service.post("/api/auth/login", login)).status == 200
        row = await database.fetch_one("select password_hash from users")
        assert row is not None and row["password_hash"].startswith("$argon2id$v=19$m=19456,t=2")
        assert (await service.post("/api/auth/login", login)).status == 200

    with_service(test)


GOOD = {"email": "a@example.com", "password": PASSWORD, "name": "Ann"}


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"email": None}, {"email"}),
        ({"email": 1}, {"email"}),
        ({"email": "plain"}, {"email"}),
        ({"email": "a@b"}, {"email"}),
        ({"email": "a b@example.com"}, {"email"}),
        ({"email": "a@@example.com"}, {"email"}),
        ({"email": "a@example..com"}, {"email"}),
        ({"email": "a@-example.com"}, {"email"}),
        ({"email": "a\0@example.com"}, {"email"}),
        ({"email": "a@example.com\n"}, {"email"}),
        ({"email": "é" * 120 + "@example.com"}, {"email"}),
        ({"email": "a@" + "b" * 60 + ".com" * 60}, {"email"}),
        ({"password": "1234567"}, {"password"}),
        ({"password": "x" * 129}, {"password"}),
        ({"password": "12345678\0"}, {"password"}),
        ({"password": 12345678}, {"password"}),
        ({"name": ""}, {"name"}),
        ({"name": "x" * 101}, {"name"}),
        ({"name": "a\0b"}, {"name"}),
        ({"name": ["Ann"]}, {"name"}),
        ({"roles": ["admin"]}, {"roles"}),
        ({"id": 1, "email": "x", "password": "", "name": 3}, {"id", "email", "password", "name"}),
    ],
)
def test_faults_of_a_registration_are_told_all_at_once(
    change: dict[str, Any], fields: set[str], with_service: Callable[[Test], None]
) -> None:
    async def test(service: Service) -> None:
        answer = await service.post("/api/auth/register", GOOD | change)
        assert answer.status == 422
        told = document(answer)
        assert told["code"] == "VALIDATION_FAILED"
        assert {problem["in"] for problem in told["problems"]} == {"body"}
        assert {name for problem in told["problems"] for name in problem["path"]} == fields
        assert all(problem["message"] for problem in told["problems"])
        assert b"12345678" not in answer.body  # values are not repeated
        users = document(await service.ask("GET", "/api/users", token=service.user))["users"]
        assert users == []

    with_service(test)


@pytest.mark.parametrize("path", ["/api/auth/register", "/api/auth/login", "/api/users"])
def test_bodies_that_are_no_object(path: str, with_service: Callable[[Test], None]) -> None:
    async def test(service: Service) -> None:
        for body in (b"", b"{", b'{"email": }', b"\xff", b'{"email":"\\ud800"}'):
            answer = await service.ask("POST", path, body=body, token=service.user)
            assert (answer.status, document(answer)["code"]) == (400, "BAD_JSON"), body
        for body in (b"[]", b"null", b"1", b'"email"'):
            answer = await service.ask("POST", path, body=body, token=service.user)
            assert (answer.status, document(answer)["code"]) == (422, "VALIDATION_FAILED"), body
            (problem,) = document(answer)["problems"]
            assert problem == {"in": "body", "path": [], "message": "must be an object"}
        answer = await service.ask("POST", path, body=b"{}", token=service.user)
        assert answer.status == 422
        assert len(document(answer)["problems"]) == 2

    with_service(test)


def test_a_flood_of_unknown_fields_gets_a_short_answer(
    with_service: Callable[[Test], None],
) -> None:
    async def test(service: Service) -> None:
        answer = await service.post(
            "/api/auth/register", GOOD | {f"{n}" + "x" * 1000: n for n in range(1000)}
        )
        assert answer.status == 422
        assert len(answer.body) < 10_000

    with_service(test)


def test_the_edges_of_what_is_allowed(with_service: Callable[[Test], None]) -> None:
    async def test(service: Service) -> None:
        for number, change in enumerate(
            (
                {"password": "x" * 8},
                {"password": "é" * 128},
                {"name": "x"},
                {"name": "名" * 100},
                {"name": None},
                {"email": "a" * 64 + "@" + ("b" * 60 + ".") * 3 + "com"},
                {"email": "o'brien+tag@xn--bcher-kva.example"},
                {"email": "zoë@bücher.example"},
            )
        ):
            account = GOOD | {"email": f"a{number}@example.com"} | change
            made = await service.post("/api/auth/register", account)
            assert made.status == 201, made.body
            login = {"email": account["email"], "password": account["password"]}
            assert (await service.post("/api/auth/login", login)).status == 200

    with_service(test)


@pytest.mark.parametrize(
    ("login", "fields"),
    [
        ({"email": "a\0", "password": "x"}, {"email"}),
        ({"email": "a", "password": "\0"}, {"password"}),
        ({"email": "a" * 255, "password": "x" * 129}, {"email", "password"}),
        ({"email": "a", "password": "x", "name": "Ann"}, {"name"}),
    ],
)
def test_faults_of_a_login(
    login: dict[str, Any], fields: set[str], with_service: Callable[[Test], None]
) -> None:
    async def test(service: Service) -> None:
        answer = await service.post("/api/auth/login", login)
        assert answer.status == 422
        assert {problem["path"][0] for problem in document(answer)["problems"]} == fields

    with_service(test)


# users


def test_users_need_a_token(with_service: Callable[[Test], None]) -> None:
    async def test(service: Service) -> None:
        for method, path in (
            ("GET", "/api/users"),
            ("POST", "/api/users"),
            ("GET", "/api/users/1"),
            ("GET", "/api/admin/metrics"),
            ("GET", "/api/admin/stats"),
        ):
            answer = await service.ask(method, path)
            assert (answer.status, document(answer)["code"]) == (401, "UNAUTHORIZED")

    with_service(test)


def test_pages_of_users(with_service: Callable[[Test], None]) -> None:
    async def test(service: Service) -> None:
        for number in range(25):
            made = await service.post(
                "/api/users",
                {"email": f"u{number}@example.com", "name": f"user {number}"},
                token=service.user,
            )
            assert made.status == 201

        async def page(query: str) -> tuple[list[int], int | None]:
            answer = document(await service.ask("GET", f"/api/users{query}", token=service.user))
            return [user["id"] for user in answer["users"]], answer["next"]

        assert await page("") == (list(range(1, 21)), 20)
        assert await page("?after=20") == (list(range(21, 26)), None)
        assert await page("?limit=25") == (list(range(1, 26)), None)
        assert await page("?limit=24") == (list(range(1, 25)), 24)
        assert await page("?limit=100&after=25") == ([], None)
        assert await page(f"?after={'9' * 18}") == ([], None)
        seen: list[int] = []
        query, after = "?limit=4", None
        while True:
            ids, after = await page(query)
            seen += ids
            if after is None:
                break
            query = f"?limit=4&after={after}"
        assert seen == list(range(1, 26))

    with_service(test)


@pytest.mark.parametrize("name", ["limit", "after"])
@pytest.mark.parametrize("value", ["", "x", "-1", "1.0", "+1", "1_0", "%D9%A1", "9" * 19, "%20"])
def test_bad_pages(name: str, value: str, with_service: Callable[[Test], None]) -> None:
    async def test(service: Service) -> None:
        answer = await service.ask("GET", f"/api/users?{name}={value}", token=service.user)
        assert answer.status == 422
        (problem,) = document(answer)["problems"]
        assert (problem["in"], problem["path"]) == ("query", [name])

    with_service(test)


def test_pages_out_of_bounds(with_service: Callable[[Test], None]) -> None:
    async def test(service: Service) -> None:
        for query in ("limit=0", "limit=101", "limit=0&after=x"):
            answer = await service.ask("GET", f"/api/users?{query}", token=service.user)
            assert answer.status == 422
        assert len(document(answer)["problems"]) == 2
        answer = await service.ask("GET", "/api/users?limit=%ff", token=service.user)
        assert answer.status == 400

    with_service(test)


def test_one_user(with_service: Callable[[Test], None]) -> None:
    async def test(service: Service) -> None:
        made = document(
            await service.post(
                "/api/users",
                {"email": "a@example.com", "name": "Ann", "password": PASSWORD},
                token=service.user,
            )
        )
        found = await service.ask("GET", f"/api/users/{made['id']}", token=service.user)
        assert document(found) == made
        assert "password_hash" not in made
        for missing in ("999", "0", "9" * 18):
            answer = await service.ask("GET", f"/api/users/{missing}", token=service.user)
            assert (answer.status, document(answer)["code"]) == (404, "NOT_FOUND")
        for no_id in ("x", "-1", "1.5", "9" * 19, ""):
            answer = await service.ask("GET", f"/api/users/{no_id}", token=service.user)
            assert answer.status == 404
        login = {"email": "a@example.com", "password": PASSWORD}
        assert (await service.post("/api/auth/login", login)).status == 200

    with_service(test)


def test_a_profile_is_read_from_the_database_once(with_service: Callable[[Test], None]) -> None:
    async def test(service: Service) -> None:
        made = document(
            await service.post("/api/users", {"email": "a@example.com", "name": "a"}, service.user)
        )
        path = f"/api/users/{made['id']}"
        first = await service.ask("GET", path, token=service.user)
        await service.app.state.runtime.database.execute("update users set name = 'new'")
        again = await service.ask("GET", path, token=service.admin)
        assert document(again) == document(first) == made
        # what is known is no more public than what is not
        for token in (None, "nonsense"):
            assert (await service.ask("GET", path, token=token)).status == 401
        # that there is no such user is not remembered
        number = made["id"] + 1
        assert (await service.ask("GET", f"/api/users/{number}", token=service.user)).status == 404
        await service.post("/api/users", {"email": "b@example.com", "name": "b"}, service.user)
        assert (await service.ask("GET", f"/api/users/{number}", token=service.user)).status == 200

    with_service(test)


def test_redis_is_one_of_the_parts_where_there_is_one(
    database_url: str, redis_server: RedisServer
) -> None:
    async def main() -> None:
        service = Service(database_url)
        redis = RedisSettings.model_validate({"url": redis_server.url, "timeout": 5})
        service.app.settings = service.app.settings.model_copy(update={"redis": redis})
        await service.app.start()
        try:
            parts = service.app.state.runtime
            await parts.database.execute("truncate users restart identity")
            await service.post("/api/users", {"email": "a@example.com", "name": "a"}, service.user)
            while not redis_server.command("PUBSUB", "CHANNELS").startswith(b"*1"):
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)
            first = await service.ask("GET", "/api/users/1", token=service.user)
            assert document(first)["email"] == "a@example.com"
            assert b"users:1" in redis_server.command("KEYS", "*")
            report = document(await service.ask("GET", "/health/detailed"))
            assert report["checks"]["redis"]["status"] == "up"
            redis_server.stop()
            parts.health._last = None
            report = document(await service.ask("GET", "/health/detailed"))
            assert (report["status"], report["checks"]["redis"]["status"]) == ("degraded", "down")
            again = await service.ask("GET", "/api/users/1", token=service.user)
            assert document(again) == document(first)
        finally:
            await service.app.stop()

    run(main())


def test_faults_of_a_new_user(with_service: Callable[[Test], None]) -> None:
    async def test(service: Service) -> None:
        for body, fields in (
            ({"email": "a@example.com"}, ["name"]),
            ({"name": "Ann"}, ["email"]),
            ({"email": "a@example.com", "name": None}, ["name"]),
            ({"email": "a@example.com", "name": "Ann", "password": "short"}, ["password"]),
            ({"email": "a@example.com", "name": "Ann", "roles": ["admin"]}, ["roles"]),
        ):
            answer = await service.post("/api/users", body, token=service.user)
            assert answer.status == 422
            assert [problem["path"] for problem in document(answer)["problems"]] == [fields]

    with_service(test)


def test_no_control_of_any_kind_and_no_mark_of_byte_order_is_in_an_address(
    with_service: Callable[[Test], None],
) -> None:
    # \\s has NEL in Python and not in JavaScript, and the mark the other way round; the other C1
    # controls are in neither, and were taken
    async def test(service: Service) -> None:
        for character in "\x1c\x7f\x80\x85\x9f\xa0\u2028\u3000\ufeff":
            for email in (f"a{character}b@example.com", f"a@exa{character}mple.com"):
                answer = await service.post("/api/auth/register", GOOD | {"email": email})
                assert answer.status == 422, ascii(email)
                assert [one["path"] for one in document(answer)["problems"]] == [["email"]]

    with_service(test)


# administrators


def test_admin_routes_need_the_role(with_service: Callable[[Test], None]) -> None:
    async def test(service: Service) -> None:
        for path in ("/api/admin/metrics", "/api/admin/stats"):
            answer = await service.ask("GET", path, token=service.user)
            assert (answer.status, document(answer)["code"]) == (403, "FORBIDDEN")
        answer = document(await service.ask("GET", "/api/admin/metrics", token=service.admin))
        assert answer["server"]["rejected_by_reason"] == {"capacity": 7}
        assert answer["server"]["current_ccu"] == 12
        answer = document(await service.ask("GET", "/api/admin/stats", token=service.admin))
        assert answer["database"]["ready"] is True
        assert answer["database"]["instance"] == {"size": 4, "available": 3, "waiting": 0}
        assert answer["database"]["worker"]["pool_max"] == 4

    with_service(test)


def test_a_role_is_granted_once_and_is_in_the_next_token(
    with_service: Callable[[Test], None], database_url: str
) -> None:
    async def test(service: Service) -> None:
        await service.post("/api/auth/register", GOOD)
        for _ in range(2):
            assert grant_role(database_url, "A@example.com", "admin")
        assert not grant_role(database_url, "nobody@example.com", "admin")
        user = document(await service.ask("GET", "/api/users/1", token=service.user))
        assert user["roles"] == ["user", "admin"]
        login = document(
            await service.post("/api/auth/login", {"email": GOOD["email"], "password": PASSWORD})
        )
        answer = await service.ask("GET", "/api/admin/stats", token=login["token"])
        assert answer.status == 200

    with_service(test)


def test_granting_from_the_command_line(
    with_service: Callable[[Test], None], database_url: str
) -> None:
    async def test(service: Service) -> None:
        await service.post("/api/auth/register", GOOD)

    def grant(url: str | None, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fluxor_fast.service", *words],
            env={"DATABASE_URL": url} if url else {},
            capture_output=True,
            text=True,
            check=False,
        )

    with_service(test)
    done = grant(database_url, "grant", "a@example.com", "admin")
    assert (done.returncode, done.stderr) == (0, "")
    assert "a@example.com has the role admin" in done.stdout
    assert grant(database_url, "grant", "b@example.com", "admin").returncode == 1
    assert grant(database_url, "grant", "b@example.com").returncode == 2
    assert grant(None, "grant", "a@example.com", "admin").returncode == 2
    for url in ("postgresql://u:hunter2@127.0.0.1:1/x", "hunter2", "x://u:hunter2@h/d"):
        done = grant(url, "grant", "a@example.com", "admin")
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "hunter2" not in done.stderr


# the description


def test_every_answer_of_a_route_is_described_and_every_described_one_is_given(
    with_service: Callable[[Test], None],
) -> None:
    examples = {
        name: {field: shape["examples"][0] for field, shape in fields.items() if field != "name"}
        for name in ("Registration", "Login")
        for fields in [DESCRIPTION["components"]["schemas"][name]["properties"]]
    }

    async def test(service: Service) -> None:
        user, admin = service.user, service.admin
        for path in ("/", "/health", "/health/detailed", "/metrics", "/api/metrics"):
            assert (await service.ask("GET", path)).status == 200
        assert (await service.ask("GET", "/ready")).status == 200
        assert (await service.ask("GET", "/openapi.json")).status == 200
        for body in (b"1", b"{"):
            await service.ask("POST", "/api/echo", body=body)
        for path in ("/api/auth/register", "/api/auth/register", "/api/auth/login"):
            await service.post(path, examples["Login"])
        assert (await service.post("/api/auth/login", examples["Registration"])).status == 200
        new = {"email": "b@example.com", "name": "b"}
        for path in ("/api/auth/register", "/api/auth/login", "/api/users", "/api/users"):
            await service.post(path, {}, user)
            await service.ask("POST", path, body=b"{", token=user)
            await service.post(path, new, user)
        wrong = {"email": "b@example.com", "password": "wrong horse"}
        await service.post("/api/auth/login", wrong)
        await service.post("/api/users", new)
        for path in ("/api/users", "/api/users?limit=1", "/api/users?limit=0", "/api/users?%ff"):
            for token in (user, None):
                await service.ask("GET", path, token=token)
        for path in ("/api/users/1", "/api/users/9", "/api/admin/metrics", "/api/admin/stats"):
            for token in (user, admin, None):
                await service.ask("GET", path, token=token)
        for method, path in (("GET", "/api"), ("DELETE", "/api/users/1"), ("PUT", "/")):
            assert (await service.ask(method, path)).status in (404, 405)

        await tokens_and_keys(service, examples["Login"])

        missing = service.description.answers() - service.description.seen
        assert {status for _, _, status in missing} == {"503"}  # see the tests of a lost database

    with_service(test)


async def tokens_and_keys(service: Service, account: dict[str, Any]) -> None:
    """Give every answer of the routes of sessions, keys and attempts."""
    login = document(await service.post("/api/auth/login", account))
    token = login["token"]
    for body in ({"refresh_token": login["refresh_token"]}, {"refresh_token": "x"}, {}):
        await service.post("/api/auth/refresh", body)
    for bearer in (None, service.user, token):
        await service.ask("POST", "/api/auth/logout", token=bearer)
    token = document(await service.post("/api/auth/login", account))["token"]
    for body in ({}, {"name": "x", "tier": "premium"}, *[{"name": "x"}] * 51):
        await service.post("/api/auth/keys", body, token)
    await service.post("/api/auth/keys", {"name": "x"})
    for method, path in (("GET", "/api/auth/keys"), ("DELETE", "/api/auth/keys/1")):
        for bearer in (None, token, token):
            await service.ask(method, path, token=bearer)
    wrong = {"email": "c@example.com", "password": "wrong horse"}
    answers = [await service.post("/api/auth/login", wrong) for _ in range(11)]
    assert [answer.status for answer in answers] == [401] * 10 + [429]


def test_bodies_are_taken_and_refused_as_described(with_service: Callable[[Test], None]) -> None:
    bodies: list[dict[str, Any]] = [
        {},
        GOOD,
        GOOD | {"name": None},
        GOOD | {"name": ""},
        GOOD | {"password": "x" * 7},
        GOOD | {"password": "12345678\0"},
        GOOD | {"extra": 1},
        {"email": "zoë@bücher.example", "name": "名" * 100},
        {"email": "a@b", "name": "x"},
        {"email": "a\x85@example.com", "name": "x"},
        {"email": "b@example.com", "name": "x", "password": None},
    ]

    async def test(service: Service) -> None:
        for path, name in (("/api/auth/register", "Registration"), ("/api/users", "NewUser"),
                           ("/api/auth/login", "Login")):  # fmt: skip
            schema = DESCRIPTION["paths"][path]["post"]["requestBody"]["content"][
                "application/json"
            ]["schema"]
            assert schema == {"$ref": f"#/components/schemas/{name}"}
            for body in bodies:
                answer = await service.post(path, body, service.user)
                try:
                    service.description.validate(schema, body)
                except ValidationError:
                    assert answer.status == 422, (path, body)
                else:
                    assert answer.status != 422, (path, body)

    with_service(test)


# routes, schema, start


def test_priorities() -> None:
    ranks = {(route.method, route.path): route.priority for route in build().routes}
    exempt = {("GET", path) for path in ("/health", "/ready", "/metrics", "/health/detailed")}
    critical = {("GET", "/api/admin/metrics"), ("GET", "/api/admin/stats")}
    assert {key for key, rank in ranks.items() if rank is Priority.EXEMPT} == exempt
    assert {key for key, rank in ranks.items() if rank is Priority.CRITICAL} == critical
    assert len(ranks) == 20


def test_many_workers_make_the_schema_together(postgres: Any) -> None:
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute("drop database if exists schemas")
        admin.execute("create database schemas")
        url = postgres.url.replace("/postgres?", "/schemas?")

        async def worker() -> None:
            connection = await psycopg.AsyncConnection.connect(
                url, autocommit=True, row_factory=psycopg.rows.dict_row
            )
            async with connection:
                for _ in range(2):
                    await ensure_schema(connection)

        async def main() -> None:
            await asyncio.gather(*(worker() for _ in range(8)))

        run(main())
        with psycopg.connect(url, options="-c default_transaction_read_only=on") as standby:
            assert standby.execute("select count(*) from users").fetchone() == (0,)
        admin.execute("drop database schemas with (force)")


@pytest.mark.parametrize(
    ("url", "secret", "words"),
    [
        (None, SECRET, "--database-embedded"),
        ("postgresql://u@127.0.0.1:1/x", None, "JWT_SECRET"),
    ],
)
def test_a_start_without_the_needful_tells_the_way(
    url: str | None, secret: str | None, words: str
) -> None:
    async def main() -> None:
        service = Service(url, secret)
        with pytest.raises(BootError, match=words) as caught:
            await service.app.start()
        assert "\n" not in str(caught.value)
        await service.app.stop()

    run(main())


def test_a_start_with_a_wrong_database_ends(database_url: str) -> None:
    async def main() -> None:
        service = Service(database_url.replace("/test_", "/absent_"))
        with pytest.raises(BootError, match="does not exist"):
            await service.app.start()
        await service.app.stop()
        assert len(asyncio.all_tasks()) == 1  # nothing is left running

    run(main())


def test_home_takes_its_request_id_from_the_request() -> None:
    service = Asker(build())
    route, _ = service.router.match("GET", "/")
    request = make_request()
    request.rid = b"another"
    assert route.call(request)["request_id"] == "another"
