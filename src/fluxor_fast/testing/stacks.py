"""Where an application stands that does not answer: the stacks of its threads and its tasks.

``asyncio.Task.get_stack`` knows the outermost coroutine of a task that waits; here the chain of
what each awaits is followed to the innermost one.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

__all__ = ["BLOCKING", "OWN", "standing"]

OWN: Final = "fluxor-test-"
"""What the names of tasks begin with that are not the application's."""
BLOCKING: Final = "fluxor-blocking"
"""The name of the threads that run its blocking handlers."""

_HERE = str(Path(__file__).parent)


def standing(loop: asyncio.AbstractEventLoop, thread: int = 0, root: CodeType | None = None) -> str:
    """Return the stacks of what runs or waits in ``loop``, one paragraph each.

    :param thread: identifier of the loop's thread, if that is not the one of the caller.
    :param root: the function in it that runs the loop.
    """
    return "\n".join(_paragraphs(loop, thread, root)) or "nothing runs or waits in it"


def _paragraphs(
    loop: asyncio.AbstractEventLoop, thread: int, root: CodeType | None
) -> Iterator[str]:
    tops = sys._current_frames()
    chain = _outermost_first(tops.get(thread))
    for at, frame in enumerate(chain):
        if frame.f_code is root and chain[at + 1 :]:  # else it waits for events
            yield _paragraph("The loop is held up by:", chain[at + 1 :])
    for one in threading.enumerate():
        chain = _outermost_first(tops.get(one.ident or 0))
        if one.name == BLOCKING and chain:
            yield _paragraph("A thread is at:", chain)
    running = asyncio.current_task(loop)
    for task in asyncio.all_tasks(loop):
        chain = list(_awaited(task.get_coro()))
        ours = task.get_name().startswith(OWN) or task is running
        if chain and not (ours or chain[0].f_code.co_filename.startswith(_HERE)):
            yield _paragraph(f"{task.get_name()} waits at:", chain)


def _paragraph(title: str, frames: Iterable[FrameType]) -> str:
    summary = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames)
    return title + "\n" + "".join(summary.format())


def _outermost_first(frame: FrameType | None) -> list[FrameType]:
    chain = []
    while frame is not None:
        chain.append(frame)
        frame = frame.f_back
    return chain[::-1]


def _awaited(coroutine: Any) -> Iterator[FrameType]:
    """Yield the frames of what is awaited, the outermost first."""
    while coroutine is not None:
        for frame, then in (
            ("cr_frame", "cr_await"),
            ("gi_frame", "gi_yieldfrom"),
            ("ag_frame", "ag_await"),
        ):
            if getattr(coroutine, frame, None) is not None:
                yield getattr(coroutine, frame)
                coroutine = getattr(coroutine, then)
                break
        else:
            return
