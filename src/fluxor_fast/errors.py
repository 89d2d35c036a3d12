"""Every exception that fluxor-fast raises on purpose.

::

    FluxorError
    ├── ConfigError        settings that cannot be used           exit code 2
    ├── BootError          a worker could not start               exit code 3
    │   ├── AppImportError the application could not be imported  exit code 4
    │   └── MigrationError tables and files of migrations disagree
    ├── BackupError        a backup or restore that is refused    exit code 3
    ├── ListenError        the address cannot be listened on      exit code 5
    ├── ControlError       a running instance refused, or failed to do something
    │   └── NoInstanceError  there is none to be asked       exit code 5
    ├── RouteError         a route that cannot be registered
    └── HTTPError          an answer in the form of an exception
        ├── ClientDisconnected  400, the client went away before all was said
        ├── DatabaseBusy   503, no connection in time, or no database
        ├── InvalidRequest 422, arguments that are not what the handler asks for
        └── RedisAway      503, Redis is away, or did not answer in time

The process ends with ``exit_code`` and one line on standard error; a client gets an
``HTTPError`` as JSON ``{"error", "message", "code"}`` (plus ``details`` where there are any).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final

__all__ = [
    "AppImportError",
    "BackupError",
    "BootError",
    "ClientDisconnected",
    "ConfigError",
    "ControlError",
    "DatabaseBusy",
    "FluxorError",
    "HTTPError",
    "InvalidRequest",
    "ListenError",
    "MigrationError",
    "NoInstanceError",
    "RedisAway",
    "RouteError",
]


class FluxorError(Exception):
    """Base of every error raised on purpose by fluxor-fast."""

    exit_code = 1


class ConfigError(FluxorError):
    """Settings that cannot be used; ``problems`` holds one line for each fault found."""

    exit_code = 2

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class BootError(FluxorError):
    """A worker could not start, and another try would fail in the same way."""

    exit_code = 3


class AppImportError(BootError):
    """The application named on the command line could not be imported."""

    exit_code = 4


class MigrationError(BootError):
    """Files and database do not agree, or a file cannot be applied; a person must look."""


class BackupError(FluxorError):
    """A backup that is refused, or a file or database that is not as it should be."""

    exit_code = 3


class ListenError(FluxorError):
    """The address is taken, not ours, or not to be had; or another instance has the pid file."""

    exit_code = 5


class ControlError(FluxorError):
    """A running instance refused a command, or failed to do it.

    :param document: what it said, with ``error``, ``message`` and ``code``.
    """

    def __init__(self, message: str, document: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.document = document or {"error": "failed", "message": message, "code": "FAILED"}


class NoInstanceError(ControlError):
    """There is no instance to be asked."""

    exit_code = 5

    def __init__(self, message: str) -> None:
        document = {"error": "no_instance", "message": message, "code": "NO_INSTANCE"}
        super().__init__(message, document)


class RouteError(FluxorError):
    """A route that cannot be registered: bad path, bad handler, or one that exists already."""


_RENAMED: Final = {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}
"""As RFC 9110 has them: codes are made of names, and Python took these over with 3.13."""


def phrase_of(status: int) -> str:
    """Return what a status is called, in every version of Python alike."""
    try:
        return _RENAMED.get(status) or HTTPStatus(status).phrase
    except ValueError:
        return "Error"


class HTTPError(FluxorError):
    """An answer raised as an exception.

    :param status: HTTP status code, 400 to 599.
    :param message: a sentence for the client; the status phrase when absent.
    :param code: a word for programs; made from the status phrase when absent (``NOT_FOUND``).
    :param headers: further response headers.
    :param details: anything that orjson can encode, put under ``details``.
    """

    def __init__(
        self,
        status: int,
        message: str | None = None,
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        details: object = None,
    ) -> None:
        if not 400 <= status <= 599:
            raise ValueError(f"HTTPError takes a status from 400 to 599, not {status}")
        phrase = phrase_of(status)
        self.status = status
        self.message = message or phrase
        self.code = code or re.sub(r"[^A-Z]+", "_", phrase.upper().replace("'", ""))
        self.headers = dict(headers or {})
        self.details = details
        super().__init__(f"{status} {self.message}")

    def payload(self) -> dict[str, object]:
        """Return the JSON document that the client gets."""
        document: dict[str, object] = {
            "error": self.code.lower(),
            "message": self.message,
            "code": self.code,
        }
        if self.details is not None:
            document["details"] = self.details
        return document


class ClientDisconnected(HTTPError):
    """The client went away before its request was complete, or before it had its answer.

    400, which a client that has only ended its own side still gets.
    """

    def __init__(self) -> None:
        super().__init__(400, "the connection ended too early", code="CLIENT_DISCONNECTED")


class DatabaseBusy(HTTPError):
    """503: the pool could give no connection in time, or the database is away."""

    def __init__(self, message: str = "the database is busy, try again") -> None:
        super().__init__(503, message, code="DATABASE_BUSY", headers={"Retry-After": "1"})


class InvalidRequest(HTTPError):
    """422: arguments that are not what the handler asks for (see ``validation``).

    :param problems: each with ``in`` (path, query, header or body), ``path`` and ``message``.
    """

    def __init__(self, problems: Sequence[Mapping[str, object]]) -> None:
        super().__init__(422, "the request is not valid", code="VALIDATION_FAILED")
        self.problems = list(problems)

    def payload(self) -> dict[str, object]:
        """Return the JSON document that the client gets."""
        return super().payload() | {"problems": self.problems}


class RedisAway(HTTPError):
    """503: Redis is away, or did not answer in time; few let a client see it."""

    def __init__(self) -> None:
        super().__init__(
            503, "Redis is away, try again", code="REDIS_AWAY", headers={"Retry-After": "1"}
        )
