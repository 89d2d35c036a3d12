"""Coroutines that take too long."""

from __future__ import annotations

import asyncio
import json

import pytest

from fluxor_fast import App, HTTPError, Request
from fluxor_fast.errors import RouteError
from fluxor_fast.middleware.timeout import Timeout
from tests.support.inprocess import in_loop, serving


@in_loop
async def test_a_coroutine_is_cancelled_and_answered_504() -> None:
    app = App()
    ends: list[str] = []
    app.add_middleware(Timeout(0.02))

    @app.get("/slow")
    async def slow(request: Request) -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    @app.get("/own")
    async def own(request: Request) -> None:
        raise TimeoutError

    @app.get("/longer", middleware=[Timeout(10)])
    async def longer(request: Request) -> dict[str, int]:
        await asyncio.sleep(0.05)
        return {}

    app.get("/sync")(lambda request: {})
    async with serving(app) as server:
        client = await server.connect()
        answer = await client.get("/slow")
        assert (answer.status, json.loads(answer.body)["code"]) == (504, "TIMEOUT")
        assert ends == ["cancelled"]
        assert (await client.get("/own")).status == 500
        assert (await client.get("/longer")).status == 200
        assert (await client.get("/sync")).status == 200


@pytest.mark.parametrize("blocking", [False, True])
def test_what_cannot_be_cancelled_is_refused_at_start(blocking: bool) -> None:
    app = App()
    with pytest.raises(RouteError, match="cancelled"):
        app.get("/", blocking=blocking, middleware=[Timeout(1)])(lambda request: {})
    group = app.group("/g", middleware=[Timeout(1)])
    with pytest.raises(RouteError, match="cancelled"):
        group.get("/x", blocking=blocking)(lambda request: {})
    assert app.routes == ()
    with pytest.raises(ValueError):
        Timeout(0)


@in_loop
async def test_a_504_is_an_http_error_for_who_is_outside() -> None:
    app = App()
    seen: list[int] = []

    def outside(call_next, route):  # type: ignore[no-untyped-def]
        async def wrapper(request: Request):  # type: ignore[no-untyped-def]
            try:
                return await call_next(request)
            except HTTPError as error:
                seen.append(error.status)
                raise

        return wrapper

    @app.get("/", middleware=[outside, Timeout(0.01)])
    async def slow(request: Request) -> None:
        await asyncio.sleep(30)

    async with serving(app) as server:
        client = await server.connect()
        assert (await client.get("/")).status == 504
    assert seen == [504]
