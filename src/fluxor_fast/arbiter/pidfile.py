"""The file that tells an instance's process id, and that there is only one instance.

Rules:

1. Who holds the lock of the file (flock) is the instance. The kernel frees it when its holder
   dies, so a file that was left over says nothing and is taken over.
2. Only the arbiter holds it: a worker closes it after the fork, so that workers that outlive a
   killed arbiter, to answer what they have, do not keep a new one from starting.
3. An upgraded arbiter has the descriptor, and so the very same lock: there is no moment without
   one. The file tells its process id from when it is ready; until then, and for ever if it never
   is, the old one's. Whose id is in it is to remove it.
4. The file is removed at the stop, while it is still locked. Who has opened it in between holds
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
        self._path = path.absolute()  # the current folder may become another
        try:
            self._fd = self._open()
        except OSError as error:
            raise ListenError(f"pid file {path}: {error.strerror or error}") from error
        self.take()

    @classmethod
    def adopt(cls, fd: int) -> PidFile:
        """Return the file that the arbiter before has locked; it is that one's until ``take``."""
        file = cls.__new__(cls)
        file._path = Path(f"/proc/self/fd/{fd}").readlink()
        file._fd = fd
        return file

    def take(self) -> None:
        """Tell this process's id from now on.

        :raises ListenError: if it cannot be written.
        """
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, self._own(), 0)
        except OSError as error:
            raise ListenError(f"pid file {self._path}: {error.strerror or error}") from error

    @staticmethod
    def _own() -> bytes:
        return b"%d\n" % os.getpid()

    def fileno(self) -> int:
        """Return the descriptor that holds the lock."""
        return self._fd

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
            os.close(fd)  # rule 4

    def _is_at_path(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self._path.lstat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Let go of it in a child; the file and its lock stay the parent's."""
        os.close(self._fd)

    def remove(self) -> None:
        """Remove the file if our id is in it, and it is the same still; let go of the lock."""
        if os.pread(self._fd, 32, 0) == self._own() and self._is_at_path(self._fd):
            self._path.unlink()
        os.close(self._fd)
