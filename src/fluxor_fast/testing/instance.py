"""An application served in this process: a worker without a process, and without a socket.

Everything is made by ``server.worker.Worker``, as in a process of its own: the same head parsing,
routing, middleware, admission on counters in (unshared) memory, limits, time limits and metrics.
Only the listener is missing: ``connect`` makes a connection in memory (see ``wire``).

Rules:

1. What a handler raises becomes an answer as on the wire, and is kept in ``failures`` besides.
2. A request that is still in the system when the instance stops has ``graceful_timeout`` to end.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any, Final
from weakref import WeakSet

from fluxor_fast.app import App
from fluxor_fast.arbiter.shared import SharedMemory, State, Word
from fluxor_fast.asgi.serve import AsgiApp, is_asgi
from fluxor_fast.errors import ClientDisconnected
from fluxor_fast.observability import logs
from fluxor_fast.server.batch import BatchRunner
from fluxor_fast.server.common import Service
from fluxor_fast.server.protocol import HttpProtocol
from fluxor_fast.server.worker import Worker, load_app
from fluxor_fast.testing.loops import DaemonThreads
from fluxor_fast.testing.settings import completed, settings_of
from fluxor_fast.testing.stacks import BLOCKING, OWN
from fluxor_fast.testing.wire import Wire

__all__ = ["STOP_SECONDS", "Failures", "Instance"]

STOP_SECONDS: Final = 10.0
"""For the shutdown hooks."""
_TOLD_BY: Final = ("fluxor_fast.server", "fluxor_fast.recovery", "fluxor_fast.asgi")
"""Who logs what a handler raised; what others log may be no error of the request."""


def _application(app: Any) -> App:
    """Return the ``App`` that ``app`` is, names as ``module:attribute``, or wraps (ASGI).

    :raises TypeError: for something else.
    :raises AppImportError: for a name that leads nowhere.
    """
    if isinstance(app, str):
        return load_app(app)
    if isinstance(app, App):
        return app
    if is_asgi(app):
        return AsgiApp(app)
    raise TypeError(
        f"neither an App, nor an ASGI application, nor the name of one: a {type(app).__name__}"
    )


async def _within(seconds: float, hooks: Coroutine[Any, Any, None], name: str) -> None:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            await hooks
    except TimeoutError as error:
        if not limit.expired():  # it is of a hook's own
            raise
        raise TimeoutError(f"the {name} hooks take longer than {seconds:g} s") from error


class Failures(logging.Handler):
    """What handlers of ``app`` have raised, by request id: taken from what the server logs."""

    def __init__(self, app: App) -> None:
        super().__init__(logging.ERROR)
        self._app = app
        self._found: dict[str, BaseException] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the error of the record, if it is one of a request to this application."""
        error = record.exc_info[1] if record.exc_info else None
        request = logs.current_request()
        if (
            error is not None
            and not isinstance(error, ClientDisconnected)
            and request is not None
            and request.app is self._app
            and hasattr(request, "rid")  # else it has not begun
        ):
            self._found.setdefault(request.id, error)

    def listen(self) -> None:
        """Begin."""
        for name in _TOLD_BY:
            logging.getLogger(name).addHandler(self)

    def close(self) -> None:
        """End."""
        for name in _TOLD_BY:
            logging.getLogger(name).removeHandler(self)
        super().close()

    def take(self, request_id: str | None = None) -> BaseException | None:
        """Return the error of a request, or of any, once."""
        if request_id is None:
            request_id = next(iter(self._found), "")
        return self._found.pop(request_id, None)


class Instance:
    """One application in this process.

    :param app: an ``App``, an ASGI application, or the name of one of them.
    :param settings: by path, ``{"server.max_ccu": 10}``.
    """

    _service: Service | None = None
    _sweeper: asyncio.Task[None]
    _context: Context

    def __init__(self, app: Any, settings: Mapping[str, object] | None) -> None:
        self.app = _application(app)
        self.settings = settings_of({**completed(settings), "server.workers": 1})
        self.failures = Failures(self.app)
        self._wires = WeakSet[Wire]()

    async def start(self) -> None:
        """Run the startup hooks, and serve from then on.

        :raises Exception: what a hook raises.
        :raises TimeoutError: if they take longer than ``boot_timeout``; where shows in its cause.
        """
        if self._service is not None:
            raise RuntimeError("it is running already")
        loop = asyncio.get_running_loop()
        self._memory = SharedMemory(1)
        self._worker = Worker(self.settings, self._memory, 0, self.app)
        self._worker.threads = DaemonThreads(self.settings.server.threads, BLOCKING)
        logs.find_requests_in(BatchRunner._execute.__code__)
        try:
            await _within(self.settings.server.boot_timeout, self.app.start(), "startup")
            self._service = self._worker.make_service(loop)
        except BaseException:
            self._release()
            raise
        self._worker.region[Word.STATE] = State.READY
        self._context = copy_context()  # what hooks have set is there for handlers
        self._sweeper = loop.create_task(
            self._worker.keep_sweeping(self._service), name=f"{OWN}sweep"
        )
        self.failures.listen()

    async def stop(self) -> None:
        """End all connections and requests, and run the shutdown hooks.

        :raises Exception: as ``start``; the hooks have ``STOP_SECONDS``.
        """
        service, self._service = self._service, None
        if service is None:
            return
        try:
            for wire in list(self._wires):
                wire.leave()
            await service.runner.finish(self.settings.server.graceful_timeout)
            self._sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeper
            await _within(STOP_SECONDS, self.app.stop(), "shutdown")
        finally:
            self.failures.close()
            self._release()

    def _release(self) -> None:
        os.close(self._memory.fd)

    def connect(self, peer: tuple[str, int]) -> Wire:
        """Return a new connection; call it in the loop in which this was started."""
        if self._service is None:
            raise RuntimeError(
                "the application is not running: `async with AsyncClient(app) as client:`"
            )
        wire = Wire(HttpProtocol(self._service), self._context, peer)
        self._wires.add(wire)
        return wire
