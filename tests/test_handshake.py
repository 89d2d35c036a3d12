"""HTTP over TLS in this process: handshakes that fail, places they hold, and what differs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import ssl
from pathlib import Path
from typing import Any

import pytest

from fluxor_fast import App, Request
from fluxor_fast.config import TlsSettings
from fluxor_fast.server.handshake import HIGH_WATER, TlsProtocol
from fluxor_fast.server.protocol import LINGER
from fluxor_fast.server.tls import Certificates
from tests import test_answering, test_leaving, test_protocol
from tests.support.certificates import Authority
from tests.support.gates import BIG, Gates, make_app
from tests.support.inprocess import (
    Client,
    Server,
    TlsClient,
    head,
    in_loop,
    post,
    serving,
    turns,
    until,
)
from tests.support.seeds import cut, seeded

Tls = tuple[Certificates, ssl.SSLContext]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> tuple[Path, Path]:
    return authority.issue("server")


@pytest.fixture
def tls(authority: Authority, pair: tuple[Path, Path]) -> Tls:
    return Certificates(TlsSettings(certificate=pair[0], key=pair[1])), authority.client()


# what is the same


SAME: list[tuple[str, dict[str, Any]]] = [
    ("a_connection_is_kept_and_no_field_says_so", {}),
    ("connection_close_is_answered_and_done", {}),
    ("http_1_0_closes_unless_it_asks_to_keep", {}),
    ("a_blocking_handler_answers", {}),
    ("a_fast_answer_waits_behind_a_slow_one", {}),
    ("a_refusal_keeps_its_place_in_the_order", {}),
    ("no_more_than_max_pipeline_requests_are_in_progress", {}),
    ("a_small_cap_is_kept_and_answers_all", {"cap": 2}),
    ("100_continue_is_sent_once_before_the_body", {"framing": "Content-Length: 4"}),
    ("end_of_input_on_an_idle_connection_closes_it", {}),
    ("end_of_input_in_the_middle_of_a_request_closes", {}),
    ("a_client_that_goes_while_it_waits_for_a_slot_frees_its_permits", {"how": "reset"}),
    ("a_client_that_goes_while_it_waits_for_a_slot_frees_its_permits", {"how": "close"}),
    ("a_client_that_goes_while_it_waits_for_a_slot_frees_its_permits", {"how": "shut"}),
    ("a_client_that_goes_while_its_handler_runs_keeps_its_permit_till_the_end", {}),
    ("a_slow_reader_keeps_its_permit_until_it_has_read", {}),
    ("nothing_is_read_from_a_client_that_does_not_take_in_its_answers", {}),
    ("a_big_answer_behind_a_slow_one_keeps_its_permit", {}),
    ("the_end_of_a_slow_reader_gives_its_permit_back", {"how": "reset"}),
    ("the_end_of_a_slow_reader_gives_its_permit_back", {"how": "abort"}),
    ("a_head_that_takes_too_long_is_408", {}),
    ("a_body_that_takes_too_long_is_408_counted_from_its_head", {}),
    ("an_idle_connection_is_closed_without_a_word", {}),
    ("no_timeout_while_a_request_is_in_progress", {}),
    ("a_lingering_connection_is_dropped_after_its_time", {}),
    ("the_fields_of_an_answer", {}),
    ("refused_for_capacity_and_the_connection_stays", {}),
    ("draining_answers_what_is_in_the_system_and_closes", {}),
    ("what_does_not_end_is_cancelled_and_gives_everything_back", {}),
]  # fmt: skip


@pytest.mark.parametrize(("test", "arguments"), SAME)
def test_as_without_tls(
    test: str, arguments: dict[str, Any], tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = (test_answering, test_leaving, test_protocol)
    (module,) = (one for one in modules if hasattr(one, f"test_{test}"))
    monkeypatch.setattr(module, "serving", functools.partial(serving, tls=tls))
    getattr(module, f"test_{test}")(**arguments)


# handshakes


def hello(context: ssl.SSLContext) -> bytes:
    """Return what a client says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


async def nobody(server: Server) -> None:
    await until(lambda: not server.service.open, "its place is free")
    assert server.memory.connections.tolist() == [0, 0]


@in_loop
async def test_a_connection_without_a_handshake_holds_a_place_and_only_for_its_time(
    tls: Tls,
) -> None:
    """Sockets that never finish their handshake must not get around ``max_connections``."""
    async with serving(make_app()[0], tls=tls, max_connections=3) as server:
        timeouts = dataclasses.replace(server.service.timeouts, head=1.5)
        server.service.timeouts = timeouts
        silent = [await server.connect_plainly() for _ in range(3)]
        await until(lambda: len(server.service.open) == 3, "they hold their places")
        for _ in range(5):
            assert await (await server.connect_plainly()).at_end()
        assert server.counters()["connections"] == 5
        for client in silent:
            assert await client.at_end()
        await nobody(server)
        assert (await (await server.connect()).get("/")).status == 200


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@in_loop
async def test_a_client_that_goes_in_its_handshake_frees_its_place(
    tls: Tls, how: str, share: float
) -> None:
    first = hello(tls[1])
    async with serving(make_app()[0], tls=tls) as server:
        for wait in (True, False):
            client = await server.connect_plainly()
            await client.send(first[: int(len(first) * share)])
            if wait:
                await until(lambda: server.service.open, "it has come")
                await turns()
            getattr(client, how)()
            await nobody(server)


@in_loop
async def test_a_hello_in_pieces_is_understood(tls: Tls) -> None:
    async with serving(make_app()[0], tls=tls) as server:
        plain = await server.connect_plainly()
        client = TlsClient(plain.sock, tls[1])
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.do_handshake()
        for byte in client._outgoing.read():
            await plain.send(bytes([byte]))
            await asyncio.sleep(0)
        await client.shake_hands()
        assert (await client.get("/")).status == 200


@in_loop
async def test_plain_http_is_closed_without_an_answer(
    tls: Tls, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(make_app()[0], tls=tls) as server:
        client = await server.connect_plainly()
        await client.send(head("/"))
        assert not await client._more()  # the end, and no reset
        client.close()
        await nobody(server)
    assert caplog.records == []


@in_loop
async def test_whatever_comes_instead_of_a_handshake_leaves_nothing_behind(
    tls: Tls, caplog: pytest.LogCaptureFixture
) -> None:
    random = seeded("instead of a handshake")

    first = hello(tls[1])
    async with serving(make_app()[0], tls=tls) as server:
        for _ in range(60):
            data = bytearray(first)
            for _ in range(random.randrange(1, 4)):
                data[random.randrange(len(data))] = random.randrange(256)
            if random.random() < 0.2:
                data = bytearray(random.randbytes(random.randrange(1, 3000)))
            client = await server.connect_plainly()
            cut = random.randrange(len(data) + 1)
            await client.send_pieces([bytes(data[:cut]), bytes(data[cut:])])
            await turns(2)
            random.choice([client.close, client.reset, client.shut])()
        for client in server.clients:
            client.close()
        await nobody(server)
    assert caplog.records == []


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@in_loop
async def test_a_failed_handshake_says_why(
    authority: Authority, pair: tuple[Path, Path], version: ssl.TLSVersion
) -> None:
    """uvloop drops the alert; without it a client sees a bare end of the stream."""
    settings = TlsSettings(
        certificate=pair[0],
        key=pair[1],
        client_ca=authority.path,
        client_certificate="required",
    )
    context = authority.client()
    context.minimum_version = context.maximum_version = version

    async with serving(make_app()[0], tls=(Certificates(settings), context)) as server:
        server.service.timeouts = dataclasses.replace(server.service.timeouts, head=3600)
        with pytest.raises(ssl.SSLError, match="alert"):
            client = await server.connect()
            await client.get("/")
        server.check(LINGER)
        await turns()
        assert server.service.open  # the client has its time to read that
        server.check(1)
        await nobody(server)


@in_loop
async def test_a_stop_closes_what_has_not_shaken_hands(tls: Tls) -> None:
    async with serving(make_app()[0], tls=tls) as server:
        silent, halfway = await server.connect_plainly(), await server.connect_plainly()
        await halfway.send(hello(tls[1])[:50])
        await until(lambda: len(server.service.open) == 2, "both have come")
        await turns()
        for connection in list(server.service.open):
            connection.close_idle()
        assert await silent.at_end()
        assert await halfway.at_end()
        await nobody(server)


# ends


@in_loop
async def test_a_bad_request_gets_its_400_and_a_clean_end(tls: Tls) -> None:
    async with serving(make_app()[0], tls=tls) as server:
        client = await server.connect()
        assert isinstance(client, TlsClient)
        await client.send(b"GET / HTTP/1.1\r\n\r\n" + b"x" * 500_000)
        (answer,) = await client.rest()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert client.closed_cleanly
        client.shut()
        await nobody(server)


@in_loop
async def test_an_idle_end_is_a_close_notify_in_both_directions(tls: Tls) -> None:
    async with serving(make_app()[0], tls=tls) as server:
        client = await server.connect()
        assert isinstance(client, TlsClient)
        await client.get("/")
        client.shut()
        assert await client.at_end()
        assert client.closed_cleanly
        await nobody(server)


@in_loop
async def test_a_client_that_ends_tls_while_its_request_runs_is_gone(
    tls: Tls, caplog: pytest.LogCaptureFixture
) -> None:
    """uvloop sends nothing after the client's ``close_notify``; see rule 3 of handshake.py."""
    app, gates = make_app()

    async with serving(app, tls=tls) as server:
        client = await server.connect()
        await client.send(head("/n/1") + head("/wait/a") + head("/n/2") * 8)
        await until(lambda: gates.log, "it runs")
        client.shut()
        await nobody(server)
        gates.open("a")
        await until(lambda: server.permits == 0, "the permit is back")
    assert caplog.records == []


@in_loop
async def test_a_big_last_answer_arrives_whole_at_a_slow_reader(tls: Tls) -> None:
    """TLS has handed it all to the transport below: that, not TLS, says what is unsent."""
    async with serving(make_app()[0], tls=tls) as server:
        client, protocol = await server.pair()
        await client.send(head("/big", "Connection: close"))
        await until(lambda: server.counters()["completed"] == 1, "it is answered")
        await turns()
        assert protocol in server.service.open
        server.check(5)
        server.check(5)
        assert len((await client.answer()).body) == BIG
        assert await client.at_end()
        assert isinstance(client, TlsClient)
        assert client.closed_cleanly


async def unread(server: Server) -> tuple[Client, TlsProtocol]:
    """Return a connection with some answers unread, too little to pause it."""
    client, protocol = await server.pair()
    assert isinstance(protocol, TlsProtocol)
    stuck = 0
    while stuck < 3:  # not only until the end of the turn
        if stuck == 0:
            await client.send(head("/some"))
        await turns(3)
        stuck = stuck + 1 if protocol._raw.get_write_buffer_size() else 0
    assert not protocol.write_paused
    assert not protocol.transport.get_write_buffer_size()  # TLS knows nothing of it
    return client, protocol


def make_app_with_some() -> tuple[App, Gates]:
    app, gates = make_app()

    @app.get("/some")
    def some(request: Request) -> bytes:
        return b"x" * 40_000

    return app, gates


@in_loop
async def test_the_rest_of_the_last_answers_is_not_cut_off_by_the_linger_time(tls: Tls) -> None:
    async with serving(make_app_with_some()[0], tls=tls) as server:
        client, protocol = await unread(server)
        await client.send(head("/", "Connection: close"))
        await until(lambda: protocol._closing, "it was the last")
        await turns()
        server.check(LINGER + 1)
        server.check(LINGER + 1)
        answers = await client.rest()
        assert answers[-1].headers["connection"] == "close"
        assert len(answers[-2].body) == 40_000


@in_loop
async def test_who_ends_tls_and_reads_nothing_more_is_gone_though_a_request_runs(tls: Tls) -> None:
    """uvloop would wait for the rest to leave, and no timeout ends what is in progress."""
    app, gates = make_app_with_some()
    async with serving(app, tls=tls) as server:
        client, _ = await unread(server)
        await client.send(head("/wait/a"))
        await until(lambda: gates.log, "it runs")
        client.shut()
        await nobody(server)
        gates.open("a")


@in_loop
async def test_after_a_slow_answer_the_limits_are_as_before(tls: Tls) -> None:
    async with serving(make_app()[0], tls=tls) as server:
        client, protocol = await server.pair()
        before = protocol.transport.get_write_buffer_limits()
        assert before[1] == HIGH_WATER
        for _ in range(3):
            await client.send(head("/big"))
            await until(lambda: protocol.write_paused, "the answer stands in the buffer")
            assert len((await client.answer()).body) == BIG
            await until(lambda: not protocol.write_paused, "it has left")
            assert protocol.transport.get_write_buffer_limits() == before


@in_loop
async def test_a_last_answer_that_nobody_reads_is_given_up(tls: Tls) -> None:
    async with serving(make_app()[0], tls=tls) as server:
        client, _ = await server.pair()
        await client.send(head("/big", "Connection: close"))
        await until(lambda: server.counters()["completed"] == 1, "it is answered")
        await turns()
        server.check(31)
        await nobody(server)


@in_loop
async def test_a_large_body_in_many_records(tls: Tls) -> None:
    async with serving(make_app()[0], tls=tls) as server:
        client = await server.connect()
        body = bytes(range(256)) * 4096
        for _ in range(3):
            await client.send(post("/echo", body))
            assert (await client.answer()).body == body


# what handlers see


@pytest.mark.parametrize("shown", [True, False])
@in_loop
async def test_a_handler_sees_the_clients_certificate(
    authority: Authority, pair: tuple[Path, Path], shown: bool
) -> None:
    app = App()

    @app.get("/")
    def who(request: Request) -> dict[str, Any]:
        return {"tls": request.connection.tls, "certificate": request.client_certificate}

    settings = TlsSettings(
        certificate=pair[0],
        key=pair[1],
        client_ca=authority.path,
        client_certificate="optional",
    )
    context = authority.client(authority.issue("ada", "ada@example.org") if shown else None)

    async with serving(app, tls=(Certificates(settings), context)) as server:
        client = await server.connect()
        seen = (await client.get("/")).json()
        assert seen["tls"] is True
        if shown:
            assert ["email", "ada@example.org"] in seen["certificate"]["subjectAltName"]
        else:
            assert seen["certificate"] is None


@in_loop
async def test_without_tls_there_is_neither() -> None:
    app = App()

    @app.get("/")
    def who(request: Request) -> dict[str, Any]:
        return {"tls": request.connection.tls, "certificate": request.client_certificate}

    async with serving(app) as server:
        client = await server.connect()
        assert (await client.get("/")).json() == {"tls": False, "certificate": None}


@in_loop
async def test_new_connections_get_the_new_certificate_and_old_ones_go_on(
    authority: Authority,
) -> None:
    pair = authority.issue("rolling")
    certificates = Certificates(TlsSettings(certificate=pair[0], key=pair[1]))

    def shown(client: Client) -> bytes | None:
        assert isinstance(client, TlsClient)
        return client.tls.getpeercert(binary_form=True)

    async with serving(make_app()[0], tls=(certificates, authority.client())) as server:
        old = await server.connect()
        authority.replace(pair)
        assert not certificates.refresh()  # not at rest
        assert certificates.refresh()
        new = await server.connect()
        assert shown(new) != shown(old)
        for client in (old, new, old):
            assert (await client.get("/")).status == 200


@in_loop
async def test_handshakes_count_as_their_clients_connections(tls: Tls) -> None:
    """One address could take all places with handshakes that it never went on with."""
    async with serving(make_app()[0], tls=tls, max_connections_per_client=2) as server:
        silent = [await server.connect_plainly() for _ in range(2)]
        await until(lambda: len(server.service.open) == 2, "they hold their places")
        for _ in range(3):
            assert await (await server.connect_plainly()).at_end()
        assert sum(server.memory.connections) == 2
        assert server.counters()["client"] == 3
        silent[0].reset()
        await until(lambda: len(server.service.open) == 1, "the first is gone")
        served = await server.connect()
        assert (await served.get("/")).status == 200
        assert await (await server.connect_plainly()).at_end()  # it still counts
        served.close()
        silent[1].close()
        await nobody(server)
        assert not any(server.memory.clients)


@in_loop
async def test_a_reload_in_the_middle_of_an_accept_does_not_mix_up_connections(
    tls: Tls, authority: Authority, pair: tuple[Path, Path]
) -> None:
    """The failure of one handshake could be told to the one before, whose stream then ended."""

    class Reloading:
        """Has a new context each time it is asked: as if files changed at the worst moment."""

        @property
        def context(self) -> ssl.SSLContext:
            settings = TlsSettings(certificate=pair[0], key=pair[1], minimum="1.3")
            return Certificates(settings).context

    app = make_app()[0]
    async with serving(app, tls=(Reloading(), tls[1])) as server:  # type: ignore[arg-type]
        client = await server.connect()
        assert (await client.get("/")).status == 200
        old = authority.client()
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        server.tls = server.tls[0], old  # type: ignore[index]
        with pytest.raises(ssl.SSLError, match="alert"):
            await server.connect()
        assert (await client.get("/")).status == 200


# behind a PROXY header

PROXY = b"PROXY TCP4 203.0.113.9 192.0.2.1 56324 443\r\n"
BEHIND: dict[str, Any] = {"proxy_protocol": True, "trusted_proxies": ("127.0.0.0/8",)}


def asked_app() -> App:
    app = App()

    @app.get("/")
    def who(request: Request) -> dict[str, str]:
        return {"client": request.client, "scheme": request.scheme}

    return app


@pytest.mark.parametrize("together", [True, False])
@in_loop
async def test_tls_behind_a_proxy_header(tls: Tls, together: bool) -> None:
    async with serving(asked_app(), tls=tls, **BEHIND) as server:
        if together:  # header and hello in one packet
            plain = await server.connect_plainly()
            client = TlsClient(plain.sock, tls[1])
            with pytest.raises(ssl.SSLWantReadError):
                client.tls.do_handshake()
            await plain.send(PROXY + client._outgoing.read())
            await client.shake_hands()
        else:
            client = await server.connect(first=PROXY)  # type: ignore[assignment]
        for _ in range(2):
            answer = await client.get("/")
            assert answer.json() == {"client": "203.0.113.9", "scheme": "https"}
        client.close()
        await nobody(server)


@in_loop
async def test_tls_behind_a_proxy_header_counts_the_client_it_names(tls: Tls) -> None:
    knobs = BEHIND | {"max_connections_per_client": 1}
    async with serving(asked_app(), tls=tls, **knobs) as server:
        silent = await server.connect_plainly()
        await silent.send(PROXY)
        await until(lambda: any(server.memory.clients), "it is counted")
        second = await server.connect_plainly()
        await second.send(PROXY)
        assert await second.at_end()
        other = await server.connect(first=PROXY.replace(b".9 ", b".10 "))
        assert (await other.get("/")).json()["client"] == "203.0.113.10"
        silent.reset()
        await until(lambda: len(server.service.open) == 1, "the first is gone")
        assert (await (await server.connect(first=PROXY)).get("/")).status == 200


@in_loop
async def test_without_a_place_what_wants_tls_gets_no_plain_answer(tls: Tls) -> None:
    async with serving(asked_app(), tls=tls, max_connections=1, **BEHIND) as server:
        await server.connect_plainly()
        await until(lambda: server.service.open, "it holds the place")
        client = await server.connect_plainly()
        assert await client.at_end()
        assert not client.buffer
        assert server.counters()["connections"] == 1


@in_loop
async def test_megabytes_behind_a_proxy_header_are_no_fault_of_ours(tls: Tls) -> None:
    """More than uvloop's buffer came before its TLS had begun."""
    async with serving(asked_app(), tls=tls, **BEHIND) as server:
        client = await server.connect_plainly()
        first = PROXY + hello(tls[1])
        with contextlib.suppress(ConnectionError):  # what is behind the hello is no TLS
            await client.send(first + bytes(4_000_000))
        client.close()
        await nobody(server)
        assert (await (await server.connect(first=PROXY)).get("/")).status == 200


@in_loop
async def test_clients_that_leave_behind_a_proxy_header_leave_nothing_behind(tls: Tls) -> None:
    rng = seeded("leaving behind a PROXY header")
    whole = PROXY + hello(tls[1])
    knobs = BEHIND | {"max_connections_per_client": 500}
    async with serving(asked_app(), tls=tls, **knobs) as server:
        for _ in range(200):
            client = await server.connect_plainly()
            await client.send_pieces(cut(whole[: rng.randint(0, len(whole))], rng))
            with contextlib.suppress(OSError):  # it may have been closed by the server
                rng.choice((client.close, client.reset, client.shut))()
        await nobody(server)
        assert not any(server.memory.clients)
