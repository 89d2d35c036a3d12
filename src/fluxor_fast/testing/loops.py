"""An event loop in a thread of its own, for tests that are plain functions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from types import CodeType
from typing import Any, Final, TypeVar

import uvloop

__all__ = ["LoopThread"]

T = TypeVar("T")


class LoopThread:
    """A uvloop that runs from ``start`` to ``stop``, once.

    The thread is a daemon: one that hangs does not keep the process alive.
    """

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self.running = False
        self._thread = threading.Thread(target=self._run, name="fluxor-test-loop", daemon=True)

    @property
    def ident(self) -> int:
        """Identifier of the thread."""
        return self._thread.ident or 0

    def start(self) -> None:
        """Begin."""
        self.running = True
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()

    root: Final[CodeType] = _run.__code__
    """The function in the thread that runs the loop."""

    def call(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run ``coroutine`` in the loop and return what it returns.

        :raises TimeoutError: if it has not after ``timeout`` seconds; it is cancelled then.
        :raises RuntimeError: if the loop does not run.
        """
        if not self.running:
            coroutine.close()
            raise RuntimeError("the application is not running: `with TestClient(app) as client:`")
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    def stop(self, timeout: float) -> None:
        """End; a thread that has not ended after ``timeout`` seconds is left to itself."""
        self.running = False
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout)
