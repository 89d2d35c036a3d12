"""The Python stacks of a worker, on demand, even while it never returns from C code.

``faulthandler`` writes them from a signal handler in C, without the interpreter's lock. They go
to a file in memory that worker and arbiter share, and from there through the arbiter's log like
everything else: so no line is torn, and the log keeps its form. What a worker writes when it dies
of a fault (SIGSEGV and the like) is found in the same place.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from typing import Final

__all__ = ["DUMP_SIGNAL", "Stacks"]

DUMP_SIGNAL: Final = signal.SIGRTMIN
"""Asks a worker for its stacks. Nobody else uses it; a worker that has not yet registered dies."""
MOST_BYTES = 65_536  # of one dump; about 1,000 frames


class Stacks:
    """What one worker wrote. Made by the arbiter before the fork."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("fluxor-stacks", os.MFD_CLOEXEC)
        self._read = 0

    def register(self) -> None:
        """Have this process write the stacks of its threads when asked, or when it crashes."""
        faulthandler.register(DUMP_SIGNAL, file=self._fd, all_threads=True)
        faulthandler.enable(file=self._fd, all_threads=True)

    @property
    def size(self) -> int:
        """Bytes written since they were last read."""
        return os.fstat(self._fd).st_size - self._read

    def read(self) -> str:
        """Return what was written since the last time."""
        # by position: the place to write at is shared with the worker, which may be writing on
        size = os.fstat(self._fd).st_size
        data = os.pread(self._fd, min(MOST_BYTES, size - self._read), self._read)
        self._read = size
        return data.decode(errors="replace").strip()

    def close(self) -> None:
        """Forget them."""
        os.close(self._fd)
