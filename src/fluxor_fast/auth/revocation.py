"""Sessions that have been revoked, known to every worker without a query per request.

The source (a table) is asked each ``EVERY`` seconds for what was revoked since the last time.
Rules kept here:

1. A revoked token works for at most ``EVERY`` seconds, and the time of one query, in other workers;
   in the one that revoked it not at all.
2. Each look reaches ``OVERLAP`` seconds back behind the latest revocation seen: a transaction is
   visible only when it has ended, which may be later than its time. Times are the source's.
3. Until the first look has succeeded, a token that could be revoked is answered 503: it is not
   known whether it is good. After that, while the source is away, the list is as old as the last
   look; nothing can be revoked meanwhile by who shares that source.
4. An entry is dropped when no token of its session can be alive, ``lifetime`` seconds after the
   revocation. So memory is bounded by the revocations within a token's lifetime, about 200 bytes
   each.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from fluxor_fast.auth.tokens import Claims
from fluxor_fast.errors import HTTPError

__all__ = ["EVERY", "Revocations"]

logger = logging.getLogger(__name__)

EVERY: Final = 1.0
OVERLAP: Final = 30.0

Fetch = Callable[[float], Awaitable[Iterable[tuple[str, float]]]]


class Revocations:
    """One worker's list.

    :param fetch: gives sessions with the Unix time of their revocation, from a time on.
    :param lifetime: seconds a token lives.
    :param clock: Unix time in seconds.
    """

    def __init__(
        self, fetch: Fetch, lifetime: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._fetch = fetch
        self._lifetime = lifetime
        self._clock = clock
        self._revoked: dict[str, float] = {}
        self._latest: float | None = None  # None: not looked yet

    def __len__(self) -> int:
        return len(self._revoked)

    def __call__(self, claims: Claims) -> bool:
        """Return whether these claims are revoked; for ``Tokens``.

        :raises HTTPError: 503 if it is not known (rule 3).
        """
        session = claims.session
        if session is None:
            return False
        if self._latest is None:
            raise HTTPError(
                503,
                "it is not known yet which tokens are revoked, try again",
                code="REVOCATIONS_UNKNOWN",
                headers={"Retry-After": "1"},
            )
        return session in self._revoked

    def add(self, session: str) -> None:
        """Note what this worker has revoked itself."""
        self._revoked[session] = self._clock()

    async def look(self) -> None:
        """Ask the source; what it raises passes through."""
        gone = self._clock() - self._lifetime - OVERLAP
        latest = max(gone, 0.0 if self._latest is None else self._latest)
        found = dict(await self._fetch(latest - OVERLAP))
        self._revoked.update(found)
        self._latest = max([latest, *found.values()])
        # oldest first, but for what came late: such entries stay a little longer
        for session, revoked in list(self._revoked.items()):
            if revoked > gone:
                break
            del self._revoked[session]

    async def keep_looking(self) -> None:
        """Look each ``EVERY`` seconds, until cancelled."""
        while True:
            try:
                await self.look()
            except HTTPError:
                pass  # the source is away, and who keeps it says so
            except Exception:
                logger.exception("what has been revoked could not be looked up")
            await asyncio.sleep(EVERY)
