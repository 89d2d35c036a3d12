"""Logging: one line per event, for people or as JSON, to standard error or a file.

========  ======================================================================================
console   ``2026-01-31T12:00:00.000Z WARNING fluxor_fast.arbiter[17] what happened request_id=…``
json      ``{"time":…,"level":…,"logger":…,"pid":…,"message":…,"request_id":…,"exc_info":…}``
========  ======================================================================================

Rules:

1. Times are UTC. Within a request each line has its id, whoever logs it: the application,
   a library, the server.
2. Every text passes through ``redaction``: no secret, and no character that could forge a line.
   On the console a traceback's lines begin with ``  | ``, so that what begins with a time is
   ours. In JSON what is not ASCII is escaped; fields given as ``extra`` are there beside
   the message, those with the name of a secret hidden.
3. Logging never raises into the code that logs; what cannot be written is counted (see ``sink``).

The id comes from the task's context. A synchronous handler has no task, and setting a context
for each would slow down all for the few that log: so when such a line is logged, the request
is looked up in the frames below, among the local variables of the functions that were named
with ``find_requests_in``.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType
from typing import Any

from pythonjsonlogger.core import LogData
from pythonjsonlogger.json import JsonFormatter as _JsonFormatter

from fluxor_fast.errors import ConfigError
from fluxor_fast.http.request import CURRENT, Request
from fluxor_fast.observability.redaction import MASK, escape, scrubber, sensitive
from fluxor_fast.observability.sink import Buffer, Sink

__all__ = [
    "buffered",
    "close",
    "configure",
    "current_request",
    "find_requests_in",
    "follow",
    "reopen",
]

log = logging.getLogger("fluxor_fast.logs")

Scrub = Callable[[str], str]

_handler: _Handler | None = None
_buffer: Buffer | None = None
_frames: set[CodeType] = set()
_level = logging.INFO  # that of the settings
_followed = 0
DEEPEST = 200
"""Frames that are looked through for a request; handlers are not nested deeper."""


class _Times(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


class ConsoleFormatter(_Times):
    """Lines for people."""

    def __init__(self, scrub: Scrub) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s[%(process)d] %(message)s")
        self._scrub = scrub

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line itself."""
        record.message = self._scrub(record.message)
        line = super().formatMessage(record)
        request_id = getattr(record, "request_id", None)
        return escape(f"{line} request_id={request_id}" if request_id else line)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with a traceback behind it on lines that cannot be taken for others."""
        first, *rest = self._parts(record)
        quoted = "\n".join(self._scrub(part) for part in rest).split("\n") if rest else ()
        return "\n".join((first, *(f"  | {escape(line)}" for line in quoted)))

    def _parts(self, record: logging.LogRecord) -> Iterable[str]:
        record.message = record.getMessage()
        record.asctime = self.formatTime(record)
        yield self.formatMessage(record)
        if record.exc_info:
            yield self.formatException(record.exc_info)
        if record.stack_info:
            yield self.formatStack(record.stack_info)


class JsonFormatter(_JsonFormatter, _Times):
    """Lines for machines."""

    def __init__(self, scrub: Scrub) -> None:
        names = {"asctime": "time", "levelname": "level", "name": "logger", "process": "pid"}
        super().__init__([*names, "message"], rename_fields=names, json_default=self._other)
        self._scrub = scrub

    def process_log_record(self, log_data: LogData) -> LogData:
        """Hide what is secret."""
        return {self._scrub(key): self._clean(key, value) for key, value in log_data.items()}

    def _clean(self, name: str, value: Any) -> Any:
        if isinstance(value, str):
            return MASK if sensitive(name) else self._scrub(value)
        if isinstance(value, dict):
            return {self._scrub(str(key)): self._clean(str(key), v) for key, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._clean(name, one) for one in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        return MASK if sensitive(name) else self._other(value)

    def _other(self, value: object) -> str:
        return self._scrub(str(value))

    def jsonify_log_record(self, log_data: LogData) -> str:
        """Return one line: ASCII, without the one control character that JSON may leave in."""
        text = json.dumps(log_data, default=self._other, separators=(",", ":"))
        return text.replace("\x7f", "\\u007f")


def _record(name: str, level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 0, text, (), None)


class _Handler(logging.Handler):
    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self.sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if not hasattr(record, "request_id") and (request_id := _request_id()):
                record.request_id = request_id
            line = self.format(record)
        except Exception as error:  # a %s too few, a __str__ that fails
            place = f"{record.pathname}:{record.lineno}"
            text = f"the line that {place} logs cannot be made: {type(error).__name__}"
            line = self.format(_record(record.name, record.levelno, text))
        self.sink.write(line + "\n")


def current_request() -> Request | None:
    """Return the request for which the code that calls this runs; None: for none."""
    request = CURRENT.get()
    if request is None and _frames:
        frame = sys._getframe(1)
        for _ in range(DEEPEST):
            if frame.f_code in _frames:
                request = frame.f_locals.get("request")
                break
            if frame.f_back is None:
                break
            frame = frame.f_back
    return request


def _request_id() -> str | None:
    request = current_request()
    # one that has not been given its id yet has no such attribute
    return request.id if request is not None and hasattr(request, "rid") else None


def find_requests_in(code: CodeType) -> None:
    """Take the local variable ``request`` of the function with this code for the current one."""
    _frames.add(code)


def configure(
    level: str, form: str = "console", path: Path | None = None, secrets: Iterable[str] = ()
) -> None:
    """Send this process's log to standard error or a file, from ``level`` (``debug`` …) up.

    The application's own loggers and those of libraries go there too, unless handlers were set
    up for them. May be called again; processes that are forked later inherit it.

    :param form: ``console`` or ``json``.
    :param secrets: texts that must not appear in any line.
    :raises ConfigError: if the file cannot be opened.
    """
    global _handler, _level, _followed
    scrub = scrubber(secrets)
    formatter = JsonFormatter(scrub) if form == "json" else ConsoleFormatter(scrub)

    def note(count: int, why: str) -> str:
        text = f"{count} lines of the log were lost: {why}"
        return formatter.format(_record(log.name, logging.WARNING, text)) + "\n"

    try:
        sink = Sink(path, note=note)
    except OSError as error:
        raise ConfigError([f"log_file: {path} cannot be opened: {error.strerror}"]) from error
    before, _handler = _handler, _Handler(sink)
    _handler.setFormatter(formatter)
    package, root = logging.getLogger("fluxor_fast"), logging.getLogger()
    package.handlers[:] = [_handler]
    package.propagate = False
    package.setLevel(level.upper())
    _level, _followed = package.level, 0
    if root.handlers in ([], [before]):
        root.handlers[:] = [_handler]
        root.setLevel(level.upper())
    if before is not None:
        close()
        before.sink.close()


def follow(level: int) -> None:
    """Log from ``level`` up, a number of ``logging``; 0: from what was configured.

    Cheap while it is what it was, so whoever may be told another level can call it often.
    """
    global _followed
    if level == _followed:
        return
    _followed = level
    logging.getLogger("fluxor_fast").setLevel(level or _level)
    root = logging.getLogger()
    if root.handlers == [_handler]:
        root.setLevel(level or _level)


def buffered() -> Callable[[str], None]:
    """Return what takes a ready line and writes it soon, from a thread of this process."""
    global _buffer
    if _handler is None:
        raise RuntimeError("configure comes first")
    if _buffer is None:
        _buffer = Buffer(_handler.sink)
    return _buffer.write


def reopen(*_: object) -> None:
    """Open the log file anew, as is due when it was rotated; takes a signal handler's arguments."""
    if _handler is not None and (fault := _handler.sink.reopen()):
        log.error("%s", fault)


def close() -> None:
    """Write what waits; to be called before the process ends."""
    global _buffer
    if _buffer is not None:
        _buffer.close()
        _buffer = None
