"""The health of workers in the arbiter: looks at what they wrote, and does what ``health`` says."""

from __future__ import annotations

import logging
import signal

from fluxor_fast.arbiter.crew import Crew
from fluxor_fast.arbiter.health import Verdict
from fluxor_fast.arbiter.shared import State, Word
from fluxor_fast.arbiter.stacks import DUMP_SIGNAL

__all__ = ["watch"]

log = logging.getLogger("fluxor_fast.arbiter")


def watch(crew: Crew, now: float) -> None:
    """Look at all workers; to be called often."""
    for index, worker in crew.workers.items():
        if worker.killed:
            continue
        region = crew.region(index)
        state = region[Word.STATE]
        if worker.ready is None and state == State.READY:
            worker.ready = now
        verdict = worker.watch.look(now, state, region[Word.HEARTBEAT], worker.stacks.size)
        if verdict is Verdict.ASK:
            crew.signal(index, DUMP_SIGNAL)
        elif verdict is Verdict.END:
            why, stacks = worker.watch.reason, worker.stacks.read()
            asked = f"\n{stacks}" if stacks else ""
            log.error("worker %d (pid %d) %s: SIGKILL%s", index, worker.pid, why, asked)
            worker.killed = f"{why} and was ended"
            crew.signal(index, signal.SIGKILL)
