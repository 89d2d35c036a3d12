"""The master process: binds, forks, watches, reaps, replaces, stops.

Rules:

1. One thread and no event loop, so forking is safe at any time. Signal handlers only enqueue
   (through a wake-up pipe); one select loop acts.
2. The first worker starts alone: what would fail in all of them is said once. If it cannot
   start, the arbiter halts with the worker's exit code.
3. A worker that leaves unasked is replaced: at once if it had lived a while, else after a delay
   that doubles (see ``breaker``, ``vacancies``). Its permits are free and its counters kept as soon
   as it is reaped. Once the first worker has been ready, no failing worker ends the instance.
4. A worker is ready or dead by what its own event loop wrote: ready when it says so, and ended
   by SIGKILL, its stacks in the log, when its heartbeat has been silent for
   ``heartbeat_timeout`` (see ``health``).
5. SIGTERM and SIGINT drain; workers that outlast the graceful timeout get SIGKILL; so do all
   at a second SIGINT or at SIGQUIT.
6. Workers are replaced one at a time, the successor ready first (see ``roll``). A new version
   that does not get ready is told in the log and ends the roll: what serves goes on serving. So
   are those that have come to a limit (see ``recycle``).
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
import signal
import socket
import time
from collections.abc import Callable, Sequence
from math import inf
from random import Random

from fluxor_fast.arbiter.adapting import Adapting
from fluxor_fast.arbiter.commands import Commands, Condition
from fluxor_fast.arbiter.control import Control
from fluxor_fast.arbiter.crew import MARGIN, Crew, Version, Worker
from fluxor_fast.arbiter.endings import OutOfMemoryKills, ending
from fluxor_fast.arbiter.orphans import reap_orphans
from fluxor_fast.arbiter.pidfile import PidFile
from fluxor_fast.arbiter.recycling import Recycling
from fluxor_fast.arbiter.reload import fixed
from fluxor_fast.arbiter.replacing import Replacing
from fluxor_fast.arbiter.roll import indexes_for, most_workers
from fluxor_fast.arbiter.shared import SharedMemory
from fluxor_fast.arbiter.sockets import (
    SocketFile,
    bind_listeners,
    bind_unix,
    inherit,
    place_of,
    provide_descriptors,
)
from fluxor_fast.arbiter.systemd import Notifier
from fluxor_fast.arbiter.upgrade import Inherited, Successor, home, is_alive
from fluxor_fast.arbiter.vacancies import Vacancies
from fluxor_fast.arbiter.watching import watch
from fluxor_fast.config import Settings
from fluxor_fast.errors import BootError
from fluxor_fast.observability.logs import follow, reopen

__all__ = ["Arbiter", "Version"]

log = logging.getLogger("fluxor_fast.arbiter")
TICK = 0.1  # seconds between two looks at the workers
REFRESH = 1.0  # seconds between two looks at files that workers inherit


class Arbiter:
    """The master of one instance.

    :param version: what the workers are started with.
    :param announce: called once with the place (``sockets.place_of``) when all workers are ready,
        or have failed after the first one was.
    :param reload: what reads the settings anew; without it SIGHUP only replaces the workers.
    :param inherited: what the arbiter has left that this one is to take the place of.
    :param notifier: tells systemd.
    :param also: sockets that listen already, to be served beside that of ``server.fd``.
    :param random: draws how many requests each worker may answer.
    """

    def __init__(
        self,
        version: Version,
        announce: Callable[[str], None] = lambda place: None,
        reload: Callable[[Version], Version] = lambda version: version,
        inherited: Inherited | None = None,
        notifier: Notifier | None = None,
        also: Sequence[socket.socket] = (),
        random: Random | None = None,
    ) -> None:
        self._notifier = notifier or Notifier()
        self._also = also
        self._announce = announce
        self._inherited = inherited
        self._folder = home()
        count = version.settings.server.worker_count
        accounts = version.settings.server.rate_limit_accounts
        self._memory = inherited.memory if inherited else SharedMemory(indexes_for(count), accounts)
        most = most_workers(self._memory.workers)
        self._replacing = Replacing(version, most, reload, self._folder)
        self._listeners = self._replacing.listeners
        self._crew = Crew(self._memory, self._listeners, random or Random())
        self._vacancies = Vacancies(self._crew, self._replacing)
        self._recycling = Recycling(self._crew, self._replacing)
        self._out_of_memory = OutOfMemoryKills()
        self._control = Control(Commands(self, self._crew, self._replacing, self._memory))
        self._crew.apart.append(self._control.close_copies)
        self._pid_file: PidFile | None = None
        self._socket_file: SocketFile | None = None
        self._successor: Successor | None = None
        self._refreshed = time.monotonic()
        self._serving = False  # all workers were ready once
        self._stopping = False
        self._reloading = False
        self._close_at = inf
        self._adapt_anew()
        self._exit_code = 0
        self._boot_code: int | None = None
        scale = self.scale
        self._actions: dict[int, tuple[str, Callable[[], object]]] = {
            signal.SIGTERM: ("stopping", self.stop),
            signal.SIGINT: ("stopping", self._interrupted),
            signal.SIGQUIT: ("stopping at once", self.end),
            signal.SIGHUP: ("reload", self.reload),
            signal.SIGUSR1: ("opening the log files anew", self.reopen_logs),
            signal.SIGUSR2: ("upgrade", self.upgrade),
            signal.SIGTTIN: ("one worker more", lambda: scale(self._replacing.wanted + 1)),
            signal.SIGTTOU: ("one worker less", lambda: scale(self._replacing.wanted - 1)),
            signal.SIGCHLD: ("", lambda: None),  # the loop reaps each time round
        }

    @property
    def _settings(self) -> Settings:
        return self._replacing.version.settings

    def run(self) -> int:
        """Serve until told to stop; return the exit code of the instance.

        :raises ListenError: if the address or the pid file cannot be had.
        :raises BootError: if the workers cannot start.
        """
        self._lock()
        try:
            return self._run()
        finally:
            if self._pid_file is not None:
                self._pid_file.remove()

    def _run(self) -> int:
        self._bind()
        place = place_of(self._listeners[0])
        provide_descriptors(self._settings.server.capacity.max_connections)
        wake = wake_in, wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        before = {number: signal.signal(number, lambda *_: None) for number in self._actions}
        signal.set_wakeup_fd(wake_out, warn_on_full_buffer=False)
        # what is loaded now is shared by all workers; an untouched object's page stays shared
        gc.collect()
        gc.freeze()
        self._started = time.monotonic()
        self._vacancies.due[0] = self._started
        try:
            while self._crew.workers or self._vacancies.due:
                self._look_after(place)
                self._control.wait(wake_in, self._pause())
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
            self._control.close(self._finish())
            for fd in (*wake, *self._crew.lifeline):
                os.close(fd)
            self._close_listeners()

    def _lock(self) -> None:
        path = self._settings.server.pid_file
        if self._inherited is None:
            self._pid_file = None if path is None else PidFile(path)
        elif self._inherited.pid_file is not None:
            self._pid_file = PidFile.adopt(self._inherited.pid_file)
        if self._pid_file is not None:
            self._crew.apart.append(self._pid_file.close)

    def _bind(self) -> None:
        server = self._settings.server
        if self._inherited is not None:
            self._listeners += self._inherited.listeners
        elif server.uds is not None:
            mode = int(server.uds_mode, 8)
            listeners, self._socket_file = bind_unix(server.uds, mode, 1, server.backlog)
            self._listeners += listeners
        elif server.fd is not None:
            self._listeners += [*inherit(server.fd, 1), *self._also]
        else:
            count = 1 if self._replacing.common else self._replacing.seats
            self._listeners += bind_listeners(server.host, server.port, count)
        mode = int(server.control_mode, 8)
        if self._inherited is not None and self._inherited.control is not None:
            self._control.adopt(self._inherited.control, mode)
        elif server.control is not None:
            self._control.listen(server.control, mode)

    # what signals ask for

    def _on_signal(self, number: int) -> None:
        what, action = self._actions[number]
        if what:
            log.info("%s: %s", signal.Signals(number).name, what)
        action()

    def stop(self) -> None:
        """Drain and leave."""
        self._back_out()
        if not self._stopping:
            server = self._settings.server
            self._stop(server.graceful_timeout + MARGIN, delay=server.drain_delay)

    def end(self) -> None:
        """End the workers and leave."""
        self._back_out()
        self._stop(0.0)

    def _interrupted(self) -> None:
        if self._stopping:
            self.end()
        else:
            self.stop()

    def reload(self) -> None:
        """Read the settings anew and replace the workers, one at a time."""
        self._notifier.reloading()
        self._reloading = True
        if self._goes_on("reload"):
            self._replacing.reload()

    def scale(self, workers: int) -> None:
        """Have so many workers, as far as that is allowed."""
        if self._goes_on("scaling"):
            self._replacing.scale(workers)

    def _goes_on(self, what: str) -> bool:
        if self._stopping or not self._serving:
            log.warning("no %s while the instance starts or stops", what)
            return False
        return True

    def reopen_logs(self) -> None:
        """Open the log files anew, in all workers too."""
        reopen()
        self._crew.reopen_logs()

    def upgrade(self) -> str:
        """Start a new arbiter on the same sockets; leave when it is ready.

        Return why that cannot be, if it cannot.
        """
        if reason := self._cannot_upgrade():
            log.error("no upgrade: %s", reason)
            return reason
        try:
            self._successor = Successor(
                self._memory,
                self._listeners,
                fixed(self._settings),
                self._folder,
                self._notifier.environment(),
                None if self._pid_file is None else self._pid_file.fileno(),
                self._control.fileno(),
            )
        except OSError as error:
            log.error("no upgrade: %s", error.strerror)
            return error.strerror or str(error)
        log.info("upgrade: arbiter %d is starting", self._successor.pid)
        return ""

    def _cannot_upgrade(self) -> str:
        if self._stopping or not self._serving:
            return "the instance starts or stops"
        if self._successor is not None:
            return f"arbiter {self._successor.pid} is starting already"
        if self._inherited is not None:
            return f"arbiter {self._inherited.pid} has not left yet"
        if self._replacing.roll is not None:
            return f"a {self._replacing.roll.what} is under way; try again when it is done"
        if self._settings.database.embedded is not None:
            return "the embedded database is this arbiter's, and would stop with it"
        if os.getpid() == 1:
            return "the container would end with its first process; replace the container"
        return ""

    def _back_out(self) -> None:
        """End a new arbiter that is not ready: it is the whole instance that stops."""
        successor = self._successor
        if successor is None or self._stopping:
            return
        if successor.look():  # it has just become ready: only this one stops
            self._hand_over(successor)
        else:
            os.kill(successor.pid, signal.SIGTERM)  # not reaped yet

    def _stop(self, seconds: float, *, delay: float = 0.0, gently: bool = False) -> None:
        """Drain; what is left after ``seconds`` is ended."""
        now = time.monotonic()
        self._stopping = True
        self._notifier.stopping()
        self._replacing.cancel()
        self._vacancies.due.clear()
        self._close_at = min(self._close_at, now + delay)
        # before a worker hears of it: who connects then is refused at once, not reset later
        self._close_if_due(now)
        self._crew.stop(now + delay + seconds, gently=gently)

    # the loop's work

    def _pause(self) -> float:
        busy = not self._serving or self._replacing.roll is not None or self._successor is not None
        times = (worker.kill_at for worker in self._crew.workers.values())
        due = min((self._close_at, *self._vacancies.due.values(), *times)) - time.monotonic()
        return max(0.0, min(0.02 if busy else TICK, due))

    def _reap(self) -> None:
        for index, worker in list(self._crew.workers.items()):
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                self._bury(index, worker, os.waitstatus_to_exitcode(status))
        if os.getpid() == 1:
            reap_orphans({worker.pid for worker in self._crew.workers.values()})
        successor = self._successor
        if successor is not None and (code := successor.left()) is not None:
            then = "nobody serves now" if successor.ready else "this one goes on"
            log.error("upgrade: arbiter %d left with code %d; %s", successor.pid, code, then)
            successor.close()
            self._successor = None

    def _bury(self, index: int, worker: Worker, code: int) -> None:
        """Deal with a worker that has left: free what it held, and replace it if need be."""
        stacks = self._crew.bury(index)
        if self._stopping:
            # SIGTERM ends only who has not begun to serve: that is as good
            if code not in (0, -signal.SIGTERM):
                self._exit_code = self._exit_code or 1
            return
        out_of_memory = self._out_of_memory.rose()
        how = worker.killed or ending(code, out_of_memory=out_of_memory)
        more = f"\n{stacks}" if stacks else ""
        if worker.leaving:
            if code not in (0, -signal.SIGTERM):
                log.warning("worker %d (pid %d), which drained, %s%s", index, worker.pid, how, more)
            return
        # an upgrade that does not go well is no upgrade: the old arbiter serves
        if not self._serving and (not self._vacancies.proved or self._inherited is not None):
            # exit codes of boot errors have been explained by the worker itself
            if code <= 0 and self._boot_code is None:
                log.error(
                    "worker %d (pid %d) %s before it was ready%s", index, worker.pid, how, more
                )
            self._give_up(code if code > 0 else BootError.exit_code)
            return
        now = time.monotonic()
        replacing, then = self._replacing, "others have its place"
        if replacing.roll is not None and replacing.roll.successor == index:
            then = "it was to succeed another"
            replacing.failed(self._crew)
            self._recycling.rest(now)
        if worker.seat < replacing.seats and worker.seat not in self._crew.occupied():
            then = self._vacancies.lost(worker, now, alone=self._successor is None)
        log.warning("worker %d (pid %d) %s; %s%s", index, worker.pid, how, then, more)

    def _give_up(self, code: int) -> None:
        if self._boot_code is None:
            self._boot_code = code
        self._stop(MARGIN)

    def _look_after(self, place: str) -> None:
        """Start what is due, end what hangs, notice what has become ready."""
        now = time.monotonic()
        self._notifier.tick(now, self._status)
        self._close_if_due(now)
        self._crew.end_overdue(now)
        follow(self._memory.level[0])
        if self._stopping:
            return
        if now - self._refreshed >= REFRESH:
            self._refreshed = now
            self._replacing.version.refresh()
        self._vacancies.fill(now)
        watch(self._crew, now)
        self._vacancies.look(now)
        if self._adapting is not None and self._successor is None:
            self._adapting.look(now)
        if not self._serving:
            self._start(place, now)
            return
        if self._successor is None and self._inherited is None:  # indexes are theirs, too
            self._recycling.look(now)
        if self._replacing.look(self._crew):
            self._adapt_anew()
        if self._reloading and not self._replacing.busy:  # done, or given up: that is in the log
            self._reloading = False
            self._notifier.ready()
        if self._successor is not None and self._successor.look():
            self._hand_over(self._successor)
        old = self._inherited
        if old is not None and old.gone and old.reclaim(is_alive):
            log.info("upgrade: arbiter %d has left", old.pid)
            self._inherited = None

    def _start(self, place: str, now: float) -> None:
        """Start the other workers when the first is ready; announce when all are."""
        seats, vacancies = self._replacing.seats, self._vacancies
        ready = [worker.ready is not None for worker in self._crew.workers.values()]
        if len(vacancies.tried) < (seats if vacancies.proved else 1):
            if now - self._started > self._settings.server.boot_timeout:
                log.error("there is no place in the shared memory for %d workers", seats)
                self._give_up(BootError.exit_code)
        elif not vacancies.proved and any(ready) and seats > 1:
            vacancies.proved = True
            vacancies.due |= dict.fromkeys(range(1, seats), now)
        # one that fails does not hold up the rest
        elif any(ready) and (vacancies.due or all(ready)):
            vacancies.proved = True
            self._serving = True
            self._notifier.ready()
            self._announce(place)
            if self._inherited is not None:
                if self._pid_file is not None:
                    self._pid_file.take()
                self._inherited.say_ready()
                server = self._settings.server
                self._socket_file = None if server.uds is None else SocketFile(server.uds)
                if server.control is not None:
                    self._control.take(server.control)

    def condition(self) -> Condition:
        """Return how the instance is, for who asks at the control socket."""
        successor, old = self._successor, self._inherited
        return Condition(
            self._state,
            self._status(),
            None if successor is None else (successor.pid, successor.look()),
            None if old is None else old.pid,
        )

    @property
    def _state(self) -> str:
        if self._stopping:
            return "draining"
        return "serving" if self._serving else "starting"

    def _status(self) -> str:
        """Return one line for ``systemctl status``."""
        state = self._state
        words = self._vacancies.word() if state == "serving" else state
        return (
            f"{words}, {sum(self._memory.connections)} connections,"
            f" {sum(self._memory.permits)} requests in the system"
        )

    def _hand_over(self, successor: Successor) -> None:
        """Leave to the new arbiter what this one has, and drain."""
        log.info("upgrade: arbiter %d is ready; this one leaves", successor.pid)
        self._socket_file = None
        self._control.hand_over()
        self._notifier.succeeded(successor.pid)
        self._notifier = Notifier()  # the other one speaks now
        self._stop(self._settings.server.graceful_timeout + MARGIN, gently=True)

    def _adapt_anew(self) -> None:
        server = self._settings.server
        self._adapting: Adapting | None = None
        self._memory.limit[0] = 0  # none adapted to: workers go by the static one
        if server.adaptive:
            self._adapting = Adapting(server, self._memory, time.monotonic())

    def _close_if_due(self, now: float) -> None:
        if now >= self._close_at:
            self._close_at = inf
            self._close_listeners()

    def _close_listeners(self) -> None:
        if self._socket_file is not None:
            self._socket_file.remove()
        for listener in self._listeners:
            listener.close()

    def _finish(self) -> int:
        return self._boot_code if self._boot_code is not None else self._exit_code
