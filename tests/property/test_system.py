"""Whole workers on one shared memory, against a model: whatever happens in whatever order.

What can happen: requests of every class and kind arrive, on new connections and on old ones;
workers take turns; handlers end; clients go away, or do not take in their answers; time passes;
a worker is killed, reaped and replaced. After each step:

1. The permits held are exactly those the model says, and never more than the thresholds allow;
   so are the slots, and the permits of a route that has a limit of its own.
2. offered = accepted + Σ shed + waiting; accepted = completed + aborted + in flight + lost.
3. All words are 0 when everything has ended (tested at the end).
4. When a worker has been reaped, what it held is free.
5. A request is refused for capacity exactly if the model has no capacity left for it. None is let
   go that nobody stands before, while it could begin at once. When all workers have looked,
   nobody waits while a slot is free (but for the rest that equal shares leave over).
6. Exempt requests are never refused, and answered in the turn that takes them in.

``PROVE=long`` tries many more histories, and shrinks one that fails.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from fluxor_fast import App, Request
from fluxor_fast.arbiter.shared import SharedMemory
from fluxor_fast.routing import Priority
from fluxor_fast.server import batch, running
from tests.support.seeds import examples
from tests.support.turns import Clock, figures
from tests.support.workers import Client, Worker

LONG = os.environ.get("PROVE") == "long"
BURN = 0.001  # seconds that a synchronous handler takes
ROUTE_LIMIT = 2
KINDS = {
    "sync": Priority.NORMAL,
    "text": Priority.NORMAL,
    "large": Priority.NORMAL,
    "async": Priority.NORMAL,
    "limited": Priority.NORMAL,
    "critical-sync": Priority.CRITICAL,
    "critical-async": Priority.CRITICAL,
    "exempt-sync": Priority.EXEMPT,
    "exempt-async": Priority.EXEMPT,
}


@dataclass(eq=False)
class Call:
    """One request, as the model knows it."""

    number: int
    kind: str
    worker: Worker
    client: Client
    request: Any = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    admitted: bool = False
    began: bool = False
    ended: bool = False
    refused: str = ""
    left: bool = False  # the client went away while the request waited
    answered_before: int = 0  # answers on this connection before it

    @property
    def priority(self) -> Priority:
        return KINDS[self.kind]

    @property
    def exempt(self) -> bool:
        return self.priority is Priority.EXEMPT

    @property
    def asynchronous(self) -> bool:
        return "async" in self.kind or self.kind == "limited"

    @property
    def answer(self) -> tuple[int, str] | None:
        answers = self.client.answers[self.answered_before :]
        assert len(answers) <= 1, f"answered twice: {answers}"
        return answers[0] if answers else None

    @property
    def waits(self) -> bool:
        return self.admitted and not (self.began or self.refused or self.left)

    @property
    def runs(self) -> bool:
        return self.began and not self.ended

    @property
    def holds_permit(self) -> bool:
        if self.exempt:
            return False
        kept = self.ended and self.client.stuck and not self.client.gone
        return self.waits or self.runs or kept


class System(RuleBasedStateMachine):
    """The workers, and the model beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.patches = [
            mock.patch.object(module, "monotonic", self.clock) for module in (batch, running)
        ]
        for patch in self.patches:
            patch.start()
        self.real = asyncio.new_event_loop()
        self.calls: list[Call] = []  # of living workers
        self.count = 0
        self.workers: list[Worker] = []
        self.app = self.make_app()
        self.memory = SharedMemory(1)

    def make_app(self) -> App:
        app = App()
        by_number: dict[int, Call] = {}
        self.by_number = by_number

        def sync(answer: Any) -> Callable[..., Any]:
            def handler(request: Request, n: int) -> Any:
                call = by_number[n]
                assert not call.began
                call.began = call.ended = True
                self.clock.now += BURN
                return answer

            return handler

        def waiting() -> Callable[..., Any]:
            async def handler(request: Request, n: int) -> dict[str, int]:
                call = by_number[n]
                assert not call.began
                call.began = True
                running = sum(c.runs and c.asynchronous and not c.exempt for c in self.calls)
                assert running <= self.thresholds.slots
                await call.gate.wait()
                call.ended = True
                return {"n": n}

            return handler

        for kind, priority in KINDS.items():
            limit = ROUTE_LIMIT if kind == "limited" else None
            answers = {"text": "text", "large": "x" * 70_000}
            asynchronous = "async" in kind or kind == "limited"
            made = waiting() if asynchronous else sync(answers.get(kind, {"is": kind}))
            name = priority.name.lower()
            app.get(f"/{kind}/{{n:int}}", priority=name, max_in_flight=limit)(made)
        return app

    @initialize(
        workers=st.integers(1, 3),
        max_ccu=st.integers(2, 10),
        reserve=st.integers(0, 4),
        slots=st.integers(1, 4),
        max_queue=st.integers(0, 8),
        deadline=st.sampled_from([0.05, 1.0, 5.0, 1000.0]),
        codel=st.sampled_from([0.0, 0.005]),
    )
    def start(
        self,
        workers: int,
        max_ccu: int,
        reserve: int,
        slots: int,
        max_queue: int,
        deadline: float,
        codel: float,
    ) -> None:
        self.memory = SharedMemory(workers)
        self.knobs = {
            "max_ccu": max_ccu,
            "normal": max(max_ccu - reserve, 1),
            "slots": slots,
            "max_queue": max_queue,
            "deadline": deadline,
            "target": codel,
            "slice_seconds": 2 * BURN,
        }
        self.workers = [self.make_worker(index) for index in range(workers)]
        self.thresholds = self.workers[0].runner.thresholds

    def make_worker(self, index: int) -> Worker:
        return Worker(self.app, self.memory, index, **self.knobs)

    def inside(self, call: Callable[[], Any]) -> None:
        """Call it in a running loop, and let tasks go as far as they can."""

        async def main() -> None:
            call()
            for _ in range(6):
                await asyncio.sleep(0)

        self.real.run_until_complete(main())

    def worker(self, index: int) -> Worker:
        return self.workers[index % len(self.workers)]

    # the model's sums

    def permits(self) -> int:
        return sum(call.holds_permit for call in self.calls)

    def slots(self) -> int:
        return sum(c.runs and c.asynchronous and not c.exempt for c in self.calls)

    def in_route(self) -> int:
        """Requests in the route that has a limit of its own."""
        return sum(c.kind == "limited" and (c.waits or c.runs) for c in self.calls)

    # what can happen

    @rule(
        index=st.integers(0, 2),
        kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=10),
        slow=st.booleans(),
        again=st.booleans(),
    )
    def requests_arrive(self, index: int, kinds: list[str], slow: bool, again: bool) -> None:
        worker = self.worker(index)
        busy = {c.client for c in self.calls if c.answer is None or c.client.stuck}
        idle = {
            c.client: None
            for c in self.calls
            if again and c.worker is worker and c.client not in busy and not c.client.gone
        }
        for kind in kinds:
            if idle:
                client, _ = idle.popitem()
                self.calls = [call for call in self.calls if call.client is not client]
            else:
                client = Client(worker.service, slow)
            self.count += 1
            call = Call(self.count, kind, worker, client, answered_before=len(client.answers))
            self.by_number[call.number] = call
            self.calls.append(call)
            self.inside(lambda c=call: c.client.ask(f"/{c.kind}/{c.number}"))
            call.request = worker.runner.arrivals[-1]

    @precondition(lambda self: self.workers)
    @rule(
        index=st.integers(0, 2),
        kind=st.sampled_from(["sync", "async", "limited", "critical-async", "large"]),
        count=st.integers(3, 12),
        slow=st.booleans(),
    )
    def many_alike_arrive(self, index: int, kind: str, count: int, slow: bool) -> None:
        self.requests_arrive(index, [kind] * count, slow, again=False)

    @precondition(lambda self: any(worker.loop.soon for worker in self.workers))
    @rule()
    def each_takes_a_turn(self) -> None:
        for worker in self.workers:
            self.a_worker_takes_a_turn(worker.index)

    @precondition(lambda self: any(worker.loop.soon for worker in self.workers))
    @rule(index=st.integers(0, 2))
    def a_worker_takes_a_turn(self, index: int) -> None:
        worker = self.worker(index)
        if not worker.loop.soon:
            return
        arrived = {id(request) for request in worker.runner.arrivals}
        mine = [call for call in self.calls if call.worker is worker]
        arrivals = [call for call in mine if id(call.request) in arrived]
        before = self.permits()
        in_route = self.in_route()
        nobody_waits = not any(call.waits and call.asynchronous for call in self.calls)
        free_slots = self.thresholds.slots - self.slots()
        none_ready = not any(call.waits and not call.asynchronous for call in mine)

        self.inside(worker.loop.turn)

        for call in arrivals:
            call.admitted = call.exempt
        for priority, limit, reason in (
            (Priority.CRITICAL, self.thresholds.critical, "capacity"),
            (Priority.NORMAL, self.thresholds.normal, self.thresholds.normal_reason),
        ):
            of_class = [call for call in arrivals if call.priority is priority]
            asking = []
            for call in of_class:
                if call.kind == "limited" and in_route >= ROUTE_LIMIT:
                    self.expect_refused(call, "route")
                else:
                    in_route += call.kind == "limited"
                    asking.append(call)
            free = max(limit - before, 0)
            for call in asking[:free]:
                call.admitted = True
            for call in asking[free:]:
                self.expect_refused(call, reason)
            self.note_let_go(mine)
            # one that was let go on arrival does not stand in the way of the next class
            before += sum(call.admitted and not call.refused for call in asking)

        for call in arrivals:
            if call.exempt:
                assert call.began, "an exempt request waits"
        for asynchronous, at_once in (
            (True, nobody_waits and free_slots > 0),
            (False, none_ready),
        ):
            first = [
                c for c in arrivals
                if c.asynchronous is asynchronous and c.admitted and not c.exempt
            ][:1]  # fmt: skip
            if at_once and first:
                assert not first[0].refused, f"could have begun, but: {first[0].refused}"
        self.check_answers()

    @staticmethod
    def expect_refused(call: Call, reason: str) -> None:
        call.refused = reason
        assert not call.began, "had no permit, and ran"
        if not call.client.gone:
            assert call.answer == (503, reason)

    def note_let_go(self, calls: list[Call]) -> None:
        """Note which of those that waited were refused after all."""
        for call in calls:
            if call.waits and not call.request.queued:
                call.refused = "let go"
                if not call.client.gone:
                    assert call.answer is not None
                    status, reason = call.answer
                    assert status == 503
                    assert reason in ("deadline", "codel")
                    call.refused = reason
                    assert reason == "deadline" or self.knobs["target"]

    def check_answers(self) -> None:
        for call in self.calls:
            if call.ended and not call.client.gone:
                assert call.answer == (200, ""), call
            assert not (call.exempt and call.refused)

    @precondition(lambda self: any(call.runs for call in self.calls))
    @rule(index=st.integers(0, 50))
    def a_handler_ends(self, index: int) -> None:
        running = [call for call in self.calls if call.runs]
        if running:
            self.inside(running[index % len(running)].gate.set)

    @precondition(lambda self: self.calls)
    @rule(index=st.integers(0, 50))
    def a_client_goes_away(self, index: int) -> None:
        open_ = [
            call for call in self.calls
            if not call.client.gone and (call.answer is None or call.client.stuck)
        ]  # fmt: skip
        if open_:
            call = open_[index % len(open_)]
            call.left = call.waits
            self.inside(call.client.leave)

    @precondition(lambda self: any(call.client.stuck for call in self.calls))
    @rule(index=st.integers(0, 50))
    def a_slow_client_takes_its_answer_in(self, index: int) -> None:
        stuck = [c for c in self.calls if c.client.stuck and not c.client.gone]
        if stuck:
            self.inside(stuck[index % len(stuck)].client.take_in)

    @rule(seconds=st.sampled_from([0.0, 0.002, 0.02, 0.11, 1.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds
        for worker in self.workers:
            worker.loop.wake()

    @precondition(lambda self: self.workers)
    @rule(times=st.integers(5, 40), seconds=st.sampled_from([0.03, 0.11]), end=st.booleans())
    def handlers_take_long(self, times: int, seconds: float, end: bool) -> None:
        """Time passes, and the workers look again and again; then all handlers may end."""
        for _ in range(times):
            self.time_passes(seconds)
            for worker in self.workers:
                self.a_worker_takes_a_turn(worker.index)
        for call in self.calls if end else ():
            if call.runs:
                self.inside(call.gate.set)

    @precondition(lambda self: self.workers)
    @rule(index=st.integers(0, 2))
    def a_worker_is_killed_and_reaped(self, index: int) -> None:
        worker = self.worker(index)
        self.inside(worker.cut_off)
        self.memory.fold(worker.index)
        assert self.memory.permits[worker.index] == 0
        assert self.memory.slots[worker.index] == 0
        self.calls = [call for call in self.calls if call.worker is not worker]
        self.workers[worker.index] = self.make_worker(worker.index)

    @precondition(lambda self: self.workers)
    @rule()
    def all_workers_come_to_rest(self) -> None:
        for _ in range(4):
            self.time_passes(0.002)
            for _ in range(200):
                if not any(worker.loop.soon for worker in self.workers):
                    break
                for worker in self.workers:
                    self.a_worker_takes_a_turn(worker.index)
            else:
                raise AssertionError("they never come to rest")
        waiting = [
            sum(call.waits and call.asynchronous for call in self.calls if call.worker is worker)
            for worker in self.workers
        ]
        assert not any(call.waits and not call.asynchronous for call in self.calls)
        claimants = sum(count > 0 for count in waiting)
        share = self.thresholds.slots
        if claimants > 1:
            share = max(share // claimants, 1)
        if self.slots() < self.thresholds.slots:
            for worker, count in zip(self.workers, waiting, strict=True):
                assert not count or self.memory.slots[worker.index] >= share, "idle slots"

    # what must hold

    @invariant()
    def words_say_what_the_model_says(self) -> None:
        for worker in self.workers:
            mine = [call for call in self.calls if call.worker is worker]
            index = worker.index
            assert self.memory.permits[index] == sum(call.holds_permit for call in mine)
            assert self.memory.slots[index] == sum(
                call.runs and call.asynchronous and not call.exempt for call in mine
            )
            assert self.memory.routes[0][index] == sum(
                call.kind == "limited" and (call.waits or call.runs) for call in mine
            )
            assert self.memory.connections[index] == len(worker.service.open)

    @invariant()
    def no_threshold_is_exceeded(self) -> None:
        if self.workers:
            assert sum(self.memory.permits) <= self.thresholds.critical
            assert sum(self.memory.slots) <= self.thresholds.slots
            assert sum(self.memory.routes[0]) <= ROUTE_LIMIT

    @invariant()
    def counters_add_up(self) -> None:
        if any(worker.loop.soon for worker in self.workers):
            return  # somebody has something to publish
        waiting = sum(call.waits for call in self.calls)
        in_flight = sum(call.runs for call in self.calls)
        f = figures(self.memory.totals())
        assert f["offered"] == f["accepted"] + f["shed"] + waiting, f
        assert f["accepted"] == f["completed"] + f["aborted"] + in_flight + f["lost"], f

    def teardown(self) -> None:
        try:
            if self.workers:
                self.let_all_end()
        finally:
            for worker in self.workers:
                self.inside(worker.cut_off)
            self.real.close()
            for patch in self.patches:
                patch.stop()

    def let_all_end(self) -> None:
        for _ in range(200):
            for call in self.calls:
                self.inside(call.gate.set)
            self.all_workers_come_to_rest()
            if not any(call.waits or call.runs for call in self.calls):
                break
        else:
            raise AssertionError("something never ends")
        for client in {call.client: None for call in self.calls}:
            if not client.gone:
                self.inside(client.leave)
        self.all_workers_come_to_rest()
        self.words_say_what_the_model_says()
        self.counters_add_up()
        f = figures(self.memory.totals())
        assert f["offered"] == f["accepted"] + f["shed"], f
        assert f["accepted"] == f["completed"] + f["aborted"] + f["lost"], f
        assert not any(worker.runner.busy for worker in self.workers)
        memory = self.memory
        for row in (memory.permits, memory.slots, memory.connections, memory.claims):
            assert row.tolist() == [0] * len(self.workers)
        assert memory.routes[0].tolist() == [0] * len(self.workers)


# Shrinking a failure takes minutes, so only the long mode does that.
pytestmark = pytest.mark.timeout(1800 if LONG else 120)
TestSystem = System.TestCase
TestSystem.settings = settings(
    examples(3000 if LONG else 150),
    stateful_step_count=60,
    phases=(Phase.generate, Phase.shrink) if LONG else (Phase.generate,),
    report_multiple_bugs=False,
)


def test_an_idle_worker_refuses_nobody_for_how_slow_it_once_was() -> None:
    """Found by the above: the rate measured last, while handlers took long, outlived the queue."""
    system = System()
    try:
        system.start(1, 20, reserve=0, slots=2, max_queue=20, deadline=5.0, codel=0.0)
        system.many_alike_arrive(0, "async", 6, slow=False)
        for times in (5, 14, 5):
            system.all_workers_come_to_rest()
            system.handlers_take_long(times, 0.11, end=True)
        system.all_workers_come_to_rest()
        assert all(call.ended for call in system.calls)
        for _ in range(3):
            system.time_passes(6.0)
            system.many_alike_arrive(0, "async", 3, slow=False)
            system.all_workers_come_to_rest()
            assert sum(call.runs for call in system.calls) == 2
            for _ in range(2):
                system.handlers_take_long(1, 0.002, end=True)
                system.all_workers_come_to_rest()
    finally:
        system.teardown()
