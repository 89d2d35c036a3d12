"""Tasks are ended, also those that do not hear it the first time."""

from __future__ import annotations

import asyncio
import time

import pytest

from fluxor_fast import tasks
from fluxor_fast.tasks import end
from tests.support.pure import run


def test_a_cancellation_that_comes_with_a_result_and_is_lost_is_said_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What ``wait_for`` of Python 3.11 does: the worker's stop waited for such a task for ever."""
    monkeypatch.setattr(tasks, "AGAIN_SECONDS", 0.02)

    async def main() -> None:
        rounds = 0

        async def looks() -> None:
            nonlocal rounds
            while True:
                rounds += 1
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    if rounds > 1:
                        raise

        async def ends_at_once() -> None:
            await asyncio.sleep(60)

        made = [asyncio.ensure_future(looks()), asyncio.ensure_future(ends_at_once())]
        await asyncio.sleep(0)
        started = time.monotonic()
        await end(*made)
        assert all(task.cancelled() for task in made)
        assert rounds == 2
        assert time.monotonic() - started < 5

    run(main())


def test_what_has_ended_or_is_nothing_is_not_waited_for() -> None:
    async def main() -> None:
        done = asyncio.ensure_future(asyncio.sleep(0))
        await done
        await end(done)
        await end()
        assert not done.cancelled()

    run(main())
