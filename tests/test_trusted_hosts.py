"""Hosts that are served, and others."""

from __future__ import annotations

import json

import pytest

from fluxor_fast import App
from fluxor_fast.middleware.trusted_hosts import MOST_KNOWN, TrustedHosts
from tests.support.inprocess import in_loop, serving


@in_loop
async def test_only_the_hosts_named_are_served() -> None:
    app = App()
    hosts = TrustedHosts(["api.example.com", "*.example.org", "[::1]"])
    app.add_middleware(hosts)
    app.get("/")(lambda request: {})
    app.get("/health", priority="exempt")(lambda request: {})
    good = ["api.example.com", "API.example.com:8080", "a.b.example.org", "[::1]:80"]
    bad = ["evil.example.com", "example.org", ".example.org", "api.example.com.evil.net", "[::2]",
           "xapi.example.com", "evilexample.org"]  # fmt: skip
    async with serving(app) as server:
        client = await server.connect()
        for path, hosts_of, status in (("/", good, 200), ("/", bad, 400), ("/health", bad, 200)):
            for host in hosts_of:
                for _ in range(2):
                    await client.send(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                    answer = await client.answer()
                    if answer.status != status:  # some are no hosts at all
                        assert json.loads(answer.body)["code"] == "BAD_REQUEST", host
                    elif status == 400:
                        assert b"host" in answer.body.lower()
        for port in range(1000, 1000 + 2 * MOST_KNOWN):
            await client.send(f"GET / HTTP/1.1\r\nHost: api.example.com:{port}\r\n\r\n".encode())
            assert (await client.answer()).status == 200
    assert len(hosts._known) <= MOST_KNOWN


@pytest.mark.parametrize("host", ["*", "*.", "a.*", "https://a", "a/b", "a:80", ""])
def test_what_is_no_host_is_refused_at_start(host: str) -> None:
    with pytest.raises(ValueError):
        TrustedHosts([host])
