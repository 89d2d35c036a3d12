"""The sockets that clients connect to.

By default one listener per worker with ``SO_REUSEPORT``: the kernel spreads connections by a
hash of their addresses, and no worker wakes for another's. Or one listener shared by all: who
wakes first accepts all that is there. Either way the arbiter binds before the first fork and
keeps the sockets, so what waits in the queue of a worker that dies is taken by its successor.

``SO_REUSEPORT`` would let a second server of the same user share the port in silence. So the
port is first bound without it, which fails while anybody listens there.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket

from fluxor_fast.errors import ListenError

__all__ = ["bind_listeners", "provide_descriptors"]

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
        for _ in range(1 if shared else count):
            listener = socket.socket(family, socket.SOCK_STREAM)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((address[0], port, *address[2:]))
            listener.setblocking(False)
        while len(listeners) < count:
            listeners.append(listeners[0].dup())
    except OSError as error:
        for listener in listeners:
            listener.close()
        reason = _REASONS.get(error.errno or 0, os.strerror(error.errno or 0))
        raise ListenError(f"cannot listen on {host}:{port}: {reason}") from error
    return listeners


def provide_descriptors(connections: int) -> None:
    """Raise this process's limit of open files so that one worker can hold ``connections``.

    The soft limit (1,024 on many systems) is raised as far as the hard one allows; if that is
    not far enough, a warning says so. Workers inherit it.
    """
    wanted = connections + OWN_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        log.warning(
            "%d connections need %d open files and the limit is %d: raise it"
            " (ulimit -Hn, LimitNOFILE) or lower max_connections",
            connections,
            wanted,
            most,
        )
