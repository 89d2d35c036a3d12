"""The master process: binds, forks, watches, reaps, replaces, stops.

Rules:

1. One thread and no event loop, so forking is safe at any time. Signal handlers only enqueue
   (through a wake-up pipe); one select loop acts.
2. The first worker starts alone: what would fail in all of them is said once. If it cannot
   start, the arbiter halts with the worker's exit code.
3. A worker that leaves unasked is replaced: at once if it had lived a while, else after a delay
   that doubles. Its permits are free and its counters kept as soon as it is reaped.
4. A worker is ready or dead by what its own event loop wrote: ready when it says so, and ended
   by SIGKILL when its heartbeat has been silent for ``heartbeat_timeout``.
5. SIGTERM and SIGINT drain; workers that outlast the graceful timeout get SIGKILL; so do all
   at a second SIGINT or at SIGQUIT.
6. Workers are replaced one at a time, the successor ready first (see ``roll``). A new version
   that does not get ready is told in the log and ends the roll: what serves goes on serving.
7. Who leaves while the instance goes on is told so by SIGUSR2: it keeps idle connections until
   their next answer, as a request may be on its way.
8. An upgraded arbiter shares sockets and memory with this one, which leaves when that one is
   ready (see ``upgrade``).

========  =============================================================================
signal    what the arbiter does
========  =============================================================================
SIGTERM   drains and leaves
SIGINT    drains and leaves; the second one ends the workers
SIGQUIT   ends the workers and leaves
SIGHUP    reads the settings anew and replaces the workers, one at a time
SIGUSR1   opens the log files anew, in all workers too
SIGUSR2   starts a new arbiter on the same sockets, and leaves when that one is ready
SIGTTIN   one worker more
SIGTTOU   one worker less
SIGCHLD   reaps, and replaces what died
========  =============================================================================

SIGWINCH has no meaning here: a terminal sends it when its window changes.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fluxor_fast.arbiter.adaptive import AdaptiveLimit, AdaptiveSettings, Look
from fluxor_fast.arbiter.forking import REOPEN, RETIRE, fork_with
from fluxor_fast.arbiter.reload import fixed
from fluxor_fast.arbiter.roll import Listeners, Roll, indexes_for, most_workers, roll, share
from fluxor_fast.arbiter.shared import LOOK_SECONDS, SharedMemory, State, Word
from fluxor_fast.arbiter.sockets import (
    SocketFile,
    another,
    bind_listeners,
    bind_unix,
    inherit,
    place_of,
    provide_descriptors,
)
from fluxor_fast.arbiter.upgrade import Inherited, Successor, home, is_alive
from fluxor_fast.config import Settings
from fluxor_fast.errors import BootError, FluxorError
from fluxor_fast.observability.logs import reopen

__all__ = ["Arbiter", "Backoff", "Reload", "WorkerMain"]

log = logging.getLogger("fluxor_fast.arbiter")

WorkerMain = Callable[[Settings, SharedMemory, int, Sequence[socket.socket], int], int]
"""Runs a worker in the child: settings, memory, index, listeners, lifeline → exit code."""

Reload = Callable[[Settings], tuple[Settings, WorkerMain]]
"""Reads the settings anew; a ``FluxorError`` if they cannot be used."""
TICK = 0.1  # seconds between two looks at the workers
MARGIN = 2.0  # seconds a worker gets beyond the graceful timeout to leave by itself


@dataclass(slots=True)
class Backoff:
    """How long to wait before a worker is replaced.

    A worker that lived at least ``healthy`` seconds is replaced at once. The first early death
    is forgiven; each further one in a row doubles the delay, from ``first`` to ``longest``.
    """

    healthy: float = 1.0
    first: float = 0.1
    longest: float = 10.0
    _early: int = field(default=0, init=False)

    def after(self, lived: float) -> float:
        """Return the delay in seconds after a worker that lived ``lived`` seconds."""
        if lived >= self.healthy:
            self._early = 0
            return 0.0
        self._early += 1
        if self._early == 1:
            return 0.0
        return min(self.first * 2.0 ** (self._early - 2), self.longest)


@dataclass(slots=True)
class _Worker:
    pid: int
    seat: int
    listeners: Listeners
    started: float
    killed: str = ""  # why the arbiter ended it
    kill_at: float = float("inf")  # it drains, and is ended then

    @property
    def leaving(self) -> bool:
        """Whether it has been told to leave while the instance goes on."""
        return self.kill_at < float("inf")


class Arbiter:
    """The master of one instance.

    :param worker_main: what a worker process runs.
    :param announce: called once with the place (``sockets.place_of``) when all workers are ready.
    :param reload: what reads the settings anew; None: SIGHUP replaces the workers alone.
    :param inherited: what the arbiter has left that this one is to take the place of.
    """

    def __init__(
        self,
        settings: Settings,
        worker_main: WorkerMain,
        announce: Callable[[str], None] = lambda place: None,
        reload: Reload | None = None,
        inherited: Inherited | None = None,
    ) -> None:
        self._settings = settings
        self._worker_main = worker_main
        self._announce = announce
        self._read = reload
        self._inherited = inherited
        self._folder = home()
        count = settings.server.worker_count
        self._memory = inherited.memory if inherited else SharedMemory(indexes_for(count))
        self._most = most_workers(self._memory.workers)
        self._seats = 0  # how many there are
        self._scale_to(count)
        self._workers: dict[int, _Worker] = {}  # by index
        self._due: dict[int, float] = {}  # seat → when its worker is to be started
        self._backoff: dict[int, Backoff] = {}  # by seat
        self._listeners: list[socket.socket] = []
        self._socket_file: SocketFile | None = None
        self._successor: Successor | None = None
        self._roll: Roll | None = None
        self._next: tuple[Settings, WorkerMain] | None = None  # what a reload has read
        self._reload_wanted = False
        self._serving = False  # all workers were ready once
        self._stopping = False
        self._close_at = self._kill_at = float("inf")
        self._adapt_anew()
        self._exit_code = 0
        self._boot_code: int | None = None
        self._actions: dict[int, tuple[str, Callable[[], None]]] = {
            signal.SIGTERM: ("stopping", self.stop),
            signal.SIGINT: ("stopping", self._interrupted),
            signal.SIGQUIT: ("stopping at once", self.end),
            signal.SIGHUP: ("reload", self.reload),
            signal.SIGUSR1: ("opening the log files anew", self.reopen_logs),
            signal.SIGUSR2: ("upgrade", self.upgrade),
            signal.SIGTTIN: ("one worker more", lambda: self.scale(self._wanted + 1)),
            signal.SIGTTOU: ("one worker less", lambda: self.scale(self._wanted - 1)),
            signal.SIGCHLD: ("", lambda: None),  # the loop reaps each time round
        }

    def run(self) -> int:
        """Serve until told to stop; return the exit code of the instance.

        :raises ListenError: if the address cannot be had.
        :raises BootError: if the workers cannot start.
        """
        self._bind()
        place = place_of(self._listeners[0])
        provide_descriptors(self._settings.server.capacity.max_connections)
        self._lifeline = os.pipe()
        wake_in, wake_out = os.pipe()
        os.set_blocking(wake_in, False)
        os.set_blocking(wake_out, False)
        self._wake = (wake_in, wake_out)
        before = {number: signal.signal(number, lambda *_: None) for number in self._actions}
        signal.set_wakeup_fd(wake_out, warn_on_full_buffer=False)
        # what is loaded now is shared by all workers; an untouched object's page stays shared
        gc.collect()
        gc.freeze()
        self._started = time.monotonic()
        self._due[0] = self._started
        try:
            while self._workers or self._due:
                self._look_after(place)
                select.select([wake_in], [], [], self._pause())
                try:
                    for number in os.read(wake_in, 512):
                        self._on_signal(number)
                except BlockingIOError:
                    pass
                self._reap()
            return self._finish()
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            for fd in (*self._wake, *self._lifeline):
                os.close(fd)
            self._close_listeners()

    def _bind(self) -> None:
        server = self._settings.server
        if self._inherited is not None:
            self._listeners = self._inherited.listeners
        elif server.uds is not None:
            self._listeners, self._socket_file = bind_unix(
                server.uds, int(server.uds_mode, 8), 1, server.backlog
            )
        elif server.fd is not None:
            self._listeners = inherit(server.fd, 1)
        else:
            count = 1 if self._common else self._seats
            self._listeners = bind_listeners(server.host, server.port, count)

    @property
    def _common(self) -> bool:
        """Whether all workers have the same listeners."""
        server = self._settings.server
        return server.uds is not None or server.fd is not None or server.listener == "shared"

    def _share(self, seat: int) -> Listeners:
        return share(seat, self._seats, len(self._listeners), common=self._common)

    # what signals ask for

    def _on_signal(self, number: int) -> None:
        what, action = self._actions[number]
        if what:
            log.info("%s: %s", signal.Signals(number).name, what)
        action()

    def stop(self) -> None:
        """Drain and leave."""
        if not self._stopping:
            server = self._settings.server
            self._stop(server.graceful_timeout + MARGIN, delay=server.drain_delay)

    def end(self) -> None:
        """End the workers and leave."""
        self._stop(0.0)

    def _interrupted(self) -> None:
        if self._stopping:
            self.end()
        else:
            self.stop()

    def reload(self) -> None:
        """Read the settings anew and replace the workers, one at a time."""
        if self._stopping or not self._serving:
            log.warning("no reload while the instance starts or stops")
        else:
            self._reload_wanted = True

    def scale(self, workers: int) -> None:
        """Have so many workers, as far as that is allowed."""
        if self._stopping or not self._serving:
            log.warning("no scaling while the instance starts or stops")
        else:
            self._scale_to(workers)

    def _scale_to(self, workers: int) -> None:
        self._wanted = min(max(workers, 1), self._most)
        if self._wanted != workers:
            log.warning(
                "%d workers are wanted; %d to %d can be had, twice as many as at the start",
                workers,
                1,
                self._most,
            )
        if self._seats == 0:
            self._seats = self._wanted

    def reopen_logs(self) -> None:
        """Open the log files anew, in all workers too."""
        reopen()
        for index, worker in self._workers.items():
            if self._state(index) in (State.READY, State.DRAINING):
                self._signal(worker, REOPEN)

    def upgrade(self) -> None:
        """Start a new arbiter on the same sockets; leave when it is ready."""
        if reason := self._cannot_upgrade():
            log.error("no upgrade: %s", reason)
            return
        self._successor = Successor(
            self._memory, self._listeners, fixed(self._settings), self._folder
        )
        log.info("upgrade: arbiter %d is starting", self._successor.pid)

    def _cannot_upgrade(self) -> str:
        if self._stopping or not self._serving:
            return "the instance starts or stops"
        if self._successor is not None:
            return f"arbiter {self._successor.pid} is starting already"
        if self._inherited is not None:
            return f"arbiter {self._inherited.pid} has not left yet"
        if self._roll is not None:
            return f"a {self._roll.what} is under way; try again when it is done"
        if self._settings.database.embedded is not None:
            return "the embedded database is this arbiter's, and would stop with it"
        if os.getpid() == 1:
            return "the container would end with its first process; replace the container"
        return ""

    def _stop(self, seconds: float, *, delay: float = 0.0, gently: bool = False) -> None:
        """Drain; what is left after ``seconds`` is ended."""
        now = time.monotonic()
        self._stopping = True
        self._roll = None
        self._due.clear()
        self._close_at = min(self._close_at, now + delay)
        self._kill_at = min(self._kill_at, now + delay + seconds)
        if seconds > 0:
            for index, worker in self._workers.items():
                ready = self._state(index) in (State.READY, State.DRAINING)
                self._signal(worker, RETIRE if gently and ready else signal.SIGTERM)

    # the loop's work

    def _pause(self) -> float:
        busy = not self._serving or self._roll is not None or self._successor is not None
        due = min((*self._due.values(), self._kill_at, self._close_at)) - time.monotonic()
        return max(0.0, min(0.02 if busy else TICK, due))

    def _state(self, index: int) -> int:
        return self._memory.region(index)[Word.STATE]

    def _reap(self) -> None:
        for index, worker in list(self._workers.items()):
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                self._bury(index, worker, os.waitstatus_to_exitcode(status))
        if self._successor is not None and (code := self._successor.left()) is not None:
            log.error(
                "upgrade: arbiter %d left with code %d; %s",
                self._successor.pid,
                code,
                "nobody serves now" if self._successor.ready else "this one goes on",
            )
            self._successor.close()
            self._successor = None

    def _bury(self, index: int, worker: _Worker, code: int) -> None:
        """Deal with a worker that has left: free what it held, and replace it if need be."""
        del self._workers[index]
        self._memory.fold(index)
        if self._stopping:
            if code != 0:
                self._exit_code = self._exit_code or 1
            return
        how = worker.killed or (
            f"was ended by {signal.Signals(-code).name}" if code < 0 else f"left with code {code}"
        )
        if worker.leaving:
            if code != 0:
                log.warning("worker %d (pid %d) %s while it drained", index, worker.pid, how)
            return
        if not self._serving:
            # exit codes of boot errors have been explained by the worker itself
            if code <= 0 and self._boot_code is None:
                log.error("worker %d (pid %d) %s before it was ready", index, worker.pid, how)
            self._give_up(code if code > 0 else BootError.exit_code)
            return
        now = time.monotonic()
        if self._roll is not None and self._roll.successor == index:
            log.error("worker %d (pid %d) %s before it was ready", index, worker.pid, how)
            self._end_roll(self._roll)
            if worker.seat in self._occupied() or worker.seat >= self._seats:
                return
        elif worker.seat >= self._seats or worker.seat in self._occupied():
            return  # others have its listeners, or will have
        backoff = self._backoff.setdefault(worker.seat, Backoff())
        delay = backoff.after(now - worker.started)
        log.warning(
            "worker %d (pid %d) %s; replaced %s",
            index,
            worker.pid,
            how,
            f"in {delay:.1f} s" if delay else "at once",
        )
        self._due[worker.seat] = now + delay

    def _give_up(self, code: int) -> None:
        if self._boot_code is None:
            self._boot_code = code
        self._stop(MARGIN)

    def _occupied(self) -> dict[int, Listeners]:
        """Return the seats that have a worker which is not to leave, and its listeners."""
        return {
            worker.seat: worker.listeners for worker in self._workers.values() if not worker.leaving
        }

    def _look_after(self, place: str) -> None:
        """Start what is due, end what hangs, notice what has become ready."""
        now = time.monotonic()
        if now >= self._close_at:
            self._close_listeners()
            self._close_at = float("inf")
        overdue = now >= self._kill_at
        for index, worker in self._workers.items():
            if overdue or now >= worker.kill_at:
                log.warning("worker %d (pid %d) outlasted its time: SIGKILL", index, worker.pid)
                self._signal(worker, signal.SIGKILL)
                worker.kill_at = now + 1.0
        if overdue:
            self._kill_at = now + 1.0
        if self._stopping:
            return
        for seat in [seat for seat, due in self._due.items() if due <= now]:
            if self._spawn(seat) is not None:
                del self._due[seat]
            else:
                self._due[seat] = now + TICK
        for index, worker in self._workers.items():
            self._check_health(index, worker, now)
        if self._adaptive is not None and self._successor is None:
            self._adapt(self._adaptive, now)
        if not self._serving:
            self._start(place, now)
            return
        if self._roll is None and (self._reload_wanted or self._wanted != self._seats):
            self._begin_roll()
        if self._roll is not None:
            self._advance(self._roll)
        if self._successor is not None and self._successor.look():
            self._hand_over(self._successor)
        old = self._inherited
        if old is not None and old.gone and old.reclaim(is_alive):
            log.info("upgrade: arbiter %d has left", old.pid)
            self._inherited = None

    def _start(self, place: str, now: float) -> None:
        """Start the other workers when the first is ready; announce when all are."""
        ready = [self._state(index) == State.READY for index in self._workers]
        if self._due and now - self._started > self._settings.server.boot_timeout:
            log.error("there is no place in the shared memory for %d workers", self._seats)
            self._give_up(BootError.exit_code)
        elif not self._due and all(ready):
            if len(ready) < self._seats:
                self._due = dict.fromkeys(range(1, self._seats), now)
                return
            self._serving = True
            self._announce(place)
            if self._inherited is not None:
                self._inherited.say_ready()
                uds = self._settings.server.uds
                self._socket_file = None if uds is None else SocketFile(uds)

    # replacing workers

    def _begin_roll(self) -> None:
        what, version = "scaling", (self._settings, self._worker_main)
        again = self._reload_wanted
        self._reload_wanted = False
        if again:
            what = "reload"
            try:
                os.chdir(self._folder)  # a link to the latest release leads elsewhere by now
                if self._read is not None:
                    version = self._read(self._settings)
            except (FluxorError, OSError) as error:
                problems = "; ".join(str(error).splitlines())
                log.error("reload: %s; the old settings and workers stay", problems)
                return
            if version[0].server.worker_count != self._settings.server.worker_count:
                self._scale_to(version[0].server.worker_count)
            provide_descriptors(version[0].server.capacity.max_connections)
        now = self._occupied()
        before, self._seats = self._seats, self._wanted
        while not self._common and len(self._listeners) < self._seats:
            self._listeners.append(another(self._listeners[0]))
        wanted = [self._share(seat) for seat in range(self._seats)]
        self._roll = roll(what, now, wanted, all_=again)
        self._roll.before = before
        self._next = version
        log.info("%s: %d workers are to be started, one at a time", what, len(self._roll.seats))

    def _advance(self, roll: Roll) -> None:
        """Go on with a roll as far as that is possible now."""
        if roll.successor is not None:
            if self._state(roll.successor) != State.READY:
                return
            successor = self._workers[roll.successor]
            for worker in self._workers.values():
                if worker.seat == successor.seat and worker is not successor:
                    self._retire(worker)
            roll.seats.popleft()
            roll.successor = None
            roll.done += 1
        if roll.seats:
            roll.successor = self._spawn(roll.seats[0], self._next)
            if roll.successor is not None:
                self._due.pop(roll.seats[0], None)
            return  # without an index, one that drains must leave first
        for worker in self._workers.values():
            if worker.seat in roll.surplus:
                self._retire(worker)
        for seat in roll.surplus:
            self._due.pop(seat, None)
        assert self._next is not None
        self._settings, self._worker_main = self._next
        if roll.what == "reload":
            self._adapt_anew()
        self._roll = None
        log.info("%s: done, %d workers serve", roll.what, self._seats)

    def _end_roll(self, roll: Roll) -> None:
        """Stop a roll whose successor did not get ready."""
        self._roll = None
        self._seats = self._wanted = roll.before
        stay = len(self._occupied()) - roll.done
        log.error(
            "%s: stopped; %d old workers stay, %d new ones were ready before it failed; a worker"
            " that has to be replaced gets the old settings, and the application as it is now",
            roll.what,
            stay,
            roll.done,
        )

    def _retire(self, worker: _Worker) -> None:
        """Have a worker drain while the instance goes on."""
        if worker.leaving:
            return
        index = next(index for index, one in self._workers.items() if one is worker)
        worker.kill_at = time.monotonic() + self._settings.server.graceful_timeout + MARGIN
        # one that has not begun to serve has nothing to drain
        self._signal(worker, RETIRE if self._state(index) == State.READY else signal.SIGTERM)

    def _hand_over(self, successor: Successor) -> None:
        """Leave to the new arbiter what this one has, and drain."""
        log.info("upgrade: arbiter %d is ready; this one leaves", successor.pid)
        self._socket_file = None
        self._stop(self._settings.server.graceful_timeout + MARGIN, gently=True)

    # the adaptive limit

    def _adapt_anew(self) -> None:
        server = self._settings.server
        self._adaptive: AdaptiveLimit | None = None
        if server.adaptive:
            ceiling = server.capacity.normal
            floor = min(server.adaptive_floor, ceiling)
            self._adaptive = AdaptiveLimit(
                AdaptiveSettings(ceiling=ceiling, floor=floor), time.monotonic()
            )
        self._looked = (0.0, self._memory.totals())  # when last, and what it showed

    def _adapt(self, adaptive: AdaptiveLimit, now: float) -> None:
        """Publish the limit that fits what was seen since the last look."""
        then, before = self._looked
        if now - then < LOOK_SECONDS:
            return
        after = self._memory.totals()
        self._looked = (now, after)
        look = Look.between(before, after, sum(self._memory.permits))
        self._memory.limit[0] = adaptive.update(look, now)

    def _check_health(self, index: int, worker: _Worker, now: float) -> None:
        if worker.killed:
            return
        server = self._settings.server
        region = self._memory.region(index)
        if region[Word.STATE] == State.READY:
            silent = now - region[Word.HEARTBEAT] / 1e9
            if silent > server.heartbeat_timeout:
                worker.killed = f"had a silent event loop for {silent:.0f} s and was ended"
        elif (
            region[Word.STATE] in (State.ABSENT, State.BOOTING)
            and now - worker.started > server.boot_timeout
        ):
            worker.killed = f"was not ready after {server.boot_timeout:g} s and was ended"
        if worker.killed:
            self._signal(worker, signal.SIGKILL)

    # processes

    @staticmethod
    def _signal(worker: _Worker, number: signal.Signals) -> None:
        os.kill(worker.pid, number)  # not reaped yet, so the pid is still this worker's

    def _spawn(self, seat: int, version: tuple[Settings, WorkerMain] | None = None) -> int | None:
        """Start a worker; return its index, or None if there is none free."""
        index = self._memory.claim(os.getpid())
        if index is None:
            return None
        settings, worker_main = version or (self._settings, self._worker_main)
        listeners = self._share(seat)
        started = time.monotonic()

        def child() -> int:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the arbiter's
            for fd in (*self._wake, self._lifeline[1]):
                os.close(fd)
            for at, listener in enumerate(self._listeners):
                if at not in listeners:
                    listener.close()
            own = [self._listeners[at] for at in listeners]
            return worker_main(settings, self._memory, index, own, self._lifeline[0])

        pid = fork_with(child)
        self._workers[index] = _Worker(pid, seat, listeners, started)
        return index

    def _close_listeners(self) -> None:
        if self._socket_file is not None:
            self._socket_file.remove()
        for listener in self._listeners:
            listener.close()

    def _finish(self) -> int:
        return self._boot_code if self._boot_code is not None else self._exit_code
