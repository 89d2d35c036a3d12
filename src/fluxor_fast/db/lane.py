"""A connection on which many statements are under way at once (libpq's pipeline mode).

A pool lends a connection to one statement at a time, which then waits for a round trip; psycopg
spends some 50 µs of a core on each. Here the statements of a turn follow each other on one
connection, are prepared once, and the answers that arrive together are read together.

Rules kept here:

1. After each statement there is a synchronisation point: each is a transaction of its own, as
   it is in autocommit, and the failure of one is nobody else's.
2. Answers come in the order of the statements: a slow one holds those behind it. So who calls
   sends only what is known to be quick (see ``quick``), and looks at ``open`` first.
3. Parameters and rows are adapted by psycopg, as its cursors do, in text format.
4. A caller that is cancelled is not told; its statement runs, and its answer is dropped.
5. A lost connection fails all that is under way; nothing is sent twice.
6. At most ``PREPARED`` statements are prepared; what comes later is sent whole each time.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import psycopg
from psycopg import pq
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result

from fluxor_fast.db.connection import Connection, Row

__all__ = ["DEPTH", "SLOW", "STALE", "Lane", "numbered"]

DEPTH: Final = 32
"""Most statements under way on one lane."""
PREPARED: Final = 100
SLOW: Final = 0.02
"""Seconds from which on a statement is not quick, and holds up those behind it."""
STALE: Final = (psycopg.errors.FeatureNotSupported, psycopg.errors.InvalidSqlStatementName)
"""What the server says when a prepared statement is no longer good, as a column has changed, or
not there. It has not run then."""

_PLACEHOLDER = re.compile(r"%(.?)", re.DOTALL)


@lru_cache(maxsize=1000)
def numbered(sql: str) -> tuple[bytes, int] | None:
    """Return ``sql`` with ``$1, $2 …`` for ``%s``, and how many; None for other placeholders."""
    count = 0

    def number(found: re.Match[str]) -> str:
        nonlocal count
        if found[1] == "s":
            count += 1
            return f"${count}"
        if found[1] == "%":
            return "%"
        raise LookupError

    try:
        return _PLACEHOLDER.sub(number, sql).encode(), count
    except LookupError:
        return None


Key = tuple[bytes, tuple[int, ...]]
"""A statement and the types of its parameters."""


class _Statement:
    """A prepared statement, and what its rows look like once they are known."""

    __slots__ = ("name", "names", "rows")

    def __init__(self, name: bytes, connection: Connection) -> None:
        self.name = name
        self.names: list[str] | None = None
        self.rows = Transformer(connection)


class _Sent:
    """A statement under way."""

    __slots__ = ("error", "future", "key", "preparing", "result", "statement")

    def __init__(
        self, future: asyncio.Future[list[Row]], key: Key, statement: _Statement, preparing: bool
    ) -> None:
        self.future = future
        self.key = key
        self.statement = statement
        self.preparing = preparing  # and the server has not yet said that it is
        self.result: pq.abc.PGresult | None = None
        self.error: psycopg.Error | None = None


def _fail(future: asyncio.Future[list[Row]], error: Exception) -> None:
    """Hand ``error`` to the caller, unless it is gone."""
    if not future.done():
        future.set_exception(error)
        future.exception()  # nobody is told of it if the caller is cancelled before it looks


class Lane:
    """Statements in a row on one connection, which is ours as long as the lane is open.

    :param connection: in autocommit, and idle.
    :param quick: statements known to be quick; one that was slow is taken out.
    :raises psycopg.OperationalError: if the connection is lost already.
    """

    def __init__(self, connection: Connection, quick: set[bytes]) -> None:
        self.connection = connection
        self.closed = False
        self.on_close: Callable[[], None] = lambda: None
        self._quick = quick
        self._pg = connection.pgconn
        self._loop = asyncio.get_running_loop()
        self._sent: deque[_Sent] = deque()
        self._prepared: dict[Key, _Statement] = {}
        self._made = 0
        self._parameters = Transformer(connection)
        self._writing = False
        self._pg.nonblocking = 1
        self._pg.enter_pipeline_mode()
        self._fd = self._pg.socket
        self._loop.add_reader(self._fd, self._read)

    def __len__(self) -> int:
        """Statements under way."""
        return len(self._sent)

    @property
    def open(self) -> bool:
        """Whether another statement may be sent: it would not stand behind a slow one."""
        since = self.connection.waits_since
        return (
            not self.closed
            and len(self._sent) < DEPTH
            and (since is None or time.monotonic() - since < SLOW)
        )

    def send(self, query: bytes, arguments: tuple[object, ...]) -> asyncio.Future[list[Row]]:
        """Send a statement with ``$1, $2 …``; the future has its rows, or psycopg's error.

        :raises psycopg.Error: if the arguments cannot be adapted; nothing is sent then.
        """
        parameters = self._parameters
        values = parameters.dump_sequence(arguments, [PyFormat.AUTO] * len(arguments))
        types, formats = parameters.types or (), parameters.formats
        key = (query, tuple(types))
        statement = self._prepared.get(key)
        preparing = False
        future: asyncio.Future[list[Row]] = self._loop.create_future()
        pg = self._pg
        try:
            if statement is not None:
                pg.send_query_prepared(statement.name, values, formats)
            elif len(self._prepared) < PREPARED:
                preparing = True
                self._made += 1
                statement = _Statement(b"lane%d" % self._made, self.connection)
                self._prepared[key] = statement
                pg.send_prepare(statement.name, query, types)
                pg.send_query_prepared(statement.name, values, formats)
            else:
                statement = _Statement(b"", self.connection)
                pg.send_query_params(query, values, types, formats)
            pg.pipeline_sync()
            if pg.flush() and not self._writing:
                self._writing = True
                self._loop.add_writer(self._fd, self._write)
        except psycopg.OperationalError as error:
            self.close(error)
            raise
        if not self._sent:
            self.connection.waits_since = time.monotonic()
        self._sent.append(_Sent(future, key, statement, preparing))
        return future

    def _write(self) -> None:
        try:
            done = not self._pg.flush()
        except psycopg.OperationalError as error:
            self.close(error)
            return
        if done:
            self._writing = False
            self._loop.remove_writer(self._fd)

    def _read(self) -> None:
        pg, sent = self._pg, self._sent
        head = sent[0] if sent else None
        now, since = time.monotonic(), self.connection.waits_since
        if sent and since is not None and now - since >= SLOW:
            self._quick.discard(sent[0].key[0])
        try:
            pg.consume_input()
            while sent and not pg.is_busy():
                result = pg.get_result()
                if result is None:
                    continue  # the end of one statement's results
                status = result.status
                first = sent[0]
                if status == pq.ExecStatus.PIPELINE_SYNC:
                    sent.popleft()
                    self._settle(first)
                elif status == pq.ExecStatus.FATAL_ERROR:
                    first.error = first.error or error_from_result(result)
                elif status == pq.ExecStatus.COMMAND_OK and first.preparing:
                    first.preparing = False
                elif status != pq.ExecStatus.PIPELINE_ABORTED:
                    first.result = result
        except psycopg.OperationalError as error:
            self.close(error)
            return
        if sent:
            if sent[0] is not head:
                self.connection.waits_since = now
        else:
            self.connection.waits_since = None
            if pg.status != pq.ConnStatus.OK:
                self.close(psycopg.OperationalError("the connection is lost"))

    def _settle(self, one: _Sent) -> None:
        """Hand the rows, or the error, to the caller."""
        future = one.future
        if one.error is not None:
            if one.preparing or isinstance(one.error, STALE):  # the next one prepares it anew
                self._prepared.pop(one.key, None)
            _fail(future, one.error)
        elif not future.done():
            try:
                future.set_result(self._rows(one))
            except Exception as error:  # a value that psycopg cannot read
                _fail(future, error)

    def _rows(self, one: _Sent) -> list[Row]:
        result, statement = one.result, one.statement
        assert result is not None
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise psycopg.ProgrammingError("the last operation didn't produce records")
        rows, names = statement.rows, statement.names
        rows.set_pgresult(result, set_loaders=names is None)
        if names is None:
            encoding = self.connection.info.encoding
            names = statement.names = [
                (result.fname(at) or b"").decode(encoding) for at in range(result.nfields)
            ]
        return [
            dict(zip(names, row, strict=True)) for row in rows.load_rows(0, result.ntuples, tuple)
        ]

    def close(self, error: Exception | None = None) -> None:
        """End the lane and its connection; what is under way fails with ``error``."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._fd)
        if self._writing:
            self._loop.remove_writer(self._fd)
        self._pg.finish()
        lost = error or psycopg.OperationalError("the connection was closed")
        while self._sent:
            _fail(self._sent.popleft().future, lost)
        self.connection.waits_since = None
        self.on_close()
