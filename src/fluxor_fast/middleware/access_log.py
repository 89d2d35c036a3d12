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
   address, whoever says so: parts cannot be mistaken for others. What a client may have said is
   checked again before it is written, so that this holds whatever becomes of the parser.

What it costs: see "The access log" in docs/PERFORMANCE.md.
"""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable, Iterable
from math import inf
from time import gmtime, monotonic, strftime, time
from types import CoroutineType
from typing import Any, Final, NamedTuple

import orjson

from fluxor_fast.errors import HTTPError
from fluxor_fast.http.request import Head, Request
from fluxor_fast.http.response import Json, Response
from fluxor_fast.observability.redaction import code_of
from fluxor_fast.routing import Call, Kind, Route

__all__ = ["AccessLog"]

Line = Callable[[Request, str], str]
"""Makes the line of a request, given the status of its answer as text, which is quicker."""

MOST_CLIENTS: Final = 4096
"""Addresses whose texts are remembered."""


class _Form(NamedTuple):
    """What stands around the values of a line, which are in the order of the fields."""

    time: str
    method: str
    path: str
    status: str
    ms: str
    client: str
    request_id: str
    end: str
    good: Callable[[str], bool]
    """Whether a value can stand as it is."""
    made_good: Callable[[str], str]


def _is_word(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _word(text: str) -> str:
    """Return ``text`` as one word of visible ASCII."""
    return "".join(one if "!" <= one <= "~" else code_of(one) for one in text) or "-"


def _console() -> _Form:
    name = f" INFO fluxor_fast.access[{os.getpid()}] "
    return _Form(
        "", name, " ", " ", " ", "ms ", " ", "\n", lambda text: text != "" and _is_word(text), _word
    )


def _json() -> _Form:
    same = f'"level":"INFO","logger":"fluxor_fast.access","pid":{os.getpid()}'
    return _Form(
        '{"time":"', f'",{same},"method":"', '","path":"', '","status":', ',"ms":', ',"client":"',
        '","request_id":"', '"}\n',
        lambda text: _is_word(text) and '"' not in text and "\\" not in text,
        lambda text: orjson.dumps(_word(text))[1:-1].decode(),
    )  # fmt: skip


def _lines(form: _Form, clock: Callable[[], float], monotonic: Callable[[], float]) -> Line:
    """Return what makes lines of that form.

    One text serves all of a millisecond, and what a head says is checked once for all its requests.
    """
    # what is put together is taken at once, as blocking handlers' lines come from their threads
    this: tuple[float, str] = (-inf, "")  # how long it is this millisecond; how lines begin in it
    of_second: tuple[int, str] = (-1, "")  # its text
    good, made_good, end = form.good, form.made_good, form.end
    short = [f"{form.ms}{tenths / 10:.1f}{form.client}" for tenths in range(1000)]
    known = object()
    clients: dict[str, str] = {}

    def begun(now: float) -> str:
        nonlocal this, of_second
        ms = clock() * 1000
        second, ms_of = divmod(int(ms), 1000)
        known_second, text = of_second
        if second != known_second:
            text = strftime("%Y-%m-%dT%H:%M:%S", gmtime(second))
            of_second = second, text
        begin = f"{form.time}{text}.{ms_of:03d}Z{form.method}"
        this = now + (1 - ms % 1) / 1000, begin
        return begin

    def said_by(head: Head) -> tuple[str, str]:
        path = head.path if good(head.path) else made_good(head.path)
        rid = (head.request_id or b"").decode("latin-1")
        said = head.memo[known] = (
            f"{head.method}{form.path}{path}{form.status}",
            rid if not rid or good(rid) else made_good(rid),
        )
        return said

    def shown(client: str) -> str:
        if len(clients) >= MOST_CLIENTS:
            clients.clear()
        text = client if good(client) else made_good(client)
        text = clients[client] = f"{text}{form.request_id}"
        return text

    def line(request: Request, status: str) -> str:
        now = monotonic()
        until, begin = this
        tenths = int((now - request.arrived) * 1e4 + 0.5)
        head = request.head
        said, rid = head.memo.get(known) or said_by(head)
        connection = request.connection
        direct = connection.direct
        client = connection.client_of(head) if direct is None else direct.client[0]
        client = clients.get(client) or shown(client)
        try:
            took = short[tenths]
        except IndexError:
            took = f"{form.ms}{tenths / 10:.1f}{form.client}"
        if now >= until:
            begin = begun(now)
        return f"{begin}{said}{status}{took}{client}{rid or request.rid.decode()}{end}"

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
    :param clock: what time it is, in seconds since 1970.
    :param monotonic: the clock of ``Request.arrived``.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        form: str = "console",
        sample: float = 1.0,
        *,
        chance: Callable[[], float] = random.random,
        clock: Callable[[], float] = time,
        monotonic: Callable[[], float] = monotonic,
    ) -> None:
        self._write = write
        self._line = _lines(_json() if form == "json" else _console(), clock, monotonic)
        self._sample = sample
        self._chance = chance

    def watch(self, routes: Iterable[Route]) -> None:
        """Log the requests of these routes from now on; to be called once, after composing."""
        note = self._note()
        write, line, every = self._write, self._line, self._sample >= 1.0

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
                kind = type(value)
                if every and (kind is dict or kind is Json):  # the commonest
                    write(line(request, "200"))
                else:
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
                kind = type(value)
                if every and (kind is Json or kind is dict):
                    write(line(request, "200"))
                elif kind is CoroutineType:
                    return later(request, value)
                else:
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
                outcome.at_end(lambda: write(line(request, "101")))
                return
            write(line(request, str(status)))

        return note
