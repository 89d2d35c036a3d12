"""The layer: whose account, which limit, what the answers say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fluxor_fast import App, HTTPError, Request
from fluxor_fast.composition import offer
from fluxor_fast.http.response import Response
from fluxor_fast.limits.gcra import SECOND
from fluxor_fast.middleware.rate_limit import RateLimit
from tests.support.inprocess import Answer, Client, in_loop, serving


class Clock:
    """Moved by hand, in nanoseconds."""

    def __init__(self) -> None:
        self.now = 1000 * SECOND

    def __call__(self) -> int:
        return self.now


def hello(request: Request) -> dict[str, bool]:
    return {"hello": True}


def limited(*layers: RateLimit) -> App:
    app = App()
    for layer in layers:
        app.add_middleware(layer)
    app.get("/")(hello)
    app.get("/health", priority="exempt")(hello)
    return app


async def passed(client: Client, count: int, *lines: str, path: str = "/") -> int:
    """Return how many of so many requests are not refused."""
    return sum([(await client.get(path, *lines)).status != 429 for _ in range(count)])


def assert_limited(answer: Answer, seconds: int) -> None:
    assert answer.status == 429
    assert answer.headers["retry-after"] == str(seconds)
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert document["code"] == "RATE_LIMITED"
    assert document["error"] == "rate_limited"
    assert document["message"].startswith("at most ")


@in_loop
async def test_the_limit_at_once_then_one_for_each_share_of_the_window() -> None:
    clock = Clock()
    async with serving(limited(RateLimit(3, clock=clock))) as server:
        client = await server.connect()
        for left, full in ((2, 20), (1, 40), (0, 60)):
            answer = await client.get()
            assert answer.status == 200
            assert answer.headers["ratelimit-policy"] == '"client";q=3;w=60'
            assert answer.headers["ratelimit"] == f'"client";r={left};t={full}'
        refused = await client.get()
        assert_limited(refused, 20)
        assert refused.headers["ratelimit"] == '"client";r=0;t=60'
        clock.now += 19 * SECOND
        assert_limited(await client.get(), 1)
        clock.now += SECOND
        assert (await client.get()).status == 200
        assert_limited(await client.get(), 20)
        clock.now += 3600 * SECOND
        assert await passed(client, 10) == 3


@in_loop
async def test_what_the_fields_promise_is_so() -> None:
    """After ``Retry-After`` one gets through, after ``t`` all do, and ``r`` do now."""
    clock = Clock()
    async with serving(limited(RateLimit(7, window=11.0, burst=3, clock=clock))) as server:
        client = await server.connect()
        answer = await client.get()
        assert answer.headers["ratelimit-policy"] == '"client";q=3;w=5'
        left = int(answer.headers["ratelimit"].split(";")[1][2:])
        assert await passed(client, 10) == left
        clock.now += int((await client.get()).headers["retry-after"]) * SECOND
        assert (await client.get()).status == 200
        clock.now += int((await client.get()).headers["ratelimit"].split("t=")[1]) * SECOND
        assert await passed(client, 10) == 3


@in_loop
async def test_a_forged_address_from_an_untrusted_peer_changes_nothing() -> None:
    async with serving(limited(RateLimit(5))) as server:
        client = await server.connect()
        forged = [
            f"{name}: {value}"
            for n in range(20)
            for name, value in (
                ("X-Forwarded-For", f"192.0.2.{n}"),
                ("Forwarded", f"for=192.0.2.{n}"),
                ("X-Real-IP", f"192.0.2.{n}"),
            )
        ]
        assert sum([await passed(client, 1, line) for line in forged]) == 5


@in_loop
async def test_a_trusted_proxy_says_whose_request_it_is_up_to_what_it_has_seen() -> None:
    async with serving(limited(RateLimit(5)), trusted_proxies=("127.0.0.0/8",)) as server:
        client = await server.connect()
        for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1"):
            assert await passed(client, 9, f"X-Forwarded-For: {address}") == 5
        # what stands left of the first address that is not trusted is the client's own text
        assert await passed(client, 9, "X-Forwarded-For: 198.51.100.7, 192.0.2.1") == 0
        # one /64 is one client
        assert await passed(client, 9, "X-Forwarded-For: 2001:db8::ffff:2") == 0
        assert await passed(client, 9, "X-Forwarded-For: 2001:db8:0:1::1") == 5


@in_loop
async def test_who_has_no_address_or_no_name_is_not_limited(tmp_path: Path) -> None:
    app = limited(RateLimit(1), RateLimit(1, by=lambda request: None))
    async with serving(app, unix=str(tmp_path / "socket")) as server:
        client = await server.connect()
        assert await passed(client, 5) == 5
        assert "ratelimit" not in (await client.get()).headers


@in_loop
async def test_probes_are_never_refused_and_what_is_not_there_is_counted() -> None:
    async with serving(limited(RateLimit(4))) as server:
        client = await server.connect()
        assert await passed(client, 9, path="/health") == 9
        assert "ratelimit" not in (await client.get("/health")).headers
        assert await passed(client, 2, path="/nothing") == 2
        assert await passed(client, 9) == 2
        answer = await client.get("/nothing")
        assert answer.status == 429


def known(request: Request) -> None:
    """Find out who it is, as authentication does."""
    user, key = request.headers.get("x-user"), request.headers.get("x-key")
    if user is None and key is None:
        raise HTTPError(401)
    if user is not None:
        request.state["user"] = SimpleNamespace(user_id=int(user))
    if key is not None:
        request.state["api_key"] = SimpleNamespace(id=key, tier=key.split("-")[0])


def authenticated(call_next: Any, route: Any) -> Any:
    def call(request: Request) -> Any:
        known(request)
        return call_next(request)

    return call


def service() -> App:
    """Three a minute for strangers, five for users, keys by tier."""
    app = App()
    per_client = RateLimit(3)
    per_user = RateLimit(5, by="user", instead_of=per_client)
    per_key = RateLimit(2, by="api_key", tiers={"premium": 10}, instead_of=per_client)
    app.add_middleware(per_client)
    app.get("/")(hello)
    app.get("/mine", middleware=[authenticated, per_user, per_key])(hello)
    return app


@in_loop
async def test_who_is_known_has_another_limit_and_leaves_that_of_the_address_alone() -> None:
    async with serving(service()) as server:
        client = await server.connect()
        assert await passed(client, 20, "X-User: 1", path="/mine") == 5
        assert await passed(client, 20, "X-User: 2", path="/mine") == 5
        assert await passed(client, 20, "X-Key: premium-1", path="/mine") == 10
        assert await passed(client, 20, "X-Key: basic-1", path="/mine") == 2
        assert await passed(client, 20) == 3
        # once the address has used up its own, what it sends is not even looked at
        assert await passed(client, 1, "X-User: 3", path="/mine") == 0


@in_loop
async def test_who_is_not_known_after_all_is_charged_as_a_stranger() -> None:
    async with serving(service()) as server:
        client = await server.connect()
        assert await passed(client, 10, path="/mine") == 3  # answered 401
        assert await passed(client, 10) == 0


@in_loop
async def test_layers_each_say_what_they_allow() -> None:
    async with serving(service()) as server:
        client = await server.connect()
        answer = await client.get("/mine", "X-Key: premium-1")
        policies = [one.strip() for one in answer.headers["ratelimit-policy"].split(",")]
        assert policies == ['"client";q=3;w=60', '"api_key-premium";q=10;w=60']


@in_loop
async def test_kinds_of_handlers_are_limited_alike() -> None:
    app = App()
    own = [RateLimit(2, name=name) for name in ("sync", "async", "blocking")]

    async def later(request: Request) -> Response:
        return Response("later")

    app.get("/sync", middleware=[own[0]])(hello)
    app.get("/async", middleware=[own[1]])(later)
    app.get("/blocking", middleware=[own[2]], blocking=True)(hello)
    async with serving(app) as server:
        client = await server.connect()
        for path in ("/sync", "/async", "/blocking"):
            assert await passed(client, 6, path=path) == 2


@in_loop
async def test_an_answer_that_is_known_at_once_is_limited_too() -> None:
    """The second form of a coroutine function (``composition.offer``) goes through the layer."""
    for redis in (None, lambda request: None):
        app = App()

        async def slow(request: Request) -> dict[str, str]:
            return {"known": "later"}

        offer(slow, lambda request: {"known": "at once"})
        app.get("/", middleware=[RateLimit(2, redis=redis)])(slow)
        async with serving(app) as server:
            client = await server.connect()
            answers = [await client.get() for _ in range(4)]
            assert [one.status for one in answers] == [200, 200, 429, 429]
            assert answers[0].json() == {"known": "at once"}


@in_loop
async def test_a_group_and_a_route_may_have_limits_of_their_own() -> None:
    app = limited(RateLimit(100))
    group = app.group("/api", middleware=[RateLimit(4)])
    group.get("/a")(hello)
    group.get("/b", middleware=[RateLimit(1)])(hello)
    async with serving(app) as server:
        client = await server.connect()
        assert await passed(client, 6, path="/api/b") == 1
        assert await passed(client, 6, path="/api/a") == 0  # b's were charged to it
        assert await passed(client, 6) == 6


@pytest.mark.parametrize(
    "wrong", [{"limit": 0}, {"burst": 0}, {"window": 0}, {"by": "ip"}, {"name": "a b"}]
)
def test_what_cannot_be_kept_to_is_refused_at_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="rate limit"):
        RateLimit(**{"limit": 10, **wrong})
