"""Registration, composition of middleware, hooks."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from fluxor_fast import App, HTTPError, Kind, Middleware, Priority, Request, Response, Route
from fluxor_fast.errors import RouteError
from fluxor_fast.routing import Call
from tests.support.pure import Asker, document, run


def plain(request: Request) -> Any:
    return {"kind": "plain"}


async def coroutine(request: Request) -> Any:
    return {"kind": "coroutine"}


class Async:
    async def __call__(self, request: Request) -> Any:
        return {"kind": "object"}


def trace(name: str, log: list[str]) -> Middleware:
    def middleware(call_next: Call, route: Route) -> Call:
        if route.kind is Kind.ASYNC:

            async def wrapped_async(request: Request) -> Any:
                log.append(name)
                response = await call_next(request)
                assert isinstance(response, Response)
                log.append(f"/{name}")
                return response

            return wrapped_async

        def wrapped(request: Request) -> Any:
            log.append(name)
            response = call_next(request)
            assert isinstance(response, Response)
            log.append(f"/{name}")
            return response

        return wrapped

    return middleware


def test_the_kind_of_a_handler() -> None:
    app = App()
    app.get("/plain")(plain)
    app.get("/blocking", blocking=True)(plain)
    app.get("/coroutine")(coroutine)
    app.get("/partial")(functools.partial(coroutine))
    app.get("/object")(Async())
    assert {route.path: route.kind for route in app.routes} == {
        "/plain": Kind.SYNC,
        "/blocking": Kind.BLOCKING,
        "/coroutine": Kind.ASYNC,
        "/partial": Kind.ASYNC,
        "/object": Kind.ASYNC,
    }

    async def main() -> None:
        assert document(await Asker(app).ask("GET", "/object")) == {"kind": "object"}

    run(main())


def test_each_method_and_its_options() -> None:
    app = App()
    for name in ("get", "post", "put", "patch", "delete"):
        getattr(app, name)("/x", priority="critical", max_body=7)(plain)
    app.route("/y", methods=("get", "purge"))(plain)
    assert [route.method for route in app.routes] == [
        "GET", "POST", "PUT", "PATCH", "DELETE", "GET", "PURGE",
    ]  # fmt: skip
    assert all(route.priority is Priority.CRITICAL for route in app.routes[:5])
    assert all(route.max_body == 7 for route in app.routes[:5])
    assert app.routes[5].priority is Priority.NORMAL


def test_parameters_reach_the_handler_by_name() -> None:
    app = App()

    @app.get("/{a:int}/{b}")
    def shown(request: Request, b: str, a: int) -> Any:
        return {"a": a, "b": b}

    async def main() -> None:
        assert document(await Asker(app).ask("GET", "/7/x")) == {"a": 7, "b": "x"}

    run(main())


def test_what_cannot_be_registered() -> None:
    def wants_more(request: Request, missing: str) -> None: ...

    def takes_nothing() -> None: ...

    def keyword(request: Request, *, id: int = 0) -> None: ...

    app = App()
    app.get("/x")(plain)
    app.get("/keyword/{id:int}")(keyword)
    for path, handler, options in (
        ("/x", plain, {}),
        ("no-slash", plain, {}),
        ("/y", plain, {"priority": "urgent"}),
        ("/y", coroutine, {"blocking": True}),
        ("/y", wants_more, {}),
        ("/y", takes_nothing, {}),
        ("/y/{id}", plain, {}),
        ("/y/{request}", plain, {}),
    ):
        with pytest.raises(RouteError):
            app.get(path, **options)(handler)
    # a refused one leaves nothing behind
    assert [route.path for route in app.routes] == ["/x", "/keyword/{id:int}"]
    with pytest.raises(RouteError):
        app.route("/z", methods=("POST", "POST"))(plain)
    assert len(app.routes) == 2
    app.router()


@pytest.mark.parametrize("handler", [plain, coroutine])
def test_the_first_middleware_is_the_outermost(handler: Any) -> None:
    log: list[str] = []
    app = App()
    app.get("/x", middleware=(trace("c", log), trace("d", log)))(handler)
    app.add_middleware(trace("a", log))
    app.add_middleware(trace("b", log))

    async def main() -> None:
        assert (await Asker(app).ask("GET", "/x")).status == 200

    run(main())
    assert log == ["a", "b", "c", "d", "/d", "/c", "/b", "/a"]


def test_middleware_that_declines_costs_nothing() -> None:
    app = App()
    app.get("/x")(plain)
    app.add_middleware(lambda call_next, route: call_next)
    route, _ = app.router().match("GET", "/x")
    assert route.call is plain


def test_an_error_passes_through_middleware() -> None:
    log: list[str] = []
    app = App()

    @app.get("/x", middleware=(trace("a", log),))
    def fails(request: Request) -> None:
        raise HTTPError(418, "no coffee")

    async def main() -> None:
        assert (await Asker(app).ask("GET", "/x")).status == 418

    run(main())
    assert log == ["a"]


def test_hooks_run_in_order_and_back() -> None:
    log: list[str] = []
    app = App()

    @app.on_startup
    def first() -> None:
        log.append("first")

    @app.on_startup
    async def second() -> None:
        log.append("second")

    app.on_shutdown(lambda: log.append("last"))

    @app.on_shutdown
    async def before() -> None:
        log.append("before")

    async def main() -> None:
        await app.start()
        await app.stop()

    run(main())
    assert log == ["first", "second", "before", "last"]


def test_a_hook_that_fails_ends_the_start() -> None:
    app = App()

    @app.on_startup
    def fails() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        run(app.start())
