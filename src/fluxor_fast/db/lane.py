"""A connection on which many statements are under way at once (libpq's pipeline mode).

A pool lends a connection to one statement at a time, which then waits for a round trip; psycopg
spends some 50 µs of a core on each. Here the statements of a turn follow each other on one
connection, are prepared once, and the answers that arrive together are read together.

Rules kept here:

1. After each statement there is a synchronisation point: each is a transaction of its own, as
   it is in autocommit, and the failure of one is nobody else's.
2. Answers come in the order of the statements: a slow one holds those behind it. So who calls
   sends only what is known to be quick (see ``quick``), and looks at ``open`` first. Slow is what
   the server has not answered after ``SLOW``; an answer that waits for our own busy loop is not.
3. Parameters and rows are adapted by psycopg, as its cursors do, in text format.
4. A caller that is cancelled is not told; its statement runs, and its answer is dropped.
5. A lost connection fails all that is under way; nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import psycopg
from psycopg import pq
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result

from fluxor_fast.db.connection import Connection, Row
from fluxor_fast.db.prepared import Prepared, Statement

__all__ = ["DEPTH", "SLOW", "STALE", "Lane", "Rows", "fail"]

DEPTH: Final = 32
"""Most statements under way on one lane."""
SLOW: Final = 0.02
"""Seconds from which on a statement is not quick, and holds up those behind it."""
STALE: Final = (psycopg.errors.FeatureNotSupported, psycopg.errors.InvalidSqlStatementName)
"""What the server says when a prepared statement is no longer good, as a column has changed, or
not there. It has not run then."""

Rows = asyncio.Future[list[Row]]


class _Sent:
    """A statement under way; without a future it is our own, and what becomes of it no matter."""

    __slots__ = ("error", "future", "preparing", "result", "statement")

    def __init__(self, future: Rows | None, statement: Statement, preparing: bool) -> None:
        self.future = future
        self.statement = statement
        self.preparing = preparing  # and the server has not yet said that it is
        self.result: pq.abc.PGresult | None = None
        self.error: psycopg.Error | None = None


def fail(future: Rows, error: Exception) -> None:
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
        self.slow = False  # the head is; those who come now go elsewhere
        self.on_close: Callable[[], None] = lambda: None
        self.on_room: Callable[[], None] = lambda: None
        self._quick = quick
        self._pg = connection.pgconn
        self._loop = asyncio.get_running_loop()
        self._sent: deque[_Sent] = deque()
        self._prepared = Prepared(connection)
        self._parameters = Transformer(connection)
        self._writing = False
        self._timer: asyncio.TimerHandle | None = None
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
        return not self.closed and not self.slow and len(self._sent) < DEPTH

    def send(self, query: bytes, arguments: tuple[object, ...], future: Rows) -> None:
        """Send a statement with ``$1, $2 …``; the future gets its rows, or what went wrong."""
        parameters = self._parameters
        try:
            values = parameters.dump_sequence(arguments, [PyFormat.AUTO] * len(arguments))
        except Exception as error:  # nothing is sent then
            fail(future, error)
            return
        key = (query, tuple(parameters.types or ()))
        statement = self._prepared.get(key)
        preparing = statement is None
        try:
            if statement is None:
                statement, gone = self._prepared.add(key)
                if gone is not None:
                    self._deallocate(gone)
                self._pg.send_prepare(statement.name, query, key[1])
            self._pg.send_query_prepared(statement.name, values, parameters.formats)
            self._sync(_Sent(future, statement, preparing))
        except psycopg.OperationalError as error:
            self.close(error)
            fail(future, psycopg.OperationalError(str(error)))

    def _deallocate(self, statement: Statement) -> None:
        self._pg.send_query_params(b"deallocate " + statement.name, None)
        self._sync(_Sent(None, statement, False))

    def _sync(self, one: _Sent) -> None:
        """End a statement that was written."""
        pg = self._pg
        pg.pipeline_sync()
        if pg.flush() and not self._writing:
            self._writing = True
            self._loop.add_writer(self._fd, self._write)
        if not self._sent:
            self.connection.waits_since = time.monotonic()
            if self._timer is None:
                self._timer = self._loop.call_later(SLOW, self._look)
        self._sent.append(one)

    def _write(self) -> None:
        try:
            done = not self._pg.flush()
        except psycopg.OperationalError as error:
            self.close(error)
            return
        if done:
            self._writing = False
            self._loop.remove_writer(self._fd)

    def _look(self) -> None:
        """See whether the head is slow, about every ``SLOW`` while anything is under way."""
        self._timer = None
        since = self.connection.waits_since
        if since is None:
            return
        waited = time.monotonic() - since
        if waited >= SLOW and not self.slow:
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            if not poll.poll(0):
                self.slow = True
                self._quick.discard(self._sent[0].statement.key[0])
        self._timer = self._loop.call_later(SLOW - waited if waited < SLOW else SLOW, self._look)

    def _read(self) -> None:
        pg, sent = self._pg, self._sent
        settled = False
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
                    settled = True
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
        if settled:
            self.slow = False
            self.connection.waits_since = time.monotonic() if sent else None
            self.on_room()
        if not sent and pg.status != pq.ConnStatus.OK:
            self.close()

    def _settle(self, one: _Sent) -> None:
        """Hand the rows, or the error, to the caller."""
        future, error = one.future, one.error
        if future is None:
            return
        if error is not None:
            stale = one.preparing or isinstance(error, STALE)
            if stale and self._prepared.drop(one.statement) and not one.preparing:
                self._deallocate(one.statement)
            fail(future, error)
        elif not future.done():
            try:
                future.set_result(self._rows(one))
            except Exception as unread:  # a value that psycopg cannot read
                fail(future, unread)

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
        """End the lane and its connection; what is under way fails with the text of ``error``."""
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._fd)
        if self._writing:
            self._loop.remove_writer(self._fd)
        self._pg.finish()
        lost = str(error or "the connection was closed")
        while self._sent:
            future = self._sent.popleft().future
            if future is not None:
                fail(future, psycopg.OperationalError(lost))
        self.connection.waits_since = None
        self.on_close()
