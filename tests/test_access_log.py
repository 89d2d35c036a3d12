"""The access log: one line for each request, whatever its end."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fluxor_fast import App, HTTPError, Request
from fluxor_fast.http.response import Response
from fluxor_fast.middleware.access_log import AccessLog
from fluxor_fast.routing import Kind, Route
from tests.support.inprocess import in_loop, serving


def make_app() -> App:
    app = App()

    @app.get("/")
    def home(request: Request) -> dict[str, Any]:
        return {}

    @app.get("/none")
    async def none(request: Request) -> None:
        await asyncio.sleep(0)

    @app.get("/tuple", blocking=True)
    def pair(request: Request) -> tuple[int, str]:
        return 202, "later"

    @app.get("/response/{word:path}")
    def response(request: Request, word: str) -> Response:
        return Response(status=418)

    @app.get("/refused")
    async def refused(request: Request) -> None:
        raise HTTPError(409, "no")

    @app.get("/fails")
    def fails(request: Request) -> None:
        raise RuntimeError("on purpose")

    return app


def logged(
    requests: list[tuple[str, ...]], form: str = "console", **options: Any
) -> tuple[list[str], list[int]]:
    """Ask; return the lines and the statuses of the answers."""
    lines: list[str] = []
    statuses: list[int] = []

    @in_loop
    async def run() -> None:
        app = make_app()
        async with serving(app) as server:
            router = server.service.heads._router
            AccessLog(lines.append, form, **options).watch(router.every_route())
            client = await server.connect()
            for path, *fields in requests:
                method, _, target = path.rpartition(" ")
                answer = await client.get(target, *fields, method=method or "GET")
                statuses.append(answer.status)

    run()
    return lines, statuses


PATHS: list[tuple[str, ...]] = [
    ("/",),
    ("/none",),
    ("/tuple",),
    ("/response/a?token=1",),
    ("/refused",),
    ("/fails",),
    ("/nothing",),
    ("POST /",),
    ("OPTIONS /",),
    ("HEAD /",),
]


def test_every_request_has_one_line_with_what_it_was_answered() -> None:
    lines, statuses = logged([(*one, "X-Request-ID: rid") for one in PATHS])
    assert statuses == [200, 204, 202, 418, 409, 500, 404, 405, 204, 200]
    found = []
    for line in lines:
        match = re.fullmatch(
            r"2\S+Z INFO fluxor_fast\.access\[\d+\]"
            r" (\S+) (\S+) (\d+) (\d+\.\d)ms 127\.0\.0\.1 rid\n",
            line,
        )
        assert match, line
        assert 0 <= float(match[4]) < 1000
        found.append((match[1], match[2], int(match[3])))
    methods = [one[0].rpartition(" ")[0] or "GET" for one in PATHS]
    paths = [one[0].rpartition(" ")[2].partition("?")[0] for one in PATHS]
    assert found == list(zip(methods, paths, statuses, strict=True))


def test_the_same_as_json() -> None:
    lines, statuses = logged(PATHS, "json")
    records = [json.loads(line) for line in lines]
    assert [record["status"] for record in records] == statuses
    for record in records:
        assert set(record) == {
            "time", "level", "logger", "pid", "method", "path", "status", "ms", "client",
            "request_id",
        }  # fmt: skip
        assert re.fullmatch(r"2\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["time"])


HOSTILE_PATHS = ['/response/"x"\\n', "/response/%0a%0d200", "/response/'$(rm)'", "/a{b}|c^`<>"]
HOSTILE_IDS = ['id"with\\quotes', "[31m", "two words", "\x80\xff"]


@pytest.mark.parametrize("form", ["console", "json"])
def test_hostile_requests_do_not_forge_lines(form: str) -> None:
    requests: list[tuple[str, ...]] = [(path, "User-Agent: \x80evil") for path in HOSTILE_PATHS]
    requests += [("/", f"X-Request-ID: {one}", "Cookie: a=oven") for one in HOSTILE_IDS]
    lines, _ = logged(requests, form)
    assert len(lines) == len(requests)
    for line in lines:
        assert line.isascii()
        assert line.removesuffix("\n").isprintable()
        assert "evil" not in line
        assert "oven" not in line
        if form == "json":
            json.loads(line)
        else:
            assert len(line.split(" ")) == 9


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_line_is_one_line_even_if_the_parser_let_something_through(form: str) -> None:
    lines: list[str] = []
    hostile = 'a\r\nb c\x1b\x7f\x9b\u2028\u202e\udcff"'
    request: Any = SimpleNamespace(
        head=SimpleNamespace(method="GET", path=hostile), client=hostile, id=hostile, arrived=0.0
    )
    route = Route("GET", "/", lambda request: {}, kind=Kind.SYNC)
    AccessLog(lines.append, form).watch([route])
    route.call(request)
    (line,) = lines
    assert line.isascii()
    assert line.removesuffix("\n").isprintable()
    if form == "console":
        assert len(line.split(" ")) == 9


def chances(*values: float) -> Callable[[], float]:
    return iter(values).__next__


def test_a_sample_is_left_to_chance_but_what_failed_is_always_logged() -> None:
    lines, _ = logged(
        [("/",), ("/fails",), ("/",), ("/refused",), ("/none",)],
        sample=0.5,
        chance=chances(0.4, 0.5, 0.49, 0.9),
    )
    assert [line.split(" ")[4] for line in lines] == ["/", "/fails", "/refused"]


def test_a_sample_of_none_has_failures_only() -> None:
    lines, _ = logged(PATHS, sample=0.0)
    assert [line.split(" ")[5] for line in lines] == ["500"]


def test_times_are_those_of_the_clock() -> None:
    now = iter([1_700_000_000.0, 1_700_000_000.9996, 1_700_000_001.25])
    lines, _ = logged([("/",)] * 3, clock=now.__next__)
    assert [line.split(" ")[0] for line in lines] == [
        "2023-11-14T22:13:20.000Z",
        "2023-11-14T22:13:20.999Z",
        "2023-11-14T22:13:21.250Z",
    ]


def test_a_dict_stays_a_dict_so_that_the_short_way_stays_open() -> None:
    route = Route("GET", "/", lambda request: {"a": 1}, kind=Kind.SYNC)
    AccessLog([].append, sample=0.0).watch([route])
    assert route.call(SimpleNamespace()) == {"a": 1}  # type: ignore[arg-type]
