"""One line in the log for each request that reached a handler.

Left out unless asked for (``--access-log``). The path is logged as it was sent, still
percent-encoded, and the request line admits no control characters; the client is an address,
whoever says so: a line cannot be forged.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

from fluxor_fast.errors import HTTPError
from fluxor_fast.http.request import Request
from fluxor_fast.http.response import Response
from fluxor_fast.routing import Call, Kind, Route

__all__ = ["access_log"]

log = logging.getLogger("fluxor_fast.access")


class _Line:
    """Measures one request and logs it at the end, whatever the end is."""

    __slots__ = ("_request", "_started", "_status")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._started = monotonic()
        self._status = 500

    def of(self, response: Response) -> Response:
        """Take the status from the answer, and return it."""
        self._status = response.status
        return response

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        request = self._request
        log.info(
            "%s %s %d %.1fms %s %s",
            request.method,
            request.path,
            error.status if isinstance(error, HTTPError) else self._status,
            (monotonic() - self._started) * 1e3,
            request.client or "-",
            request.id,
        )


def access_log(call_next: Call, route: Route) -> Call:
    """Middleware: log method, path, status, duration, client and request id."""

    if route.kind is Kind.ASYNC:

        async def logged_async(request: Request) -> Any:
            with _Line(request) as line:
                return line.of(await call_next(request))

        return logged_async

    def logged(request: Request) -> Any:
        with _Line(request) as line:
            return line.of(call_next(request))

    return logged
