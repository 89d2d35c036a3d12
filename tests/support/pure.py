"""Applications called without a server: a request made by hand, its answer as a value."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine, Iterable
from types import SimpleNamespace
from typing import Any, TypeVar

import orjson
import uvloop

from fluxor_fast import App, Head, HTTPError, Request, Response, Route
from fluxor_fast.http.response import error_response, to_response

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` on the loop that the server uses."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


class FakeConnection:
    peer = "192.0.2.1"
    direct = None

    def __init__(self, app: Any = None) -> None:
        self.app = app

    def client_of(self, head: Head) -> str:
        return self.peer

    def scheme_of(self, head: Head) -> str:
        return "http"

    def host_of(self, head: Head) -> str:
        return head.host


def make_request(
    method: str = "GET",
    path: str = "/",
    *,
    query: bytes = b"",
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    fields: Iterable[tuple[str, str]] = (),
    route: Route | None = None,
    params: dict[str, Any] | None = None,
    app: Any = None,
) -> Request:
    head = Head(
        method=method,
        path=path,
        query=query,
        http_11=True,
        raw_headers=tuple(
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in [*(headers or {}).items(), *fields]
        ),
        length=len(body),
        keep_alive=True,
        route=route or Route(method, path, lambda request: None),
        params=params,
    )
    made = Request(head, body, FakeConnection(app))
    made.rid = b"test-request-id"
    return made


class Asker:
    """Calls an application's routes as a worker does."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.router = app.router()

    async def ask(
        self,
        method: str,
        target: str,
        *,
        json: Any = None,
        body: bytes = b"",
        token: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Response:
        path, _, query = target.partition("?")
        route, params = self.router.match(method, path)
        fields = dict(headers or {})
        if token is not None:
            fields["Authorization"] = f"Bearer {token}"
        request = make_request(
            method,
            path,
            query=query.encode(),
            body=body if json is None else orjson.dumps(json),
            headers=fields,
            route=route,
            params=params,
            app=self.app,
        )
        try:
            value = route.call(request)
            if inspect.isawaitable(value):
                value = await value
            return to_response(value)
        except HTTPError as error:
            return error_response(error)


def document(response: Response) -> Any:
    assert response.content_type == "application/json", response.body
    return orjson.loads(response.body)


class FakeMetrics:
    """The figures of an idle instance; change ``now`` at will."""

    def __init__(self) -> None:
        self.published: list[tuple[int, int, int]] = []
        self.now = SimpleNamespace(
            max_ccu=5000,
            normal_capacity=3350,
            slots=335,
            max_queue=3015,
            ccu=12,
            running=10,
            queued=2,
            connections=40,
            workers=2,
            rejected=7,
            total_requests=100,
            successful=90,
            errors=1,
            queue_utilization=0.0663,
            ccu_utilization=0.24,
            backpressure_active=False,
            shed={"capacity": 7},
            database={"size": 4, "available": 3, "waiting": 0},
        )

    def snapshot(self) -> Any:
        return self.now

    def prometheus(self) -> bytes:
        return b"# HELP nothing\n"

    def publish_pool(self, size: int, available: int, waiting: int) -> None:
        self.published.append((size, available, waiting))

    def publish_cache(self, results: tuple[int, ...], entries: int, size: int) -> None:
        self.cache = results
