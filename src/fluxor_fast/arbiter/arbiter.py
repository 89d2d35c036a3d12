"""The master process: binds, forks, watches, reaps, replaces, stops.

Rules:

1. One thread and no event loop, so forking is safe at any time. Signal handlers only enqueue
   (through a wake-up pipe); one select loop acts.
2. The first worker starts alone: what would fail in all of them is said once. If it cannot
   start, the arbiter halts with the worker's exit code.
3. A worker that leaves unasked is replaced: at once if it had lived a while, else after a delay
   that doubles (``breaker``). Its permits are free and its counters kept as soon as it is reaped.
   Once the first worker has been ready, no failing worker ends the instance.
4. A worker is ready or dead by what its own event loop wrote: ready when it says so, and ended
   by SIGKILL, its stacks in the log, when its heartbeat has been silent for ``heartbeat_timeout``
   (``health``).
5. SIGTERM and SIGINT drain; workers that outlast the graceful timeout get SIGKILL; so do all
   at a second SIGINT or at SIGQUIT.

========  =======================================================
signal    what the arbiter does
========  =======================================================
SIGTERM   drains and leaves
SIGINT    drains and leaves; the second one ends the workers
SIGQUIT   ends the workers and leaves
SIGCHLD   reaps, and replaces what died
========  =======================================================
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random

from fluxor_fast.arbiter.adaptive import AdaptiveLimit, AdaptiveSettings, Look
from fluxor_fast.arbiter.breaker import RETRY_SECONDS, Breaker
from fluxor_fast.arbiter.endings import OutOfMemoryKills, ending
from fluxor_fast.arbiter.health import Verdict, Watch
from fluxor_fast.arbiter.orphans import reap_orphans
from fluxor_fast.arbiter.pidfile import PidFile
from fluxor_fast.arbiter.pinning import core_of, cores_in_order, pin
from fluxor_fast.arbiter.recycle import Life, RecycleLimits, next_due, resident_bytes
from fluxor_fast.arbiter.shared import LOOK_SECONDS, SharedMemory, State, Word
from fluxor_fast.arbiter.sockets import (
    SocketFile,
    bind_listeners,
    bind_unix,
    inherit,
    place_of,
    provide_descriptors,
)
from fluxor_fast.arbiter.stacks import DUMP_SIGNAL, Stacks
from fluxor_fast.config import Settings
from fluxor_fast.errors import BootError

__all__ = ["Arbiter", "WorkerMain"]

log = logging.getLogger("fluxor_fast.arbiter")

WorkerMain = Callable[[Settings, SharedMemory, int, socket.socket, int], int]
"""Runs a worker in the child: settings, memory, index, listener, lifeline → exit code."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD)
TICK = 0.1  # seconds between two looks at the workers
WEIGH_SECONDS = 1.0  # between two looks at what workers have come to
MARGIN = 2.0  # seconds a worker gets beyond the graceful timeout to leave by itself


@dataclass(slots=True)
class _Worker:
    pid: int
    watch: Watch
    life: Life
    stacks: Stacks
    ready: float | None = None  # since when
    killed: str = ""  # why the arbiter ended it
    recycled: str = ""  # why it was told to leave
    kill_at: float = float("inf")

    def lived(self, now: float) -> float:
        """Return for how many seconds it has been ready, or was."""
        return 0.0 if self.ready is None else now - self.ready


class Arbiter:
    """The master of one instance.

    :param worker_main: what a worker process runs.
    :param announce: called once with the place (``sockets.place_of``) when all workers are ready,
        or have failed after the first one was.
    :param random: draws how many requests each worker may answer.
    """

    def __init__(
        self,
        settings: Settings,
        worker_main: WorkerMain,
        announce: Callable[[str], None] = lambda place: None,
        random: Random | None = None,
    ) -> None:
        self._settings = settings
        self._worker_main = worker_main
        self._announce = announce
        self._count = settings.server.worker_count
        self._memory = SharedMemory(self._count)
        self._workers: dict[int, _Worker] = {}
        self._due: dict[int, float] = {}  # index → when its worker is to be replaced
        self._breaker = Breaker()
        self._out_of_memory = OutOfMemoryKills()
        server = settings.server
        self._limits = RecycleLimits(
            server.max_requests,
            server.max_requests_jitter,
            server.max_worker_age,
            server.max_worker_memory,
        )
        self._random = random or Random()
        self._cores = cores_in_order(os.sched_getaffinity(0)) if server.pin else ()
        self._pid_file: PidFile | None = None
        self._listeners: list[socket.socket] = []
        self._socket_file: SocketFile | None = None
        self._proved = False  # the first worker was ready: the application can be served
        self._serving = False  # all workers were ready once
        self._stopping = False
        self._kill_at = float("inf")
        self._adaptive: AdaptiveLimit | None = None
        if settings.server.adaptive:
            ceiling = settings.server.capacity.normal
            floor = min(settings.server.adaptive_floor, ceiling)
            self._adaptive = AdaptiveLimit(
                AdaptiveSettings(ceiling=ceiling, floor=floor), time.monotonic()
            )
        self._weighed = 0.0  # when last
        self._looked = (0.0, self._memory.totals())  # when last, and what it showed
        self._exit_code = 0
        self._boot_code: int | None = None

    def run(self) -> int:
        """Serve until told to stop; return the exit code of the instance.

        :raises ListenError: if the address cannot be had.
        :raises BootError: if the workers cannot start.
        """
        server = self._settings.server
        if server.pid_file is not None:
            self._pid_file = PidFile(server.pid_file)
        try:
            return self._run()
        finally:
            if self._pid_file is not None:
                self._pid_file.remove()

    def _run(self) -> int:
        server = self._settings.server
        self._bind()
        place = place_of(self._listeners[0])
        provide_descriptors(server.capacity.max_connections)
        self._lifeline = os.pipe()
        wake_in, wake_out = os.pipe()
        os.set_blocking(wake_in, False)
        os.set_blocking(wake_out, False)
        self._wake = (wake_in, wake_out)
        before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        signal.set_wakeup_fd(wake_out, warn_on_full_buffer=False)
        # what is loaded now is shared by all workers; an untouched object's page stays shared
        gc.collect()
        gc.freeze()
        try:
            self._spawn(0)
            while self._workers or self._due:
                select.select([wake_in], [], [], self._pause())
                try:
                    for number in os.read(wake_in, 512):
                        self._on_signal(number)
                except BlockingIOError:
                    pass
                self._reap()
                self._look_after(place)
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
        if server.uds is not None:
            self._listeners, self._socket_file = bind_unix(
                server.uds, int(server.uds_mode, 8), self._count, server.backlog
            )
        elif server.fd is not None:
            self._listeners = inherit(server.fd, self._count)
        else:
            self._listeners = bind_listeners(
                server.host, server.port, self._count, shared=server.listener == "shared"
            )

    # signals

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            return
        log.info("%s: %s", signal.Signals(number).name, "stopping")
        if number == signal.SIGQUIT or (number == signal.SIGINT and self._stopping):
            self._stop(0.0)
        elif not self._stopping:
            self._stop(self._settings.server.graceful_timeout + MARGIN)

    def _stop(self, seconds: float) -> None:
        """Drain; what is left after ``seconds`` is ended."""
        self._stopping = True
        self._due.clear()
        self._close_listeners()
        self._kill_at = min(self._kill_at, time.monotonic() + seconds)
        if seconds > 0:
            for worker in self._workers.values():
                self._signal(worker, signal.SIGTERM)

    # the loop's work

    def _pause(self) -> float:
        due = min((*self._due.values(), self._kill_at)) - time.monotonic()
        return max(0.0, min(0.05 if not self._serving else TICK, due))

    def _reap(self) -> None:
        for index, worker in list(self._workers.items()):
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                self._bury(index, worker, os.waitstatus_to_exitcode(status))
        if os.getpid() == 1:
            reap_orphans({worker.pid for worker in self._workers.values()})

    def _bury(self, index: int, worker: _Worker, code: int) -> None:
        """Deal with a worker that has left: free what it held, and replace it if need be."""
        del self._workers[index]
        self._memory.fold(index)
        stacks = worker.stacks.read()  # of a fault, unless they have been asked for
        worker.stacks.close()
        if self._stopping:
            # SIGTERM ends only who has not begun to serve: that is as good
            if code not in (0, -signal.SIGTERM):
                self._exit_code = self._exit_code or 1
            return
        out_of_memory = self._out_of_memory.rose()
        how = worker.killed or ending(code, out_of_memory=out_of_memory)
        if not self._proved:
            # exit codes of boot errors have been explained by the worker itself
            if self._boot_code is None:
                self._boot_code = code if code > 0 else BootError.exit_code
                if code <= 0:
                    log.error("worker %d (pid %d) %s before it was ready", index, worker.pid, how)
            self._stop(MARGIN)
            return
        now = time.monotonic()
        if worker.recycled and code == 0:
            self._due[index] = now
            return
        delay, loops = self._breaker.died(index, worker.lived(now))
        log.warning(
            "worker %d (pid %d) %s; replaced %s%s",
            index,
            worker.pid,
            how,
            f"in {delay:.1f} s" if delay else "at once",
            f"\n{stacks}" if stacks else "",
        )
        if loops:
            log.error(
                "worker %d crash-loops: tried every %g s from now on; %s",
                index,
                delay,
                self._word(),
            )
            self._set_aside(index)
        if index in self._breaker.looping:
            self._memory.region(index)[Word.STATE] = State.FAILING
        self._due[index] = now + delay

    def _set_aside(self, index: int) -> None:
        """Have the kernel give no more connections to a listener that nobody accepts from.

        What waits in its queue is reset: it would wait for ever. The worker that makes it listens
        anew. A socket that all workers share is left alone.
        """
        server = self._settings.server
        if server.uds is None and server.fd is None and server.listener == "reuseport":
            with suppress(OSError):  # it has never listened
                self._listeners[index].shutdown(socket.SHUT_RDWR)

    def _word(self) -> str:
        """Return the state of the instance in a word, and what it means."""
        serving = sum(worker.ready is not None for worker in self._workers.values())
        return f"{self._breaker.word(serving)}: {serving} of {self._count} workers serve"

    def _look_after(self, place: str) -> None:
        """Start what is due, end what hangs, notice what has become ready."""
        now = time.monotonic()
        if now >= self._kill_at:
            for index, worker in self._workers.items():
                log.warning("worker %d (pid %d) outlasted its time: SIGKILL", index, worker.pid)
                self._signal(worker, signal.SIGKILL)
            self._kill_at = now + 1.0
        if self._stopping:
            return
        for index in [index for index, due in self._due.items() if due <= now]:
            del self._due[index]
            self._spawn(index)
        for index, worker in self._workers.items():
            self._check_health(index, worker, now)
        if self._adaptive is not None:
            self._adapt(self._adaptive, now)
        if self._limits.any_set and now - self._weighed >= WEIGH_SECONDS:
            self._weighed = now
            self._weigh(now)
        if not self._serving:
            self._get_going(place)

    def _get_going(self, place: str) -> None:
        """Start the other workers when the first one is ready; announce when all are."""
        if not self._proved:
            first = self._workers.get(0)
            if first is not None and first.ready is not None:
                self._proved = True
                for index in range(1, self._count):
                    self._spawn(index)
            return
        ready = [worker.ready is not None for worker in self._workers.values()]
        if any(ready) and (self._due or all(ready)):  # one that fails does not hold up the rest
            self._serving = True
            self._announce(place)

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
        region = self._memory.region(index)
        state = region[Word.STATE]
        if worker.ready is None and state == State.READY:
            worker.ready = now
        if self._breaker.looping and self._breaker.lives(index, worker.lived(now)):
            log.warning("worker %d (pid %d) lives again; %s", index, worker.pid, self._word())
        verdict = worker.watch.look(now, state, region[Word.HEARTBEAT], worker.stacks.size)
        if verdict is Verdict.ASK:
            self._signal(worker, DUMP_SIGNAL)
        elif verdict is Verdict.END:
            self._end(index, worker, worker.watch.reason)
        elif now >= worker.kill_at:
            self._end(index, worker, "outlasted the graceful timeout")

    def _end(self, index: int, worker: _Worker, why: str) -> None:
        stacks = worker.stacks.read()
        asked = f"\n{stacks}" if stacks else ""
        log.error("worker %d (pid %d) %s: SIGKILL%s", index, worker.pid, why, asked)
        worker.killed = f"{why} and was ended"
        self._signal(worker, signal.SIGKILL)

    def _weigh(self, now: float) -> None:
        """Recycle a worker that has come to a limit."""
        ready = len(self._workers) == self._count and all(
            self._memory.region(index)[Word.STATE] == State.READY for index in self._workers
        )
        due = next_due(
            ((index, self._over(index, worker, now)) for index, worker in self._workers.items()),
            all_ready=ready,
        )
        if due is not None:
            self._recycle(*due)

    def _over(self, index: int, worker: _Worker, now: float) -> str:
        region = self._memory.region(index)
        done = region[Word.COMPLETED] + region[Word.ABORTED]
        resident = resident_bytes(worker.pid) if self._limits.memory else 0
        return worker.life.over(now, done, resident)

    def _recycle(self, index: int, reason: str) -> None:
        """Replace a worker that is well: it drains, and another one takes its place."""
        worker = self._workers[index]
        log.info("worker %d (pid %d) is recycled: %s", index, worker.pid, reason)
        worker.recycled = reason
        worker.kill_at = time.monotonic() + self._settings.server.graceful_timeout + MARGIN
        self._signal(worker, signal.SIGTERM)

    # processes

    @staticmethod
    def _signal(worker: _Worker, number: signal.Signals) -> None:
        os.kill(worker.pid, number)  # not reaped yet, so the pid is still this worker's

    def _spawn(self, index: int) -> None:
        started = time.monotonic()
        server = self._settings.server
        watch = Watch(started, server.heartbeat_timeout, server.boot_timeout)
        life = Life.begin(self._limits, started, self._random)
        stacks = Stacks()
        self._memory.region(index)[Word.STATE] = State.ABSENT
        sys.stdout.flush()
        sys.stderr.flush()
        # a signal that came to the child before its handlers are its own would be lost there, and
        # go through the wake-up pipe, which is shared, to the arbiter
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            pid = os.fork()
        except OSError as error:  # too many processes, or too little memory: that may pass
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            stacks.close()
            if not self._proved:
                raise BootError(f"cannot start a worker: {error.strerror}") from error
            log.error("worker %d cannot be started: %s; tried again", index, error.strerror)
            self._due[index] = started + RETRY_SECONDS
            return
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            self._workers[index] = _Worker(pid, watch, life, stacks)
            return
        code = 1
        try:
            code = self._child(index, stacks)
        except BaseException:
            log.exception("worker %d failed", index)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # the arbiter's own exit handlers are not the child's

    def _child(self, index: int, stacks: Stacks) -> int:
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the arbiter
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        stacks.register()
        if self._pid_file is not None:
            self._pid_file.close()
        if self._cores:
            core = core_of(index, self._cores)
            if why := pin(core):
                log.warning("worker %d cannot be pinned to core %d: %s", index, core, why)
        for worker in self._workers.values():
            worker.stacks.close()
        for fd in (*self._wake, self._lifeline[1]):
            os.close(fd)
        for at, listener in enumerate(self._listeners):
            if at != index:
                listener.close()
        return self._worker_main(
            self._settings, self._memory, index, self._listeners[index], self._lifeline[0]
        )

    def _close_listeners(self) -> None:
        if self._socket_file is not None:
            self._socket_file.remove()
        for listener in self._listeners:
            listener.close()

    def _finish(self) -> int:
        return self._boot_code if self._boot_code is not None else self._exit_code
