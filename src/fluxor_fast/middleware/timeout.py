"""Ends a coroutine that takes too long: it is cancelled, and the client has 504 ``TIMEOUT``.

Rules:

1. Only coroutines can be cancelled. On a plain or a blocking route, or a group that has one, it is
   a ``RouteError`` at start; as the application's it leaves those alone.
2. The time runs from the call of the handler to its return: not while the request waits for its
   slot (that is ``--queue-deadline``), nor while an answer in pieces is sent (the write timeout).
3. What the handler awaits is cancelled with it: a statement in the database too. A handler that
   catches ``CancelledError`` and answers all the same has its answer sent.

Cost: 3.8 µs per request (``python bench/middleware.py timeout``): a coroutine, and a timer that is
set and taken back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar

from fluxor_fast.composition import Layer
from fluxor_fast.contract import Answer
from fluxor_fast.errors import HTTPError, RouteError
from fluxor_fast.http.request import Request
from fluxor_fast.routing import Call, Kind, Route

__all__ = ["Timeout"]


class Timeout(Layer):
    """Middleware: 504 after ``seconds``."""

    once: ClassVar[bool] = True

    def __init__(self, seconds: float) -> None:
        if not seconds > 0:
            raise ValueError(f"a timeout is more than 0 seconds, not {seconds}")
        self.seconds = seconds

    def check(self, kind: Kind, path: str) -> None:
        """Refuse a route that cannot be cancelled."""
        if kind is not Kind.ASYNC:
            raise RouteError(
                f"{path}: only a coroutine function can be cancelled by a timeout"
                f" (this handler is {kind.value})"
            )

    def answers(self, route: Route) -> Mapping[int, Answer]:
        """Return what it answers when the time is over."""
        late = Answer(f"The answer took longer than {self.seconds:g} s.")
        return {504: late} if route.kind is Kind.ASYNC else {}

    def __call__(self, call_next: Call, route: Route) -> Call:
        """Put this layer around ``call_next`` (rule 1)."""
        if route.kind is not Kind.ASYNC:
            return call_next
        seconds = self.seconds

        async def limited(request: Request) -> Any:
            limit = asyncio.timeout(seconds)
            try:
                async with limit:
                    return await call_next(request)
            except TimeoutError as error:
                if not limit.expired():  # the handler's own
                    raise
                raise HTTPError(
                    504, f"the answer took longer than {seconds:g} s", code="TIMEOUT"
                ) from error

        return limited
