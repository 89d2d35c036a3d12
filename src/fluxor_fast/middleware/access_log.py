"""One line in the log for each request that reached a handler.

Left out unless asked for (``--access-log``). The path is logged as it was sent, still
percent-encoded, and the request line admits no control characters: a line cannot be forged.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

from fluxor_fast.errors import HTTPError
from fluxor_fast.http.request import Request
from fluxor_fast.routing import Call, Kind, Route

__all__ = ["access_log"]

log = logging.getLogger("fluxor_fast.access")


def access_log(call_next: Call, route: Route) -> Call:
    """Middleware: log method, path, status, duration, client and request id."""

    def note(request: Request, status: int, started: float) -> None:
        log.info(
            "%s %s %d %.1fms %s %s",
            request.method,
            request.path,
            status,
            (monotonic() - started) * 1e3,
            request.client,
            request.id,
        )

    if route.kind is Kind.ASYNC:

        async def logged_async(request: Request) -> Any:
            started = monotonic()
            status = 500
            try:
                response = await call_next(request)
                status = response.status
                return response
            except HTTPError as error:
                status = error.status
                raise
            finally:
                note(request, status, started)

        return logged_async

    def logged(request: Request) -> Any:
        started = monotonic()
        status = 500
        try:
            response = call_next(request)
            status = response.status
            return response
        except HTTPError as error:
            status = error.status
            raise
        finally:
            note(request, status, started)

    return logged
