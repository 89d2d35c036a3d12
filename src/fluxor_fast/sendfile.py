"""A part of a file to a client, by the kernel: ``sendfile`` on the connection's own socket.

uvloop has no ``loop.sendfile``, so it is done here, beside the transport:

1. It begins when all that was written before is with the kernel (``drained``), and the transport
   is given nothing until it ends: order is kept.
2. It works on a descriptor of its own for the socket (``dup``). uvloop lets no one watch a
   transport's, and the number of one that is closed may be another connection's at once.
3. At most ``CHUNK`` bytes are sent in a turn of the loop.
4. A full socket is waited for like a full write buffer: the write timeout ends who reads nothing.
5. What is not in memory is read by a thread first: the loop never waits for a disk.
6. A file that ends early ends the body early; what is made of that is the writer's business.

Where the kernel cannot do it (TLS in this process, file systems that do not take part, no
descriptor left), pieces of the file are read and written.
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Final

from fluxor_fast.disk import cached
from fluxor_fast.errors import ClientDisconnected
from fluxor_fast.http.streaming import BodyWriter

__all__ = ["CHUNK", "send_file"]

CHUNK: Final = 256 * 1024


async def send_file(writer: BodyWriter, fd: int, offset: int, count: int) -> None:
    """Send ``count`` bytes of the file ``fd`` from ``offset``, or up to its end.

    :raises ClientDisconnected: if the client is gone.
    :raises OSError: if the file cannot be read.
    """
    sock = None if writer.tls else writer.transport.get_extra_info("socket")
    stop = offset + count
    if sock is not None:
        await writer.begin()
        await writer.drained()
        try:
            own = os.dup(sock.fileno())
        except OSError:  # no descriptor is left for it
            pass
        else:
            try:
                offset = await _by_kernel(writer, own, fd, offset, stop)
            finally:
                os.close(own)
    while offset < stop:
        size = min(CHUNK, stop - offset)
        if cached(fd, offset, size):
            data = os.pread(fd, size, offset)
        else:
            data = await asyncio.get_running_loop().run_in_executor(
                None, os.pread, fd, size, offset
            )
        if not data:
            return
        offset += len(data)
        await writer.write(data)


async def _by_kernel(writer: BodyWriter, socket: int, fd: int, offset: int, stop: int) -> int:
    """Send from ``offset`` to ``stop``; return how far it went: less than that if it cannot."""
    loop = asyncio.get_running_loop()
    while offset < stop:
        size = min(CHUNK, stop - offset)
        if not cached(fd, offset, size):
            await loop.run_in_executor(None, os.pread, fd, size, offset)
        try:
            sent = os.sendfile(socket, fd, offset, size)
        except BlockingIOError:
            sent = 0
        except ConnectionError:
            raise ClientDisconnected from None
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                return offset
            raise
        else:
            if not sent:  # the end of the file
                return offset
        offset += sent
        writer.sent(sent)
        if sent == size:
            await asyncio.sleep(0)
        else:
            await _writable(loop, writer, socket)
    return offset


async def _writable(loop: asyncio.AbstractEventLoop, writer: BodyWriter, fd: int) -> None:
    waiter = loop.create_future()
    loop.add_writer(fd, _wake, waiter)
    try:
        await writer.blocked(waiter)
    finally:
        loop.remove_writer(fd)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
