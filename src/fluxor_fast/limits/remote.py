"""Accounts in Redis, for a limit over several instances: GCRA in one script, by Redis's clock.

Rules:

1. A request is one round trip, and one account one key: its theoretical arrival time in
   microseconds. The key expires when it is paid off. Scripts run one at a time, so the limit is
   exact.
2. Redis's clock alone counts (``TIME``); if it is set back, an account is ahead by its tolerance
   at most.
3. Who was refused is not asked for again before the time that Redis has named: until then nothing
   that anybody does can make room, but a refund. So a flood costs Redis no more than what gets
   through.
4. While Redis is away, ``charge`` raises ``RedisAway`` (see ``redis``: it waits ``redis.timeout``
   at most, once, and then nobody waits until Redis is back). Then the instance's own accounts
   decide, which are charged in any case: each instance lets through the limit by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fluxor_fast.limits.gcra import Policy
from fluxor_fast.redis import Redis

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Holds", "charge"]

MOST_HELD: Final = 16_384
_PREFIX: Final = b"fluxor-fast:rate:"

# KEYS: the account, and one that is refunded; ARGV: cost, tolerance, what is refunded
_SCRIPT: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local cost, tolerance = tonumber(ARGV[1]), tonumber(ARGV[2])
local tat = tonumber(redis.call('GET', KEYS[1]) or now)
local ahead = math.min(math.max(tat - now, 0), tolerance) + cost
if ahead <= tolerance then
  redis.call('SET', KEYS[1], string.format('%.0f', now + ahead), 'PX', math.ceil(ahead / 1000))
end
if KEYS[2] then
  local other = tonumber(redis.call('GET', KEYS[2]) or now) - tonumber(ARGV[3])
  if other > now then
    redis.call('SET', KEYS[2], string.format('%.0f', other), 'PX', math.ceil((other - now) / 1000))
  else
    redis.call('DEL', KEYS[2])
  end
end
return ahead
"""


def _key(policy: Policy, owner: bytes) -> bytes:
    return _PREFIX + policy.key + owner


async def charge(
    redis: Redis, policy: Policy, owner: bytes, refunded: tuple[Policy, bytes] | None = None
) -> int:
    """Charge a request; return how far ahead its account lies with it, in nanoseconds.

    More than the tolerance: it is refused, and has cost nothing.

    :param refunded: an account that gets back what a request costs there.
    :raises RedisAway: Redis is away, or did not do it in time.
    """
    keys = [_key(policy, owner)]
    arguments: list[Any] = [-(-policy.cost // 1000), policy.tolerance // 1000]
    if refunded is not None:
        keys.append(_key(*refunded))
        arguments.append(-(-refunded[0].cost // 1000))
    ahead: int = await redis.run(lambda client: client.eval(_SCRIPT, len(keys), *keys, *arguments))
    return 1000 * ahead


class Holds:
    """Until when owners need not be asked for (rule 3).

    :param clock: nanoseconds.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._until: dict[str, int] = {}

    def left(self, owner: str) -> int:
        """Return for how many nanoseconds more; 0: not at all."""
        until = self._until.get(owner)
        if until is None:
            return 0
        left = until - self._clock()
        if left <= 0:
            del self._until[owner]
            return 0
        return left

    def hold(self, owner: str, wait: int) -> None:
        """Hold ``owner`` for ``wait`` nanoseconds."""
        if len(self._until) >= MOST_HELD:
            self._until.clear()
        self._until[owner] = self._clock() + wait
