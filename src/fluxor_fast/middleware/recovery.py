"""Turns what a handler did not raise on purpose into a JSON 500, told to whoever wants to know.

The server does so too (nothing reaches a client but its answer); with this layer the middleware
outside of it sees a 500 like any answer, and ``report`` is told, for an error tracker.

Rules:

1. The log has the traceback under the request id; the client has the request id, and no more.
2. ``HTTPError`` is an answer, and cancellation is not an error: both pass.
3. A ``report`` that fails is logged, and changes nothing for the client.

Cost alone: 0.4 µs per request (``python bench/middleware.py recovery``), nearly all of it what the
first layer of a route costs: its answers leave the shortest way.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from types import CoroutineType
from typing import Any, ClassVar

from fluxor_fast.composition import Layer, offer, sooner_of
from fluxor_fast.errors import HTTPError
from fluxor_fast.http.failure import failure
from fluxor_fast.http.request import Request
from fluxor_fast.routing import Call, Kind, Route

__all__ = ["Recovery"]

log = logging.getLogger("fluxor_fast.recovery")

Report = Callable[[Request, Exception], None]


class Recovery(Layer):
    """Middleware: 500 for what was not raised on purpose. Best the outermost.

    :param report: called with the request and the exception; must not block, except on blocking
        routes.
    """

    once: ClassVar[bool] = True

    def __init__(self, report: Report | None = None) -> None:
        self._report = report

    def __call__(self, call_next: Call, route: Route) -> Call:
        """Put this layer around ``call_next``."""
        answer = self._answer
        if route.kind is Kind.ASYNC:

            async def recovered_async(request: Request) -> Any:
                try:
                    return await call_next(request)
                except HTTPError:
                    raise
                except Exception as error:
                    return answer(request, error)

            sooner = sooner_of(call_next)
            if sooner is not None:
                offer(recovered_async, self._at_once(sooner))
            return recovered_async

        def recovered(request: Request) -> Any:
            try:
                return call_next(request)
            except HTTPError:
                raise
            except Exception as error:
                return answer(request, error)

        return recovered

    def _at_once(self, sooner: Call) -> Call:
        """Put this layer around a call that gives an answer or a coroutine of it."""
        answer = self._answer

        async def later(request: Request, value: Awaitable[Any]) -> Any:
            try:
                return await value
            except HTTPError:
                raise
            except Exception as error:
                return answer(request, error)

        def recovered(request: Request) -> Any:
            try:
                value = sooner(request)
            except HTTPError:
                raise
            except Exception as error:
                return answer(request, error)
            return later(request, value) if type(value) is CoroutineType else value

        return recovered

    def _answer(self, request: Request, error: Exception) -> Any:
        response = failure(log, request.method, request.path, request.id, error)
        if self._report is not None:
            try:
                self._report(request, error)
            except Exception:
                log.exception("the error of request id %s could not be reported", request.id)
        return response
