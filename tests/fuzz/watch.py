"""Around a target: counts its executions, ends one that hangs, and sees what it leaves behind.

1. An execution that takes ``PATIENCE`` seconds of processor time is a hang (not of the clock on the
   wall: others may be at work on this machine).
2. After every ``LOOK`` executions, with garbage collected, the interpreter's allocated blocks and
   the process's memory stand no more than ``BLOCKS`` and ``MEGABYTES`` above where they stood
   after the first two looks, when what is cached once has been cached.

Counts are words in a file, so that they outlive whatever ends the process.
"""

from __future__ import annotations

import gc
import hashlib
import mmap
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, Final

from tests.fuzz.targets import Target

__all__ = ["FOUND", "Status", "Watch"]

PATIENCE: Final = 5.0
LOOK: Final = 4096
BLOCKS: Final = 4096
MEGABYTES: Final = 128
FOUND: Final = 77
"""Exit code after a finding (libFuzzer's own)."""

_PAGE: Final = resource.getpagesize()


class Status:
    """Words in a file: ``executions``, ``memory`` (bytes, the most seen), ``blocks`` (growth)."""

    _WORDS: Final = 3

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(fd, 8 * self._WORDS)
        self.words = memoryview(mmap.mmap(fd, 8 * self._WORDS)).cast("Q")
        os.close(fd)

    @property
    def executions(self) -> int:
        return self.words[0]

    @property
    def memory(self) -> int:
        return self.words[1]

    @property
    def blocks(self) -> int:
        return self.words[2]


def memory() -> int:
    """Return how many bytes of this process are in memory."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE


class Watch:
    """Call it with an input; at a finding it writes the input to ``folder`` and ends the process.

    :param name: of the target, with which the names of findings begin.
    """

    def __init__(self, name: str, target: Target, status: Status, folder: Path) -> None:
        self._name = name
        self._target = target
        self._words = status.words
        self._folder = folder
        self._count = self._seen = 0
        self._start: tuple[int, int] | None = None
        signal.signal(signal.SIGVTALRM, self._alarm)
        signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE, PATIENCE)

    def __call__(self, data: bytes) -> None:
        self._count += 1
        self._words[0] = self._count
        try:
            self._target(data)
            if self._count % LOOK == 0:
                self._look()
        except BaseException as error:
            self._found(data, error)

    def _alarm(self, *_: Any) -> None:
        if self._seen == self._count:
            raise TimeoutError(f"one execution has taken {PATIENCE} s of processor time")
        self._seen = self._count

    def _look(self) -> None:
        gc.collect()
        blocks, held = sys.getallocatedblocks(), memory()
        self._words[1] = max(self._words[1], held)
        if self._start is None:
            if self._count >= 2 * LOOK:
                self._start = blocks, held
            return
        grown = blocks - self._start[0]
        self._words[2] = max(self._words[2], grown, 0)
        assert grown <= BLOCKS, f"{grown} blocks more after {self._count} executions"
        more = (held - self._start[1]) >> 20
        assert more <= MEGABYTES, f"{more} MB more after {self._count} executions"

    def _found(self, data: bytes, error: BaseException) -> None:
        """Keep the input and how it failed, and end: the state behind it is worth nothing."""
        path = self._folder / f"{self._name}-{hashlib.sha1(data).hexdigest()[:12]}.input"
        path.write_bytes(data)
        text = "".join(traceback.format_exception(error))
        path.with_suffix(".txt").write_text(f"{data!r}\n\n{text}")
        print(f"{text}\n{data!r}\nkept in {path}", file=sys.stderr, flush=True)
        os._exit(FOUND)
