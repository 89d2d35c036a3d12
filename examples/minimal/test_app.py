from __future__ import annotations

from collections.abc import Iterator

import pytest
from app import app

from fluxor_fast.testing import TestClient


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(app) as made:
        yield made


def test_hello(client: TestClient) -> None:
    answer = client.get("/hello/Ada")
    assert answer.json()["hello"] == "Ada"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_sum(client: TestClient) -> None:
    assert client.post("/sum", json=[1, 2, 3.5]).json() == {"sum": 6.5}
    refused = client.post("/sum", json=[1, "2"])
    assert refused.status_code == 422
    assert refused.json()["problems"][0]["path"] == [1]
    assert client.post("/sum", json=[]).json()["message"] == "nothing has no sum here"
