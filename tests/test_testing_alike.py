"""What the test client is answered is what a client on the wire is answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fluxor_fast.testing import LiveServer, TestClient
from tests.support.apps import tested
from tests.support.server import APPS

SETTINGS = {"server.max_headers": 20, "server.max_target": 500, "web.security_headers": True}
OTHERS_EACH_TIME = ("date", "x-request-id")

REQUESTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "path and query": ("GET", "/users/7?a=%C3%BC&b=&a=2", {}),
    "what is no int": ("GET", "/users/x", {}),
    "nowhere": ("GET", "/no/such/path", {}),
    "not with this method": ("DELETE", "/echo", {}),
    "a method nobody knows": ("BREW", "/users/7", {}),
    "head": ("HEAD", "/users/7", {}),
    "head of pieces": ("HEAD", "/pieces", {}),
    "options": ("OPTIONS", "/users/7", {}),
    "json": ("POST", "/echo", {"json": {"a": [1, None, "ü"]}}),
    "form": ("POST", "/echo", {"data": {"a": "b c"}}),
    "nothing": ("POST", "/echo", {}),
    "at the limit": ("POST", "/echo", {"content": b"a" * 100_000}),
    "too large": ("POST", "/echo", {"content": b"a" * 100_001}),
    "too many fields": ("GET", "/users/7", {"headers": {f"x-{n}": "y" for n in range(30)}}),
    "too long a target": ("GET", f"/users/{'7' * 600}", {}),
    "a request id of its own": ("GET", "/users/7", {"headers": {"X-Request-ID": "mine-1"}}),
    "an error on purpose": ("GET", "/teapot", {}),
    "an error": ("GET", "/fails", {}),
    "pieces": ("GET", "/pieces", {}),
    "events": ("GET", "/events", {}),
    "a large answer": ("GET", "/large", {}),
    "a large body in pieces": ("POST", "/upload", {"content": b"a" * 3_000_000}),
    "a body that is not wanted": ("POST", "/early", {"content": b"a" * 3_000_000}),
    "to be closed": ("GET", "/users/7", {"headers": {"Connection": "close"}}),
    "a file": ("GET", "/files/tested.py", {}),
    "a range of a file": ("GET", "/files/tested.py", {"headers": {"Range": "bytes=3-10"}}),
    "another host": ("GET", "/users/7", {"headers": {"Host": "other.example:81"}}),
}


@pytest.fixture(scope="module")
def in_memory() -> Iterator[httpx.Client]:
    with TestClient(tested.app, settings=SETTINGS, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def on_the_wire() -> Iterator[httpx.Client]:
    with (
        LiveServer("tested:app", settings=SETTINGS, cwd=APPS) as server,
        server.client() as client,
    ):
        yield client


def ask(client: httpx.Client, method: str, path: str, **options: Any) -> tuple[Any, ...]:
    options["headers"] = {"Host": "testserver", **options.get("headers", {})}
    answer = client.request(method, path, **options)
    fields = [(name, value) for name, value in answer.headers.raw]
    kept = [
        (name, value if name.lower().decode() not in OTHERS_EACH_TIME else len(value))
        for name, value in fields
    ]
    return answer.status_code, kept, answer.content, answer.http_version


@pytest.mark.parametrize("what", REQUESTS)
def test_answers_are_alike(in_memory: httpx.Client, on_the_wire: httpx.Client, what: str) -> None:
    method, path, options = REQUESTS[what]
    for _ in range(2):  # the second time the server knows the head
        seen = ask(in_memory, method, path, **options)
        assert seen == ask(on_the_wire, method, path, **options)
