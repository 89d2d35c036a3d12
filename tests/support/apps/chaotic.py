"""An application to do harm to: its handlers say how many of them run, over all processes.

Each process counts in a row of its own of a file that all map, under a lock of the kernel's. Who
has been killed and reaped counts no more, so that the sum is exact through any death.
"""

import asyncio
import fcntl
import mmap
import os
import re
import time

from fluxor_fast import App, Request

app = App()
FILE = os.environ.get("CHAOS_FILE", "/nonexistent")
HOLD = 0.03  # seconds of each request
ROWS = 128
_ballast: list[bytes] = []


class Inside:
    """Word 0 keeps the most that were inside at once; then rows of pid and number inside."""

    def __init__(self) -> None:
        self._fd = os.open(FILE, os.O_RDWR | os.O_CLOEXEC)
        self._words = memoryview(mmap.mmap(self._fd, 8 * (1 + 2 * ROWS))).cast("Q")
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        rows = range(1, 1 + 2 * ROWS, 2)
        self._at = next(row for row in rows if not self._alive(self._words[row]))
        self._words[self._at], self._words[self._at + 1] = os.getpid(), 0
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    @staticmethod
    def _alive(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return pid != 0

    def change(self, by: int) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            words = self._words
            words[self._at + 1] += by
            total = sum(
                words[row + 1]
                for row in range(1, 1 + 2 * ROWS, 2)
                if words[row + 1] and self._alive(words[row])
            )
            if total > words[0]:
                words[0] = total
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)


@app.on_startup
def start() -> None:
    app.state.inside = Inside()


@app.get("/")
async def home(request: Request) -> dict[str, int]:
    inside: Inside = app.state.inside
    inside.change(1)
    try:
        await asyncio.sleep(HOLD)
    finally:
        inside.change(-1)
    return {"pid": os.getpid()}


@app.get("/who", priority="exempt")
def who(request: Request) -> dict[str, int]:
    return {"pid": os.getpid()}


@app.get("/clock", priority="exempt")
def clock(request: Request) -> dict[str, float]:
    return {"time": time.time()}


@app.get("/spin/python", priority="exempt")
def spin_in_python(request: Request) -> dict[str, int]:
    while True:
        time.sleep(0.01)


@app.get("/spin/c", priority="exempt")
def spin_in_c(request: Request) -> dict[str, int]:
    """Never give back the interpreter's lock."""
    re.match(r"(a+)+$", "a" * 50 + "b")
    return {}


@app.get("/grow", priority="exempt")
def grow(request: Request) -> dict[str, int]:
    _ballast.append(os.urandom(int(request.head.query) << 20))
    return {"pid": os.getpid()}
