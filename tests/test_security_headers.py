"""Headers that tell browsers to be careful. That every answer has them: ``test_composition``."""

from __future__ import annotations

import pytest

from fluxor_fast import App
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
