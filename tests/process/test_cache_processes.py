"""The cache over real worker processes: what one outdates is outdated for all."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from tests.support.redis import RedisServer
from tests.support.seeds import seeded
from tests.support.server import Client, LiveServer, eventually, get


@contextmanager
def workers(server: LiveServer, count: int) -> Iterator[list[Client]]:
    """Open a connection to each worker."""
    found: dict[int, Client] = {}
    try:
        while len(found) < count:
            client = Client(server.port)
            pid = client.request("/who").json["pid"]
            if found.setdefault(pid, client) is not client:
                client.close()
        yield list(found.values())
    finally:
        for client in found.values():
            client.close()


def metric(server: LiveServer, name: str) -> float:
    text = get(server.port, "/metrics").body.decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, name
    return float(found[1])


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    (tmp_path / "1").write_text("old")
    (tmp_path / "readings").touch()
    return tmp_path


def readings(rows: Path) -> int:
    return len((rows / "readings").read_text().splitlines())


def test_what_one_worker_outdates_no_other_answers_with(rows: Path) -> None:
    rng = seeded("cache over workers")
    with (
        LiveServer("cached:app", "--workers=3", env={"ROWS": str(rows)}) as server,
        workers(server, 3) as clients,
    ):
        for number in range(15):
            for client in clients:
                client.request("/row/1")
            text = f"{number} {rng.random()}"
            assert rng.choice(clients).request("/row/1", "PUT", text.encode()).status == 204
            # from the moment the change is answered
            assert {client.request("/row/1").json["text"] for client in clients} == {text}
        before = readings(rows)
        for client in clients * 10:
            client.request("/row/1")
        assert readings(rows) == before

        def published() -> bool:
            # each worker publishes its own, in its own time
            misses, entries = metric(server, "cache_misses_total"), metric(server, "cache_entries")
            hits = metric(server, 'cache_hits_total{tier="memory"}')
            return (misses, entries) == (readings(rows), 3) and hits >= 30

        eventually(published, "the figures are published")
        assert metric(server, "cache_bytes") > 0


def test_a_worker_that_is_killed_leaves_counters_and_no_entries(rows: Path) -> None:
    with LiveServer("cached:app", "--workers=2", env={"ROWS": str(rows)}) as server:
        with workers(server, 2) as clients:
            victim = clients[0].request("/who").json["pid"]
            clients[0].request("/row/1")
            eventually(lambda: metric(server, "cache_misses_total") == 1, "published")
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: metric(server, "cache_entries") == 0, "its entries are gone")
        assert metric(server, "cache_misses_total") == 1


def test_many_at_once_are_one_reading_in_each_worker(rows: Path) -> None:
    with (
        LiveServer("cached:app", "--workers=2", env={"ROWS": str(rows)}) as server,
        workers(server, 2),
    ):
        clients = [Client(server.port) for _ in range(40)]
        for client in clients:
            client.send("/row/1")
        answers = [client.read().json for client in clients]
        for client in clients:
            client.close()
        assert {answer["text"] for answer in answers} == {"old"}
        assert readings(rows) == len(Counter(answer["pid"] for answer in answers)) <= 2


def test_with_redis_one_reading_is_for_two_instances(rows: Path, redis_server: RedisServer) -> None:
    # a machine that is busy with other tests is not Redis that is away
    flags = ("--redis-timeout=2", "--redis-connect-timeout=2")
    options = ("cached:app", "--workers=2", f"--redis-url={redis_server.url}", *flags)
    with (
        LiveServer(*options, env={"ROWS": str(rows)}) as one,
        LiveServer(*options, env={"ROWS": str(rows)}) as two,
        workers(one, 2) as here,
        workers(two, 2) as there,
    ):

        def subscribed() -> bool:
            answer = redis_server.command("PUBSUB", "NUMSUB", "fluxor:fluxor-fast:deleted")
            return answer.endswith(b":4\r\n")

        eventually(subscribed, "all four hear")
        clients = [*here, *there]
        numbers = count(100)

        def readers(number: int) -> int:
            """Return how many workers have read a row that all are asked for at once."""
            (rows / f"{number}").write_text("x")
            for client in clients:
                client.send(f"/row/{number}")
            return len({client.read().json["pid"] for client in clients})

        # Redis counts a subscription before the worker knows of it
        eventually(lambda: readers(next(numbers)) == 1, "all four know that they hear")
        before = readings(rows)
        assert {readers(next(numbers)) for _ in range(5)} == {1}
        assert readings(rows) == before + 5
        assert len({client.request("/row/1").json["text"] for client in clients}) == 1
        assert here[0].request("/row/1", "PUT", b"new").status == 204
        assert {client.request("/row/1").json["text"] for client in here} == {"new"}

        def told() -> bool:
            return {client.request("/row/1").json["text"] for client in there} == {"new"}

        eventually(told, "the other instance is told", 0.5)

        redis_server.stop()
        for number, client in enumerate(clients * 5):
            (rows / f"{number + 10}").write_text("x")
            assert client.request(f"/row/{number + 10}").json["text"] == "x"
        redis_server.start()
        eventually(subscribed, "all four hear again", 1.5)
