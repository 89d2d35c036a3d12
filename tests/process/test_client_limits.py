"""What one client may take of a whole server: real processes, settings from the command line."""

from __future__ import annotations

import os
import signal
import time

from tests.support.server import Client, LiveServer, eventually, get


def close(clients: list[Client]) -> None:
    for client in clients:
        client.close()


def test_connections_of_a_client_are_limited_over_all_workers() -> None:
    with LiveServer("held:app", "--workers=2", "--max-connections-per-client=20") as server:
        clients = [Client(server.port) for _ in range(20)]
        assert len({client.request("/who").json["pid"] for client in clients}) == 2
        for _ in range(5):
            with Client(server.port) as another:
                answer = another.read()  # unasked: it is refused unread
            assert (answer.status, answer.json["reason"]) == (503, "client")
            assert answer.headers["connection"] == "close"
        clients.pop().close()
        assert eventually(lambda: get(server.port, "/who").status == 200, "a place is free again")
        eventually(
            lambda: clients[0].request("/figures").json["shed"]["client"] >= 5,
            "counted, by each worker when its turn ends",
        )
        close(clients)


def test_what_a_killed_worker_counted_for_a_client_is_free_again() -> None:
    with LiveServer("held:app", "--workers=2", "--max-connections-per-client=12") as server:
        clients = [Client(server.port) for _ in range(12)]
        pids = [client.request("/who").json["pid"] for client in clients]
        os.kill(pids[0], signal.SIGKILL)
        lost = pids.count(pids[0])
        eventually(lambda: len(server.workers) == 2 and pids[0] not in server.workers, "replaced")
        again: list[Client] = []

        def one_more() -> bool:
            client = Client(server.port)
            if client.request("/who").status == 200:
                again.append(client)
            else:
                client.close()
            return len(again) == lost

        eventually(one_more, "as many connections as were lost")
        with Client(server.port) as another:
            assert another.read().json["reason"] == "client"
        close([*clients, *again])


def test_by_default_a_client_on_this_machine_has_any_number() -> None:
    with LiveServer("held:app", "--workers=1", "--max-connections=6") as server:
        clients = [Client(server.port) for _ in range(6)]
        assert [client.request("/who").status for client in clients] == [200] * 6
        with Client(server.port) as another:
            assert another.read().json["reason"] == "connections"
        close(clients)


def test_slow_heads_end_together_and_others_are_served_meanwhile() -> None:
    """All are due in one sweep, and ending each one costs more than looking at it."""
    flags = ("--workers=1", "--header-timeout=1", "--max-connections=2000")
    with LiveServer("held:app", *flags) as server:
        slow = [Client(server.port) for _ in range(600)]
        for client in slow:
            client.socket.sendall(b"GET /who HTTP/1.1\r\nHost: ")
        longest = 0.0
        with Client(server.port) as other:
            until = time.monotonic() + 10
            while other.request("/figures").json["connections"] > 1:
                begin = time.monotonic()
                assert other.request("/who").status == 200
                longest = max(longest, time.monotonic() - begin)
                assert time.monotonic() < until, "they did not end"
        assert {client.read().status for client in slow} == {408}
        print(f"longest answer meanwhile: {longest * 1000:.1f} ms")
        assert longest < 0.5
        close(slow)
