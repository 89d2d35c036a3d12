"""The file system, without leaving a folder and without waiting for a disk.

``open_below`` opens what a client named. ``quick`` is for the event loop: what cannot be had from
the kernel's caches at once is a ``BlockingIOError`` then, and the caller goes to a thread. To look
up and read from the caches costs less than the way to a thread and back (``bench/test_micro.py``).

Rules:

1. What is opened lies below the root. No symbolic link below it is followed, wherever it leads:
   so neither a link nor exchanging one at the right moment leads out, and both ways of opening
   (``openat2``, segment by segment) find the same.
2. The root is looked up each time, links in its own path included: a deployment may exchange it.
3. Opening never waits for a writer (FIFO) and never makes a terminal ours.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

__all__ = ["OPENAT2", "cached", "open_below"]

_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW
_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_SYS_OPENAT2: Final = 437  # on every architecture that Python is found on
_AT_FDCWD: Final = -100
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH, _CACHED = 0x02, 0x04, 0x08, 0x20  # linux/openat2.h


class _How(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(_How),
    ctypes.c_size_t,
)
_below = _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS
_ROOT = _How(_FOLDER, 0, 0)
_ROOT_QUICK = _How(_FOLDER, 0, _CACHED)
_FILE = _How(_READ, 0, _below)
_FILE_QUICK = _How(_READ, 0, _below | _CACHED)


def _openat2(folder: int, path: bytes, how: _How) -> int:
    fd: int = _syscall(_SYS_OPENAT2, folder, path, how, ctypes.sizeof(how))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return fd


def _supported() -> bool:
    """Whether there is ``openat2`` (Linux 5.6) with ``RESOLVE_CACHED`` (5.12), and not forbidden.

    Container sandboxes that do not know it answer ENOSYS or EPERM.
    """
    try:
        os.close(_openat2(_AT_FDCWD, b"/", _ROOT))
        os.close(_openat2(_AT_FDCWD, b"/", _ROOT_QUICK))
    except OSError as error:
        return error.errno == errno.EAGAIN
    return True


OPENAT2: Final = _supported()
"""Whether the kernel itself holds rule 1."""


def open_below(root: bytes, path: bytes, *, quick: bool, openat2: bool = OPENAT2) -> int:
    """Open the file ``path`` below the folder ``root`` for reading; return its descriptor.

    :param path: relative; its segments are neither empty nor ``.`` nor ``..`` (the segment by
        segment way relies on it).
    :raises BlockingIOError: if ``quick`` and something would have to be waited for.
    :raises OSError: what the system says.
    """
    if not openat2:
        if quick:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return _open_by_segments(root, path)
    folder = _openat2(_AT_FDCWD, root, _ROOT_QUICK if quick else _ROOT)
    try:
        return _openat2(folder, path, _FILE_QUICK if quick else _FILE)
    finally:
        os.close(folder)


def _open_by_segments(root: bytes, path: bytes) -> int:
    *folders, name = path.split(b"/")
    folder = os.open(root, _FOLDER)
    try:
        for segment in folders:
            inner = os.open(segment, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(name, _READ, dir_fd=folder)
    finally:
        os.close(folder)


def cached(fd: int, offset: int, count: int) -> bool:
    """Whether ``count`` bytes from ``offset`` can be read at once: looks at the first and the last.

    False too where that cannot be told: network and stacked file systems, ``tmpfs``.
    """
    byte = bytearray(1)
    try:
        for place in (offset, offset + count - 1):
            os.preadv(fd, [byte], place, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            return False
        raise
    return True
