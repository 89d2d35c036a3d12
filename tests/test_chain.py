"""The middleware around the reference service, as its settings say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fluxor_fast import App, Request
from fluxor_fast.config import Settings, load
from fluxor_fast.errors import ConfigError
from fluxor_fast.service import chain
from tests.support.inprocess import in_loop, serving


async def started(**web: Any) -> App:
    app = App()
    app.settings = Settings.model_validate({"web": web})
    chain.install(app)
    app.get("/")(lambda request: {})
    await app.start()
    return app


@in_loop
async def test_by_default_browsers_are_careful_and_no_page_may_read() -> None:
    async with serving(await started()) as server:
        client = await server.connect()
        answer = await client.get("/", "Origin: https://a.example.com")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["vary"] == "Accept-Encoding"
    assert "access-control-allow-origin" not in answer.headers


@in_loop
async def test_settings_turn_it_on_and_off() -> None:
    app = await started(
        cors_origins="https://*.example.com, http://localhost:3000", security_headers=False,
        compression=False, trusted_hosts="test",
    )  # fmt: skip
    async with serving(app) as server:
        client = await server.connect()
        answer = await client.get("/", "Origin: http://localhost:3000")
        assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert "x-content-type-options" not in answer.headers
        assert answer.headers["vary"] == "Origin"
        await client.send(b"GET / HTTP/1.1\r\nHost: other\r\n\r\n")
        assert (await client.answer()).status == 400


def test_what_is_no_origin_or_host_is_told_before_anything_starts() -> None:
    # "check" looks at no more than the settings, and did not tell what "serve" then refused
    flags = {"web.cors_origins": "*, app.example.com", "web.trusted_hosts": "a, a/b"}
    with pytest.raises(ConfigError) as told:
        load(environ={}, flags=flags)
    assert [problem.partition(":")[0] for problem in told.value.problems] == [
        "--cors-origins",
        "--trusted-hosts",
    ]
    assert "an origin is scheme://host" in str(told.value)
    assert "a host is a name" in str(told.value)


@in_loop
async def test_limits_are_off_unless_wanted_and_then_the_originals() -> None:
    for on, policies in ((False, None), (True, '"client";q=1000;w=60')):
        async with serving(await started(rate_limit=on)) as server:
            answer = await (await server.connect()).get("/")
            assert answer.headers.get("ratelimit-policy") == policies


@in_loop
async def test_who_is_known_has_the_limit_of_the_user_or_the_key() -> None:
    app = await started(rate_limit=True)
    app.state.runtime = SimpleNamespace(redis=None)

    def known(call_next: Any, route: Any) -> Any:
        def call(request: Request) -> Any:
            name, tier = request.query["is"], request.query.get("tier")
            request.state[name] = SimpleNamespace(user_id=1, id=2, tier=tier)
            return call_next(request)

        return call

    async def mine(request: Request) -> dict[str, bool]:
        return {"mine": True}

    app.get("/mine", middleware=[known, chain.by_identity(app)])(mine)
    async with serving(app) as server:
        client = await server.connect()
        for asked, policy in (
            ("user", '"user";q=5000;w=60'),
            ("api_key", '"api_key";q=5000;w=60'),
            ("api_key&tier=basic", '"api_key-basic";q=1000;w=60'),
            ("api_key&tier=premium", '"api_key-premium";q=10000;w=60'),
        ):
            answer = await client.get(f"/mine?is={asked}")
            assert answer.headers["ratelimit-policy"] == f'"client";q=1000;w=60, {policy}'


def test_a_star_with_credentials_is_told_with_the_other_faults() -> None:
    with pytest.raises(ConfigError, match="cors_credentials"):
        load(environ={}, flags={"web.cors_origins": "*", "web.cors_credentials": True})
