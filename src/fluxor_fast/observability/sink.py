"""Where lines of the log go: a file that may be rotated, or a stream that may not be read.

Rules:

1. Writing never raises and, where the kernel can tell beforehand, never blocks: what cannot be
   written is dropped and counted, and the next line that can be is preceded by a note of how many
   were lost and why.
2. Whole lines only. To a file they go in one ``write`` each time, with ``O_APPEND``, so that those
   of several processes do not mix. To a pipe or socket they go in pieces of at most ``PIPE_BUF``
   bytes, which POSIX keeps together (a longer line may be cut by another process's), and each
   only when ``poll`` says that there is room. Who did not read once is not waited for again.
   A line that a full disk has cut is ended before the next.
3. ``reopen`` exchanges the file behind the same descriptor (``dup2``), between two writes: a
   rotated file is left at once, and nothing is lost. If the new one cannot be had, the old one
   stays.
4. ``Buffer`` collects lines and writes them from a thread of its own about once a second, so that
   neither the event loop nor a request waits for a disk. Lines not yet written when the process
   is ended by SIGKILL are lost; at every other end ``close`` writes them.

Sources: write(2), pipe(7), open(2).
"""

from __future__ import annotations

import os
import select
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["Buffer", "Sink"]

PATIENCE = 0.05
"""Seconds a line waits for the reader of a pipe; more would be felt by requests."""
MODE = 0o640


class Sink:
    """One file, or a descriptor that is there already.

    :param path: of the file to append to; None: ``fd`` is used as it is.
    :param note: makes the line that tells how many were lost, and why.
    :raises OSError: if the file cannot be opened.
    """

    def __init__(
        self,
        path: Path | None = None,
        fd: int = 2,
        *,
        note: Callable[[int, str], str] | None = None,
    ) -> None:
        self._path = path
        self._fd = fd if path is None else self._open(path)
        self._note = note or (lambda count, why: f"{count} lines of the log were lost: {why}\n")
        self._regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
        self._lost = 0  # since the last note
        self._why = ""
        self._cut = False  # the last write ended within a line
        self.dropped = 0
        """Lines that could not be written, in all."""

    @staticmethod
    def _open(path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, MODE)

    def write(self, text: str, lines: int = 1, *, patience: float = PATIENCE) -> None:
        """Write ``text``, which is that many whole lines; see rules 1 and 2."""
        lost, why = self._lost, self._why
        if lost:
            if not self._put(self._note(lost, why), 1, 0.0):
                self._drop(lines, self._why)
                return
            self._lost -= lost
        left = self._put(text, lines, patience)
        if left < lines:
            self._drop(lines - left, self._why)

    def lose(self, lines: int, why: str) -> None:
        """Count lines that never came to be written."""
        self._drop(lines, why)

    def _drop(self, lines: int, why: str) -> None:
        self._lost += lines
        self.dropped += lines
        self._why = why

    def _put(self, text: str, lines: int, patience: float) -> int:
        """Write what can be; return how many of the lines left whole."""
        data = text.encode(errors="backslashreplace")
        if self._cut:
            data = b"\n" + data
        if self._lost:
            patience = 0.0
        sent = 0
        try:
            for piece in (data,) if self._regular else pieces(data):
                if not self._regular and not self._has_room(patience):
                    self._why = "the reader of the log does not read"
                    break
                count = os.write(self._fd, piece)
                sent += count
                if count < len(piece):
                    self._why = "there was no room for all"
                    break
        except OSError as error:
            self._why = error.strerror or str(error)
        if sent == len(data):
            self._cut = False
            return lines
        if sent:
            self._cut = not data[:sent].endswith(b"\n")
        return data[:sent].count(b"\n", 1)

    def _has_room(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(seconds * 1000))

    def reopen(self) -> str | None:
        """Open the file anew, as after a rotation; return what went wrong, if anything did."""
        if self._path is None:
            return None
        try:
            new = self._open(self._path)
        except OSError as error:
            return f"{self._path} cannot be opened: {error.strerror}; the old file is kept"
        try:
            os.dup2(new, self._fd, inheritable=False)
            self._regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
            self._cut = False
        finally:
            os.close(new)
        return None

    def close(self) -> None:
        """Close the file; a descriptor that was there already stays open."""
        if self._path is not None:
            os.close(self._fd)


def pieces(data: bytes, most: int = select.PIPE_BUF) -> Iterator[bytes]:
    """Yield ``data`` in pieces of at most ``most`` bytes that end with a line where they can."""
    start = 0
    while start < len(data):
        end = start + most
        if end < len(data):
            end = data.rfind(b"\n", start, end) + 1 or end
        yield data[start:end]
        start = end


class Buffer:
    """Lines on their way to a sink.

    Threading: ``write`` may be called from any thread.

    :param seconds: how long a line waits at most, if the sink takes it.
    :param most: lines that may wait; more are lost, and counted by the sink.
    """

    WAKE = 2048
    """Lines that are not left waiting for the second to pass."""

    def __init__(self, sink: Sink, *, seconds: float = 1.0, most: int = 65_536) -> None:
        self._sink = sink
        self._seconds = seconds
        self._most = most
        self._lines: list[str] = []
        self._wake = threading.Event()
        self._closed = False
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="fluxor-log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Take a line, which ends with a newline."""
        lines = self._lines
        waiting = len(lines)
        if waiting >= self._most:
            self._sink.lose(1, "they came faster than they could be written")
            return
        lines.append(line)
        if waiting == self.WAKE:
            self._wake.set()

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(self._seconds)
            self._wake.clear()
            self.flush()

    def flush(self, patience: float = 1.0) -> None:
        """Write what is there.

        :param patience: seconds to wait for a reader that does not read.
        """
        if not self._writing.acquire(timeout=2 * patience):
            return  # the thread is in a write that does not end
        try:
            # the list stays the same one, as another thread may be about to append to it
            while lines := self._lines[: self.WAKE]:
                del self._lines[: len(lines)]
                self._sink.write("".join(lines), len(lines), patience=patience)
        finally:
            self._writing.release()

    def close(self) -> None:
        """Write what is there, and end the thread."""
        self._closed = True
        self._wake.set()
        self.flush()
        self._thread.join(1.0)
