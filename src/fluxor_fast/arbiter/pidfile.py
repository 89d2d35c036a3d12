"""The file that tells an instance's process id, and that there is only one instance.

Rules:

1. Who holds the lock of the file (flock) is the instance. The kernel frees it when its holder
   dies, so a file that was left over says nothing and is taken over.
2. Only the arbiter holds it: a worker closes it after the fork, so that workers that outlive a
   killed arbiter, to answer what they have, do not keep a new one from starting.
3. The file is removed at the stop, while it is still locked. Who has opened it in between holds
   the lock of a file without a name, sees that, and tries again.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from fluxor_fast.errors import ListenError

__all__ = ["PidFile"]


class PidFile:
    """The locked file at ``path`` with this process's id.

    :raises ListenError: another instance has it, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fd = self._open()
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
        except OSError as error:
            raise ListenError(f"pid file {path}: {error.strerror or error}") from error

    def _open(self) -> int:
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
                os.close(fd)
                raise ListenError(
                    f"pid file {self._path}: another instance runs (pid {pid})"
                ) from None
            if self._is_at_path(fd):
                return fd
            os.close(fd)  # rule 3

    def _is_at_path(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self._path.lstat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Let go of it in a child; the file and its lock stay the parent's."""
        os.close(self._fd)

    def remove(self) -> None:
        """Remove the file, unless it is another one by now, and free the lock."""
        if self._is_at_path(self._fd):
            self._path.unlink()
        os.close(self._fd)
