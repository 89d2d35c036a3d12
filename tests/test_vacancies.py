"""``arbiter.vacancies``: seats without a worker are filled when it is time, or tried again."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxor_fast.arbiter.breaker import OPENS_AFTER, RETRY_SECONDS
from fluxor_fast.arbiter.crew import Crew, Version, Worker
from fluxor_fast.arbiter.replacing import Replacing
from fluxor_fast.arbiter.roll import indexes_for
from fluxor_fast.arbiter.shared import SharedMemory, State, Word
from fluxor_fast.arbiter.sockets import bind_listeners
from fluxor_fast.arbiter.vacancies import Vacancies
from fluxor_fast.config import Settings, load
from fluxor_fast.errors import BootError
from fluxor_fast.observability.metrics import InstanceMetrics


class Scene:
    """Two seats whose workers leave at once with code 3, and their listeners."""

    def __init__(self) -> None:
        settings = load(environ={}, flags={"server.workers": 2})
        self.memory = SharedMemory(indexes_for(2))
        self.replacing = Replacing(
            Version(settings, lambda *_: 3), 2, lambda version: version, Path()
        )
        self.replacing.listeners += bind_listeners("127.0.0.1", 0, 2)
        for listener in self.replacing.listeners:
            listener.listen()
        self.crew = Crew(self.memory, self.replacing.listeners, random.Random(0))
        self.vacancies = Vacancies(self.crew, self.replacing)

    def lose(self, seat: int, now: float, *, alone: bool = True) -> str:
        """Have the worker of a seat started and lost."""
        self.vacancies.due[seat] = now
        self.vacancies.fill(now)
        ((index, worker),) = self.crew.workers.items()
        os.waitpid(worker.pid, 0)
        self.crew.bury(index)
        return self.vacancies.lost(worker, now, alone=alone)

    def states(self) -> list[int]:
        return [self.memory.region(index)[Word.STATE] for index in range(self.memory.workers)]

    def listening(self) -> list[bool]:
        return [
            bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            for one in self.replacing.listeners
        ]


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    for fd in scene.crew.lifeline:
        os.close(fd)
    for listener in scene.replacing.listeners:
        listener.close()


def test_a_fork_that_fails_is_an_error_only_until_a_worker_was_ready(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fail)
    scene.vacancies.due[0] = 5.0
    with pytest.raises(BootError, match="cannot start a worker"):
        scene.vacancies.fill(5.0)
    scene.vacancies.proved = True
    scene.vacancies.due[0] = 5.0
    scene.vacancies.fill(5.0)
    assert scene.vacancies.due == {0: 5.0 + RETRY_SECONDS}
    assert not any(scene.memory.owners)  # the index is free again


def test_a_crash_looping_seat_shows_in_the_memory_until_it_is_tried_again(scene: Scene) -> None:
    for _ in range(OPENS_AFTER):
        assert State.FAILING not in scene.states()
        scene.lose(1, 0.0)
    assert scene.states().count(State.FAILING) == 1
    assert sum(map(bool, scene.memory.owners)) == 1
    metrics = InstanceMetrics(scene.memory, Settings().server.capacity)
    assert b"\nworkers_failing 1.0\n" in metrics.prometheus()
    scene.lose(1, 0.0)
    assert sum(map(bool, scene.memory.owners)) == 1  # not one more each time
    scene.crew.stop(0.0, gently=False)
    assert not any(scene.memory.owners)


@pytest.mark.parametrize("alone", [True, False])
def test_its_listener_is_set_aside_unless_an_upgraded_arbiter_serves_there(
    scene: Scene, alone: bool
) -> None:
    for _ in range(OPENS_AFTER):
        assert scene.listening() == [True, True]
        scene.lose(1, 0.0, alone=alone)
    assert scene.listening() == [True, not alone]
    scene.replacing.listeners[1].listen()  # a worker that was ready for a moment
    scene.lose(1, 0.0, alone=alone)
    assert scene.listening() == [True, not alone]


def test_a_listener_that_was_set_aside_time_and_again_takes_connections_when_it_listens(
    scene: Scene,
) -> None:
    for _ in range(OPENS_AFTER + 2):
        scene.lose(1, 0.0)
    other, listener = scene.replacing.listeners
    other.close()
    listener.listen()
    listener.setblocking(True)
    with socket.create_connection(listener.getsockname(), 5) as client:
        client.sendall(b"x")
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(5)
            assert accepted.recv(1) == b"x"


def test_a_seat_that_is_no_more_is_forgotten(scene: Scene) -> None:
    for _ in range(OPENS_AFTER):
        scene.lose(1, 0.0)
    assert scene.vacancies.word() == "crash-loop: 0 of 2 workers serve"
    scene.replacing.seats = 1
    scene.vacancies.fill(RETRY_SECONDS)
    assert scene.vacancies.word() == "ok: 0 of 1 workers serve"
    assert not scene.vacancies.due
    assert not any(scene.memory.owners)


def test_a_worker_that_drains_is_no_sign_of_life(scene: Scene) -> None:
    for _ in range(OPENS_AFTER):
        scene.lose(0, 0.0)
    worker = Worker(0, 0, (0,), *[None] * 3, ready=0.0)  # type: ignore[arg-type]
    scene.crew.workers[0] = worker
    worker.leaving = True
    scene.vacancies.look(100.0)
    assert scene.vacancies.word().startswith("crash-loop")
    worker.leaving = False
    scene.vacancies.look(100.0)
    assert scene.vacancies.word().startswith("ok")
