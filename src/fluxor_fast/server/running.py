"""Coroutines and blocking functions: they wait for a slot, and then run as tasks.

Rules:

1. A request that waits for something takes a slot of the instance, first in, first out. One on an
   exempt route takes none, nor does a synchronous one whose answer sends its body itself.
2. While others wait for slots too, a worker takes no more than its share of them.
3. An answer that sends its body itself keeps permit and slot (but see ``BodySender.keeps_slot``)
   until its last byte has left; its time is that to the first. But one that waits for others on
   its connection keeps no slot: it would hold it for as long as the client likes, and as many as
   may be pipelined.
4. Whatever ends a task gives its slot back: an answer, an exception, being cancelled.
5. A coroutine function that has its answer already (``Route.at_once``) has it sent without a task.
6. Coroutines begin in groups: the tasks of all are made, then all run to where they first wait,
   then the answers of those that are done leave, made when their handlers returned. Taking turns,
   each of the three would find its code gone from the processor's caches (ADR 16).
7. An answer that upgrades gives its slot back with its head, and keeps the permit until its
   conversation is over: an open WebSocket is a user, and mostly waits. Its time is that to the
   head.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from concurrent.futures import Executor
from contextvars import copy_context
from time import monotonic
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

from fluxor_fast.http.request import CURRENT, Request
from fluxor_fast.http.response import Json, Response, encode_ready
from fluxor_fast.http.streaming import BodySender
from fluxor_fast.http.upgrade import Upgrade
from fluxor_fast.routing import Kind, Route
from fluxor_fast.server.admission import SharedLimit, Thresholds
from fluxor_fast.server.eager import begin, made
from fluxor_fast.server.leaving import LARGE, Leaving
from fluxor_fast.server.queueing import WaitingQueue
from fluxor_fast.server.streaming import AnswerWriter, is_cancelled

if TYPE_CHECKING:
    from fluxor_fast.server.protocol import HttpProtocol

__all__ = ["Running"]

ASYNC, BLOCKING = Kind.ASYNC, Kind.BLOCKING
GROUP: Final = 64
"""Coroutines that begin together."""


class Running(Leaving):
    """The part of a worker's runner that has handlers wait for a slot and run as tasks.

    :param slots: one per running request that waits for something.
    :param thresholds: how many there are, among others.
    :param waiting: the queue of those in want of one.
    :param claims: one word per worker, this one's at ``index``: requests waiting for a slot.
    :param threads: where blocking functions run.

    The others are those of ``Leaving``.
    """

    __slots__ = (
        "_answers",
        "_claimed",
        "_claims",
        "_context",
        "_dismissed",
        "_freed",
        "_grouped",
        "_index",
        "_starting",
        "_tasks",
        "_upgraded",
        "_waiting",
        "slots",
        "threads",
        "thresholds",
    )

    def __init__(
        self,
        *,
        slots: SharedLimit,
        thresholds: Thresholds,
        waiting: WaitingQueue,
        claims: memoryview[int],
        index: int,
        threads: Executor,
        limit: SharedLimit,
        routes: dict[Route, SharedLimit],
        region: memoryview[int],
        pause: float,
        ids: Iterator[bytes],
    ) -> None:
        super().__init__(limit=limit, routes=routes, region=region, pause=pause, ids=ids)
        self.slots = slots
        self.thresholds = thresholds
        self.threads = threads
        self._waiting = waiting
        self._claims = claims
        self._index = index
        self._claimed = 0  # what this worker's word among the claims says
        self._tasks: set[asyncio.Task[None]] = set()
        self._context = copy_context()  # of no request: turns and tasks begin in copies of it
        self._starting = False  # coroutines begin, in the turn
        self._freed = 0  # …and so many have given their slots back
        self._grouped = False  # a group of them runs
        self._answers: list[tuple[Request, int, bytes]] = []  # …and these are to leave
        self._upgraded: set[Upgrade] = set()  # what speaks another protocol
        self._dismissed = 0  # …is told this, once the worker stops

    def _start(self, now: float) -> None:
        """Start what slots allow, first in, first out (but see ``queueing``).

        In a context of its own: that of the turn has what plain functions have set in it.
        """
        waiting = self._waiting
        for request, reason in waiting.overdue(now):
            self._let_go(request, reason)
        taken: list[Request] = []
        wanted = self._fair(len(waiting))
        if wanted > 0:
            taken = waiting.take(self.slots.acquire(wanted, self.thresholds.slots))
            group: list[Request] = []  # coroutines
            known: list[Request] = []  # their answers are, mostly
            left = iter(taken)
            self._starting = True
            try:
                for request in left:
                    if request.head.route.at_once is None:
                        group.append(request)
                        if known:  # who came first begins first
                            self._try(known)
                        if len(group) == GROUP:
                            self._begin(group)
                    else:
                        known.append(request)
                        if group:
                            self._begin(group)
                if known:
                    self._try(known)
                if group:
                    self._begin(group)
            except BaseException:  # it ends the loop, or should: who has not begun waits on
                rest = [*known, *group, *left]
                del taken[len(taken) - len(rest) :]
                waiting.put_back(rest)
                self._freed += len(rest)
                raise
            finally:
                self._starting = False
                if self._answers:
                    self._leave_all()
                self.counters.accepted += len(taken)
                if self._freed:
                    self.slots.release(self._freed)
                    self._freed = 0
                    if waiting.requests:
                        self.schedule()
        waiting.served(len(taken), now)
        self._claimed = self._claims[self._index] = len(waiting)

    def _fair(self, wanted: int) -> int:
        """Return how many slots to ask for: while others wait too, no more than a share in all.

        So a worker that never stops asking cannot keep the others out for longer than its
        handlers run.
        """
        claims = self._claims.tolist()
        claims[self._index] = wanted
        claimants = sum(claim > 0 for claim in claims)
        if claimants < 2:
            return wanted
        share = -(-self.thresholds.slots // claimants)  # rounded up: no slot stays idle
        return min(wanted, share - self.slots.held)

    def _try(self, requests: list[Request]) -> None:
        """Answer each, if its answer is known; else have a task find it out."""
        next_id, block = self._next_id, self.block
        keep = not self.draining
        for request in requests:
            head = request.head
            rid = request.rid = head.request_id or next_id()
            CURRENT.set(request)  # of this context, which is of no request
            context = copy_context()
            try:
                value = context.run(head.route.at_once, request)  # type: ignore[arg-type]
                kind = type(value)
                if kind is Json and keep and head.plain:  # the commonest, as ``_encoded`` has it
                    status = 200
                    lines = request.fields if head.route.wrapped else b""
                    answer = encode_ready(value, block, rid, lines)
                elif kind is CoroutineType:
                    context.run(self._launch, request, value)
                    continue
                else:
                    found = self._encoded(request, value)
                    if type(found) is not tuple:
                        context.run(self._launch, request, _known(found))  # type: ignore[arg-type]
                        continue
                    status, answer = found
            except (Exception, asyncio.CancelledError) as error:
                status, answer = self._failure(request, error)
            except BaseException:
                del requests[: requests.index(request) + 1]
                request.connection.abort()  # type: ignore[attr-defined]
                self._abort(request)
                self._freed += 1
                raise
            self._answers.append((request, status, answer))
            self._freed += 1
        requests.clear()

    def _begin(self, group: list[Request]) -> None:
        """Run coroutines as tasks to where they first wait; then let those go that are done."""
        if len(group) == 1:
            self._launch(group.pop())
            return
        loop = asyncio.get_running_loop()
        tasks, steps = made(loop, [self._serve(request) for request in group])
        left = iter(steps)
        self._grouped = True
        try:
            for step, context in left:
                context.run(step)
        finally:
            self._grouped = False
            for step, context in left:  # the one before has raised what ends the loop
                loop.call_soon(step, context=context)
            for task, request in zip(tasks, group, strict=True):
                if not task.done():
                    self._keep(task)
                elif task.cancelled() and not hasattr(request, "rid"):  # before it began
                    request.connection.abort()  # type: ignore[attr-defined]
                    self._abort(request)
                    self._freed += 1
            group.clear()
            if self._answers:
                self._leave_all()

    def _leave_all(self) -> None:
        """Send the answers that are ready; those that can, the short way, as the batch does."""
        answers, self._answers = self._answers, []
        tick = self.tick
        keep = not self.draining
        counters = self.counters
        now = monotonic()
        stamp = 0.0
        same = done = permits = 0
        for request, status, answer in answers:
            connection: HttpProtocol = request.connection  # type: ignore[assignment]
            if not (
                status < 300
                and connection.order is None
                and len(answer) < LARGE
                and request.head.direct
                and keep
            ):
                self._leave(request, status, answer, now)
                continue
            connection.pause = 0.0
            connection.current = None
            connection.since = tick
            connection.transport.write(answer)
            done += 1
            permits += request.permit
            request.permit = False
            if request.arrived is not stamp:
                counters.observe(now - stamp, same)
                stamp = request.arrived
                same = 0
            same += 1
        counters.observe(now - stamp, same)
        counters.responses[2] += done
        counters.completed += done
        if permits:
            self.limit.release(permits)

    def _launch(
        self,
        request: Request,
        value: Response | Coroutine[Any, Any, Any] | None = None,
    ) -> None:
        task = begin(asyncio.get_running_loop(), self._serve(request, value))
        if not task.done():
            self._keep(task)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, request: Request, value: Any = None) -> None:
        """Run a coroutine or blocking handler and answer.

        :param value: a coroutine of the answer, if the handler was called already; or what a
            synchronous one answered, if it sends its body itself: that needs a task, but no slot.
        """
        CURRENT.set(request)  # of this task alone
        connection: HttpProtocol = request.connection  # type: ignore[assignment]
        slot = request.permit
        began = 0.0
        answer: bytes | None
        try:
            if value is None or type(value) is CoroutineType:
                if value is not None:
                    value = await value
                else:
                    head = request.head
                    request.rid = head.request_id or self._next_id()
                    route = head.route
                    if route.kind is ASYNC:
                        value = await route.call(request)
                    elif route.kind is BLOCKING:
                        loop = asyncio.get_running_loop()
                        run = copy_context().run
                        value = await loop.run_in_executor(self.threads, run, route.call, request)
                    else:
                        value = route.call(request)
                if isinstance(value, Response) and value.answered:  # by ``answer``
                    if slot and self._starting:  # the commonest, as ``_free`` has it
                        self._freed += 1
                    else:
                        if slot:
                            self._free()
                        self._served()
                    return
            else:
                slot = False
            found = self._encoded(request, value)
            if type(found) is not tuple and self._answers:  # what was before it leaves before it
                self._leave_all()
            if type(found) is tuple:
                status, answer = found
            elif isinstance(found, BodySender):
                status = found.status
                order = connection.order
                if slot and (not found.keeps_slot or (order and order[0] is not request)):
                    slot = False
                    self._free()
                    self.schedule()
                writer = AnswerWriter(request, found)
                block = self._block_for(request, found)
                answer = await writer.run(block, self._connection_line(request))
                began = writer.began
            else:
                if slot:
                    slot = False
                    self._free()
                await self._switch(request, found)  # type: ignore[arg-type]
                self.schedule()
                return
        except BaseException as error:
            if is_cancelled(error) or not isinstance(error, Exception | asyncio.CancelledError):
                if slot:
                    self._free()
                connection.abort()
                self._abort(request)
                raise
            status, answer = self._failure(request, error)
        if slot:
            self._free()
        if answer is None:
            self._abort(request)
        elif self._grouped:
            self._answers.append((request, status, answer))
        else:
            self._leave(request, status, answer, began or monotonic())
        self._served()

    async def _switch(self, request: Request, upgrade: Upgrade) -> None:
        """Have another protocol spoken on the connection, and count its end."""
        connection: HttpProtocol = request.connection  # type: ignore[assignment]
        tunnel = connection.tunnel
        assert tunnel is not None
        head = self._encode(request, upgrade)
        if not connection.closed:
            self.counters.answered(101)
            self.counters.observe(monotonic() - request.arrived, 1)
        self._upgraded.add(upgrade)
        self.counters.upgraded(len(self._upgraded))
        self.schedule()
        if self._dismissed:
            upgrade.leave(self._dismissed)
        try:
            orderly = await upgrade.converse(tunnel, head)
        finally:
            self._upgraded.discard(upgrade)
            self.counters.upgraded(len(self._upgraded))
            upgrade.concluded()
        if orderly:
            self._conclude(request)
        else:
            self._abort(request)

    def dismiss(self, code: int) -> None:
        """Tell all that speak another protocol, now or later, that the worker stops."""
        self._dismissed = code
        for upgrade in list(self._upgraded):
            upgrade.leave(code)

    def _served(self) -> None:
        """Have a turn: the slot may serve another, and the counters are due.

        One that has not waited is served while its turn goes on, which sees to that itself.
        """
        if not self._starting:
            self.schedule()

    def _free(self) -> None:
        """Give a slot back; those of a turn that starts some all at once."""
        if self._starting:
            self._freed += 1
        else:
            self.slots.release(1)

    def answer(self, request: Request, response: Response) -> None:
        """Answer, though the handler is not done: what it still does keeps its slot.

        :raises ValueError: if the answer cannot be sent; nothing has been then.
        """
        if response.streams:
            self._launch(request, response)
            return
        self._answers.append((request, response.status, self._encode(request, response)))
        if not self._grouped:
            self._leave_all()


async def _known(response: Response) -> Response:
    """Return what is known already, for a task that sends its body."""
    return response
