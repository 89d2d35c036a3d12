"""A request that failed in a way that nobody meant: a line in the log, a 500 that tells nothing."""

from __future__ import annotations

import logging

from fluxor_fast.errors import HTTPError
from fluxor_fast.http.response import Response, error_response

__all__ = ["failure"]


def failure(
    log: logging.Logger, method: str, path: str, request_id: str, error: BaseException
) -> Response:
    """Return the 500 for ``error``, which is logged with its traceback.

    The client is told the request id alone, under which the log has it.
    """
    log.error("%s %s failed (request id %s)", method, path, request_id, exc_info=error)
    return error_response(
        HTTPError(500, "the request failed; see the server's log under its X-Request-ID")
    )
