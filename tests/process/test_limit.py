"""The limit over real worker processes: exact when full, whole again after a SIGKILL."""

from __future__ import annotations

import os
import selectors
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import Answer, Client, LiveServer, eventually, get, tells

# normal capacity 20, of which 6 run; critical routes up to 40
FLAGS = (
    "--workers=3", "--max-ccu=40", "--utilization=50", "--slots=6", "--max-queue=100",
    "--max-connections=500", "--queue-deadline=60", "--queue-target=0",
)  # fmt: skip


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


def flood(port: int, count: int, target: str) -> list[Client]:
    """Open ``count`` connections and send one request on each."""
    clients = [Client(port, timeout=30) for _ in range(count)]
    for client in clients:
        client.send(target)
    return clients


def one_of(port: int, pid: int) -> Client:
    """Open a connection to the worker ``pid``."""
    while True:
        client = Client(port, timeout=30)
        if client.request("/who").json["pid"] == pid:
            return client
        client.close()


def refused(clients: list[Client], expected: int) -> list[Client]:
    """Wait until ``expected`` clients have an answer, then a moment more; return all that do."""
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
        answered: list[Client] = []
        until = time.monotonic() + 10
        while time.monotonic() < until and len(answered) < expected:
            for key, _ in selector.select(0.1):
                answered.append(key.data)
                selector.unregister(key.fileobj)
        for key, _ in selector.select(0.3):  # one too many would show now
            answered.append(key.data)
    return answered


def drain_gate(gate: Path, clients: list[Client]) -> list[Answer]:
    gate.touch()
    answers = [client.read() for client in clients]
    gate.unlink()
    return answers


def settled(port: int) -> dict[str, Any]:
    """Return the figures once nobody is in the system and each accepted request has its end."""
    now: dict[str, Any] = get(port, "/figures").json
    ended = now["completed"] + now["aborted"] + now["lost"]
    return now if now["ccu"] == 0 and now["accepted"] == ended else {}


def shown(port: int, ccu: int, running: int, queued: int) -> dict[str, Any]:
    """Return the figures if so many are in the system, run and wait."""
    now: dict[str, Any] = get(port, "/figures").json
    return now if (now["ccu"], now["running"], now["queued"]) == (ccu, running, queued) else {}


def close(clients: list[Client]) -> None:
    for client in clients:
        client.close()


def test_exactly_the_limit_is_in_the_system_and_the_rest_is_refused(gate: Path) -> None:
    with LiveServer("held:app", *FLAGS, env={"HELD_GATE": str(gate)}) as server:
        clients = flood(server.port, 100, "/hold")
        answered = refused(clients, 80)
        assert len(answered) == 80
        for client in answered:
            answer = client.read()
            assert answer.status == 503
            assert answer.json["code"] == "BACKPRESSURE"
            assert answer.json["reason"] == "capacity"
            assert int(answer.headers["retry-after"]) >= 1
            assert "connection" not in answer.headers  # the connection is kept
        # a worker that wants more announces a slot for a moment, and takes it back
        eventually(lambda: shown(server.port, 20, 6, 14), "6 run and 14 wait")

        # on the same count, critical routes go on to max_ccu, and no further
        critical = flood(server.port, 50, "/hold/critical")
        refused_critical = refused(critical, 30)
        assert len(refused_critical) == 30
        assert get(server.port, "/figures").json["ccu"] == 40
        # exempt routes are answered even now, a connection that was refused is as good as new
        assert answered[0].request("/who").status == 200
        assert answered[0].request("/").status == 503

        waiting = [c for c in clients if c not in answered]
        waiting += [c for c in critical if c not in refused_critical]
        assert {answer.status for answer in drain_gate(gate, waiting)} == {200}
        # a permit is back at once, what is counted reaches the others when its worker's turn ends
        after = eventually(lambda: settled(server.port), "all permits back, and all counted")
        # the last offered one is this very request, which is counted when its turn is over
        assert after["offered"] == after["accepted"] + sum(after["shed"].values())
        assert after["shed"]["capacity"] == 80 + 30 + 1
        close(clients + critical)


def test_the_whole_limit_is_there_again_after_sigkill_of_a_worker(gate: Path) -> None:
    with LiveServer("held:app", *FLAGS, env={"HELD_GATE": str(gate)}) as server:
        victim = server.workers[1]
        clients = [one_of(server.port, pid) for pid in server.workers]  # each holds something
        for client in clients:
            client.send("/hold")
        eventually(lambda: get(server.port, "/figures").json["ccu"] == 3, "one each")
        clients += flood(server.port, 97, "/hold")
        assert len(refused(clients, 80)) == 80
        before = get(server.port, "/figures").json

        started = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        eventually(
            lambda: (
                victim not in server.workers
                and len(server.workers) == 3
                and get(server.port, "/figures").json["workers"] == 3
            ),
            "a new worker is ready",
        )
        took = time.monotonic() - started
        assert took < 5, took  # the bound of the service is 1 s; a shared machine gets slack

        now = eventually(
            lambda: (f := get(server.port, "/figures").json)["ccu"] < 20 and f, "permits freed"
        )
        lost = 20 - now["ccu"]
        assert now["lost"] == lost
        assert now["offered"] >= before["offered"]  # totals never go back
        # and now the limit is exact again, the freed part included
        more = flood(server.port, 60, "/hold")
        assert len(refused(more, 60 - lost)) == 60 - lost
        assert get(server.port, "/figures").json["ccu"] == 20
        gate.touch()
        eventually(lambda: get(server.port, "/figures").json["ccu"] == 0, "all permits back")
        close(clients + more)


def test_a_client_that_goes_away_while_it_waits_frees_its_place(gate: Path) -> None:
    with LiveServer("held:app", *FLAGS, env={"HELD_GATE": str(gate)}) as server:
        clients = flood(server.port, 20, "/hold")
        eventually(lambda: shown(server.port, 20, 6, 14), "full")
        close(clients)  # 14 waited, 6 ran: those end when their handlers do
        eventually(lambda: get(server.port, "/figures").json["ccu"] == 6, "waiting ones left")
        again = flood(server.port, 14, "/hold")
        eventually(lambda: get(server.port, "/figures").json["ccu"] == 20, "full again")
        gate.touch()
        assert {client.read().status for client in again} == {200}
        after = eventually(lambda: settled(server.port), "all permits back, and all counted")
        # those that ran were answered, though nobody read the answers
        assert after["aborted"] == 14
        close(again)


def test_connections_are_limited_over_all_workers(gate: Path) -> None:
    flags = ("--workers=2", "--max-connections=10")
    with LiveServer("held:app", *flags, env={"HELD_GATE": str(gate)}) as server:
        clients = [Client(server.port) for _ in range(10)]
        for client in clients:
            assert client.request("/who").status == 200
        with Client(server.port) as eleventh:
            answer = eleventh.read()  # unasked: it is refused unread
        assert answer.status == 503
        assert answer.json["reason"] == "connections"
        assert answer.headers["connection"] == "close"
        clients.pop().close()
        eventually(lambda: clients[0].request("/figures").json["connections"] == 9, "a place")
        assert get(server.port, "/who").status == 200
        close(clients)


def test_a_route_has_a_limit_of_its_own_over_all_workers(gate: Path) -> None:
    with LiveServer("held:app", *FLAGS, env={"HELD_GATE": str(gate)}) as server:
        clients = flood(server.port, 30, "/hold/seven")
        answered = refused(clients, 23)
        assert len(answered) == 23
        assert {client.read().json["reason"] for client in answered} == {"route"}
        # a bulkhead: the others do not notice
        assert get(server.port, "/").status == 200
        # its permit comes back just after its answer
        eventually(lambda: get(server.port, "/figures").json["ccu"] == 7, "the held ones alone")
        held = [client for client in clients if client not in answered]
        assert {answer.status for answer in drain_gate(gate, held)} == {200}
        for _ in range(10):  # and every permit came back, of quick routes too
            assert get(server.port, "/three").status == 200
        again = flood(server.port, 8, "/hold/seven")
        assert [client.read().json["reason"] for client in refused(again, 1)] == ["route"]
        gate.touch()
        close(clients + again)


def test_a_routes_permits_come_back_when_its_worker_is_killed(gate: Path) -> None:
    with LiveServer("held:app", *FLAGS, env={"HELD_GATE": str(gate)}) as server:
        victim = server.workers[0]
        clients = [one_of(server.port, victim) for _ in range(7)]
        for client in clients:
            client.send("/hold/seven")
        eventually(lambda: get(server.port, "/figures").json["ccu"] == 7, "all in one worker")
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: get(server.port, "/figures").json["ccu"] == 0, "freed")
        # what a route's limit counted is freed after that, and before there is another worker
        eventually(lambda: victim not in server.workers and len(server.workers) == 3, "replaced")
        again = flood(server.port, 9, "/hold/seven")
        assert len(refused(again, 2)) == 2
        gate.touch()
        close(clients + again)


def test_a_worker_that_always_has_more_cannot_keep_the_slots_from_another(gate: Path) -> None:
    with LiveServer("held:app", *FLAGS, env={"HELD_GATE": str(gate)}) as server:
        greedy, modest = server.workers[:2]
        # the greedy worker has all six slots, and eight more wait in it
        many = [one_of(server.port, greedy) for _ in range(14)]
        for client in many:
            client.send("/hold?0.6")
        eventually(lambda: get(server.port, "/figures").json["ccu"] == 14, "full")
        with one_of(server.port, modest) as one:
            started = time.monotonic()
            one.send("/hold?0.6")
            assert one.read().status == 200
            took = time.monotonic() - started
        # one round of handlers to end and its own to run, 1.2 s; first in first out over all
        # would be three
        assert took < 1.65, took
        close(many)


def test_a_worker_that_runs_out_of_descriptors_says_so_and_recovers() -> None:
    with LiveServer("held:app", "--workers=1", most_files=100) as server:
        tells(server, "need 5128 open files and the limit is 100")
        clients: list[Client] = []
        reasons = []
        for _ in range(150):
            client = Client(server.port)
            try:
                client.request("/who")
                answer = client.request("/who")
            except ConnectionError:
                client.close()
                reasons.append("closed")
            else:
                if answer.status == 200:
                    clients.append(client)
                else:
                    client.close()
        assert 40 < len(clients) < 100
        told = get(server.port, "/who")  # one more, that only listens
        assert told.json["reason"] == "connections"
        before = cpu_of(server.workers[0])
        assert clients[0].request("/who").status == 200
        for client in clients[10:]:
            client.close()
        eventually(lambda: clients[0].request("/figures").json["connections"] == 10, "freed")
        assert get(server.port, "/who").status == 200
        assert cpu_of(server.workers[0]) - before < 0.5  # no busy loop
        close(clients[:10])


def cpu_of(pid: int) -> float:
    """CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
