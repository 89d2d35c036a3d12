"""What an instance can be asked, and told to do, at its control socket (see ``control``).

===========  =========================  ====================================================
command      with                       answer
===========  =========================  ====================================================
status                                  the instance, its workers, limits, totals
reload                                  ``order``, to be asked about with ``progress``
scale        ``workers``                ``order``
progress     ``order``                  whether it is ``done``, and the ``problem`` if there was
drain                                   ``pid``; then, when it has left, ``left``
stop                                    as ``drain``; what is in the system is lost
upgrade                                 ``pid`` of the new arbiter; ``status`` tells the rest
loglevel     ``level``, or ``reset``    ``level``; workers follow within a second
dump-stacks                             the Python stacks of each worker
===========  =========================  ====================================================

A command does what a signal does, and is refused in the same cases, but says why.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from fluxor_fast.arbiter.control import Answer, Later, Refusal
from fluxor_fast.arbiter.crew import Crew, Worker
from fluxor_fast.arbiter.recycle import resident_bytes
from fluxor_fast.arbiter.replacing import Replacing
from fluxor_fast.arbiter.shared import SHED_REASONS, SharedMemory, State, Word
from fluxor_fast.arbiter.sockets import place_of
from fluxor_fast.arbiter.stacks import DUMP_SIGNAL
from fluxor_fast.version import __version__

__all__ = ["Commands", "Condition", "Instance"]

log = logging.getLogger("fluxor_fast.arbiter")

LEVELS: Final = ("debug", "info", "warning", "error")
DUMP_SECONDS: Final = 1.0
"""For the stacks; written within a millisecond unless the worker is stopped."""


class Condition(NamedTuple):
    """How an instance is."""

    state: str
    """``starting``, ``serving`` or ``draining``."""
    summary: str
    """One line for people."""
    upgrade: tuple[int, bool] | None
    """The new arbiter's pid, and whether it is ready."""
    predecessor: int | None
    """The pid of the old arbiter while it has not left."""


class Instance(Protocol):
    """What commands are for: the arbiter."""

    def condition(self) -> Condition:
        """Return how it is."""

    def reload(self) -> None:
        """Read the settings anew and replace the workers."""

    def scale(self, workers: int) -> None:
        """Have so many workers."""

    def stop(self) -> None:
        """Drain and leave."""

    def end(self) -> None:
        """End the workers and leave."""

    def upgrade(self) -> str:
        """Start a new arbiter; return why not, if not."""


class Commands:
    """Does what a request asks for; ``control.Handle``."""

    def __init__(
        self,
        instance: Instance,
        crew: Crew,
        replacing: Replacing,
        memory: SharedMemory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._instance = instance
        self._crew = crew
        self._replacing = replacing
        self._memory = memory
        self._clock = clock
        self._started = clock()
        self._table: dict[object, Callable[[Answer], Answer | Later]] = {
            "status": self._status,
            "reload": self._reload,
            "scale": self._scale,
            "progress": self._progress,
            "drain": self._drain,
            "stop": self._stop,
            "upgrade": self._upgrade,
            "loglevel": self._loglevel,
            "dump-stacks": self._dump_stacks,
        }

    def __call__(self, request: Answer) -> Answer | Later:
        """Do it.

        :raises Refusal: if that cannot be; it says why.
        """
        act = self._table.get(request["command"])
        if act is None:
            raise Refusal("UNKNOWN_COMMAND", f"the commands are {', '.join(map(str, self._table))}")
        if request["command"] not in ("status", "progress"):
            log.info("control: %s", request["command"])
        return act(request)

    def _reload(self, request: Answer) -> Answer:
        self._must_serve()
        self._instance.reload()
        return {"order": self._replacing.orders.asked}

    def _scale(self, request: Answer) -> Answer:
        workers = _number(request, "workers")
        self._must_serve()
        if not 1 <= workers <= self._replacing.most:
            raise Refusal("OUT_OF_RANGE", f"1 to {self._replacing.most} workers are to be had")
        self._instance.scale(workers)
        return {"order": self._replacing.orders.asked}

    def _must_serve(self) -> None:
        state = self._instance.condition().state
        if state != "serving":
            raise Refusal("NOT_NOW", f"the instance is {state}")

    def _progress(self, request: Answer) -> Answer:
        problem = self._replacing.orders.outcome(_number(request, "order"))
        return {
            "done": problem is not None,
            "problem": problem or None,
            "roll": self._roll(),
            "seats": self._replacing.seats,
        }

    def _drain(self, request: Answer) -> Answer:
        self._instance.stop()
        return {"pid": os.getpid()}

    def _stop(self, request: Answer) -> Answer:
        self._instance.end()
        return {"pid": os.getpid()}

    def _upgrade(self, request: Answer) -> Answer:
        if reason := self._instance.upgrade():
            raise Refusal("NOT_NOW", reason)
        upgrade = self._instance.condition().upgrade
        return {"pid": None if upgrade is None else upgrade[0]}

    def _loglevel(self, request: Answer) -> Answer:
        level = request.get("level")
        if level not in (*LEVELS, "reset"):
            raise Refusal("BAD_REQUEST", f"a level is one of {', '.join(LEVELS)}, or reset")
        number = 0 if level == "reset" else logging.getLevelNamesMapping()[str(level).upper()]
        self._memory.level[0] = number
        return {"level": level}

    def _dump_stacks(self, request: Answer) -> Later:
        asked: dict[int, tuple[Worker, Answer]] = {}
        stacks: list[Answer] = []
        for index, worker in self._crew.workers.items():
            about: Answer = {"index": index, "seat": worker.seat, "pid": worker.pid}
            stacks.append(about)
            # before its first word a worker may not know the signal, and would die of it
            if self._crew.state(index) == State.ABSENT:
                about["problem"] = "it has just been started"
            elif worker.watch.reason:
                about["problem"] = f"it {worker.watch.reason}; its stacks go to the log"
            else:
                worker.stacks.read()
                self._crew.signal(index, DUMP_SIGNAL)
                asked[index] = (worker, about)
        until, sizes = self._clock() + DUMP_SECONDS, dict.fromkeys(asked, 0)

        def collect() -> Answer | None:
            late = self._clock() >= until
            for index, (worker, about) in list(asked.items()):
                gone = self._crew.workers.get(index) is not worker
                size = 0 if gone else worker.stacks.size
                if gone:
                    about["problem"] = "it has left"
                elif late and not size:
                    about["problem"] = "it has not answered"
                elif late or size == sizes[index] > 0:
                    about["stacks"] = worker.stacks.read()
                else:
                    sizes[index] = size  # complete when it grows no more
                    continue
                del asked[index]
            return None if asked else {"workers": stacks}

        return collect

    def _roll(self) -> Answer | None:
        roll = self._replacing.roll
        if roll is None:
            return None
        return {"what": roll.what, "replaced": roll.done, "left": len(roll.seats)}

    def _status(self, request: Answer) -> Answer:
        condition, memory, replacing = self._instance.condition(), self._memory, self._replacing
        server = replacing.version.settings.server
        capacity, totals, upgrade = server.capacity, memory.totals(), condition.upgrade
        places = dict.fromkeys(place_of(each) for each in replacing.listeners if each.fileno() >= 0)
        return {
            "version": __version__,
            "state": condition.state,
            "summary": condition.summary,
            "uptime": round(self._clock() - self._started, 1),
            "pid": os.getpid(),
            "app": server.app,
            "listeners": list(places),
            "seats": replacing.seats,
            "most_workers": replacing.most,
            "workers": [self._worker(index, one) for index, one in self._crew.workers.items()],
            "limits": {
                "max_ccu": capacity.max_ccu,
                "normal": memory.limit[0] or capacity.normal,
                "slots": capacity.slots,
                "max_queue": capacity.max_queue,
                "max_connections": capacity.max_connections,
            },
            "totals": {
                "connections": sum(memory.connections),
                "ccu": sum(memory.permits),
                "offered": totals[Word.OFFERED],
                "accepted": totals[Word.ACCEPTED],
                "completed": totals[Word.COMPLETED],
                "aborted": totals[Word.ABORTED],
                "lost": totals[Word.LOST],
                "shed": dict(zip(SHED_REASONS, totals[Word.SHED :], strict=False)),
            },
            "log_level": self._level(),
            "roll": self._roll(),
            "upgrade": None if upgrade is None else {"pid": upgrade[0], "ready": upgrade[1]},
            "predecessor": condition.predecessor,
        }

    def _level(self) -> str:
        number = self._memory.level[0]
        if number:
            return logging.getLevelName(number).lower()
        return self._replacing.version.settings.observability.log_level

    def _worker(self, index: int, worker: Worker) -> Answer:
        region = self._memory.region(index)
        state = State(region[Word.STATE])
        return {
            "index": index,
            "seat": worker.seat,
            "pid": worker.pid,
            "state": "booting" if state is State.ABSENT else state.name.lower(),
            "age": round(self._clock() - worker.watch.started, 1),
            "completed": region[Word.COMPLETED],
            "connections": self._memory.connections[index],
            "permits": self._memory.permits[index],
            "rss": resident_bytes(worker.pid),
        }


def _number(request: Answer, name: str) -> int:
    value = request.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise Refusal("BAD_REQUEST", f"{request['command']} wants a number of {name}")
    return value
