"""What was not raised on purpose."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from fluxor_fast import App, HTTPError, Request
from fluxor_fast.middleware.recovery import Recovery
from fluxor_fast.testing import TestClient


@pytest.mark.parametrize("kind", ["sync", "async", "blocking"])
def test_it_is_logged_with_the_request_id_reported_and_answered(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    reported: list[tuple[str, str]] = []

    def report(request: Request, error: Exception) -> None:
        reported.append((request.id, type(error).__name__))
        raise RuntimeError("the tracker is away")

    app = App()
    app.add_middleware(Recovery(report))

    def fail(request: Request) -> None:
        raise (HTTPError(409) if request.path == "/known" else KeyError("a secret"))

    async def fail_async(request: Request) -> None:
        fail(request)

    handler: Any = fail_async if kind == "async" else fail
    for path in ("/x", "/known"):
        app.get(path, blocking=kind == "blocking")(handler)

    with (
        caplog.at_level(logging.ERROR),
        TestClient(app, raise_server_exceptions=False) as client,
    ):
        answer = client.get("/x", headers={"X-Request-ID": "abc"})
        assert answer.status_code == 500
        assert answer.json()["code"] == "INTERNAL_SERVER_ERROR"
        assert "secret" not in f"{answer.headers}{answer.text}"
        assert client.get("/known").status_code == 409
    assert reported == [("abc", "KeyError")]
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "GET /x failed (request id abc)",
        "the error of request id abc could not be reported",
    ]
    assert caplog.records[0].exc_info is not None
