"""Named checks of what an application depends on, run together.

Rules kept here:

1. Checks run concurrently, each with its own time limit; one that fails, hangs or raises is a
   result, never an error of the run.
2. Callers at the same time share one run, and for a second its result: the route is never
   refused, so it must not be a lever on the database.
3. A result tells no more than its check meant to: of an ``HTTPError`` its message, of any other
   exception the type alone.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from fluxor_fast.errors import HTTPError

__all__ = ["Check", "CheckResult", "HealthChecks", "HealthReport"]

Check = Callable[[], Awaitable[bool | None] | bool | None]
"""A check: up if it returns ``None`` or ``True``, down if it returns ``False`` or raises."""

Found = Literal["up", "down", "timeout"]
Overall = Literal["healthy", "degraded", "unhealthy"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one check found."""

    name: str
    status: Found
    critical: bool
    duration_ms: float
    error: str | None = None


@dataclass(frozen=True, slots=True)
class HealthReport:
    """What all checks found, in the order of registration.

    ``status`` is ``healthy``, ``degraded`` (only checks that are not critical failed) or
    ``unhealthy``.
    """

    status: Overall
    checks: tuple[CheckResult, ...]


@dataclass(frozen=True, slots=True)
class _Registered:
    name: str
    check: Check
    timeout: float
    critical: bool


class HealthChecks:
    """A registry of checks.

    :param max_age: seconds for which a report is given again.
    :param clock: monotonic time in seconds.
    """

    def __init__(self, max_age: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_age = max_age
        self._clock = clock
        self._checks: dict[str, _Registered] = {}
        self._running: asyncio.Task[HealthReport] | None = None
        self._last: tuple[float, HealthReport] | None = None

    def add(self, name: str, check: Check, *, timeout: float = 1.0, critical: bool = True) -> None:
        """Register a check; a name that is taken is a ``ValueError``.

        :param check: a coroutine function, or a plain function, which must not block: the time
            limit cannot end it.
        :param timeout: seconds.
        :param critical: whether its failure makes the whole ``unhealthy``.
        """
        if name in self._checks:
            raise ValueError(f"there is a check named {name} already")
        self._checks[name] = _Registered(name, check, timeout, critical)

    async def run(self) -> HealthReport:
        """Run every check and return what they found; a report of the last second is kept."""
        if self._last is not None and self._clock() - self._last[0] < self._max_age:
            return self._last[1]
        if self._running is None:
            self._running = asyncio.create_task(self._run_all())
            self._running.add_done_callback(self._finished)
        # a caller who leaves must not take the others' answer with him
        return await asyncio.shield(self._running)

    def _finished(self, task: asyncio.Task[HealthReport]) -> None:
        self._running = None
        if not task.cancelled():
            self._last = self._clock(), task.result()

    async def _run_all(self) -> HealthReport:
        results = await asyncio.gather(*map(self._run_one, self._checks.values()))
        failed = [result for result in results if result.status != "up"]
        status: Overall
        if not failed:
            status = "healthy"
        elif any(result.critical for result in failed):
            status = "unhealthy"
        else:
            status = "degraded"
        return HealthReport(status, tuple(results))

    async def _run_one(self, registered: _Registered) -> CheckResult:
        started = self._clock()
        status: Found = "up"
        error: str | None = None
        timeout = asyncio.timeout(registered.timeout)
        try:
            async with timeout:
                found = registered.check()
                if inspect.isawaitable(found):
                    found = await found
            if found is False:
                status = "down"
        except TimeoutError as raised:
            # the check may have raised one of its own
            status, error = ("timeout", None) if timeout.expired() else ("down", _told(raised))
        except Exception as raised:
            status, error = "down", _told(raised)
        duration = round((self._clock() - started) * 1000, 3)
        return CheckResult(registered.name, status, registered.critical, duration, error)


def _told(error: Exception) -> str:
    return error.message if isinstance(error, HTTPError) else type(error).__name__
