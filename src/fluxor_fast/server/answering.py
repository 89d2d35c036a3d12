"""Answers out of a connection, in the order of their requests.

Rules:

1. While one request is in progress it is ``current``, and its answer is written directly, by
   ``deliver`` or by the batch's short way; with more, all stand in ``order`` and an answer waits
   for those before it. An ``order`` of one tells the batch that something is to follow its answer.
2. The answers that a turn has made ready are written in one go, at its end.
3. While the client does not take in what it is sent, the socket is not read either.
4. The permit of an answer that is held (see ``batch``) is given back when the transport says that
   its buffer is below the mark, and at the latest when the connection is lost.
5. A full buffer must be taken in at a rate, and be below its mark in a time (see ``stalled``).
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque

from fluxor_fast.http.request import Request, Watcher
from fluxor_fast.server.common import Service
from fluxor_fast.server.connection import Connection
from fluxor_fast.server.streaming import GRACE

__all__ = ["Answered", "Answering"]


class Answered(Request):
    """A place in the order for an answer that needs no request; it is the last."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.queued = self.permit = False


class Answering(Connection):
    """The part of a connection's protocol object that sends answers."""

    __slots__ = (
        "_kept",
        "_out",
        "_since_write",
        "_unsent",
        "answer",
        "current",
        "order",
        "streams",
        "write_paused",
    )

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self.current: Request | None = None
        self.order: deque[Request] | None = None
        self.streams: tuple[Watcher, ...] = ()  # what comes or leaves in pieces
        self.write_paused = False
        self._out: list[bytes] = []  # in order, to be written in one go
        self.answer = service.runner.answer
        self._kept = 0  # permits of answers that the client has not taken in
        self._since_write = service.runner.tick  # when the buffer was full
        self._unsent = 0  # bytes to be taken in since then

    def deliver(self, request: Request, answer: bytes) -> None:
        """Send the answer of ``request`` when all before it have left."""
        order = self.order
        self.since = self.runner.tick
        if order is None:
            self.current = None
            self.transport.write(answer)
            self._answered(request)
            return
        if order[0] is not request:
            request.answer = answer
            return
        last = order.popleft()
        out = self._out
        first = not out
        out.append(answer)
        while order and order[0].answer is not None:
            last = order.popleft()
            out.append(last.answer)  # type: ignore[arg-type]
        if not order:
            self.flush()  # now: without an order, the next answer is written directly
            self.order = None
            self.current = None
            self._answered(last)
            return
        if first:
            self.runner.outbox.append(self)
            self.runner.schedule()
        if self.paused and len(order) <= self.service.max_pipeline // 2:
            self.go_on()

    @abstractmethod
    def _answered(self, last: Request) -> None:
        """Go on after the last answer that was owed, that of ``last``."""

    def _go_the_long_way(self) -> None:
        """Have the batch deliver the answer through ``deliver``: something is to follow it."""
        if self.order is None and self.current is not None:
            self.order = deque((self.current,))

    def flush(self) -> None:
        """Write the answers collected in this turn as one."""
        out = self._out
        if out and not self.closed:
            answers = out[0] if len(out) == 1 else b"".join(out)
            if self.write_paused:
                self._unsent += len(answers)
            self.transport.write(answers)
            if self._kept:
                self._release_soon()
        out.clear()
        for stream in self.streams:  # its turn may have come
            stream.wake()

    @property
    def front(self) -> Request | None:
        """The request whose answer is the next to leave; None while others' are on the way."""
        if self._out:
            return None
        return self.order[0] if self.order else self.current

    # what the client takes in

    def bound_buffer(self, high: int | None) -> None:
        """Have the transport tell of a full buffer from ``high`` bytes on; None: as always."""
        if not self.transport.is_closing():
            self.transport.set_write_buffer_limits(high=high)

    def pause_writing(self) -> None:
        """Stop reading while the client does not take in its answers."""
        self.write_paused = True
        self._since_write = self.runner.tick
        self._unsent = self.unsent()
        self._go_the_long_way()  # what is still to come is counted by ``flush``
        self._pause()

    def resume_writing(self) -> None:
        """Go on reading."""
        self.write_paused = False
        if self._closing:  # what is left has its own time to leave
            self.since = self.runner.tick
        self._release_if_sent()
        self.go_on()
        for stream in self.streams:
            stream.wake()

    def stalled(self, tick: int) -> bool:
        """Whether the client takes too long to take in what it was sent, or takes too little."""
        timeouts = self.service.timeouts
        waited = tick - self._since_write
        return waited > timeouts.write or (
            waited > GRACE
            and timeouts.write_rate > 0
            and self._unsent - self.unsent() < timeouts.write_rate * waited
        )

    def hold(self) -> None:
        """Keep the permit of a request until the client has taken in its answer.

        Its ``permit`` stays set, which tells here that an answer is held that has not left.
        """
        self._kept += 1
        self._release_soon()

    def _release_soon(self) -> None:
        # the transport tells at the end of this turn whether it could not send all
        asyncio.get_running_loop().call_soon(self._release_if_sent)

    def _release_if_sent(self) -> None:
        if self._kept and not self.write_paused:
            left = sum(r.permit for r in self.order or () if r.answer is not None)
            kept, self._kept = self._kept, left
            self.runner.taken(kept - left)

    def _release_kept(self) -> None:
        if self._kept:
            kept, self._kept = self._kept, 0
            self.runner.taken(kept)

    # what requests ask

    def watch(self, watcher: Watcher) -> None:
        """Tell ``watcher`` how it goes on."""
        self.streams += (watcher,)

    def unwatch(self, watcher: Watcher) -> None:
        """Tell it no more."""
        self.streams = tuple(one for one in self.streams if one is not watcher)
