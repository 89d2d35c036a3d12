"""Replacing workers while the instance serves: for a new version, or to have more or less.

The plan is ``roll``'s, the processes are ``crew``'s; here one follows the other. What is asked
for while a roll is under way is done in the next.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path

from fluxor_fast.arbiter.crew import Crew, Version
from fluxor_fast.arbiter.orders import Orders
from fluxor_fast.arbiter.roll import Listeners, Roll, plan, share
from fluxor_fast.arbiter.shared import State
from fluxor_fast.arbiter.sockets import another, provide_descriptors
from fluxor_fast.errors import FluxorError

__all__ = ["Replacing"]

log = logging.getLogger("fluxor_fast.arbiter")


class Replacing:
    """How many seats there are, what their workers run, and the roll under way.

    :param most: most workers that may serve.
    :param read: reads settings and application anew; a ``FluxorError`` if they cannot be used.
    :param folder: the current one of the arbiter, by the name it had at the start.
    """

    def __init__(
        self, version: Version, most: int, read: Callable[[Version], Version], folder: Path
    ) -> None:
        self.version = version
        self.seats = self.wanted = min(version.settings.server.worker_count, most)
        self.roll: Roll | None = None
        self.listeners: list[socket.socket] = []
        self.orders = Orders()
        self.most = most
        self._read = read
        self._folder = folder
        self._next = version
        self._reload = False
        self.scale(version.settings.server.worker_count)

    @property
    def common(self) -> bool:
        """Whether all workers have the same listeners."""
        server = self.version.settings.server
        return server.uds is not None or server.fd is not None or server.listener == "shared"

    @property
    def busy(self) -> bool:
        """Whether a roll is under way or asked for."""
        return self.roll is not None or self._reload or self.wanted != self.seats

    def share(self, seat: int) -> Listeners:
        """Return the listeners of a seat."""
        return share(seat, self.seats, len(self.listeners), common=self.common)

    def reload(self) -> None:
        """Have every worker replaced by one of the version that is there now."""
        self._reload = True
        self.orders.ask()

    def scale(self, workers: int) -> None:
        """Have so many workers, as far as that is allowed."""
        self.orders.ask()
        self.wanted = min(max(workers, 1), self.most)
        if self.wanted != workers:
            log.warning("%d workers are not to be had, 1 to %d are", workers, self.most)

    def recycle(self, seat: int) -> None:
        """Have the worker of a seat replaced by another one of the same version.

        To be called while nothing is under way or asked for.
        """
        self._next = self.version
        self.roll = Roll("recycling", deque([seat]), [], self.seats)

    def look(self, crew: Crew) -> bool:
        """Go on as far as that is possible now; return whether there is a new version since."""
        before = self.version
        if self.roll is None and (self._reload or self.wanted != self.seats):
            self._begin(crew)
        if self.roll is not None:
            self._advance(self.roll, crew)
        if self.orders.open and not self.busy:  # as many workers as there are
            self.orders.settle(everything=True)
        return self.version is not before

    def _begin(self, crew: Crew) -> None:
        everyone, self._reload = self._reload, False
        self._next = self.version
        try:
            if everyone:
                os.chdir(self._folder)  # a link to the latest release leads elsewhere by now
                self._next = self._read(self.version)
                workers = self._next.settings.server.worker_count
                if workers != self.version.settings.server.worker_count:
                    self.scale(workers)
                provide_descriptors(self._next.settings.server.capacity.max_connections)
            self.orders.take()
            while not self.common and len(self.listeners) < self.wanted:
                self.listeners.append(another(self.listeners[0]))
        except (FluxorError, OSError) as error:
            problems = "; ".join(str(error).splitlines())
            log.error("%s; settings and workers stay as they are", problems)
            self.wanted = self.seats
            self.orders.settle(problems, everything=True)
            return
        now, before, self.seats = crew.occupied(), self.seats, self.wanted
        wanted = [self.share(seat) for seat in range(self.seats)]
        what = "reload" if everyone else "scaling"
        self.roll = plan(what, now, wanted, before=before, everyone=everyone)
        log.info("%s: %d workers are to be started, one at a time", what, len(self.roll.seats))

    def _advance(self, roll: Roll, crew: Crew) -> None:
        if roll.successor is not None:
            if crew.state(roll.successor) != State.READY:
                return
            self._retire(crew, [roll.seats.popleft()], but=roll.successor)
            roll.successor = None
            roll.done += 1
        if roll.seats:
            seat = roll.seats[0]  # without a free index, one that drains must leave first
            try:
                roll.successor = crew.spawn(seat, self.share(seat), self._next)
            except OSError as error:
                log.error("a worker cannot be started: %s", error.strerror)
                self.failed(crew)
            return
        self._retire(crew, roll.surplus)
        if any(one.leaving and crew.state(at) == State.READY for at, one in crew.workers.items()):
            return  # it still accepts
        self.version, self.roll = self._next, None
        self.orders.settle()
        log.info("%s: done, %d workers serve", roll.what, self.seats)

    def _retire(self, crew: Crew, seats: list[int], but: int | None = None) -> None:
        for index, worker in crew.workers.items():
            if worker.seat in seats and index != but:
                crew.retire(index, self.version.settings.server.graceful_timeout)

    def failed(self, crew: Crew) -> None:
        """Take note that there is no successor, or that it did not get ready: the roll ends."""
        roll, self.roll = self.roll, None
        assert roll is not None
        stay = len(crew.occupied()) - roll.done
        self.seats = self.wanted = max(roll.before, len(crew.occupied()))
        self.orders.settle(
            f"{roll.what}: stopped; {stay} workers stay as they are, {roll.done} new ones were"
            " ready before; the log tells why",
            everything=not self._reload,
        )
        log.error(
            "%s: stopped; %d workers stay as they are, %d new ones were ready before; who has to be"
            " replaced from now on gets the old settings, and the application as it is then",
            roll.what,
            stay,
            roll.done,
        )

    def cancel(self) -> None:
        """Forget what is under way: the instance stops."""
        self.roll = None
        self._reload = False
        self.wanted = self.seats
        self.orders.settle("the instance stops", everything=True)
