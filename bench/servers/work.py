"""What the contestants of the comparison answer: the same bytes, made anew for each request.

``/health`` and ``/plaintext``; ``/echo`` reads JSON and writes it again; ``/r150/items/42`` is one
of 300 routes with a parameter; ``/db`` and ``/queries`` read one row and 20 rows, one query each.
"""

from __future__ import annotations

import random
import re
import time
from typing import Any

import orjson

ROUTES = 300
ITEM = re.compile(r"/r(\d+)/items/(\d+)$").match
JSON, TEXT = "application/json", "text/plain"
HELLO = "Hello, World!"
ROWS = 10_000
SQL = "select id, number from world where id = %s"
SQL_NUMBERED = "select id, number from world where id = $1"
"""The same for drivers that count their parameters."""


def health() -> dict[str, Any]:
    """Return the document of ``/health``."""
    return {"status": "healthy", "service": "fluxor-fast", "timestamp": int(time.time())}


def item(route: int, number: int) -> dict[str, int]:
    """Return the document of ``/r<route>/items/<number>``."""
    return {"route": route, "id": number}


def answer(path: str, body: bytes = b"") -> tuple[str, bytes] | None:
    """Return content type and body, for contestants without a router; None: no such path."""
    if path == "/health":
        return JSON, orjson.dumps(health())
    if path == "/plaintext":
        return TEXT, HELLO.encode()
    if path == "/echo":
        return JSON, orjson.dumps(orjson.loads(body))
    found = ITEM(path)
    if found is not None and int(found[1]) < ROUTES:
        return JSON, orjson.dumps(item(int(found[1]), int(found[2])))
    return None


def key() -> int:
    """Return the key of a row, any of them."""
    return random.randrange(ROWS) + 1


def fill(connection: Any) -> None:
    """Make the table that is read."""
    connection.execute("drop table if exists world")
    connection.execute("create table world (id int primary key, number int not null)")
    connection.execute(
        "insert into world select n, (n * 7919) %% 10000 from generate_series(1, %s) n", (ROWS,)
    )
    connection.execute("vacuum analyze world")
