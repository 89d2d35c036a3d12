"""What one worker counts, and when it reaches shared memory.

Counts are kept in the process and written once a turn, those that seldom change only when they
did, the histogram by the sweep: so counting costs a request next to nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from fluxor_fast.arbiter.shared import BOUNDS, PROXY_REFUSALS, SHED_REASONS, Word

__all__ = ["Counters"]

# plain ints: an IntEnum as an index costs three times as much
_OFFERED: Final = int(Word.OFFERED)
_ACCEPTED: Final = int(Word.ACCEPTED)
_COMPLETED: Final = int(Word.COMPLETED)
_ABORTED: Final = int(Word.ABORTED)
_SHED: Final = int(Word.SHED)
_RESPONSES: Final = int(Word.RESPONSES)
_DURATION: Final = int(Word.DURATION_US)
_PROXY: Final = int(Word.PROXY)
_BUCKETS: Final = int(Word.BUCKETS)
_WEBSOCKETS: Final = int(Word.WEBSOCKETS)


class Counters:
    """The counters of one worker.

    offered = accepted + Σ shed + waiting; accepted = completed + aborted + in flight.

    :param region: this worker's words in shared memory.
    """

    __slots__ = ("_buckets", "_duration", "_rare", "_region", "aborted", "accepted", "completed",
                 "no_header", "offered", "responses", "shed")  # fmt: skip

    def __init__(self, region: memoryview[int]) -> None:
        self._region = region
        self.offered = 0
        self.accepted = 0
        self.completed = 0
        self.aborted = 0
        self.shed = dict.fromkeys(SHED_REASONS, 0)
        self.no_header = dict.fromkeys(PROXY_REFUSALS, 0)  # connections, not requests
        self.responses = [0] * 6  # by status class
        self._rare = False  # whether a count changed that seldom does
        self._buckets = [0] * (len(BOUNDS) + 1)
        self._duration = 0.0

    def observe(self, seconds: float, requests: int) -> None:
        """Note that ``requests`` requests took ``seconds`` each, from arrival to answer."""
        if requests:
            self._buckets[bisect_left(BOUNDS, seconds)] += requests
            self._duration += seconds * requests

    def answered(self, status: int) -> None:
        """Note an answer that did not take the short way."""
        self.responses[min(status // 100, 5)] += 1  # a handler may have said anything
        self._rare = True

    def refused(self, reason: str) -> None:
        """Note that a request was refused for ``reason``; its answer is counted apart."""
        self.shed[reason] += 1
        self._rare = True

    def without_header(self, reason: str) -> None:
        """Note that a connection was closed for want of a PROXY header, for ``reason``."""
        self.no_header[reason] += 1
        self._rare = True

    def upgraded(self, count: int) -> None:
        """Note how many connections speak another protocol now; a gauge."""
        self._region[_WEBSOCKETS] = count

    def abandoned(self) -> None:
        """Note that an accepted request has no client any more."""
        self.aborted += 1
        self._rare = True

    def publish(self) -> None:
        """Write what changed; called once a turn."""
        region = self._region
        region[_OFFERED] = self.offered
        region[_ACCEPTED] = self.accepted
        region[_COMPLETED] = self.completed
        region[_RESPONSES + 1] = self.responses[2]
        if self._rare:
            self._rare = False
            region[_ABORTED] = self.aborted
            for status_class in range(1, 6):
                region[_RESPONSES + status_class - 1] = self.responses[status_class]
            for at, count in enumerate(self.shed.values()):
                region[_SHED + at] = count
            for at, count in enumerate(self.no_header.values()):
                region[_PROXY + at] = count

    def publish_latencies(self) -> None:
        """Write the histogram; called by the sweep."""
        region = self._region
        region[_DURATION] = int(self._duration * 1e6)
        for at, value in enumerate(self._buckets):
            if value:
                region[_BUCKETS + at] = value
