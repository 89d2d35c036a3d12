"""A FastAPI application under real processes."""

from __future__ import annotations

import json
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.support.server import Client, LiveServer


def test_a_fastapi_application_runs_from_start_to_drain(tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    with LiveServer("asgi_sample:app", "--workers=1", env={"ASGI_STOPPED": str(stopped)}) as server:
        with Client(server.port) as client:
            assert client.request("/pid").json["pid"] in server.workers
            item = json.dumps({"name": "a", "price": 10}).encode()
            kind = {"Content_Type": "application/json"}
            answer = client.request("/items", "POST", item, **kind)
            assert (answer.status, answer.json) == (201, {"name": "a", "total": 12.0})
            assert client.request("/items", "POST", b"{}", **kind).status == 422
            assert client.request("/missing").json == {"detail": "no such thing"}
            assert client.request("/stream").body == b"012"
            assert client.request("/openapi.json").json["openapi"].startswith("3.")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert stopped.read_text() == "stopped"


def test_an_application_that_cannot_start_is_exit_code_3() -> None:
    server = LiveServer("asgi_sample:app", "--workers=2", env={"ASGI_FAILS": "1"}, wait=False)
    with server:
        assert server.wait(30) == 3
    assert "the frobnicator is not configured" in server.log


def test_the_interface_can_be_said() -> None:
    server = LiveServer("asgi_sample:not_recognised", wait=False)
    with server:
        assert server.wait(30) == 4
    assert "(--interface asgi, if it is one all the same)" in server.log
    with (
        LiveServer("asgi_sample:not_recognised", "--workers=1", "--interface=asgi") as served,
        Client(served.port) as client,
    ):
        assert client.request("/missing").status == 404
    server = LiveServer("asgi_sample:app", "--interface=app", wait=False)
    with server:
        assert server.wait(30) == 4
    assert "is a FastAPI, not an App" in server.log


def open_until_all(
    server: LiveServer, workers: set[int], stack: ExitStack
) -> list[ClientConnection]:
    """Return open WebSockets, with each of ``workers`` at least one."""
    clients: list[ClientConnection] = []
    met: set[int] = set()
    deadline = time.monotonic() + 20
    while met != workers:
        assert time.monotonic() < deadline, f"{met} of {workers}"
        client = stack.enter_context(connect(f"ws://127.0.0.1:{server.port}/ws", compression=None))
        pid = json.loads(client.recv(10))["pid"]
        if pid in workers:
            met.add(pid)
            clients.append(client)
        else:
            client.close()
    return clients


def closed_with(client: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed) as caught:
        client.recv(10)
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code


def test_websockets_of_two_workers_through_a_reload_and_a_stop() -> None:
    with LiveServer("asgi_sample:app", "--workers=2") as server, ExitStack() as stack:
        old = set(server.workers)
        clients = open_until_all(server, old, stack)
        for client in clients:
            client.send("x" * 100_000)
            assert client.recv(10) == "x" * 100_000
        begun = time.monotonic()
        server.signal(signal.SIGHUP)
        assert {closed_with(client) for client in clients} == {1012}
        deadline = time.monotonic() + 20
        while set(server.workers) & old:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert time.monotonic() - begun < 20  # and not the whole graceful timeout
        clients = open_until_all(server, set(server.workers), stack)
        server.signal(signal.SIGTERM)
        assert {closed_with(client) for client in clients} == {1001}
        assert server.wait() == 0
    assert "Traceback" not in server.log
