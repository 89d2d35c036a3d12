"""One connection to PostgreSQL: is it stale, is it stuck, may it be shown, what went wrong.

Small functions without state, for ``db.keeper`` and ``db.pool``. None of them ever returns a
password, but for ``conninfo``, whose result is to connect with and never to be shown.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import time
from collections.abc import Iterable
from typing import Any

import psycopg
from psycopg.abc import RV, PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from fluxor_fast.errors import BootError

__all__ = [
    "Connection",
    "Row",
    "conninfo",
    "hang_up",
    "hang_up_on_stuck",
    "is_full",
    "is_stale",
    "needs_a_person",
    "place",
    "reason",
]

Row = dict[str, Any]


class Connection(psycopg.AsyncConnection[Row]):
    """A connection that tells since when it waits for the server, in monotonic seconds."""

    waits_since: float | None = None

    async def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        """Run one exchange with the server; every statement passes here."""
        self.waits_since = time.monotonic()
        try:
            return await super().wait(gen, *args, **kwargs)
        finally:
            self.waits_since = None


# Without these, a server whose machine vanished would hold its clients for the 15 minutes (send)
# or two hours (receive) that Linux takes by default: 10 s + 3 probes 3 s apart is about 20 s.
_DEFAULTS: dict[str, Any] = {
    "fallback_application_name": "fluxor-fast",
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

# 28P01 wrong password, 28000 role or pg_hba.conf, 3D000 no such database, 42501 no privilege
_NEEDS_A_PERSON = {"28P01", "28000", "3D000", "42501"}
# libpq gives no SQLSTATE for a connection that fails, only the text; these are PostgreSQL's own
# words in English. In another language the service starts, warns and stays unready instead.
_NEEDS_A_PERSON_WORDS = (
    "password authentication failed",
    "authentication failed for user",
    "no password supplied",
    "no pg_hba.conf entry",
    '" does not exist',
)
_FULL_WORDS = ("too many clients", "too many connections", "remaining connection slots")


def conninfo(url: str, connect_timeout: float) -> str:
    """Return libpq's connection string for ``url``; what the URL sets itself stays.

    :param connect_timeout: seconds per host; psycopg waits at least 2.
    :raises BootError: for a URL that libpq does not take; its own words may quote the password,
        so they are not passed on.
    """
    try:
        given = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise BootError("the database URL is not one that libpq understands") from None
    defaults = {**_DEFAULTS, "connect_timeout": max(2, math.ceil(connect_timeout))}
    return make_conninfo("", **{**defaults, **given})


def place(url: str) -> str:
    """Return ``host:port/database`` of a URL that libpq takes, without user or password."""
    given = conninfo_to_dict(url)
    host = given.get("host") or given.get("hostaddr") or "localhost"
    name = given.get("dbname") or given.get("user") or ""
    return f"{host}:{given.get('port') or 5432}/{name}"


def reason(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its type."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def needs_a_person(error: BaseException) -> bool:
    """Tell whether another try would fail in the same way: credentials, names, privileges."""
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate is not None:
        return error.sqlstate in _NEEDS_A_PERSON
    return any(word in str(error) for word in _NEEDS_A_PERSON_WORDS)


def is_full(error: BaseException) -> bool:
    """Tell whether the server lives but has no connection left for us."""
    return any(word in str(error) for word in _FULL_WORDS)


def is_stale(connection: Connection) -> bool:
    """Tell whether an idle connection has ended, at the price of one ``poll`` (1 µs).

    A server speaks to an idle client only to say goodbye, or to tell of changed parameters,
    which is rare enough to spend a connection on.
    """
    if connection.closed:
        return True
    poll = select.poll()  # select.select() takes no descriptor above 1023
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def hang_up(connection: Connection) -> None:
    """End a connection under whoever waits on it, who then gets an ``OperationalError``.

    Cancelling the waiting task instead would have psycopg first ask the server, which may be
    deaf, to cancel: up to 10 s more.
    """
    if connection.closed:
        return
    # a duplicate: closing psycopg's own descriptor would hand its number to someone else
    with (
        contextlib.suppress(OSError),
        socket.socket(fileno=os.dup(connection.fileno())) as duplicate,
    ):
        duplicate.shutdown(socket.SHUT_RDWR)


def hang_up_on_stuck(connections: Iterable[Connection], seconds: float) -> None:
    """End those that have waited longer than that: the server no longer keeps its own limit."""
    limit = time.monotonic() - seconds
    for connection in connections:
        if connection.waits_since is not None and connection.waits_since < limit:
            hang_up(connection)
