"""The access log: one line for each request, whatever its end."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest

from fluxor_fast import App, HTTPError, Request
from fluxor_fast.http.response import Response
from fluxor_fast.middleware import access_log
from fluxor_fast.middleware.access_log import MOST_CLIENTS, AccessLog
from fluxor_fast.routing import Kind, Route
from tests.support.inprocess import in_loop, serving
from tests.support.pure import make_request


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
    route = Route("GET", "/", lambda request: {}, kind=Kind.SYNC)
    request = make_request("GET", hostile, route=route)
    request.head.request_id = request.rid = b'a\r\nb c\x1b\x7f\x9b"'
    request.arrived = 0.0
    request.connection.peer = hostile  # type: ignore[misc]
    AccessLog(lines.append, form).watch([route])
    for _ in range(2):  # the second time they are known
        route.call(request)
    assert len(lines) == 2
    for line in lines:
        assert line.isascii()
        assert line.removesuffix("\n").isprintable()
        if form == "console":
            assert len(line.split(" ")) == 9
        else:
            json.loads(line)


def test_clients_are_told_apart_however_many_there_are() -> None:
    """The texts of addresses are remembered, up to a bound; so are those of heads."""
    lines: list[str] = []
    route = Route("GET", "/", lambda request: {}, kind=Kind.SYNC)
    AccessLog(lines.append).watch([route])
    request = make_request("GET", "/", route=route)
    request.rid, request.arrived = b"rid", 0.0
    addresses = [f"2001:db8::{number:x}" for number in range(MOST_CLIENTS + 10)] * 2
    for address in addresses:
        request.connection.peer = address  # type: ignore[misc]
        route.call(request)
    assert [line.split(" ")[-2] for line in lines] == addresses


def test_a_request_id_of_ours_is_new_in_each_line_and_one_of_the_clients_is_its_own() -> None:
    lines, _ = logged([("/",), ("/",), ("/", "X-Request-ID: mine"), ("/", "X-Request-ID: mine")])
    ids = [line.split(" ")[-1].strip() for line in lines]
    assert ids[2:] == ["mine", "mine"]
    assert len({*ids}) == 3


def test_how_long_it_took_is_rounded_to_tenths() -> None:
    now = iter([10.0, 10.00004, 10.00006, 10.0995, 10.09996, 10.25, 12.0])
    lines: list[str] = []
    route = Route("GET", "/", lambda request: {}, kind=Kind.SYNC)
    AccessLog(lines.append, monotonic=now.__next__).watch([route])
    request = make_request("GET", "/", route=route)
    request.rid, request.arrived = b"rid", 10.0
    for _ in range(7):
        route.call(request)
    took = [line.split(" ")[6] for line in lines]
    assert took == ["0.0ms", "0.0ms", "0.1ms", "99.5ms", "100.0ms", "250.0ms", "2000.0ms"]


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
    """It is asked again when the millisecond is over, by the other clock."""
    wall = iter([1_700_000_000.0, 1_700_000_000.9996, 1_700_000_001.25])
    later = monotonic() + 60
    since = iter([later, later + 0.0009, later + 0.0011, later + 0.0014, later + 0.0016])
    lines, _ = logged([("/",)] * 5, clock=wall.__next__, monotonic=since.__next__)
    assert [line.split(" ")[0] for line in lines] == [
        "2023-11-14T22:13:20.000Z",
        "2023-11-14T22:13:20.000Z",
        "2023-11-14T22:13:20.999Z",
        "2023-11-14T22:13:20.999Z",
        "2023-11-14T22:13:21.250Z",
    ]


def test_a_dict_stays_a_dict_so_that_the_short_way_stays_open() -> None:
    route = Route("GET", "/", lambda request: {"a": 1}, kind=Kind.SYNC)
    AccessLog([].append, sample=0.0).watch([route])
    assert route.call(make_request("GET", "/", route=route)) == {"a": 1}


def logged_within(monkeypatch: pytest.MonkeyPatch, second_line_at: int) -> list[str]:
    """Log three times, the last time from another thread while a text of the time is made."""
    lines: list[str] = []
    route = Route("GET", "/", lambda request: {}, kind=Kind.BLOCKING)
    wall = iter([1_700_000_000.0, 1_700_003_600.0, 1_700_003_600.0])
    now = [0.0]
    AccessLog(lines.append, "json", clock=wall.__next__, monotonic=lambda: now[0]).watch([route])
    made = 0

    def gmtime(seconds: int) -> Any:
        nonlocal made
        made += 1
        if made == second_line_at:  # where the interpreter may change threads
            other = threading.Thread(target=ask)
            other.start()
            other.join()
        return real(seconds)

    def ask() -> None:
        request = make_request("GET", "/", route=route)
        request.rid, request.arrived = b"rid", now[0]
        route.call(request)

    real = access_log.gmtime
    monkeypatch.setattr(access_log, "gmtime", gmtime)
    ask()
    now[0] = 3600.0
    ask()
    return lines


def test_a_line_has_a_beginning_while_another_thread_makes_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for line in logged_within(monkeypatch, 1):
        json.loads(line)


def test_a_line_has_not_the_time_of_long_ago_while_another_thread_makes_the_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = [json.loads(line)["time"] for line in logged_within(monkeypatch, 2)]
    assert times == ["2023-11-14T22:13:20.000Z"] + ["2023-11-14T23:13:20.000Z"] * 2
