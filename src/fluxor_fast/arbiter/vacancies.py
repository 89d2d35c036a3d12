"""The seats that wait for a worker: when each one is tried, and what becomes of its listeners.

Rules:

1. When a worker was lost, ``breaker`` says how soon its seat is filled again.
2. The first worker of an instance proves that the application can be served. Until then a process
   that cannot be forked is an error of the start; afterwards it is tried again.
3. Listeners of a seat that crash-loops, and that nobody else has, are *set aside*: the kernel
   gives them no more connections, and resets what waits there, as it would wait for long. The
   worker that is ready next listens anew. Where others accept from them, they are left alone.
"""

from __future__ import annotations

import logging
import socket

from fluxor_fast.arbiter.breaker import RETRY_SECONDS, Breaker
from fluxor_fast.arbiter.crew import Crew, Worker
from fluxor_fast.arbiter.replacing import Replacing
from fluxor_fast.errors import BootError

__all__ = ["Vacancies"]

log = logging.getLogger("fluxor_fast.arbiter")
NO_INDEX_SECONDS = 0.1  # until it is tried again to get one


class Vacancies:
    """Fills the seats of ``crew``, as many as ``replacing`` has."""

    def __init__(self, crew: Crew, replacing: Replacing) -> None:
        self.due: dict[int, float] = {}
        """Seat → when it is to be filled."""
        self.tried: set[int] = set()
        """Seats that have had a worker, or would have but for the kernel."""
        self.proved = False
        """The first worker was ready."""
        self._crew = crew
        self._replacing = replacing
        self._breaker = Breaker()

    def fill(self, now: float) -> None:
        """Start what is due.

        :raises BootError: if the first worker cannot be forked.
        """
        replacing = self._replacing
        occupied = self._crew.occupied()
        for seat in [seat for seat, due in self.due.items() if due <= now]:
            del self.due[seat]
            if seat >= replacing.seats:  # it is no more
                self._breaker.forget(seat)
                self._crew.unmark(seat)
            elif seat not in occupied:  # else a roll has put a worker there
                self._spawn(seat, now)

    def _spawn(self, seat: int, now: float) -> None:
        share, version = self._replacing.share(seat), self._replacing.version
        try:
            if self._crew.spawn(seat, share, version) is None:
                self.due[seat] = now + NO_INDEX_SECONDS
                return
        except OSError as error:
            if not self.proved:
                raise BootError(f"cannot start a worker: {error.strerror}") from error
            log.error("a worker cannot be started: %s; tried again", error.strerror)
            self.due[seat] = now + RETRY_SECONDS
        self.tried.add(seat)

    def lost(self, worker: Worker, now: float, *, alone: bool) -> str:
        """Have the seat of a worker that has been buried filled again; return when, in words.

        :param alone: no other arbiter serves on the same sockets.
        """
        seat = worker.seat
        delay, begins = self._breaker.died(seat, worker.lived(now))
        self.due[seat] = now + delay
        if seat in self._breaker.looping:
            self._crew.mark_failing(seat)
            if alone and not self._replacing.common:
                self._set_aside(worker)
        if begins:
            log.error(
                "the worker of seat %d crash-loops: tried every %g s from now on; %s",
                seat,
                delay,
                self.word(),
            )
        return f"replaced in {delay:.1f} s" if delay else "replaced at once"

    def _set_aside(self, worker: Worker) -> None:
        others = {at for listeners in self._crew.occupied().values() for at in listeners}
        for at in set(worker.listeners) - others:
            listener = self._replacing.listeners[at]
            # one that does not listen would be marked as shut down all the same, and its
            # connections with it when it listens again
            if listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                listener.shutdown(socket.SHUT_RDWR)

    def look(self, now: float) -> None:
        """Notice who lives again."""
        for index, worker in self._crew.workers.items() if self._breaker.looping else ():
            if not worker.leaving and self._breaker.lives(worker.seat, worker.lived(now)):
                log.warning("worker %d (pid %d) lives again; %s", index, worker.pid, self.word())

    def word(self) -> str:
        """Return the state of the instance in a word, and what it means."""
        serving = self._crew.serving()
        word = self._breaker.word(serving)
        return f"{word}: {serving} of {self._replacing.seats} workers serve"
