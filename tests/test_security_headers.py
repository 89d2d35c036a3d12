"""Headers that tell browsers to be careful. That every answer has them: ``test_composition``."""

from __future__ import annotations

import pytest

from fluxor_fast import App, HTTPError, Request
from fluxor_fast.middleware.cors import CORS
from fluxor_fast.middleware.security_headers import SecurityHeaders
from tests.support.inprocess import in_loop, serving


@in_loop
async def test_hsts_is_sent_over_https_as_a_trusted_proxy_says() -> None:
    app = App()
    app.add_middleware(SecurityHeaders(hsts=60, hsts_subdomains=True, others={"X-Extra": "1"}))
    app.get("/")(lambda request: {})
    for trusted in ((), ("127.0.0.0/8",)):
        async with serving(app, trusted_proxies=trusted) as server:
            client = await server.connect()
            answer = await client.get("/", "X-Forwarded-Proto: https", "X-Forwarded-For: 192.0.2.1")
            expected = "max-age=60; includeSubDomains" if trusted else None
            assert answer.headers.get("strict-transport-security") == expected
            assert answer.headers["x-extra"] == "1"
            assert answer.headers["x-content-type-options"] == "nosniff"


@in_loop
async def test_hsts_can_be_sent_always_and_each_header_left_out() -> None:
    app = App()
    always = SecurityHeaders(policy=None, frames=None, referrer=None, hsts=0, hsts_always=True)
    app.get("/", middleware=[always])(lambda request: {})
    async with serving(app) as server:
        client = await server.connect()
        headers = (await client.get("/")).headers
    assert headers["strict-transport-security"] == "max-age=0"
    assert not {"content-security-policy", "x-frame-options", "referrer-policy"} & headers.keys()


def test_a_value_that_could_split_an_answer_is_refused_at_start() -> None:
    with pytest.raises(ValueError):
        SecurityHeaders(policy="a\r\nSet-Cookie: b=1")


@pytest.mark.parametrize("kind", ["sync", "async"])
@in_loop
async def test_what_an_error_sets_itself_is_not_sent_a_second_time(kind: str) -> None:
    # finish sees what is returned, not what is raised: a raised policy went out beside ours
    own = {"content-security-policy": "sandbox", "VARY": "Cookie", "X-Own": "1"}

    def fail(request: Request) -> None:
        raise HTTPError(403, headers=own)

    async def fail_async(request: Request) -> None:
        fail(request)

    def cannot(request: Request) -> None:
        raise HTTPError(403, headers={"X-Frame-Options": "a\r\nb"})

    app = App()
    app.add_middleware(SecurityHeaders())
    app.add_middleware(CORS(["https://a.example.com"]))
    app.get("/")(fail_async if kind == "async" else fail)
    app.get("/cannot")(cannot)
    async with serving(app) as server:
        client = await server.connect()
        own_wins = await client.get("/")
        as_always = await client.get("/cannot")
    assert own_wins.status == 403
    assert own_wins.headers["content-security-policy"] == "sandbox"
    assert sorted(own_wins.headers["vary"].split(", ")) == ["Cookie", "Origin"]
    assert own_wins.headers["x-own"] == "1"
    assert own_wins.headers["x-frame-options"] == "DENY"
    assert as_always.status == 500
    assert as_always.headers["x-frame-options"] == "DENY"
