"""Clients that ask again and again, and count strictly what fails.

A request fails if it was sent on an open connection that then closes without an answer, if a
connection is refused or reset, or if the answer is a 5xx that is not expected. After an answer
with ``Connection: close`` a client makes a new connection, as it must.
"""

from __future__ import annotations

import threading
import time
from collections import Counter

from tests.support.server import Client


class Steady:
    """So many clients, each with one connection at a time, until the block is left.

    :param pause: seconds between two requests of a client.
    :param fresh: have a new connection for each request.
    :param refusals: whether a 503 is an answer like others.
    :param once: have a client leave when its connection has been closed in order.
    """

    def __init__(
        self,
        port: int | str,
        clients: int,
        target: str = "/",
        *,
        pause: float = 0.0,
        fresh: bool = False,
        refusals: bool = False,
        once: bool = False,
    ) -> None:
        self.statuses = Counter[int]()
        self.closes = 0
        self.failures: list[str] = []
        self._port, self._target, self._pause = port, target, pause
        self._fresh, self._refusals, self._once = fresh, refusals, once
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    @property
    def answered(self) -> int:
        return sum(self.statuses.values())

    def __enter__(self) -> Steady:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            doing = "connecting"
            try:
                with Client(self._port) as client:
                    while not self._stop.is_set():
                        doing = "asking"
                        answer = client.request(self._target)
                        self._note(answer.status, answer.body)
                        if answer.headers.get("connection") == "close":
                            self.closes += 1
                            # it must have no second answer, and end in order
                            doing = "being closed"
                            assert client.file.read() == b""
                            if self._once:
                                return
                            break
                        if self._fresh:
                            break
                        self._stop.wait(self._pause)
            except OSError as error:
                with self._lock:
                    self.failures.append(f"{time.monotonic():.3f} {doing}: {error!r}")
                time.sleep(0.01)

    def _note(self, status: int, body: bytes) -> None:
        with self._lock:
            self.statuses[status] += 1
            if status >= 500 and not (status == 503 and self._refusals):
                self.failures.append(f"{status} {body[:200]!r}")
