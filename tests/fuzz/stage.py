"""A worker's server on a stage: real protocol and batch, and a loop, clock and sockets of wood.

``Stage.run`` plays one input and checks all that must hold. Everything is decided by the input:
time moves when the plan says so, a task goes on when the plan lets it. So a finding repeats.

The transport behaves as uvloop's, as far as a protocol can tell: ``pause_writing`` may come out of
``write`` itself or at the end of the turn; what arrives while reading is paused comes after
``resume_reading``, the end of the stream again each time; nothing arrives after ``close``.

The plan is one step to a byte: what by its lower half, how much by its upper half (see ``_STEPS``).
Behind its end the rest of the wire is sent, and all comes to rest.

Rules that are checked:

1. No exception leaves a callback, none reaches the loop, none is logged but those that handlers
   raise on purpose.
2. Answers are well-formed, of a documented status, in the order of the requests, each with what
   its own request asks for; where nothing cut the connection short, every request has one.
3. It comes to rest in a bounded number of turns.
4. When all connections are gone every shared word is 0, the counters add up, and nothing refers
   to a protocol object any more.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from fluxor_fast import App, HTTPError, Request
from fluxor_fast.arbiter.shared import BOUNDS, SHED_REASONS, SharedMemory, Word
from fluxor_fast.http.request import Head
from fluxor_fast.server import batch, leaving, running
from fluxor_fast.server.admission import KernelLock, SharedLimit, full_fence
from fluxor_fast.server.batch import request_ids
from fluxor_fast.server.framing import Reader
from fluxor_fast.server.heads import HeadCache
from fluxor_fast.server.protocol import HttpProtocol
from fluxor_fast.server.refusal import Refusals
from tests.fuzz.answers import CONTINUE, Answer, take
from tests.fuzz.parsers import LIMITS, Plain
from tests.support.inprocess import make_runner, make_service

__all__ = ["Stage"]

TICK: Final = 1 / 1024  # seconds; all times are multiples of it, so that sums are exact
HIGH_WATER: Final = 2048
CONNECTIONS: Final = 4
ROUNDS: Final = 2000  # far more than any input needs to come to rest
BIG: Final = bytes(leaving.LARGE)


class Deliberate(Exception):
    """What handlers raise."""


class Timer:
    """A call that is due at some time, unless it is cancelled."""

    __slots__ = ("args", "call", "when")

    def __init__(self, when: float, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.when = when
        self.call: Callable[..., Any] | None = call
        self.args = args

    def cancel(self) -> None:
        self.call = None


class Loop:
    """Of an event loop, what runner and tasks use; goes round when told to."""

    def __init__(self) -> None:
        self.now = 1024.0
        self.ready: deque[tuple[Callable[..., Any], tuple[Any, ...], Any]] = deque()
        self.later: list[Timer] = []
        self.full: list[Transport] = []  # written to in this turn, more than they take
        self.held: deque[tuple[asyncio.Future[Any], Callable[[], Any]]] = deque()
        self.failures: list[Any] = []

    # what is called from asyncio and the server

    def call_soon(self, call: Callable[..., Any], *args: Any, context: Any = None) -> None:
        self.ready.append((call, args, context))

    def call_later(self, delay: float, call: Callable[..., Any], *args: Any) -> Timer:
        timer = Timer(self.now + delay, call, args)
        self.later.append(timer)
        return timer

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)  # type: ignore[arg-type]

    def create_task(self, coroutine: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coroutine, loop=self)  # type: ignore[arg-type]

    def run_in_executor(self, _: object, call: Any, *args: Any) -> asyncio.Future[Any]:
        return self.hold(lambda: call(*args))

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.failures.append(context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    # what the stage calls

    def hold(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """Return a future that has the result of ``call`` when it is let go."""
        future = self.create_future()
        self.held.append((future, call))
        return future

    def let_go(self, most: int) -> None:
        for _ in range(min(most, len(self.held))):
            future, call = self.held.popleft()
            if not future.done():
                try:
                    future.set_result(call())
                except Exception as error:
                    future.set_exception(error)

    def turn(self) -> None:
        ready = self.ready
        for _ in range(len(ready)):
            call, args, context = ready.popleft()
            if context is None:
                call(*args)
            else:
                context.run(call, *args)
        full, self.full = self.full, []
        for transport in full:
            transport.tell()

    def run(self) -> None:
        for _ in range(ROUNDS):
            if not (self.ready or self.full):
                return
            self.turn()
        raise AssertionError("it never comes to rest")

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self.later if timer.when <= self.now]
        self.later = [timer for timer in self.later if timer.when > self.now and timer.call]
        for timer in due:
            if timer.call is not None:
                self.call_soon(timer.call, *timer.args)


class Transport:
    """One end of a connection; the other end is ``send``, ``shut``, ``reset`` and ``stall``."""

    __slots__ = ("_abandoned", "_buffered", "_closing", "_ended", "_ending", "_inbox", "_loop",
                 "_reading", "_stalled", "_told", "_write_shut", "cut_short", "protocol",
                 "received", "written")  # fmt: skip

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.protocol: HttpProtocol | None = None
        self.written: list[bytes] = []
        self.received: list[bytes] = []
        self.cut_short = False  # something may have kept it from answering everything
        self._inbox = b""
        self._buffered = 0
        self._reading = True
        self._ended = False  # the client sends nothing more
        self._stalled = self._told = False
        self._abandoned = False  # ended though requests are in progress: what is written is dropped
        self._closing = self._ending = self._write_shut = False

    # what the protocol calls

    def write(self, data: bytes) -> None:
        assert not self._write_shut, "written behind the end"
        assert self._abandoned or not self._closing, "written to a transport that was closed"
        assert type(data) is bytes and data
        if self._closing and not self._buffered:
            return
        self.written.append(data)
        if self._stalled:
            first = not self._buffered
            self._buffered += len(data)
            if first:
                self._loop.full.append(self)
            else:
                self.tell()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        assert self._abandoned or not self._closing, "the end told to a transport that was closed"
        self._write_shut = True

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        assert self.protocol is not None, "reading resumed behind the end"
        self._reading = True
        self._loop.call_soon(self._read)

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            if not self._buffered:
                self._end()

    def abort(self) -> None:
        self._closing = self._abandoned = True
        self._buffered = 0
        self._end()

    def is_closing(self) -> bool:
        return self._closing

    def set_write_buffer_limits(self, high: int | None = None) -> None:
        """Nothing: the limit here is small, so that it is met."""

    def get_write_buffer_size(self) -> int:
        return self._buffered

    def get_extra_info(self, name: str) -> Any:
        return None

    # what the client does

    def send(self, data: bytes) -> None:
        if not self._ended:
            self._inbox += data
            self._read()

    def shut(self) -> None:
        if not self._ended:
            self._ended = True
            self._read()

    def stall(self, stalled: bool) -> None:
        """Take in nothing more, or everything."""
        self._stalled = stalled
        if not stalled:
            self._buffered = 0
            if self._told and self.protocol is not None:
                self._told = False
                self.protocol.resume_writing()
            if self._closing:
                self._end()

    def toggle(self) -> None:
        self.stall(not self._stalled)

    def reset(self) -> None:
        self._closing = True
        self._lost()

    # between the two

    def tell(self) -> None:
        """Say to the protocol that too much is unread."""
        if self._buffered > HIGH_WATER and not self._told and self.protocol is not None:
            self._told = True
            self.protocol.pause_writing()

    def _read(self) -> None:
        if not self._reading or self._closing or self.protocol is None:
            return
        if self._inbox:
            data, self._inbox = self._inbox, b""
            self.received.append(data)
            self.protocol.data_received(data)
        if self._ended and not self._inbox and self._reading and not self._closing:
            self._reading = self.protocol.eof_received()
            if self._reading:
                self._reading = False
            else:
                self._abandoned = self.protocol.current is not None
                self.close()

    def _end(self) -> None:
        if not self._ending:
            self._ending = True
            self._loop.call_soon(self._lost)

    def _lost(self) -> None:
        protocol, self.protocol = self.protocol, None
        if protocol is not None:
            protocol.connection_lost(None)


def make_app(loop: Loop) -> tuple[App, dict[str, Callable[[bytes], tuple[int, bytes | None]]]]:
    """Return an application with a handler of each kind, and what each answers to a body."""
    app = App()
    expected: dict[str, Callable[[bytes], tuple[int, bytes | None]]] = {
        "_not_found": lambda body: (404, None),
        "denied": lambda body: (405, None),
        "options": lambda body: (204, b""),
        "<lambda>": lambda body: (204, b""),  # OPTIONS *
    }

    def fixed(status: int, body: bytes | None) -> Callable[[Any], Any]:
        def note(handler: Any) -> Any:
            expected[handler.__name__] = lambda _: (status, body)
            return handler

        return note

    def echoes(handler: Any) -> Any:
        expected[handler.__name__] = lambda body: (200, body)
        return handler

    @app.get("/")
    @fixed(200, b'{"home":true}')
    def home(request: Request) -> dict[str, bool]:
        return {"home": True}

    @app.get("/items/{item:int}")
    @fixed(200, None)
    def item(request: Request, item: int) -> dict[str, int]:
        return {"item": item}

    @app.get("/text")
    @fixed(200, b"text")
    def text(request: Request) -> str:
        return "text"

    @app.get("/none")
    @fixed(204, b"")
    def none(request: Request) -> None:
        return None

    @app.get("/burn")
    @fixed(200, b'{"burnt":true}')
    def burn(request: Request) -> dict[str, bool]:
        loop.now += 3 * TICK
        return {"burnt": True}

    @app.get("/big")
    @fixed(200, BIG)
    def big(request: Request) -> bytes:
        return BIG

    @app.post("/echo")
    @echoes
    def echo(request: Request) -> bytes:
        return request.body

    @app.post("/small", max_body=4)
    @echoes
    def small(request: Request) -> bytes:
        return request.body

    @app.post("/later")
    @echoes
    async def later(request: Request) -> bytes:
        await loop.hold(bytes)
        return request.body

    @app.get("/wait")
    @fixed(200, b'{"waited":true}')
    async def wait(request: Request) -> dict[str, bool]:
        await loop.hold(bytes)
        return {"waited": True}

    @app.get("/blocking", blocking=True)
    @fixed(200, b'{"blocked":true}')
    def blocking(request: Request) -> dict[str, bool]:
        return {"blocked": True}

    @app.get("/fail")
    @fixed(500, None)
    def fail(request: Request) -> None:
        raise Deliberate

    @app.get("/fails-later")
    @fixed(500, None)
    async def fails_later(request: Request) -> None:
        await loop.hold(bytes)
        raise Deliberate

    @app.get("/teapot")
    @fixed(418, None)
    async def teapot(request: Request) -> None:
        raise HTTPError(418)

    @app.get("/health", priority="exempt")
    @fixed(200, b'{"healthy":true}')
    def health(request: Request) -> dict[str, bool]:
        return {"healthy": True}

    @app.get("/critical", priority="critical")
    @fixed(200, b'{"critical":true}')
    def critical(request: Request) -> dict[str, bool]:
        return {"critical": True}

    @app.get("/one", max_in_flight=1)
    @fixed(200, b'{"one":true}')
    def one(request: Request) -> dict[str, bool]:
        return {"one": True}

    @app.get("/one-waits", max_in_flight=1)
    @fixed(200, b'{"one":true}')
    async def one_waits(request: Request) -> dict[str, bool]:
        await loop.hold(bytes)
        return {"one": True}

    return app, expected


class _Log(logging.Handler):
    """Keeps what is logged as an error and was not raised on purpose."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.faults: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not (record.exc_info and isinstance(record.exc_info[1], Deliberate)):
            self.faults.append(self.format(record))


class Stage:
    """A worker that plays one input after the other.

    :param entries: heads that the cache remembers; 0 turns it off.
    """

    def __init__(self, *, entries: int = 24) -> None:
        self.loop = Loop()
        self.app, self._expected = make_app(self.loop)
        self._router = self.app.router()
        self._entries = entries
        self.memory = memory = SharedMemory(2)
        fence = full_fence()
        limited = [route for route in self.app.routes if route.max_in_flight]
        self._route_words = memory.routes[: len(limited)]
        routes = {
            route: SharedLimit(words, 0, fence, KernelLock(memory.fd, 3 + at))
            for at, (route, words) in enumerate(zip(limited, self._route_words, strict=True))
        }
        self.runner = make_runner(
            self.loop,
            memory,
            max_ccu=8,
            normal=7,
            slots=2,
            max_queue=5,
            deadline=256 * TICK,
            target=8 * TICK,
            interval=32 * TICK,
            pause=128 * TICK,
            slice_seconds=4 * TICK,
            routes=routes,
        )
        self.runner.refusals = Refusals(lambda: 0.0)
        self.runner.block = b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nX-Request-ID: "
        self.service = make_service(
            self.app,
            self.runner,
            memory,
            heads=self._heads(entries),
            max_connections=CONNECTIONS - 1,
            max_pipeline=4,
        )
        self.transports: list[Transport] = []
        self._protocols: list[HttpProtocol] = []
        self._thresholds = self.runner.thresholds
        self._finishing: asyncio.Task[int] | None = None
        self._current: Transport
        self._plain = Plain(self._router, LIMITS, lambda: 0)
        self._log = _Log()

    def _heads(self, entries: int) -> HeadCache:
        return HeadCache(
            self._router, LIMITS, lambda: self.runner.counters.offered, entries=entries
        )

    def run(self, plan: bytes, wire: bytes, *, warm: bool = False) -> list[list[bytes]]:
        """Play one input; return the answers that were written on each connection.

        :param warm: keep the heads of the input before.
        """
        logger = logging.getLogger("fluxor_fast")
        logger.addHandler(self._log)
        propagate, logger.propagate = logger.propagate, False
        clock = batch.monotonic
        batch.monotonic = running.monotonic = self._monotonic
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self.loop)  # type: ignore[arg-type]
        try:
            self._reset(warm)
            self._play(plan, wire)
            self._come_to_rest()
            answers = [self._check_answers(transport) for transport in self.transports]
            for transport in self.transports:
                transport.reset()
            self._come_to_rest()
            self._check_nothing_left()
            return answers
        finally:
            asyncio._set_running_loop(outer)
            batch.monotonic = running.monotonic = clock
            logger.propagate = propagate
            logger.removeHandler(self._log)

    def _monotonic(self) -> float:
        return self.loop.now

    def _reset(self, warm: bool) -> None:
        self.loop.now += 64  # whatever went by time is over
        if not warm:
            self.service.heads = self._heads(self._entries)
        runner = self.runner
        runner.draining = False
        runner.thresholds = self._thresholds
        self._finishing = None
        runner.fresh = runner._put_off = 0
        runner.refusals.seconds = 1
        runner._next_id = request_ids(b"0123456789abcdef").__next__
        self.transports.clear()
        self._protocols.clear()
        self._connect()

    # the plan

    def _connect(self) -> None:
        protocol = HttpProtocol(self.service)
        transport = self._current = Transport(self.loop)
        transport.protocol = protocol
        self.transports.append(transport)
        self._protocols.append(protocol)
        protocol.connection_made(transport)  # type: ignore[arg-type]

    def _play(self, plan: bytes, wire: bytes) -> None:
        at = 0
        for step in plan:
            at = _STEPS[step & 15](self, wire, at, step >> 4)
        if self._current.protocol is None and at < len(wire):
            self._connect()
        self._current.send(wire[at:])

    def _send(self, wire: bytes, at: int, stop: int) -> int:
        if at < stop:
            self._current.send(wire[at:stop])
        return stop

    def _bytes(self, wire: bytes, at: int, much: int) -> int:
        return self._send(wire, at, min(at + much + 1, len(wire)))

    def _many(self, wire: bytes, at: int, much: int) -> int:
        return self._send(wire, at, min(at + 16 * (much + 1), len(wire)))

    def _lines(self, wire: bytes, at: int, much: int) -> int:
        return self._until(b"\n", wire, at, much)

    def _heads_whole(self, wire: bytes, at: int, much: int) -> int:
        return self._until(b"\r\n\r\n", wire, at, much)

    def _until(self, mark: bytes, wire: bytes, at: int, much: int) -> int:
        stop = at
        for _ in range(much + 1):
            place = wire.find(mark, stop)
            stop = len(wire) if place < 0 else place + len(mark)
        return self._send(wire, at, stop)

    def _turn(self, wire: bytes, at: int, much: int) -> int:
        for _ in range(much + 1):
            self.loop.turn()
        return at

    def _run(self, wire: bytes, at: int, much: int) -> int:
        self.loop.run()
        return at

    def _let_go(self, wire: bytes, at: int, much: int) -> int:
        self.loop.let_go(much + 1)
        return at

    def _stall(self, wire: bytes, at: int, much: int) -> int:
        self._current.toggle()
        return at

    def _shut(self, wire: bytes, at: int, much: int) -> int:
        self._current.cut_short = True
        self._current.shut()
        return at

    def _lose(self, wire: bytes, at: int, much: int) -> int:
        self._current.cut_short = True
        self._current.reset()
        return at

    def _another(self, wire: bytes, at: int, much: int) -> int:
        """Open a connection; every second kind of step has it begin the wire anew."""
        if len(self.transports) < 8:
            self._connect()
        return 0 if much & 1 else at

    def _switch(self, wire: bytes, at: int, much: int) -> int:
        self._current = self.transports[much % len(self.transports)]
        return at

    def _time(self, wire: bytes, at: int, much: int) -> int:
        self.loop.advance((much + 1) * 8 * TICK)
        return at

    def _sweep(self, wire: bytes, at: int, much: int) -> int:
        self._cut_all_short()
        self.runner.tick += 4 * (much + 1)
        for connection in self._open():
            connection.check(self.runner.tick)
        self.service.bodies.settle()
        return at

    def _leave(self, wire: bytes, at: int, much: int) -> int:
        """Drain as a worker does; at every second kind of step it waits for the end as well."""
        self._cut_all_short()
        self.runner.draining = True
        for connection in self._open():
            connection.close_idle()
        if much & 1 and self._finishing is None:
            self._finishing = self.loop.create_task(self.runner.finish((much >> 1) * 8 * TICK))
        return at

    def _others(self, wire: bytes, at: int, much: int) -> int:
        """Have another worker hold permits or slots."""
        if much < 8:
            self.memory.permits[1] = much
        else:
            self.memory.slots[1] = much & 3
        return at

    def _open(self) -> list[HttpProtocol]:
        """Return the open connections, in an order that repeats."""
        return [protocol for protocol in self._protocols if protocol in self.service.open]

    def _cut_all_short(self) -> None:
        for transport in self.transports:
            transport.cut_short = True

    # the end

    def _come_to_rest(self) -> None:
        loop, runner = self.loop, self.runner
        self.memory.permits[1] = self.memory.slots[1] = 0
        for _ in range(ROUNDS):
            loop.run()
            for transport in self.transports:
                transport.stall(False)
            loop.let_go(len(loop.held))
            if loop.later:
                loop.advance(16 * TICK)
            if not (loop.ready or loop.held or loop.later or runner.busy):
                assert self._finishing is None or self._finishing.done(), "it never finishes"
                return
        raise AssertionError("what waits is never served")

    # what must hold

    def _check_answers(self, transport: Transport) -> list[bytes]:
        """Return the answers that were written, without the interim ones."""
        wire = b"".join(transport.written)
        heads, status, continues, broken = self._read(b"".join(transport.received))
        at = 0
        answer: Answer | None = None
        answers: list[bytes] = []
        while at < len(wire):
            assert answer is None or not answer.closes, f"behind the last: {wire[at:][:80]!r}"
            if wire.startswith(CONTINUE, at):
                continues -= 1
                at += len(CONTINUE)
                continue
            asked = heads[len(answers)] if len(answers) < len(heads) else None
            begin = at
            late = wire.startswith(b"HTTP/1.1 408", at)
            bodiless = asked is not None and asked[0].method == "HEAD" and not late
            answer, at = take(wire, at, bodiless=bodiless)
            if late:  # what comes behind it was not read, whatever it was
                assert answer.closes and transport.cut_short, answer
            elif asked is not None:
                self._check_answer(answer, *asked)
            else:  # not to a request
                assert answer.closes
                if broken is not None and answer.status != status:  # before its body went wrong
                    self._check_answer(answer, broken, b"")
                else:
                    expected = status if transport.received else 503
                    assert answer.status == expected, (answer, status)
            answers.append(wire[begin:at])
        assert continues >= 0, "a 100 that nobody waits for"
        # what is answered before its body has come may end the connection
        early = answer is not None and answer.closes and any(head.streams for head, _ in heads)
        if transport.received and not (transport.cut_short or self.runner.draining or early):
            owed = len(heads) + (status is not None)
            assert len(answers) == owed, f"{len(answers)} answers, {owed} owed: {wire!r}"
        return answers

    def _read(self, wire: bytes) -> tuple[list[tuple[Head, bytes]], int | None, int, Head | None]:
        """Return the requests that were sent, the status of an error behind them, and the 100s.

        Last the head of one that may be answered before its body turns out to be that error.
        """
        reader = Reader(self._plain)
        reader.feed(wire)
        found: list[tuple[Head, bytes]] = []
        continues = 0
        broken: Head | None = None
        try:
            while (message := reader.next()) is not None:
                body = message[1]
                if body is None:  # it is answered before its body has come
                    body = b""
                    broken = message[0]
                    while reader.in_body and (piece := reader.piece()):
                        body += piece
                    broken = None
                found.append((message[0], body))
                if reader.in_body:
                    break
                continues += message[0].expects_continue
                if not message[0].keep_alive:
                    return found, None, continues, None
        except HTTPError as error:
            return found, error.status, continues + 1, broken
        return found, None, continues + reader.in_body, None

    def _check_answer(self, answer: Answer, head: Head, body: bytes) -> None:
        status, expected = self._expected[head.route.handler.__name__](body)
        if answer.status == 503:
            assert b"Retry-After" in answer.fields
            assert head.path != "/health", "an exempt route was refused"
            assert head.method == "HEAD" or b'"code":"BACKPRESSURE"' in answer.body
        else:
            assert answer.status == status, (answer, head.method, head.path)
            if expected is not None and head.method != "HEAD":
                assert answer.body == expected, (answer, head.path)
        if head.request_id is not None:
            assert answer.fields[b"X-Request-ID"] == head.request_id
        assert answer.closes or head.keep_alive

    def _check_nothing_left(self) -> None:
        memory, runner = self.memory, self.runner
        assert not self.loop.failures, self.loop.failures
        assert not self._log.faults, self._log.faults
        words = (memory.permits, memory.slots, memory.connections, memory.claims)
        for row in (*words, *self._route_words):
            assert row[0] == row[1] == 0, [row.tolist() for row in words]
        region = memory.region(0)
        offered, accepted, completed, aborted = region[Word.OFFERED : Word.ABORTED + 1].tolist()
        shed = sum(region[Word.SHED : Word.SHED + len(SHED_REASONS)])
        assert offered == accepted + shed, (offered, accepted, shed)
        assert accepted == completed + aborted, (accepted, completed, aborted)
        counters = runner.counters
        counters.publish_latencies()
        observed = sum(region[Word.BUCKETS : Word.BUCKETS + len(BOUNDS) + 1])
        assert observed == completed, (observed, completed)
        assert not self.service.open and not runner.outbox and not runner.pacer.waiting
        for at in range(len(self._protocols)):
            _check_empty(self._protocols[at])
            if _references(self._protocols, at) != _ALONE:  # a cancelled task may be in a circle
                gc.collect()
            assert _references(self._protocols, at) == _ALONE, (
                "something refers to a closed connection"
            )


def _check_empty(protocol: HttpProtocol) -> None:
    assert protocol.current is None and not protocol.order and protocol._reader is None
    assert not protocol._out and not protocol._kept


def _references(things: Sequence[object], at: int) -> int:
    """Return how many refer to a thing; what this call adds is not the same in all Pythons."""
    thing = things[at]
    return sys.getrefcount(thing)


_ALONE: Final = _references([object()], 0)


_STEPS: Final = (
    Stage._bytes,
    Stage._many,
    Stage._lines,
    Stage._heads_whole,
    Stage._turn,
    Stage._run,
    Stage._let_go,
    Stage._stall,
    Stage._shut,
    Stage._lose,
    Stage._another,
    Stage._switch,
    Stage._time,
    Stage._sweep,
    Stage._leave,
    Stage._others,
)
