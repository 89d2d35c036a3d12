"""Connections that begin with a PROXY header, and those through a Unix socket, on a real loop.

``serving`` ends every test with the same question: are all shared words 0?
"""

from __future__ import annotations

import contextlib
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from fluxor_fast import App, Request
from fluxor_fast.config import Settings
from fluxor_fast.middleware.access_log import AccessLog
from fluxor_fast.observability.metrics import InstanceMetrics
from fluxor_fast.server.forwarded import Proxies
from fluxor_fast.server.proxied import Complaints
from tests.support.inprocess import Client, head, in_loop, serving, trust, turns, until
from tests.support.seeds import cut, seeded, single
from tests.test_proxy_header import INVALID, UNIX, V4, V6, VALID, tls, v2

LOOPBACK = ("127.0.0.0/8",)
LINE = b"PROXY TCP4 203.0.113.9 192.0.2.1 56324 443\r\n"
ASK = head("/who")


def make_app() -> App:
    app = App()

    @app.get("/who")
    def who(request: Request) -> dict[str, str]:
        return {"client": request.client, "scheme": request.scheme, "host": request.host}

    return app


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    """What was logged."""
    monkeypatch.setattr(logging.getLogger("fluxor_fast"), "propagate", True)
    caplog.set_level(logging.INFO, "fluxor_fast")
    return caplog


async def who(client: Client, *lines: str) -> str:
    return str((await client.get("/who", *lines)).json()["client"])


@pytest.mark.parametrize("name", VALID)
def test_the_client_is_who_the_header_says(name: str) -> None:
    @in_loop
    async def run() -> None:
        header, origin = VALID[name]
        rng = seeded(name)
        expected = {
            "client": origin.address or "127.0.0.1",
            "scheme": "https" if origin.tls else "http",
            "host": "test",
        }
        async with serving(make_app(), trusted_proxies=LOOPBACK, proxy_protocol=True) as server:
            both = header + ASK + ASK
            for pieces in ([both], [header, ASK, ASK], cut(both, rng), cut(both, rng)):
                client = await server.connect()
                await client.send_pieces(pieces)
                for _ in range(2):
                    assert (await client.answer()).json() == expected
            if len(header) < 200:
                client = await server.connect()
                await client.send_pieces(single(header + ASK))
                assert (await client.answer()).json() == expected

    run()


@pytest.mark.parametrize("name", INVALID)
def test_what_is_no_header_is_closed_without_an_answer(name: str) -> None:
    @in_loop
    async def run() -> None:
        async with serving(make_app(), trusted_proxies=LOOPBACK, proxy_protocol=True) as server:
            for pieces in ([INVALID[name] + ASK], single(INVALID[name][:120] + ASK)):
                client = await server.connect()
                await client.send_pieces(pieces)
                if len(INVALID[name]) > 120 and len(pieces) > 1:
                    server.check(11)  # that one may wait for more
                assert await client.at_end()
            await until(lambda: server.memory.connections.tolist() == [0, 0], "places are free")
            assert server.counters()["offered"] == 0

    run()


@in_loop
async def test_only_trusted_proxies_may_say_it() -> None:
    for trusted in ((), ("10.0.0.0/8",), ("unix", "203.0.113.0/24")):
        async with serving(make_app(), trusted_proxies=trusted, proxy_protocol=True) as server:
            client = await server.connect()
            assert await client.at_end()  # at once: it is not even read
            assert server.memory.connections.tolist() == [0, 0]


@in_loop
async def test_a_header_is_not_taken_where_it_is_not_asked_for() -> None:
    async with serving(make_app(), trusted_proxies=LOOPBACK) as server:
        for header, _ in VALID.values():
            client = await server.connect()
            await client.send(header + ASK)
            assert [answer.status for answer in await client.rest()] == [400]


@in_loop
async def test_a_second_header_is_no_request() -> None:
    async with serving(make_app(), trusted_proxies=LOOPBACK, proxy_protocol=True) as server:
        for second in (LINE, v2(V4)):
            client = await server.connect()
            await client.send(LINE + second + ASK)
            assert [answer.status for answer in await client.rest()] == [400]


@in_loop
async def test_forwarding_fields_are_judged_by_who_the_header_says() -> None:
    trusted = (*LOOPBACK, "192.0.2.0/24")
    async with serving(make_app(), trusted_proxies=trusted, proxy_protocol=True) as server:
        forwarded = ("X-Forwarded-For: 198.51.100.1", "X-Forwarded-Proto: https")
        client = await server.connect()
        await client.send(LINE)
        assert await who(client, *forwarded) == "203.0.113.9"  # a client's own words
        assert (await client.get("/who", *forwarded)).json()["scheme"] == "http"
        client = await server.connect()
        await client.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n")
        assert await who(client, *forwarded) == "198.51.100.1"
        assert (await client.get("/who", *forwarded)).json()["scheme"] == "https"
        client = await server.connect()
        await client.send(b"PROXY UNKNOWN\r\n")
        assert await who(client, *forwarded) == "198.51.100.1"  # of 127.0.0.1, which is trusted


@in_loop
async def test_the_header_wait_holds_a_place_and_hands_it_on() -> None:
    knobs = {"trusted_proxies": LOOPBACK, "proxy_protocol": True, "max_connections": 2}
    async with serving(make_app(), **knobs) as server:
        waiting = await server.connect()
        served = await server.connect()
        await served.send(LINE)
        assert await who(served) == "203.0.113.9"
        assert server.memory.connections.tolist() == [2, 0]
        assert len(server.service.open) == 2
        third = await server.connect()
        assert (await third.answer()).json()["reason"] == "connections"
        assert await third.at_end()
        await waiting.send(LINE)
        assert await who(waiting) == "203.0.113.9"
        served.close()
        await until(lambda: server.memory.connections.tolist() == [1, 0], "its place is free")


@in_loop
async def test_a_header_must_be_there_in_the_time_of_a_head() -> None:
    async with serving(make_app(), trusted_proxies=LOOPBACK, proxy_protocol=True) as server:
        silent, trickling, served = [await server.connect() for _ in range(3)]
        await until(lambda: len(server.service.open) == 3, "all are there")
        await served.send(LINE)
        assert await who(served)
        server.check(6)
        await trickling.send(LINE[:20])
        await turns()
        server.check(4)
        assert await silent.silent()
        server.check(1)
        assert await silent.at_end()
        assert await trickling.at_end()
        assert await who(served) == "203.0.113.9"


@in_loop
async def test_the_time_of_the_head_begins_anew_behind_the_header() -> None:
    async with serving(make_app(), trusted_proxies=LOOPBACK, proxy_protocol=True) as server:
        client = await server.connect()
        await until(lambda: server.service.open, "it is there")
        server.check(9)
        await client.send(LINE + ASK[:10])
        await turns()
        server.check(9)
        await client.send(ASK[10:])
        assert (await client.answer()).status == 200


@in_loop
async def test_at_a_stop_nobody_waits_for_headers() -> None:
    async with serving(make_app(), trusted_proxies=LOOPBACK, proxy_protocol=True) as server:
        client = await server.connect()
        await client.send(LINE[:20])
        await until(lambda: server.service.open, "it is there")
        server.runner.draining = True
        for connection in list(server.service.open):
            connection.close_idle()
        assert await client.at_end()


@in_loop
async def test_a_header_that_comes_during_a_stop_is_served_once() -> None:
    async with serving(make_app(), trusted_proxies=LOOPBACK, proxy_protocol=True) as server:
        client = await server.connect()
        server.runner.draining = True
        await client.send(LINE + ASK)
        answer = await client.answer()
        assert answer.headers["connection"] == "close"
        assert await client.at_end()


@in_loop
async def test_clients_that_leave_at_any_point_leave_nothing_behind() -> None:
    rng = seeded("leaving in the header")
    async with serving(make_app(), trusted_proxies=LOOPBACK, proxy_protocol=True) as server:
        for _ in range(300):
            client = await server.connect()
            data = rng.choice((LINE, v2(V6, 0x21), v2(V4 + tls(1)), b"PROXX", b"\r\n\r\nx")) + ASK
            await client.send_pieces(cut(data[: rng.randint(0, len(data))], rng))
            with contextlib.suppress(OSError):  # it may have been closed by the server
                rng.choice((client.close, client.reset, client.shut))()
        await until(lambda: not server.service.open, "all are gone")
        assert server.memory.connections.tolist() == [0, 0]


def test_refused_headers_are_told_of_once_a_second_without_a_byte_of_the_client(said: Any) -> None:
    @in_loop
    async def run() -> None:
        async with serving(make_app(), trusted_proxies=LOOPBACK, proxy_protocol=True) as server:
            for _ in range(50):
                client = await server.connect()
                await client.send(b"PROXY TCP4 evil\x1b[31m\nfluxor 127.0.0.1 1 2\r\n")
                assert await client.at_end()
            assert len(said.records) == 1
            server.check(1)
            client = await server.connect()
            await client.send(b"GET / HTTP/1.1\r\n\r\n")
            assert await client.at_end()

    run()
    first, second = (record.getMessage() for record in said.records)
    assert "closed for want of a PROXY header: 1; the last, from 127.0.0.1: the line is" in first
    assert ": 50; the last, from 127.0.0.1: what came first is no PROXY header" in second
    assert "evil" not in said.text and "GET" not in said.text


def test_a_look_whether_the_server_is_there_is_not_told_of(said: Any) -> None:
    @in_loop
    async def run() -> None:
        async with serving(make_app(), trusted_proxies=LOOPBACK, proxy_protocol=True) as server:
            looks = await server.connect()
            looks.shut()
            assert await looks.at_end()
            assert not said.records
            breaks_off = await server.connect()
            await breaks_off.send(LINE[:20])
            breaks_off.shut()
            assert await breaks_off.at_end()
            assert len(said.records) == 1

    run()


def test_complaints_are_counted_where_they_are_not_told(said: Any) -> None:
    complaints = Complaints()
    for tick in (1, 1, 1, 2, 2, 5):
        complaints.add("why", "", tick)
    counts = [record.args[0] for record in said.records]
    assert counts == [1, 3, 2]
    assert sum(counts) == 6


# logs


def test_a_forwarding_field_cannot_forge_a_log_line() -> None:
    said: list[str] = []

    @in_loop
    async def run() -> None:
        app = make_app()
        async with serving(app, trusted_proxies=LOOPBACK) as server:
            AccessLog(said.append).watch(app.routes)
            client = await server.connect()
            for forged in (
                "1.2.3.4 GET / 200 1.0ms 1.2.3.4 -",
                "1.2.3.4\t200",
                "fe80::1%0 200 1.0ms",
                '"; rm -rf',
                "\x80\xff",
                "1.2.3.4, evil",
                "evil",
            ):
                await client.get("/who", f"X-Forwarded-For: {forged}")
            await client.get("/who", "X-Forwarded-For: evil, 203.0.113.9")

    run()
    lines = [line.split(" ") for line in said]
    assert [line[7] for line in lines] == ["127.0.0.1"] * 7 + ["203.0.113.9"]
    assert {len(line) for line in lines} == {9}
    assert "evil" not in "".join(said)


# Unix sockets


@pytest.mark.parametrize(
    ("trusted", "client"),
    [((), "unix"), (("127.0.0.0/8",), "unix"), (("unix",), "203.0.113.9")],
)
def test_through_a_unix_socket(trusted: tuple[str, ...], client: str, tmp_path: Path) -> None:
    @in_loop
    async def run() -> None:
        path = str(tmp_path / "s")
        async with serving(make_app(), trusted_proxies=trusted, unix=path) as server:
            connection = await server.connect()
            assert await who(connection) == "unix"
            assert await who(connection, "X-Forwarded-For: evil, 203.0.113.9") == client
            assert await who(connection, "X-Forwarded-For: unix") == "unix"
            await connection.send(ASK * 5 + head("/who", method="DELETE"))
            assert [(await connection.answer()).status for _ in range(6)] == [200] * 5 + [405]

    run()


@pytest.mark.parametrize("trusted", [(), ("unix",)])
def test_a_unix_socket_counts_as_trusted_for_headers(
    trusted: tuple[str, ...], tmp_path: Path
) -> None:
    @in_loop
    async def run() -> None:
        knobs = {"trusted_proxies": trusted, "unix": str(tmp_path / "s"), "proxy_protocol": True}
        async with serving(make_app(), **knobs) as server:
            for header, address in (
                (LINE, "203.0.113.9"),
                (v2(b"", 0, 0x20), "unix"),
                (v2(UNIX, 0x31), "unix"),
            ):
                client = await server.connect()
                await client.send(header)
                assert await who(client) == address

    run()


# scheme and host


@in_loop
async def test_scheme_and_host() -> None:
    knobs = {"trusted_proxies": LOOPBACK, "forwarded_header": "forwarded"}
    async with serving(make_app(), **knobs) as server:
        client = await server.connect()
        said = (await client.get("/who", "Forwarded: for=203.0.113.9;proto=https;host=shop")).json()
        assert said == {"client": "203.0.113.9", "scheme": "https", "host": "shop"}
        said = (await client.get("/who", "X-Forwarded-For: 203.0.113.9")).json()
        assert said == {"client": "127.0.0.1", "scheme": "http", "host": "test"}
        # RFC 9112, section 3.2.2: of a target in absolute form the host counts, not the field
        said = (await client.get("http://target.example:81/who")).json()
        assert said == {"client": "127.0.0.1", "scheme": "http", "host": "target.example:81"}
        await client.send(b"GET /who HTTP/1.0\r\n\r\n")
        assert (await client.answer()).json()["host"] == ""


@in_loop
async def test_refused_headers_are_counted_by_their_reason() -> None:
    async with serving(
        make_app(), trusted_proxies=("127.0.0.1/32", "192.0.2.0/24"), proxy_protocol=True
    ) as server:
        for data in (b"GET / HTTP/1.1\r\n", b"PROXY TCP9\r\n", LINE[:20]):
            client = await server.connect()
            await client.send(data)
            if data == LINE[:20]:
                client.shut()
            assert await client.at_end()
        late = await server.connect()
        await until(lambda: server.service.open, "it is there")
        server.check(int(server.service.timeouts.head) + 1)
        assert await late.at_end()
        server.service.proxies = Proxies(trust("192.0.2.0/24"))
        assert await (await server.connect()).at_end()
        looks = await server.connect()  # a look whether we are there is no fault
        looks.shut()
        assert await looks.at_end()
        await turns()
        metrics = InstanceMetrics(server.memory, Settings().server.capacity).prometheus().decode()
        counted = re.findall(r'http_proxy_headers_refused_total{reason="(\w+)"} (\d+)', metrics)
        expected = {"untrusted": 2, "malformed": 2, "cut_off": 1, "timeout": 1}
        assert {reason: int(count) for reason, count in counted} == expected
        assert server.counters()["offered"] == 0  # nothing of it was a request
