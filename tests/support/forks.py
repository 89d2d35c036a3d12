"""Processes forked from the test, which end with it."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def forked(*functions: Callable[[], None]) -> Iterator[list[int]]:
    """Run each function in a process of its own and yield their ids; killed at the latest here.

    A child ends with 0 when its function returns, with 1 when it raises.
    """
    children = []
    try:
        for function in functions:
            with warnings.catch_warnings():
                # from 3.12 on Python warns of threads; the children here use none of theirs
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    function()
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            children.append(pid)
        yield children
    finally:
        for pid in children:
            try:
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
            except ChildProcessError:
                pass  # the test has waited for it


def ended(pid: int) -> int:
    """Wait for a child and return its exit code; negative, the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
