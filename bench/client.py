"""A light HTTP/1.1 client on epoll, for load generators that must not be the slowest part.

What a generator adds to a request ends up in the measured latency, so there is nothing here but
sockets: no event loop, no tasks, one system call to send and one to receive. Each connection has
at most one request under way. Time-outs are finer than the millisecond that epoll knows
(select(2) on the epoll descriptor keeps microseconds), which is what holds a schedule.

A connection on which the server says ``Connection: close`` is closed at once; whoever uses it
opens another.
"""

from __future__ import annotations

import gc
import resource
import select
import socket
import time
from collections.abc import Sequence
from typing import Any

__all__ = ["FREE", "LOST", "REFUSED", "Client", "Connection", "clock", "percentile", "request"]

FREE = -1
"""The request number of a connection that has none."""
LOST = -1
"""In place of a status: the connection was lost, or the answer has no length."""
REFUSED = 503
EVENTS = 64
"""Events handled in one turn, so that a burst of answers does not hold up what is due."""
RECONNECT_SECONDS = 0.05
"""Pause after a failed connection: a server that is not there must not be hammered."""

clock = time.perf_counter


class Connection:
    """One connection: what is asked on it, and what of the answer has arrived."""

    __slots__ = ("buffer", "connecting", "owner", "request", "since", "sock")

    def __init__(self, sock: socket.socket, owner: Any, number: int) -> None:
        self.sock = sock
        self.owner = owner  # for subclasses
        self.request = number
        self.since = 0.0
        self.buffer = b""
        self.connecting = True


class Client:
    """Connections to one server; subclasses say what is sent when.

    They implement ``ready`` (a connection can be used), ``answered`` and ``lost``, and call
    ``turn`` in a loop.
    """

    def __init__(self, host: str, port: int) -> None:
        self.address = (host, port)
        self.connect_errors = 0
        self.connects = 0
        self.resume_at = 0.0  # no new connections before
        self._poll = select.epoll()
        self._wait = [self._poll.fileno()]
        self._open: dict[int, Connection] = {}

    def ready(self, connection: Connection) -> None:
        """Take a connection that was just established."""
        raise NotImplementedError

    def answered(self, connection: Connection, status: int, closing: bool, now: float) -> None:
        """Take an answer; ``closing`` says that the connection is gone already."""
        raise NotImplementedError

    def lost(self, connection: Connection) -> None:
        """Take the end of a connection, of one that was never established too."""
        raise NotImplementedError

    def connect(self, owner: Any = None, number: int = FREE) -> Connection:
        """Start to open a connection; ``ready`` or ``lost`` follows in a later turn."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect_ex(self.address)  # what went wrong comes with the event
        connection = Connection(sock, owner, number)
        self._open[sock.fileno()] = connection
        self._poll.register(sock.fileno(), select.EPOLLOUT)
        self.connects += 1
        return connection

    def is_open(self, connection: Connection) -> bool:
        """Return whether the connection was neither closed nor lost."""
        return connection.sock.fileno() >= 0

    def send(self, connection: Connection, data: bytes) -> None:
        """Send a request; a connection that does not take it whole is lost."""
        connection.since = clock()
        try:
            connection.sock.send(data)  # much smaller than a socket's buffer
        except OSError:
            self.close(connection)
            self.lost(connection)

    def close(self, connection: Connection) -> None:
        """Close without a callback."""
        self._open.pop(connection.sock.fileno(), None)
        connection.sock.close()  # which takes it out of the epoll set too

    def close_all(self) -> None:
        """Close everything; afterwards this object is of no use."""
        for connection in list(self._open.values()):
            self.close(connection)
        self._poll.close()

    def turn(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds for events and handle some."""
        if timeout > 0:
            select.select(self._wait, (), (), timeout)
        for number, _ in self._poll.poll(0, EVENTS):
            connection = self._open.get(number)
            if connection is None:  # closed by an earlier event of this turn
                continue
            if connection.connecting:
                self._connected(connection)
            else:
                self._receive(connection)

    def _connected(self, connection: Connection) -> None:
        if connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.connect_errors += 1
            self.resume_at = clock() + RECONNECT_SECONDS
            self.close(connection)
            self.lost(connection)
            return
        connection.connecting = False
        self._poll.modify(connection.sock.fileno(), select.EPOLLIN)
        self.ready(connection)

    def _receive(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        now = clock()
        if not data:
            self.close(connection)
            self.lost(connection)
            return
        if connection.buffer:
            data = connection.buffer + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            connection.buffer = data
            return
        head = data[:end].lower()
        at = head.find(b"\r\ncontent-length:")
        if at < 0:  # servers under test give a length; without one the end is unknown
            self.close(connection)
            self.answered(connection, LOST, True, now)
            return
        line = head.find(b"\r\n", at + 2)
        length = int(head[at + 17 : line if line > 0 else end])
        if len(data) < end + 4 + length:
            connection.buffer = data
            return
        connection.buffer = b""
        closing = head.find(b"\r\nconnection: close") > 0
        if closing:
            self.close(connection)
        self.answered(connection, int(head[9:12]), closing, now)


def request(host: str, port: int, target: str, header: Sequence[str] = ()) -> bytes:
    """Return a GET request as bytes."""
    return "\r\n".join([f"GET {target} HTTP/1.1", f"Host: {host}:{port}", *header, "", ""]).encode()


def claim(files: int) -> None:
    """Get ready to generate load: as many open files as wanted, and no collector on the way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, files + 256)), hard))
    gc.disable()  # nothing here makes cycles; a pass over many records would show as lateness


def cpu_seconds() -> float:
    """Return the user and system time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the value below which ``share`` of the sorted ``values`` lie."""
    return values[min(int(len(values) * share), len(values) - 1)] if values else None


def percentiles(values: Sequence[float], *shares: float) -> dict[str, float | None]:
    """Return the percentiles of ``values`` (seconds, in any order) in milliseconds."""
    ordered = sorted(values)
    found: dict[str, float | None] = {}
    for share in shares:
        value = percentile(ordered, share)
        found[f"p{share * 100:g}_ms"] = None if value is None else round(value * 1e3, 2)
    return found
