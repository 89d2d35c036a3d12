"""Threads for applications under test: one with an event loop, and those of blocking handlers.

All are daemons: what hangs in them fails a test, and does not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from contextlib import suppress
from inspect import CORO_CREATED, getcoroutinestate
from types import CodeType
from typing import Any, Final, ParamSpec, TypeVar, cast

import uvloop

__all__ = ["DaemonThreads", "LoopThread", "NoAnswer"]

P = ParamSpec("P")
T = TypeVar("T")


class NoAnswer(TimeoutError):
    """What was called in a loop has not ended in time; it has not said so itself."""


class LoopThread:
    """A uvloop that runs in a thread from ``start`` to ``stop``, once."""

    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        self.running = False
        self._thread = threading.Thread(target=self._run, name="fluxor-test-loop", daemon=True)

    @property
    def ident(self) -> int:
        """Identifier of the thread."""
        return self._thread.ident or 0

    def start(self) -> None:
        """Begin."""
        self.loop = uvloop.new_event_loop()
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

        :raises NoAnswer: if it has not after ``timeout`` seconds; it is cancelled then.
        :raises RuntimeError: if the loop does not run.
        """
        if not self.running:
            coroutine.close()
            raise RuntimeError("the application is not running: `with TestClient(app) as client:`")

        async def run() -> tuple[T | None, Exception | None]:
            # on its way through futures a TimeoutError would lose its cause, and where it was
            try:
                return await coroutine, None
            except Exception as error:
                return None, error

        future = asyncio.run_coroutine_threadsafe(run(), self.loop)
        try:
            result, error = future.result(timeout)
        except TimeoutError:
            raise NoAnswer from None
        finally:
            if future.cancel():
                with suppress(RuntimeError):  # the loop is closed
                    self.loop.call_soon_threadsafe(_close_new, coroutine)
        if error is not None:
            raise error
        return cast(T, result)

    def stop(self, timeout: float) -> None:
        """End; a thread that has not ended after ``timeout`` seconds is left to itself."""
        self.running = False
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout)


def _close_new(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Close what was cancelled before it began (so from Python 3.14 on): nobody awaits it."""
    if getcoroutinestate(coroutine) == CORO_CREATED:
        coroutine.close()


class DaemonThreads(Executor):
    """A thread for each call.

    :param most: calls that run at once; the others wait.
    :param name: what the names of the threads begin with.
    """

    def __init__(self, most: int, name: str) -> None:
        self._room = threading.Semaphore(most)
        self._name = name

    def submit(self, call: Callable[P, T], /, *args: P.args, **named: P.kwargs) -> Future[T]:
        """Have ``call`` run."""
        future: Future[T] = Future()

        def run() -> None:
            with self._room:
                if future.set_running_or_notify_cancel():
                    try:
                        result = call(*args, **named)
                    except BaseException as error:
                        future.set_exception(error)
                    else:
                        future.set_result(result)

        threading.Thread(target=run, name=self._name, daemon=True).start()
        return future
