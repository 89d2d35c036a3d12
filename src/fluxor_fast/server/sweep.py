"""What a worker looks at about once a second, for all connections: no timer for each.

Most looks find nothing due and cost a fraction of a microsecond. But connections that were
opened together are due together, and ending one costs tens of microseconds. So after a few
milliseconds the loop goes round once, and the sweep goes on where it was.

All timeouts hang on this one task, so a look that fails ends its connection, never the sweep.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import socket
import struct
import termios
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import monotonic
from typing import Any, Protocol

__all__ = ["forget_unsent", "sweep", "unsent"]

_AT_ONCE = struct.pack("ii", 1, 0)
"""``struct linger``: on, for no time."""

log = logging.getLogger("fluxor_fast.server")


class Swept(Protocol):
    """A connection that the sweep looks at."""

    closed: bool

    def check(self, tick: int) -> None:
        """End the connection if it has outlived a timeout."""

    def abort(self) -> None:
        """Drop the connection."""


async def sweep(
    connections: Iterable[Swept],
    tick: int,
    seconds: float,
    clock: Callable[[], float] = monotonic,
) -> None:
    """Have every connection checked; every ``seconds`` the loop goes round in between."""
    until = clock() + seconds
    for connection in list(connections):
        if not connection.closed:  # it may be gone since the list was made
            try:
                connection.check(tick)
            except Exception:
                log.exception("a connection could not be looked at, and is dropped")
                connection.abort()
        if clock() >= until:
            await asyncio.sleep(0)
            until = clock() + seconds


def unsent(transport: Any) -> int:
    """Return how many bytes written to ``transport`` the client has not taken in.

    That is what waits in the process and what waits in the kernel (``SIOCOUTQ``, tcp(7)): the
    kernel lets us write on only when a third of its buffer is free, so for a slow client the
    first alone may stand still for a minute.
    """
    waiting = int(transport.get_write_buffer_size())
    sock = transport.get_extra_info("socket")
    if sock is not None:
        try:
            raw = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):  # closed, or of a kind that cannot tell
            return waiting
        waiting += struct.unpack("i", raw)[0]
    return waiting


def forget_unsent(transport: Any) -> None:
    """Have the end of ``transport`` be a reset, which takes what waits in the kernel with it.

    Else the kernel keeps the socket in FIN-WAIT-1 with all that the client has not taken in,
    megabytes of it, for as long as the client answers its probes, and no limit of ours counts
    it any more (socket(7), ``SO_LINGER``; nginx has ``reset_timedout_connection`` for this).
    """
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):  # closed already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
