"""One line in the log for each request that reached a route, those that refuse (404, 405) too.

====  ==========================================================================================
text  ``2026-01-31T12:00:00.000Z INFO fluxor_fast.access[17] GET /users 200 1.3ms 192.0.2.1 id``
json  ``{"time":…,"level":"info","logger":"fluxor_fast.access","pid":…,"method":…,"path":…,
      "status":…,"ms":…,"client":…,"request_id":…}``
====  ==========================================================================================

Rules:

1. Off, it is not there: routes are called as they are. On (``--access-log``), it is the outermost
   function around each, and what the handler returned goes on as it was, so the short way
   of an answer stays open.
2. A line is made at once and written later, by a thread (see ``observability.sink``).
3. With ``--access-log-sample`` it is left to chance which requests are logged. What failed (5xx)
   is logged always.
4. The time is that from the arrival of the request to its answer, waiting included; of a
   streamed answer, to its beginning. A value that proves impossible to encode is logged with the
   status it was returned with; the 500 it becomes is in the error log.
5. The query is not logged: tokens are found there. Nor is any field of the request. Requests that
   admission refuses are not logged either, as that would make refusing dear; they are counted.
6. Method and path are visible ASCII without spaces, as is a request id, and the client is an
   address, whoever says so: parts cannot be mistaken for others. Each is checked again before it is
   written, so that this holds whatever becomes of the parser.

What it costs: see "The access log" in docs/PERFORMANCE.md.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from time import gmtime, monotonic, strftime, time
from typing import Any

import orjson

from fluxor_fast.errors import HTTPError
from fluxor_fast.http.request import Request
from fluxor_fast.http.response import Response
from fluxor_fast.observability.redaction import escape
from fluxor_fast.routing import Call, Kind, Route

__all__ = ["AccessLog"]

Format = Callable[[Request, int, float], str]


def _times(clock: Callable[[], float]) -> Callable[[], str]:
    """Return a function that tells the time; what lasts a second is made once a second."""
    last = -1
    prefix = ""

    def stamp() -> str:
        nonlocal last, prefix
        now = clock()
        second = int(now)
        if second != last:
            last = second
            prefix = strftime("%Y-%m-%dT%H:%M:%S", gmtime(second))
        return f"{prefix}.{int((now - second) * 1000):03d}Z"

    return stamp


def _plain(text: str) -> str:
    """Return ``text`` as one word of visible ASCII."""
    if text.isascii() and text.isprintable() and " " not in text:
        return text
    return escape(text).replace(" ", "\\x20")


def _console(clock: Callable[[], float]) -> Format:
    stamp = _times(clock)
    name = f"INFO fluxor_fast.access[{os.getpid()}]"

    def line(request: Request, status: int, ms: float) -> str:
        head = request.head
        return (
            f"{stamp()} {name} {head.method} {_plain(head.path)} {status} {ms:.1f}ms"
            f" {_plain(request.client) or '-'} {_plain(request.id)}\n"
        )

    return line


def _json(clock: Callable[[], float]) -> Format:
    stamp = _times(clock)
    pid = os.getpid()

    def line(request: Request, status: int, ms: float) -> str:
        head = request.head
        return (
            orjson.dumps(
                {
                    "time": stamp(),
                    "level": "info",
                    "logger": "fluxor_fast.access",
                    "pid": pid,
                    "method": head.method,
                    "path": _plain(head.path),
                    "status": status,
                    "ms": round(ms, 1),
                    "client": _plain(request.client),
                    "request_id": _plain(request.id),
                }
            ).decode()
            + "\n"
        )

    return line


class AccessLog:
    """Logs the requests of routes.

    To be made in the process that serves, as its lines have the process id.

    :param write: takes a line.
    :param form: ``console`` or ``json``.
    :param sample: the share of requests that is logged, 0…1.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        form: str = "console",
        sample: float = 1.0,
        *,
        chance: Callable[[], float] = random.random,
        clock: Callable[[], float] = time,
    ) -> None:
        self._write = write
        self._line = (_json if form == "json" else _console)(clock)
        self._sample = sample
        self._chance = chance

    def watch(self, routes: Iterable[Route]) -> None:
        """Log the requests of these routes from now on; to be called once, after composing."""
        for route in routes:
            route.call = self._around(route.call, route.kind)

    def _note(self, request: Request, status: int) -> None:
        ms = (monotonic() - request.arrived) * 1e3
        self._write(self._line(request, status, ms))

    def _around(self, call: Call, kind: Kind) -> Call:
        note, sample, chance = self._note, self._sample, self._chance
        partly = sample < 1.0

        def done(request: Request, value: Any) -> None:
            kind = type(value)
            if kind is dict or kind is str:
                status = 200
            elif isinstance(value, Response):
                status = value.status
            elif kind is tuple and value and type(value[0]) is int:
                status = value[0]
            else:
                status = 204 if value is None else 200
            if not partly or status >= 500 or chance() < sample:
                note(request, status)

        def failed(request: Request, error: BaseException) -> None:
            status = error.status if isinstance(error, HTTPError) else 500
            if not partly or status >= 500 or chance() < sample:
                note(request, status)

        if kind is Kind.ASYNC:

            async def logged_async(request: Request) -> Any:
                try:
                    value = await call(request)
                except BaseException as error:
                    failed(request, error)
                    raise
                done(request, value)
                return value

            return logged_async

        def logged(request: Request) -> Any:
            try:
                value = call(request)
            except BaseException as error:
                failed(request, error)
                raise
            done(request, value)
            return value

        return logged
