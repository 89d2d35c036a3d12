"""An httpx transport over connections in memory, and what it has in common with ``threaded``.

``httpcore``'s pool does the client's HTTP (keep-alive, framing, streaming, time limits), as it does
on the wire. Here are the streams under it, and what is made of errors:

1. What a handler raised is raised where its answer was awaited, or read, and what nobody awaited
   (a background task, an answer that was not read to its end) when the application is stopped.
2. A time limit that ends a request says where the application stands (see ``stacks``).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final

import httpcore
import httpx

from fluxor_fast.testing.instance import Failures, Instance
from fluxor_fast.testing.stacks import standing
from fluxor_fast.testing.wire import Wire

__all__ = ["Errors", "FluxorTransport", "request_id_of", "to_httpcore", "to_httpx"]

PORT: Final = 50_000
"""From which clients come; nobody looks at it."""


class Errors:
    """What a transport makes of errors.

    :param told: whether what handlers raise is raised to who asked.
    :param stacks: returns where the application stands.
    """

    def __init__(self, failures: Failures, told: bool, stacks: Callable[[], str]) -> None:
        self._failures = failures
        self._told = told
        self.stacks = stacks

    def failure(self, request_id: str | None = None) -> BaseException | None:
        """Return what the handler of a request, or any, has raised and nobody was told yet."""
        return self._failures.take(request_id) if self._told else None

    @contextmanager
    def translated(self, request_id: str = "") -> Iterator[None]:
        """Raise httpx's errors for httpcore's, or what the handler raised."""
        problem: BaseException | None = None
        try:
            yield
        except (
            httpcore.TimeoutException,
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.UnsupportedProtocol,
        ) as error:
            problem = self.failure(request_id)
            if problem is None:
                message = str(error)
                if isinstance(error, httpcore.TimeoutException):
                    message = f"no answer in time. The application stands here:\n{self.stacks()}"
                # they have the same names there
                raise getattr(httpx, type(error).__name__)(message) from error
        if problem is not None:  # out of the handler, so that its own cause and context stay
            raise problem


def to_httpcore(request: httpx.Request) -> httpcore.Request:
    """Return the request as httpcore has it."""
    url = request.url
    return httpcore.Request(
        method=request.method,
        url=httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        ),
        headers=request.headers.raw,
        content=request.stream,
        extensions=request.extensions,
    )


def to_httpx(answer: httpcore.Response, stream: Any) -> httpx.Response:
    """Return the answer as httpx has it."""
    return httpx.Response(
        answer.status, headers=answer.headers, stream=stream, extensions=answer.extensions
    )


def request_id_of(answer: httpcore.Response) -> str:
    """Return the request id that the answer carries."""
    return str(httpx.Headers(answer.headers).get("x-request-id", ""))


class FluxorTransport(httpx.AsyncBaseTransport):
    """Serves an application in the loop of who uses it: ``httpx.AsyncClient(transport=…)``.

    A handler that blocks the loop blocks the test too, and no time limit can end it; the
    ``TestClient`` has a loop of its own.

    :param app: an ``App``, an ASGI application, or the name of one as ``module:attribute``.
    :param settings: by path, ``{"server.max_ccu": 10}``; the others have their defaults.
    :param address: the client's.
    :param raise_server_exceptions: raise what handlers raise; else there is only their 500.
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
        errors = Errors(
            instance.failures,
            raise_server_exceptions,
            lambda: standing(asyncio.get_running_loop()),
        )
        self._share(instance, errors, address)
        self._owner = True

    def _share(self, instance: Instance, errors: Errors, address: str) -> None:
        self._instance = instance
        self._errors = errors
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=None, network_backend=_Backend(instance, (address, PORT))
        )

    def beside(self, address: str) -> FluxorTransport:
        """Return a transport to the same application for a client at ``address``."""
        other = FluxorTransport.__new__(FluxorTransport)
        other._share(self._instance, self._errors, address)
        other._owner = False
        return other

    async def __aenter__(self) -> FluxorTransport:
        """Start the application."""
        if self._owner:
            await self._instance.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        """Stop the application; raise what was raised in it and nobody was told."""
        await self.aclose()
        if self._owner and error is None and (failure := self._errors.failure()) is not None:
            raise failure

    async def aclose(self) -> None:
        """Close the connections, and stop the application."""
        await self._pool.aclose()
        if self._owner:
            await self._instance.stop()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Have the application answer."""
        with self._errors.translated():
            answer = await self._pool.handle_async_request(to_httpcore(request))
        request_id = request_id_of(answer)
        if (failure := self._errors.failure(request_id)) is not None:
            await answer.aclose()
            raise failure
        return to_httpx(answer, _Body(answer, self._errors, request_id))


class _Body(httpx.AsyncByteStream):
    def __init__(self, answer: httpcore.Response, errors: Errors, request_id: str) -> None:
        self._answer = answer
        self._errors = errors
        self._request_id = request_id

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with self._errors.translated(self._request_id):
            async for piece in self._answer.aiter_stream():
                yield piece

    async def aclose(self) -> None:
        await self._answer.aclose()


class _Backend(httpcore.AsyncNetworkBackend):
    def __init__(self, instance: Instance, peer: tuple[str, int]) -> None:
        self._instance = instance
        self._peer = peer

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(self._instance.connect(self._peer))


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                return await self._wire.receive(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._wire.send(buffer)
        except TimeoutError as error:
            raise httpcore.WriteTimeout from error
        except BrokenPipeError as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        self._wire.leave()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self._wire.encrypt()
        return self

    def get_extra_info(self, info: str) -> Any:
        return self._wire.readable if info == "is_readable" else None
