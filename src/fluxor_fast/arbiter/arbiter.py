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
from dataclasses import dataclass, field

from fluxor_fast.arbiter.adaptive import AdaptiveLimit, AdaptiveSettings, Look
from fluxor_fast.arbiter.shared import LOOK_SECONDS, SharedMemory, State, Word
from fluxor_fast.arbiter.sockets import (
    SocketFile,
    bind_listeners,
    bind_unix,
    inherit,
    place_of,
    provide_descriptors,
)
from fluxor_fast.arbiter.systemd import Notifier
from fluxor_fast.config import Settings
from fluxor_fast.errors import BootError

__all__ = ["Arbiter", "Backoff", "WorkerMain"]

log = logging.getLogger("fluxor_fast.arbiter")

WorkerMain = Callable[[Settings, SharedMemory, int, socket.socket, int], int]
"""Runs a worker in the child: settings, memory, index, listener, lifeline → exit code."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD)
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
    started: float
    killed: str = ""  # why the arbiter ended it


class Arbiter:
    """The master of one instance.

    :param worker_main: what a worker process runs.
    :param announce: called once with the place (``sockets.place_of``) when all workers are ready.
    :param notifier: tells systemd.
    """

    def __init__(
        self,
        settings: Settings,
        worker_main: WorkerMain,
        announce: Callable[[str], None] = lambda place: None,
        notifier: Notifier | None = None,
    ) -> None:
        self._notifier = notifier or Notifier()
        self._settings = settings
        self._worker_main = worker_main
        self._announce = announce
        self._count = settings.server.worker_count
        self._memory = SharedMemory(self._count)
        self._workers: dict[int, _Worker] = {}
        self._due: dict[int, float] = {}  # index → when its worker is to be replaced
        self._backoff = [Backoff() for _ in range(self._count)]
        self._listeners: list[socket.socket] = []
        self._socket_file: SocketFile | None = None
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
        self._looked = (0.0, self._memory.totals())  # when last, and what it showed
        self._exit_code = 0
        self._boot_code: int | None = None

    def run(self) -> int:
        """Serve until told to stop; return the exit code of the instance.

        :raises ListenError: if the address cannot be had.
        :raises BootError: if the workers cannot start.
        """
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
        self._notifier.stopping()
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
        if not self._serving:
            # exit codes of boot errors have been explained by the worker itself
            if self._boot_code is None:
                self._boot_code = code if code > 0 else BootError.exit_code
                if code <= 0:
                    log.error("worker %d (pid %d) %s before it was ready", index, worker.pid, how)
            self._stop(MARGIN)
            return
        now = time.monotonic()
        delay = self._backoff[index].after(now - worker.started)
        log.warning(
            "worker %d (pid %d) %s; replaced %s",
            index,
            worker.pid,
            how,
            f"in {delay:.1f} s" if delay else "at once",
        )
        self._due[index] = now + delay

    def _look_after(self, place: str) -> None:
        """Start what is due, end what hangs, notice what has become ready."""
        now = time.monotonic()
        self._notifier.tick(now, self._status)
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
        if not self._serving:
            ready = [self._memory.region(i)[Word.STATE] == State.READY for i in self._workers]
            if all(ready):
                if len(ready) == self._count:
                    self._serving = True
                    self._notifier.ready()
                    self._announce(place)
                else:
                    for index in range(1, self._count):
                        self._spawn(index)

    def _status(self) -> str:
        """Return one line for ``systemctl status``."""
        ready = sum(self._memory.region(i)[Word.STATE] == State.READY for i in self._workers)
        word = "draining" if self._stopping else "serving" if self._serving else "starting"
        return (
            f"{word}: {ready} of {self._count} workers ready,"
            f" {sum(self._memory.connections)} connections,"
            f" {sum(self._memory.permits)} requests in the system"
        )

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

    def _spawn(self, index: int) -> None:
        started = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            self._workers[index] = _Worker(pid, started)
            return
        code = 1
        try:
            code = self._child(index)
        except BaseException:
            log.exception("worker %d failed", index)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # the arbiter's own exit handlers are not the child's

    def _child(self, index: int) -> int:
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the arbiter
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
