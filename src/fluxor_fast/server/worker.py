"""A worker process: loads the application, serves until told to stop, drains.

The arbiter forks and calls ``run_worker``; the exit code is its return value. A worker that
cannot start says why in one line and leaves with the code of the error (see ``errors``); the
arbiter halts on it.

``SIGTERM`` drains: for ``drain_delay`` the application says that it is not ready, and all else
goes on; then there are no new connections, and what is in the system is answered, with
``Connection: close``. ``SIGUSR2`` (``RETIRE``) drains while the instance goes on: without delay,
and a successor accepts already. A drain takes ``graceful_timeout`` at most. Idle connections:

* To close one while a request is on its way to it loses that request. So idle connections are
  kept until their next answer, which closes them: at a ``RETIRE`` for nearly the whole time, at a
  stop for ``IDLE_SECONDS``, so that clients that are busy meet it and idle ones do not delay it.
* What waits in the queue of a listener at a stop is accepted first, for ``QUEUE_SECONDS`` at most.

``SIGUSR1`` opens the log files anew. ``SIGQUIT`` leaves at once. ``SIGINT`` is the arbiter's
business: a terminal sends it to all processes. When the arbiter dies, the worker drains
(``lifeline``).
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import resource
import secrets
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from email.utils import formatdate
from hashlib import blake2b
from math import inf
from pathlib import Path
from typing import Any

import uvloop

from fluxor_fast.app import App
from fluxor_fast.arbiter.forking import REOPEN, RETIRE
from fluxor_fast.arbiter.shared import CLIENTS, LOOK_SECONDS, ROUTES, SharedMemory, State, Word
from fluxor_fast.asgi.serve import AsgiApp, Interface, is_asgi
from fluxor_fast.config import Settings
from fluxor_fast.errors import AppImportError, BootError, FluxorError
from fluxor_fast.limits.patience import Patience
from fluxor_fast.limits.table import Table
from fluxor_fast.middleware.access_log import AccessLog
from fluxor_fast.observability import logs
from fluxor_fast.observability.metrics import InstanceMetrics
from fluxor_fast.routing import Route
from fluxor_fast.server.addresses import Trust
from fluxor_fast.server.admission import KernelLock, SharedLimit, Thresholds, full_fence
from fluxor_fast.server.batch import ACCEPTS, BatchRunner, request_ids
from fluxor_fast.server.bodies import Bodies
from fluxor_fast.server.clients import LOOPBACK, ClientLimit
from fluxor_fast.server.common import Open, Service, Timeouts
from fluxor_fast.server.forwarded import Proxies
from fluxor_fast.server.handshake import Handshake
from fluxor_fast.server.heads import HeadCache, Limits
from fluxor_fast.server.lifeline import watch_lifeline
from fluxor_fast.server.protocol import HttpProtocol
from fluxor_fast.server.proxied import Complaints, ProxiedProtocol
from fluxor_fast.server.sweep import sweep
from fluxor_fast.server.tls import Certificates

__all__ = ["load_app", "run_worker"]

log = logging.getLogger("fluxor_fast.worker")

SWEEP_SECONDS = 1.0
SWEEP_SLICE = 0.002  # seconds of it at one go, as of handlers
IDLE_SECONDS = 1.0
LAST_SECONDS = 1.0  # of a drain: for requests that came at the last moment
QUEUE_SECONDS = 0.25
ORPHAN_MARGIN = 2.0  # seconds beyond its drain in which an orphan must have left
RESERVED_DESCRIPTORS = 24  # for listeners, connections that are being refused, logs, files
# which byte of the shared file is locked for which limit
PERMITS_BYTE, SLOTS_BYTE, CONNECTIONS_BYTE = range(3)  # then one for each route
CLIENTS_BYTE = CONNECTIONS_BYTE + 1 + ROUTES
ACCOUNTS_BYTE = 1 << 17  # and one for each set of accounts


def load_app(name: str, folder: Path | None = None, interface: Interface = "auto") -> App:
    """Import the application ``module:attribute``, from the current folder too.

    :param interface: what it is: an ``App``, or an ASGI application, which then is made one.

    :raises AppImportError: with one line saying what is missing, or what the import raised.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise AppImportError(f"the application is named module:attribute, not {name!r}")
    place = str(folder or Path.cwd())
    if sys.path[:1] != [place]:  # once, however often this is called
        sys.path.insert(0, place)
    try:
        module = importlib.import_module(module_name)
    except FluxorError as error:
        raise AppImportError(f"{name}: {error}") from error
    except Exception as error:
        raise AppImportError(
            f"{name}: importing {module_name} failed: {type(error).__name__}: {error}"
            + _place(error)
        ) from error
    app = getattr(module, attribute, None)
    if app is None:
        raise AppImportError(f"{name}: {module_name} has no {attribute!r}")
    if interface == "asgi" and callable(app):
        return AsgiApp(app)
    if isinstance(app, App) and interface != "asgi":
        return app
    if interface == "auto" and is_asgi(app):
        return AsgiApp(app)
    wanted = {"app": "an App", "asgi": "an ASGI application"}.get(
        interface, "an App, nor an ASGI application (--interface asgi, if it is one all the same)"
    )
    raise AppImportError(f"{name}: {attribute} is a {type(app).__name__}, not {wanted}")


def _place(error: BaseException) -> str:
    """Return where in the application's own code an import failed."""
    trace = error.__traceback__
    where = ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if "importlib" not in code.co_filename and code.co_filename != __file__:
            where = f" ({code.co_filename}:{trace.tb_lineno})"
        trace = trace.tb_next
    return where


def _route_key(route: Route) -> int:
    name = f"{route.method} {route.path}".encode()
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "big") | 1  # never 0


async def _accept_what_waits(listeners: Sequence[socket.socket]) -> None:
    """Let the loop accept until no connection waits in a queue; who waits there would be reset."""
    poll = select.poll()
    for listener in listeners:
        poll.register(listener, select.POLLIN)
    until = time.monotonic() + QUEUE_SECONDS
    while poll.poll(0) and time.monotonic() < until:
        await asyncio.sleep(0.001)


def _room_for_connections() -> int:
    """Return how many connections this process can hold and still open what else it needs.

    Beyond that a client is told so. Without the reserve, the last descriptor gone, libuv can
    only accept and close; it does that without a busy loop.
    """
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(soft - len(list(Path("/proc/self/fd").iterdir())) - RESERVED_DESCRIPTORS, 1)


def run_worker(
    settings: Settings,
    memory: SharedMemory,
    index: int,
    listeners: Sequence[socket.socket],
    lifeline: int,
    certificates: Certificates | None = None,
) -> int:
    """Serve as worker ``index`` until told to stop; return the exit code.

    :param listeners: bound sockets.
    :param lifeline: reading end of a pipe whose other end only the arbiter holds.
    :param certificates: what the arbiter has read, if the listener is to speak TLS.
    """
    memory.region(index)[Word.PID] = os.getpid()
    memory.region(index)[Word.STATE] = State.BOOTING
    signal.signal(REOPEN, logs.reopen)  # while the application is loaded, too
    logs.find_requests_in(BatchRunner._execute.__code__)
    try:
        app = load_app(settings.server.app, interface=settings.server.interface)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            worker = Worker(settings, memory, index, app, certificates)
            return runner.run(worker.serve(listeners, lifeline))
    except FluxorError as error:
        log.error("%s", error)
        return error.exit_code
    except Exception:
        log.exception("worker %d failed", index)
        return FluxorError.exit_code
    finally:
        logs.close()


class Worker:
    """What one worker process consists of."""

    def __init__(
        self,
        settings: Settings,
        memory: SharedMemory,
        index: int,
        app: App,
        certificates: Certificates | None = None,
    ) -> None:
        self.settings = settings
        self.memory = memory
        self.index = index
        self.app = app
        self.certificates = certificates
        self.region = memory.region(index)
        self.open: set[Open] = set()
        self._second = int(time.monotonic())  # of the last sweep
        self._stop = asyncio.Event()
        self._gently = True  # the instance goes on
        self._keep_idle = inf  # until when idle connections are kept, once it drains
        self.threads: Executor = ThreadPoolExecutor(settings.server.threads, "fluxor-blocking")
        app.settings = settings
        app.accounts = self._accounts()
        app.metrics = InstanceMetrics(memory, settings.server.capacity, self.region)
        app.shared = memory

    async def serve(self, listeners: Sequence[socket.socket], lifeline: int) -> int:
        """Start, serve, drain."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._leave, False)
        loop.add_signal_handler(RETIRE, self._leave, True)
        loop.add_signal_handler(REOPEN, logs.reopen)
        loop.add_signal_handler(signal.SIGQUIT, self._quit)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

        def orphaned() -> None:
            log.warning("the arbiter is gone: worker %d drains and leaves", self.index)
            self._leave(gently=False)

        settings = self.settings.server
        watch_lifeline(
            lifeline,
            lambda: loop.call_soon_threadsafe(orphaned),
            settings.drain_delay + settings.graceful_timeout + ORPHAN_MARGIN,
        )
        self._beat()
        heart = loop.create_task(self._keep_beating())
        reporter: asyncio.Task[None] | None = None

        try:
            await self.app.start()
        except FluxorError:
            raise
        except Exception as error:
            raise BootError(
                f"{self.settings.server.app}: a startup hook failed:"
                f" {type(error).__name__}: {error}{_place(error)}"
            ) from error
        service = self.make_service(loop)
        runner = service.runner
        # libuv accepts one connection of a listener per loop turn, and a turn may run handlers for
        # milliseconds: with one listener, a health check behind a thousand new connections waits
        # seconds. Each further handle costs a new connection one more look at the listener.
        if self.certificates is not None:  # the arbiter's may be of a second ago
            self.certificates.refresh(at_rest=False)
        factory = self._factory(service)
        servers = [
            await self._listen(loop, factory, each)
            for listener in listeners
            for each in (listener, *(listener.dup() for _ in range(ACCEPTS - 1)))
        ]
        # what is there now stays: the collector need not look at it again, and the pages stay
        # shared with the other workers; later garbage is nearly all freed by reference counts
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        self.region[Word.STATE] = State.READY
        sweeper = loop.create_task(self.keep_sweeping(service))
        if self.settings.server.adaptive:
            reporter = loop.create_task(self._keep_reporting(runner))

        await self._stop.wait()
        if not self._gently:
            self.app.stopping = True
            await asyncio.sleep(self.settings.server.drain_delay)
            await _accept_what_waits(listeners)
        await self._drain(runner, servers)
        sweeper.cancel()
        if reporter is not None:
            reporter.cancel()
        await self.app.stop()
        heart.cancel()
        self.threads.shutdown(wait=False, cancel_futures=True)
        runner.counters.publish_latencies()
        return 0

    def _leave(self, gently: bool) -> None:
        """Begin to drain; not ``gently``: the instance does not go on."""
        if not gently:
            self._gently = False
            self._keep_idle = min(self._keep_idle, time.monotonic() + IDLE_SECONDS)
        self._stop.set()

    async def _drain(self, runner: BatchRunner, servers: Sequence[asyncio.Server]) -> None:
        """Accept no more, answer what is in the system, close all connections."""
        graceful = self.settings.server.graceful_timeout
        begun = time.monotonic()
        kept = max(graceful - LAST_SECONDS, graceful / 2)
        self._keep_idle = begun + (kept if self._gently else min(IDLE_SECONDS, kept))
        for server in servers:
            server.close()
        self.region[Word.STATE] = State.DRAINING
        runner.draining = True
        # 1012: service restart; 1001: going away (RFC 6455, section 7.4.1, and IANA's registry)
        runner.dismiss(1012 if self._gently else 1001)
        while self.open and time.monotonic() < self._keep_idle:
            await asyncio.sleep(0.005)
        for connection in list(self.open):
            connection.close_idle()
        cancelled = await runner.finish(max(begun + graceful - time.monotonic(), 0.0))
        if cancelled:
            log.warning("%d requests did not end within %g s", cancelled, graceful)
        await self._wait_closed(1.0)

    def _factory(self, service: Service) -> Callable[[], asyncio.Protocol]:
        """Return what makes the protocol object of a new connection."""
        certificates = self.certificates

        def served() -> HttpProtocol | Handshake:
            if certificates is None:
                return HttpProtocol(service)
            return Handshake(service, certificates)

        if not self.settings.server.proxy_protocol:
            return served
        complaints = Complaints()
        return lambda: ProxiedProtocol(service, complaints, served, tls=certificates is not None)

    async def _listen(
        self,
        loop: Any,  # typeshed has cleanup_socket from 3.13 on, uvloop everywhere
        factory: Callable[[], asyncio.Protocol],
        listener: socket.socket,
    ) -> asyncio.Server:
        backlog = self.settings.server.backlog
        server: asyncio.Server
        if listener.family == socket.AF_UNIX:
            # its file is the arbiter's: a worker that leaves must not remove it
            server = await loop.create_unix_server(
                factory, sock=listener, backlog=backlog, cleanup_socket=False
            )
        else:
            server = await loop.create_server(factory, sock=listener, backlog=backlog)
        return server

    def make_service(self, loop: asyncio.AbstractEventLoop) -> Service:
        """Return what the connections of this worker share, ready for the first of them."""
        server = self.settings.server
        capacity = server.capacity
        memory, index = self.memory, self.index
        fence = full_fence()

        def limit(words: memoryview[int], byte: int) -> SharedLimit:
            return SharedLimit(words, index, fence, KernelLock(memory.fd, byte))

        runner = BatchRunner(
            limit=limit(memory.permits, PERMITS_BYTE),
            slots=limit(memory.slots, SLOTS_BYTE),
            thresholds=Thresholds.of(
                max_ccu=capacity.max_ccu,
                normal=capacity.normal,
                slots=capacity.slots,
                max_queue=capacity.max_queue,
            ),
            routes=self._route_limits(limit),
            claims=memory.claims,
            published=memory.limit if server.adaptive else None,
            index=index,
            region=self.region,
            deadline=server.queue_deadline,
            target=server.queue_target,
            interval=server.queue_interval,
            pause=server.refusal_pause,
            slice_seconds=server.slice_ms / 1000,
            ids=request_ids(secrets.token_hex(8).encode()),
            call_soon=loop.call_soon,
            call_later=loop.call_later,
            threads=self.threads,
        )
        router = self.app.router()
        observability = self.settings.observability
        if observability.access_log:
            AccessLog(
                logs.buffered(), observability.log_format, observability.access_log_sample
            ).watch(router.every_route())
        heads = HeadCache(
            router,
            Limits(server.max_head, server.max_target, server.max_headers, server.max_body),
            lambda: runner.counters.offered,
        )
        service = Service(
            app=self.app,
            runner=runner,
            heads=heads,
            timeouts=Timeouts(
                server.header_timeout,
                server.body_timeout,
                server.keep_alive_timeout,
                server.write_timeout,
                server.max_connection_age or inf,
                server.min_body_rate,
                server.min_write_rate,
            ),
            connections=limit(memory.connections, CONNECTIONS_BYTE),
            max_connections=capacity.max_connections,
            max_pipeline=server.max_pipeline,
            proxies=Proxies(Trust(server.trusted_proxies), server.forwarded_header),
            open=self.open,
            room=_room_for_connections(),
            clients=self._client_limit(),
            keep_alive_requests=server.keep_alive_requests,
            bodies=Bodies(-(-server.body_memory // server.worker_count)),
        )
        self._sweep(service)
        return service

    def _accounts(self) -> Table | None:
        memory = self.memory
        if not memory.entries:
            return None
        return Table(
            memory.accounts,
            memory.entries,
            memory.workers,
            self.index,
            fence=full_fence(),
            # few tries at once: each may give away a time slice, and it is tried again after a nap
            lock=lambda number: KernelLock(memory.fd, ACCOUNTS_BYTE + number, tries=8),
            key=memory.key,
            tries=Patience(time.monotonic, time.sleep).tries,
        )

    def _client_limit(self) -> ClientLimit | None:
        server, memory = self.settings.server, self.memory
        if not server.connections_per_client:
            return None
        exempt = tuple(one for one in server.trusted_proxies if not isinstance(one, str))
        if server.max_connections_per_client is None:
            exempt += LOOPBACK  # a proxy beside us, or a trial
        return ClientLimit(
            memory.clients,
            CLIENTS,
            self.index,
            full_fence(),
            KernelLock(memory.fd, CLIENTS_BYTE),
            key=memory.key,
            most=server.connections_per_client,
            exempt=exempt,
        )

    def _route_limits(
        self, limit: Callable[[memoryview[int], int], SharedLimit]
    ) -> dict[Route, SharedLimit]:
        """Return the limits of the routes that have one.

        By what a route is called, not by its place: a worker with the next version of the
        application may have others, and counts with this one where they are the same.
        """
        limited = [route for route in self.app.routes if route.max_in_flight is not None]
        keys = [_route_key(route) for route in limited]
        try:
            rows = self.memory.claim_routes(self.index, keys)
        except ValueError as error:
            raise BootError(f"{len(limited)} routes have max_in_flight; {error}") from error
        return {
            route: limit(self.memory.routes[row], CONNECTIONS_BYTE + 1 + row)
            for route, row in zip(limited, rows, strict=True)
        }

    @staticmethod
    def _quit() -> None:
        logs.close()
        os._exit(0)

    def _beat(self) -> None:
        self.region[Word.HEARTBEAT] = time.monotonic_ns()

    async def _keep_beating(self) -> None:
        # its own task, so that it beats while the startup hooks run
        while True:
            self._beat()
            await asyncio.sleep(0.5)

    async def _keep_reporting(self, runner: BatchRunner) -> None:
        """Have the histogram in shared memory fresh for each of the arbiter's looks."""
        while True:
            await asyncio.sleep(LOOK_SECONDS / 2)
            runner.counters.publish_latencies()

    def _sweep(self, service: Service) -> None:
        """Do what is due about once a second, but for the connections: date, tick, figures."""
        runner = service.runner
        now = time.time()
        # time in which this loop stood still was not the clients'
        second = int(time.monotonic())
        runner.tick += min(second - self._second, 2)
        self._second = second
        runner.block = f"Date: {formatdate(now, usegmt=True)}\r\nX-Request-ID: ".encode()
        runner.counters.publish_latencies()
        logs.follow(self.memory.level[0])

    async def keep_sweeping(self, service: Service) -> None:
        """Do what is due about once a second, until cancelled."""
        while True:
            # just after the full second, so that the date is right
            await asyncio.sleep(SWEEP_SECONDS - time.time() % SWEEP_SECONDS + 0.001)
            self._sweep(service)
            await sweep(self.open, service.runner.tick, SWEEP_SLICE)
            service.bodies.settle()
            if self.certificates is not None:
                self.certificates.refresh()

    async def _wait_closed(self, seconds: float) -> None:
        """Let the last answers leave."""
        until = time.monotonic() + seconds
        while self.open and time.monotonic() < until:
            for connection in list(self.open):
                connection.close_idle()
            await asyncio.sleep(0.005)
