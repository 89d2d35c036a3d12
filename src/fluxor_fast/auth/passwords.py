"""Passwords: Argon2id, off the event loop, bounded, and silent about who exists.

Rules kept here:

1. Parameters are OWASP's first choice for little memory: 19 MiB, 2 passes, 1 lane (OWASP
   Password Storage Cheat Sheet, section Argon2id). A hash made with others still verifies, and
   ``needs_rehash`` tells that it should be made anew.
2. Hashing takes a core for about 20 ms, so it has threads of its own and a bounded queue:
   a flood of logins is refused with 503 ``HASHING_BUSY`` and takes nothing from the loop.
   (argon2 releases the interpreter's lock while it hashes.)
3. A user who does not exist takes as long as one who does: a hash nobody knows the password of
   is verified instead.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import argon2
from argon2.exceptions import Argon2Error, InvalidHashError

from fluxor_fast.errors import HTTPError

__all__ = ["Passwords"]

P = ParamSpec("P")
T = TypeVar("T")

MEMORY_KIB = 19 * 1024
PASSES = 2
LANES = 1


class Passwords:
    """Hashes and verifies passwords.

    :param threads: how many are worked on at once.
    :param queue: how many more may wait.
    """

    def __init__(self, threads: int, queue: int) -> None:
        self._hasher = argon2.PasswordHasher(
            time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES
        )
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="passwords")
        self._limit = threads + queue
        self._pending = 0
        self._lock = threading.Lock()  # _pending goes down in the executor's threads
        self._nobody = self._hasher.hash(secrets.token_hex(16))

    @property
    def pending(self) -> int:
        """Passwords being worked on or waiting."""
        return self._pending

    async def hash(self, password: str) -> str:
        """Return the hash, with its parameters and salt, as text of about 100 characters.

        :raises HTTPError: 503 ``HASHING_BUSY`` when the queue is full.
        """
        return await self._run(self._hasher.hash, password)

    async def verify(self, hashed: str | None, password: str) -> bool:
        """Return whether ``password`` made ``hashed``; never for ``None``, which takes as long.

        :raises HTTPError: 503 ``HASHING_BUSY`` when the queue is full.
        """
        matches = await self._run(self._matches, hashed or self._nobody, password)
        return matches and hashed is not None

    def needs_rehash(self, hashed: str) -> bool:
        """Return whether ``hashed`` was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(hashed)

    def close(self) -> None:
        """Drop what waits; what is being worked on ends in its thread."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _matches(self, hashed: str, password: str) -> bool:
        try:
            return self._hasher.verify(hashed, password)
        except (Argon2Error, InvalidHashError):
            return False

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._lock:
            if self._pending >= self._limit:
                raise HTTPError(
                    503,
                    "too many passwords are being checked, try again",
                    code="HASHING_BUSY",
                    headers={"Retry-After": "1"},
                )
            self._pending += 1
        try:
            future = self._executor.submit(function, *args, **kwargs)
        except RuntimeError:  # closed
            self._finished(None)
            raise
        # not when the caller stops waiting: a hash that has begun keeps its thread
        future.add_done_callback(self._finished)
        return await asyncio.wrap_future(future)

    def _finished(self, future: Future[T] | None) -> None:
        with self._lock:
            self._pending -= 1
