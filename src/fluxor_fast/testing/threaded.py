"""The transport of ``transport`` for plain functions: the application has a loop of its own.

The loop runs in another thread, so a time limit also ends the wait for a handler that blocks it.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final

import httpcore
import httpx

from fluxor_fast.testing.instance import STOP_SECONDS, Instance
from fluxor_fast.testing.loops import LoopThread, NoAnswer
from fluxor_fast.testing.stacks import standing
from fluxor_fast.testing.transport import (
    PORT,
    Errors,
    request_id_of,
    to_httpcore,
    to_httpx,
)
from fluxor_fast.testing.wire import Wire

__all__ = ["ThreadedTransport"]

MARGIN: Final = 2.0
"""Seconds beyond the application's own limits after which its loop is taken to hang."""


class ThreadedTransport(httpx.BaseTransport):
    """Serves an application for ``httpx.Client(transport=…)``.

    The parameters are those of ``FluxorTransport``.
    """

    def __init__(
        self,
        app: Any,
        *,
        settings: Mapping[str, object] | None = None,
        address: str = "127.0.0.1",
        raise_server_exceptions: bool = True,
    ) -> None:
        instance = Instance(app, settings)
        thread = LoopThread()
        errors = Errors(
            instance.failures,
            raise_server_exceptions,
            lambda: standing(thread.loop, thread.ident, LoopThread.root),
        )
        self._share(instance, thread, errors, address)
        self._owner = True

    def _share(self, instance: Instance, thread: LoopThread, errors: Errors, address: str) -> None:
        self._instance = instance
        self._thread = thread
        self._errors = errors
        self._pool = httpcore.ConnectionPool(
            max_connections=None, network_backend=_Backend(instance, thread, (address, PORT))
        )

    def beside(self, address: str) -> ThreadedTransport:
        """Return a transport to the same application for a client at ``address``."""
        other = ThreadedTransport.__new__(ThreadedTransport)
        other._share(self._instance, self._thread, self._errors, address)
        other._owner = False
        return other

    def __enter__(self) -> ThreadedTransport:
        """Start the application."""
        if self._owner:
            limit = self._instance.settings.server.boot_timeout
            self._thread.start()
            try:
                self._within(limit, self._instance.start(), "the application does not start")
            except BaseException:
                self._thread.stop(MARGIN)
                raise
        return self

    def _within(self, limit: float, coroutine: Any, otherwise: str) -> None:
        try:
            self._thread.call(coroutine, limit + MARGIN)
        except NoAnswer:
            raise NoAnswer(f"{otherwise}:\n{self._errors.stacks()}") from None

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        """Stop the application; raise what was raised in it and nobody was told."""
        try:
            self.close()
        except TimeoutError:
            if error is None:  # else that says more
                raise
        if self._owner and error is None and (failure := self._errors.failure()) is not None:
            raise failure

    def close(self) -> None:
        """Close the connections, and stop the application.

        :raises TimeoutError: if it hangs; it says where.
        """
        self._pool.close()
        if self._owner and self._thread.running:
            limit = self._instance.settings.server.graceful_timeout + STOP_SECONDS
            try:
                self._within(limit, self._instance.stop(), "the application does not stop")
            finally:
                self._thread.stop(MARGIN)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Have the application answer."""
        with self._errors.translated():
            answer = self._pool.handle_request(to_httpcore(request))
        request_id = request_id_of(answer)
        if (failure := self._errors.failure(request_id)) is not None:
            answer.close()
            raise failure
        return to_httpx(answer, _Body(answer, self._errors, request_id))


class _Body(httpx.SyncByteStream):
    def __init__(self, answer: httpcore.Response, errors: Errors, request_id: str) -> None:
        self._answer = answer
        self._errors = errors
        self._request_id = request_id

    def __iter__(self) -> Iterator[bytes]:
        with self._errors.translated(self._request_id):
            yield from self._answer.iter_stream()

    def close(self) -> None:
        self._answer.close()


class _Backend(httpcore.NetworkBackend):
    def __init__(self, instance: Instance, thread: LoopThread, peer: tuple[str, int]) -> None:
        self._instance = instance
        self._thread = thread
        self._peer = peer

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        async def connect() -> Wire:
            return self._instance.connect(self._peer)

        try:
            return _Stream(self._thread.call(connect(), timeout), self._thread)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout from error


class _Stream(httpcore.NetworkStream):
    def __init__(self, wire: Wire, thread: LoopThread) -> None:
        self._wire = wire
        self._thread = thread

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return self._thread.call(self._wire.receive(max_bytes), timeout)
        except TimeoutError as error:
            raise httpcore.ReadTimeout from error

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:  # as httpcore's own: the end of a message may be no bytes
            return
        try:
            self._thread.call(self._wire.send(buffer), timeout)
        except TimeoutError as error:
            raise httpcore.WriteTimeout from error
        except BrokenPipeError as error:
            raise httpcore.WriteError(str(error)) from error

    def close(self) -> None:
        if self._thread.running:
            self._thread.loop.call_soon_threadsafe(self._wire.leave)

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        self._wire.encrypt()
        return self

    def get_extra_info(self, info: str) -> Any:
        return self._wire.readable if info == "is_readable" else None
