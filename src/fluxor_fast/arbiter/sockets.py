"""The sockets that clients connect to.

By default one listener per worker with ``SO_REUSEPORT``: the kernel spreads connections by a
hash of their addresses, and no worker wakes for another's. Or one listener shared by all: who
wakes first accepts all that is there. Either way the arbiter binds before the first fork and
keeps the sockets, so what waits in the queue of a worker that dies is taken by its successor.

``SO_REUSEPORT`` would let a second server of the same user share the port in silence. So the
port is first bound without it, which fails while anybody listens there.

Or a Unix socket, or a listening socket that was inherited; all workers share these. The file of a
Unix socket outlives a server that was killed. It is replaced if nobody listens there, which a
connection tells, and if it is ours it is removed at the stop. Ours listens from the start, so
that nobody else takes it for left over, and a lock on its folder keeps two servers that start at
the same time apart.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import resource
import socket
import stat
from pathlib import Path
from typing import Any

from fluxor_fast.errors import ListenError

__all__ = [
    "SocketFile",
    "another",
    "bind_listeners",
    "bind_unix",
    "descriptor_shortage",
    "descriptors_for",
    "inherit",
    "place_of",
    "provide_descriptors",
]

log = logging.getLogger("fluxor_fast.arbiter")

OWN_DESCRIPTORS = 128
"""What a worker needs beside its clients' connections: database, files, loop, pipes."""

_REASONS = {
    errno.EADDRINUSE: "the port is in use by another process",
    errno.EACCES: "this user may not listen on that port",
    errno.EADDRNOTAVAIL: "this machine does not have that address",
}


def bind_listeners(
    host: str, port: int, count: int, *, shared: bool = False
) -> list[socket.socket]:
    """Return ``count`` sockets bound to the same address; port 0 takes a free one.

    With ``shared`` they are duplicates of one. They do not listen yet: a worker does that when
    it is ready.

    :raises ListenError: naming the address and why it cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ListenError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    listeners: list[socket.socket] = []
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            port = probe.getsockname()[1]
        own = (address[0], port, *address[2:])
        while len(listeners) < (1 if shared else count):
            listeners.append(_bound(family, own))
        while len(listeners) < count:
            listeners.append(listeners[0].dup())
    except OSError as error:
        for listener in listeners:
            listener.close()
        reason = _REASONS.get(error.errno or 0, os.strerror(error.errno or 0))
        raise ListenError(f"cannot listen on {host}:{port}: {reason}") from error
    return listeners


def another(listener: socket.socket) -> socket.socket:
    """Return one more socket bound to the address of ``listener``, which has ``SO_REUSEPORT``.

    :raises ListenError: naming the address and why it cannot be had.
    """
    try:
        return _bound(listener.family, listener.getsockname())
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ListenError(f"cannot listen on {place_of(listener)} again: {reason}") from error


def _bound(family: int, address: tuple[Any, ...]) -> socket.socket:
    """Return a socket at ``address``, which others of this user may share."""
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


class SocketFile:
    """The file of a Unix socket that this process has bound."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity = self._look()

    def _look(self) -> tuple[int, int] | None:
        try:
            found = self._path.lstat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def remove(self) -> None:
        """Remove the file, unless it is another one by now.

        To be called before the socket is closed: until then the number of its inode is not
        given to another file.
        """
        if self._identity is not None and self._look() == self._identity:
            self._path.unlink(missing_ok=True)
        self._identity = None


def bind_unix(
    path: Path, mode: int, count: int, backlog: int
) -> tuple[list[socket.socket], SocketFile]:
    """Return ``count`` duplicates of a socket that listens at ``path``, and its file.

    :param mode: permissions of the file; who may write to it may connect.
    :raises ListenError: naming the path and why it cannot be had.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            _remove_left_over(path)
            before = os.umask(0o777 & ~mode)  # so the file never has other permissions
            try:
                listener.bind(str(path))
            finally:
                os.umask(before)
            listener.listen(backlog)
            file = SocketFile(path)
        finally:
            os.close(folder)
    except OSError as error:
        listener.close()
        raise ListenError(f"cannot listen on {path}: {error.strerror or error}") from error
    except ListenError:
        listener.close()
        raise
    listener.setblocking(False)
    return [listener, *(listener.dup() for _ in range(count - 1))], file


def _remove_left_over(path: Path) -> None:
    """Remove the file of a Unix socket at which nobody listens."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ListenError(f"cannot listen on {path}: it exists and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full queue is an answer too
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EPROTOTYPE):  # the latter: a datagram socket
                raise
    raise ListenError(f"cannot listen on {path}: another process listens there")


def inherit(fd: int, count: int) -> list[socket.socket]:
    """Return ``count`` duplicates of the listening socket that was inherited as ``fd``.

    :raises ListenError: if it is no such thing.
    """
    try:
        listener = socket.socket(fileno=fd)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ListenError(f"cannot listen on descriptor {fd}: {reason}") from error
    stream = listener.type == socket.SOCK_STREAM
    if not stream or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.detach()  # it is not ours to close
        raise ListenError(f"cannot listen on descriptor {fd}: it is no listening stream socket")
    listener.set_inheritable(False)
    listener.setblocking(False)
    return [listener, *(listener.dup() for _ in range(count - 1))]


def place_of(listener: socket.socket) -> str:
    """Return where a listener listens: ``host:port``, or ``unix:`` and the path."""
    name = listener.getsockname()
    if not isinstance(name, tuple):
        return "unix:" + os.fsdecode(name)
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


def descriptors_for(connections: int) -> int:
    """Return how many files a worker may have open that holds that many connections."""
    return connections + OWN_DESCRIPTORS


def descriptor_shortage(connections: int, most: int | None) -> str | None:
    """Return what is wrong if a process may have no more than ``most`` files open."""
    wanted = descriptors_for(connections)
    if most is None or most >= wanted:
        return None
    return (
        f"{connections} connections need {wanted} open files and the limit is {most}: raise it"
        " (ulimit -Hn, LimitNOFILE) or lower max_connections"
    )


def provide_descriptors(connections: int) -> None:
    """Raise this process's limit of open files so that one worker can hold ``connections``.

    The soft limit (1,024 on many systems) is raised as far as the hard one allows; if that is
    not far enough, a warning says so. Workers inherit it.
    """
    wanted = descriptors_for(connections)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if shortage := descriptor_shortage(connections, most):
        log.warning("%s", shortage)
