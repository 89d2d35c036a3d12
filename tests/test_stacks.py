"""``arbiter.stacks``: what a process tells that never returns to Python."""

from __future__ import annotations

import os
import re
import signal
import traceback

from fluxor_fast.arbiter.stacks import DUMP_SIGNAL, Stacks
from tests.support.forks import ended, forked
from tests.support.server import eventually


def a_function_that_hangs_in_c(ready: int) -> None:
    os.write(ready, b"x")
    re.match(r"(a+)+$", "a" * 50 + "b")  # for ages, with the interpreter's lock


def test_code_in_c_that_holds_the_interpreters_lock_is_told_by_name_time_and_again() -> None:
    stacks = Stacks()
    reading, ready = os.pipe()
    outermost = list(traceback.walk_stack(None))[-1][0].f_code.co_name  # what is told last

    def hang() -> None:
        stacks.register()
        a_function_that_hangs_in_c(ready)

    with forked(hang) as (child,):
        os.read(reading, 1)
        for _ in range(2):
            os.kill(child, DUMP_SIGNAL)
            told: list[str] = []  # it is written piece by piece

            def complete(told: list[str] = told) -> bool:
                told.append(stacks.read())
                all_of_it = "".join(told)
                return "a_function_that_hangs_in_c" in all_of_it and all_of_it.endswith(outermost)

            eventually(complete, "stacks")
        os.kill(child, signal.SIGSEGV)
        assert ended(child) == -signal.SIGSEGV
    assert stacks.read().startswith("Fatal Python error: Segmentation fault")
    assert stacks.size == 0
    stacks.close()
    for fd in (reading, ready):
        os.close(fd)
