"""Context variables: nobody sees those of another request, but for plain functions of one turn."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

from fluxor_fast import App, Request
from fluxor_fast.cache import Cache
from fluxor_fast.composition import Layer
from fluxor_fast.http.request import CURRENT
from fluxor_fast.http.streaming import StreamingResponse
from tests.support.inprocess import head, in_loop, serving, until
from tests.support.turns import asked, body, outside, statuses


def app_that_sets() -> tuple[App, ContextVar[str]]:
    """Return an application with a plain handler that sets the variable, and that."""
    app, user = App(), ContextVar("user", default="nobody")

    @app.get("/plain")
    def plain(request: Request) -> dict[str, int]:
        user.set("alice")
        return {"a": 1}

    return app, user


@in_loop
async def test_what_plain_functions_set_in_a_turn_its_coroutines_do_not_see() -> None:
    (app, user), cache = app_that_sets(), Cache()
    seen: list[Any] = []

    class Sets(Layer):
        def begin(self, request: Request) -> Any:
            user.set("bob")

    @app.get("/known", middleware=[Sets()])
    @cache.cached(ttl=60, key=lambda request: 1)
    async def known(request: Request) -> dict[str, int]:
        return {"a": 1}

    @app.get("/coroutine")
    async def coroutine(request: Request) -> dict[str, int]:
        seen.append(user.get())
        return {"a": 1}

    await known(None)
    for paths in (["/plain", "/known", "/coroutine"], ["/known", *["/coroutine"] * 3, "/plain"]):
        bench, transports = asked(app, *map(head, paths))
        await outside(bench)
        assert statuses(transports) == [[200]] * len(paths)
        bench.assert_empty()
    assert seen == ["nobody"] * 4


@in_loop
async def test_a_turn_is_in_no_request_context() -> None:
    """A handler that ended asked for a turn: those that began in it had what that one had set."""
    app, user = App(), ContextVar("user", default="nobody")
    gate = asyncio.Event()
    seen: list[Any] = []

    @app.get("/slow")
    async def slow(request: Request) -> dict[str, int]:
        user.set("alice")
        await gate.wait()
        return {"a": 1}

    @app.get("/plain")
    def plain(request: Request) -> dict[str, int]:
        seen.append((user.get(), CURRENT.get()))
        return {"a": 1}

    @app.get("/coroutine")
    async def coroutine(request: Request) -> dict[str, int]:
        seen.append((user.get(), CURRENT.get() if CURRENT.get() is not request else None))
        return {"a": 1}

    async with serving(app) as server:
        one, other = await server.connect(), await server.connect()
        for path in ["/plain", "/coroutine"] * 10:
            gate.clear()
            await one.send(head("/slow"))
            await until(lambda: gate._waiters, "the handler has begun")
            gate.set()
            await asyncio.sleep(0)  # it ends, and asks for a turn
            await other.send(head(path))
            await one.answer()
            await other.answer()
    assert seen == [("nobody", None)] * 20


@in_loop
async def test_a_cached_coroutine_sees_nothing_that_others_of_its_turn_have_set() -> None:
    """A miss: the coroutine of ``at_once`` begins in the turn's context."""
    (app, user), cache = app_that_sets(), Cache()
    seen: list[Any] = []

    @app.get("/cached/{n:int}")
    @cache.cached(ttl=60, key=lambda request, n: n)
    async def cached(request: Request, n: int) -> dict[str, int]:
        seen.append(user.get())
        return {"n": n}

    bench, transports = asked(app, head("/plain"), head("/cached/1"), head("/cached/2"))
    await outside(bench)
    await until(lambda: not bench.runner.busy, "all have ended")
    assert statuses(transports) == [[200]] * 3
    assert seen == ["nobody"] * 2


@in_loop
async def test_a_known_answer_is_not_that_of_another_user_of_its_turn() -> None:
    """A key that depends on the user: the next one's ``begin`` sets nobody."""
    app, cache, user = App(), Cache(), ContextVar("user", default="nobody")

    class Who(Layer):
        def begin(self, request: Request) -> Any:
            if name := request.headers.get("x-user"):
                user.set(name)

    @app.get("/me", middleware=[Who()])
    @cache.cached(ttl=60, key=lambda request: user.get())
    async def me(request: Request) -> dict[str, str]:
        return {"user": user.get()}

    bench, transports = asked(app, head("/me", "X-User: alice"), head("/me"))
    await outside(bench)
    await until(lambda: not bench.runner.busy, "all have ended")
    assert [body(one) for one in transports] == [{"user": "alice"}, {"user": "nobody"}]


@in_loop
async def test_an_answer_in_pieces_sees_nothing_that_others_of_its_turn_have_set() -> None:
    app, user = app_that_sets()
    seen: list[Any] = []

    @app.get("/pieces")
    def pieces(request: Request) -> Any:
        async def each() -> Any:
            seen.append(user.get())
            yield b"x"

        return StreamingResponse(each())

    bench, _ = asked(app, head("/plain"), head("/pieces"))
    await outside(bench)
    await until(lambda: not bench.runner.busy, "all have ended")
    assert seen == ["nobody"]


@in_loop
async def test_after_known_answers_the_turn_is_in_no_request_context() -> None:
    """What is logged, or begun, in the rest of the turn is none of that request's."""
    app, cache = App(), Cache()

    @app.get("/known")
    @cache.cached(ttl=60, key=lambda request: 1)
    async def known(request: Request) -> dict[str, int]:
        return {"a": 1}

    await known(None)
    bench, _ = asked(app, head("/known"))
    seen: list[Any] = []
    publish = bench.runner.counters.publish

    class Counters:
        def __getattr__(self, name: str) -> Any:
            return getattr(counters, name)

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(counters, name, value)

        def publish(self) -> None:
            seen.append(CURRENT.get())
            publish()

    counters = bench.runner.counters
    bench.runner.counters = Counters()  # type: ignore[assignment]
    await outside(bench)
    assert seen and set(seen) == {None}
