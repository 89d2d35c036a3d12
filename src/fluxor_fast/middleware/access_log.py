"""One line in the log for each request that reached a route, those that refuse (404, 405) too.

====  ==========================================================================================
text  ``2026-01-31T12:00:00.000Z INFO fluxor_fast.access[17] GET /users 200 1.3ms 192.0.2.1 id``
json  ``{"time":…,"level":"INFO","logger":"fluxor_fast.access","pid":…,"method":…,"path":…,
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
   streamed answer, to its beginning; of a WebSocket, to its end. A value that proves impossible to
   encode is logged with the status it was returned with; the 500 it becomes is in the error log.
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
from collections.abc import Awaitable, Callable, Iterable
from time import gmtime, monotonic, strftime, time
from types import CoroutineType
from typing import Any

import orjson

from fluxor_fast.errors import HTTPError
from fluxor_fast.http.request import Request
from fluxor_fast.http.response import Response
from fluxor_fast.observability.redaction import code_of
from fluxor_fast.routing import Call, Kind, Route

__all__ = ["AccessLog"]

Format = Callable[[Request, int], str]


def _times(clock: Callable[[], float]) -> Callable[[], str]:
    """Return a function that tells the time; one text serves all lines of a millisecond."""
    last = -1
    text = ""

    def stamp() -> str:
        nonlocal last, text
        now = int(clock() * 1000)
        if now != last:
            last = now
            second, ms = divmod(now, 1000)
            text = f"{strftime('%Y-%m-%dT%H:%M:%S', gmtime(second))}.{ms:03d}Z"
        return text

    return stamp


def _word(text: str) -> str:
    """Return ``text`` as one word of visible ASCII."""
    return "".join(one if "!" <= one <= "~" else code_of(one) for one in text) or "-"


def _console(clock: Callable[[], float]) -> Format:
    stamp = _times(clock)
    name = f"INFO fluxor_fast.access[{os.getpid()}]"

    def line(request: Request, status: int) -> str:
        ms = (monotonic() - request.arrived) * 1e3
        head = request.head
        path, client, rid = head.path, request.client or "-", request.id
        text = path + client + rid
        if " " in text or not text.isascii() or not text.isprintable():
            path, client, rid = map(_word, (path, client, rid))
        return f"{stamp()} {name} {head.method} {path} {status} {ms:.1f}ms {client} {rid}\n"

    return line


def _json(clock: Callable[[], float]) -> Format:
    stamp = _times(clock)
    same = f'"level":"INFO","logger":"fluxor_fast.access","pid":{os.getpid()}'

    def line(request: Request, status: int) -> str:
        ms = (monotonic() - request.arrived) * 1e3
        head = request.head
        path, client, rid = head.path, request.client, request.id
        text = path + client + rid
        if '"' in text or "\\" in text or not text.isascii() or not text.isprintable():
            path, client, rid = (
                orjson.dumps(_word(one))[1:-1].decode() for one in (path, client, rid)
            )
        return (
            f'{{"time":"{stamp()}",{same},"method":"{head.method}","path":"{path}"'
            f',"status":{status},"ms":{ms:.1f},"client":"{client}","request_id":"{rid}"}}\n'
        )

    return line


def _status(value: Any) -> int:
    """Return the status of the answer for what was returned (``to_response``), or raised."""
    kind = type(value)
    if kind is dict or kind is str:
        return 200
    if isinstance(value, BaseException):
        return value.status if isinstance(value, HTTPError) else 500
    if isinstance(value, Response):
        return value.status
    if kind is tuple and value and type(value[0]) is int:
        return int(value[0])
    return 204 if value is None else 200


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
        note = self._note()

        async def later(request: Request, value: Awaitable[Any]) -> Any:
            try:
                found = await value
            except BaseException as error:
                note(request, error)
                raise
            note(request, found)
            return found

        def logged(call: Call) -> Call:
            def logged(request: Request) -> Any:
                try:
                    value = call(request)
                except BaseException as error:
                    note(request, error)
                    raise
                note(request, value)
                return value

            return logged

        def logged_later(call: Call) -> Call:
            return lambda request: later(request, call(request))

        def logged_sooner(sooner: Call) -> Call:
            def logged(request: Request) -> Any:
                try:
                    value = sooner(request)
                except BaseException as error:
                    note(request, error)
                    raise
                if type(value) is CoroutineType:
                    return later(request, value)
                note(request, value)
                return value

            return logged

        for route in routes:
            route.call = (logged_later if route.kind is Kind.ASYNC else logged)(route.call)
            if route.at_once is not None:
                route.at_once = logged_sooner(route.at_once)

    def _note(self) -> Callable[[Request, Any], None]:
        """Return what writes the line of a request, given what came of it: a value or an error."""
        write, line, sample, chance = self._write, self._line, self._sample, self._chance
        partly = sample < 1.0

        def note(request: Request, outcome: Any) -> None:
            status = 200 if type(outcome) is dict else _status(outcome)
            if partly and status < 500 and chance() >= sample:
                return
            if status == 101:
                outcome.at_end(lambda: write(line(request, status)))
                return
            write(line(request, status))

        return note
