"""Statements: which may share a connection, how they are numbered, and which are prepared.

Rules kept here:

1. Only what reads shares a connection. A write may wait for a lock whose holder's next statement
   stands behind it on the same connection: a deadlock that the server cannot see.
2. A statement is known by its text and the types of its parameters, as psycopg chose them.
3. A name is used once on a connection, so a late answer meets nobody else's statement.
4. At most ``PREPARED`` are kept on a connection; who was not used for longest makes room.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from functools import lru_cache
from typing import Final

from psycopg.adapt import Transformer

from fluxor_fast.db.connection import Connection

__all__ = ["PREPARED", "Key", "Prepared", "Statement", "numbered", "reads"]

PREPARED: Final = 100

Key = tuple[bytes, tuple[int, ...]]
"""A statement and the types of its parameters."""

_PLACEHOLDER = re.compile(r"%(.?)", re.DOTALL)
_READS = re.compile(rb"\s*select\b", re.IGNORECASE)
# ``select into`` makes a table, ``for update`` and its like lock rows; a semicolon may begin
# another statement. Where such a word is only a name, nothing is lost but speed.
_MORE = re.compile(rb";|\binto\b|\bfor\s+(no\s+key\s+|key\s+)?(update|share)\b", re.IGNORECASE)


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


def reads(query: bytes) -> bool:
    """Tell whether ``query`` is one statement that reads and locks no rows, by its words."""
    return _READS.match(query) is not None and _MORE.search(query) is None


class Statement:
    """A prepared statement, and what its rows look like once they are known."""

    __slots__ = ("key", "name", "names", "rows")

    def __init__(self, key: Key, name: bytes, connection: Connection) -> None:
        self.key = key
        self.name = name
        self.names: list[str] | None = None
        self.rows = Transformer(connection)


class Prepared:
    """The prepared statements of one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: OrderedDict[Key, Statement] = OrderedDict()
        self._made = 0

    def get(self, key: Key) -> Statement | None:
        """Return the statement if it is prepared; it is then the last to make room."""
        statement = self._known.get(key)
        if statement is not None:
            self._known.move_to_end(key)
        return statement

    def add(self, key: Key) -> tuple[Statement, Statement | None]:
        """Return a statement to be prepared, and the one that it takes the place of."""
        gone = self._known.popitem(last=False)[1] if len(self._known) >= PREPARED else None
        self._made += 1
        statement = self._known[key] = Statement(key, b"lane%d" % self._made, self._connection)
        return statement, gone

    def drop(self, statement: Statement) -> bool:
        """Forget it, so that the next one prepares it anew; False if that is done already."""
        if self._known.get(statement.key) is not statement:
            return False
        del self._known[statement.key]
        return True
