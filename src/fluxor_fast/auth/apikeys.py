"""API keys: for programs, long-lived, revocable.

A key looks like ``fxk_<16 hex>_<64 hex>``: a prefix that names it, which may be shown and logged,
and a secret. Rules kept here:

1. Only a SHA-256 of the whole key is stored. The secret has 256 random bits: nobody finds it by
   trying, so the slow, salted hash that a password needs would add nothing (NIST SP 800-63B,
   section 3.1.2, asks for no more than this from 112 bits on).
2. The prefix finds the record, the hash is compared in constant time. A prefix that there is not
   and a secret that is wrong are the same 401.
3. What the source said of a prefix is remembered for ``REMEMBER`` seconds, also that there is none:
   a key in use costs no query. So a key that is revoked works for at most that long in other
   workers; in the one that revoked it not at all (``forget``). Expiry is looked at each time.
4. Both memories are bounded, and apart: a flood of invented prefixes pushes out no real one. All
   who wait for one prefix share one query.
5. While the source is away a key whose time is over in memory is 503, not good.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hmac import compare_digest
from typing import Final

from fluxor_fast.auth.memory import remember
from fluxor_fast.auth.roles import Verifier, Waiting, bearer_of
from fluxor_fast.auth.tokens import Claims
from fluxor_fast.auth.verifying import unauthorized
from fluxor_fast.errors import HTTPError
from fluxor_fast.http.request import Request

__all__ = ["ApiKey", "ApiKeys", "StoredKey", "api_key", "bearer_or_key", "digest", "new_key"]

REMEMBER: Final = 10.0
"""Seconds for which a record, or that there is none, is believed."""
REMEMBERED: Final = 4096
"""Records per worker, and as many absent ones; about 1 KiB each."""
HEADER: Final = "x-api-key"

_FORM = re.compile(r"(fxk_[0-9a-f]{16})_[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret, as ``request.state["api_key"]``. Times are Unix seconds."""

    id: int
    prefix: str
    name: str
    tier: str
    """What its owner may ask for, in the words of who limits rates."""
    user: Claims
    """Who it speaks for, with the roles and permissions of the key."""
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class StoredKey:
    """What is at rest: the key's record and hash. A revoked key is not there."""

    key: ApiKey
    digest: bytes


def new_key(random: Callable[[int], str] = secrets.token_hex) -> tuple[str, str, bytes]:
    """Return a new key, its prefix, and the digest to be stored.

    :param random: gives that many random bytes in hexadecimal.
    """
    prefix = f"fxk_{random(8)}"
    text = f"{prefix}_{random(32)}"
    return text, prefix, digest(text)


def digest(text: str) -> bytes:
    """Return what is stored of a key, or another text with as many random bits (rule 1)."""
    return hashlib.sha256(text.encode()).digest()


def _unknown() -> HTTPError:
    return unauthorized("the API key is not valid")


class ApiKeys:
    """The keys that one worker has seen. Made in its event loop.

    :param fetch: looks a prefix up; None: there is no such key, or it is revoked.
    :param clock: Unix time in seconds, for expiry.
    :param monotonic: seconds, for what is remembered.
    """

    def __init__(
        self,
        fetch: Callable[[str], Awaitable[StoredKey | None]],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._fetch = fetch
        self._clock = clock
        self._monotonic = monotonic
        self._present: dict[str, tuple[float, StoredKey]] = {}
        self._absent: dict[str, float] = {}
        self._pending: dict[str, asyncio.Task[StoredKey | None]] = {}

    def remembered(self, prefix: str, hashed: bytes) -> ApiKey | None:
        """Return the good key, or None if it must be looked up.

        :raises HTTPError: 401 if it is known not to be good.
        """
        now = self._monotonic()
        found = self._present.get(prefix)
        if found is not None and now < found[0]:
            return self._checked(found[1], hashed)
        if now < self._absent.get(prefix, 0.0):
            raise _unknown()
        return None

    async def look_up(self, prefix: str, hashed: bytes) -> ApiKey:
        """Return the good key, asking the source.

        :raises HTTPError: 401 if it is not good, or what the source raises.
        """
        task = self._pending.get(prefix)
        if task is None:
            task = self._pending[prefix] = asyncio.ensure_future(self._ask(prefix))
            task.add_done_callback(_retrieved)
        return self._checked(await asyncio.shield(task), hashed)

    def forget(self, prefix: str) -> None:
        """Ask anew for this prefix: it was made or revoked."""
        self._present.pop(prefix, None)
        self._absent.pop(prefix, None)
        self._pending.pop(prefix, None)  # what is under way may have seen the old state

    async def _ask(self, prefix: str) -> StoredKey | None:
        me = asyncio.current_task()
        try:
            found = await self._fetch(prefix)
            if self._pending.get(prefix) is me:
                until = self._monotonic() + REMEMBER
                self._present.pop(prefix, None)  # to the end of the line
                self._absent.pop(prefix, None)
                if found is None:
                    remember(self._absent, prefix, until, REMEMBERED)
                else:
                    remember(self._present, prefix, (until, found), REMEMBERED)
            return found
        finally:
            if self._pending.get(prefix) is me:
                del self._pending[prefix]

    def _checked(self, found: StoredKey | None, hashed: bytes) -> ApiKey:
        if found is None or not compare_digest(found.digest, hashed):
            raise _unknown()
        expires = found.key.expires_at
        if expires is not None and expires <= self._clock():
            raise unauthorized("the API key has expired", "KEY_EXPIRED")
        return found.key


def _retrieved(task: asyncio.Task[StoredKey | None]) -> None:
    """Take the error of a query for which nobody waits any more."""
    if not task.cancelled():
        task.exception()


class api_key(Waiting):
    """Lets in requests with a good key in ``X-API-Key``; 401 else.

    The handler finds the ``ApiKey`` in ``request.state["api_key"]``, and in
    ``request.state["user"]`` the ``Claims`` of who it speaks for. Coroutine and blocking handlers
    only. Cost of a key that is remembered: ``bench/middleware.py api_key``.

    :param keys_of: gives the ``ApiKeys``; called for each request.
    """

    def __init__(self, keys_of: Callable[[Request], ApiKeys]) -> None:
        self._keys_of = keys_of

    def known(self, request: Request) -> bool:
        """Look into what is remembered."""
        key = self._keys_of(request).remembered(*_shown(request))
        if key is None:
            return False
        _let_in(request, key)
        return True

    async def find_out(self, request: Request) -> None:
        """Ask for the key."""
        _let_in(request, await self._keys_of(request).look_up(*_shown(request)))

    def loop_of(self, request: Request) -> asyncio.AbstractEventLoop:
        """Return the loop in which the keys live."""
        return self._keys_of(request).loop


class bearer_or_key(api_key):
    """Lets in requests with a good bearer token or a good key; with both the token counts.

    :param tokens_of: as for ``authenticated``.
    :param keys_of: as for ``api_key``.
    """

    def __init__(
        self,
        tokens_of: Callable[[Request], Verifier],
        keys_of: Callable[[Request], ApiKeys],
    ) -> None:
        super().__init__(keys_of)
        self._tokens_of = tokens_of

    def known(self, request: Request) -> bool:
        """Look at the token, or into what is remembered of keys."""
        memo = request.head.memo
        token = memo.get(bearer_of)
        if token is None:
            by_key: bool | None = memo.get(bearer_or_key)
            if by_key is None:
                headers = request.headers
                by_key = memo[bearer_or_key] = HEADER in headers and "authorization" not in headers
            if by_key:
                return super().known(request)
            token = bearer_of(request)
        request.state["user"] = self._tokens_of(request).verify(token)
        return True


def _let_in(request: Request, key: ApiKey) -> None:
    state = request.state
    state["api_key"] = key
    state["user"] = key.user


def _shown(request: Request) -> tuple[str, bytes]:
    """Return prefix and digest of the key that a request shows.

    :raises HTTPError: 401 if it shows none, or nothing that could be one.
    """
    memo = request.head.memo
    shown: tuple[str, bytes] | None = memo.get(_shown)
    if shown is None:
        text = request.headers.get(HEADER)
        if text is None:
            raise unauthorized("an API key is needed")
        form = _FORM.fullmatch(text)
        if form is None:
            raise _unknown()
        shown = memo[_shown] = form[1], digest(text)
    return shown
