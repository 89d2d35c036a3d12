"""The tier in Redis, shared by all machines, and their word on what is outdated.

A value is a string with an expiry; beside it, while it is computed, a *lease*. Rules kept here:

1. Redis is a tier less when it is away, never an error: who asks computes.
2. One process computes a key, who holds its lease (``SET NX PX``). The others look for its value
   every ``POLL_SECONDS``, for ``WAIT_SECONDS`` at most, and then compute for themselves.
3. A value is stored only while its lease is held, and deleting a key takes the lease away: what
   was computed from before the change cannot be stored after it.
4. What is deleted is published, and every worker of every machine drops it. A worker that cannot
   hear that (its subscription has ended) drops all it has, does not use Redis, and keeps what
   it computes for ``DEAF_SECONDS`` only, until it can hear again.
5. What could not be deleted, as Redis was away, is deleted before Redis is used again; of more
   than ``MOST_OWED`` keys, all. A worker that ends before that owes it for good: then the old
   value is found until its time is over.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import orjson

from fluxor_fast.errors import RedisAway
from fluxor_fast.redis import Redis
from fluxor_fast.tasks import end

if TYPE_CHECKING:
    from redis.asyncio import Redis as Client

__all__ = ["DEAF_SECONDS", "Found", "Remote"]

T = TypeVar("T")

LEASE_SECONDS = 5.0
"""After which another process may compute: the holder has died, or is very slow."""
WAIT_SECONDS = 1.0
POLL_SECONDS = 0.02
DEAF_SECONDS = 5.0
MOST_OWED = 10_000
DELETE_ALL_SECONDS = 60.0
RETRY_SECONDS = 0.1
ROUND_SECONDS = 0.25
"""Without a word on the subscription, after which it is asked for one, and what is owed is due."""
DEAD_SECONDS = 3.0
"""The same, after which it counts as ended."""

_FETCH = """
local body, left = redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])
if body and left > 0 then return {body, left} end
if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
return 0
"""
_STORE = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('DEL', KEYS[2])
return 1
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
"""


class Found(NamedTuple):
    """A value, its JSON, and for how many seconds it is good."""

    value: Any
    body: bytes
    seconds: float


class Remote:
    """The tier.

    :param prefix: of its keys and of the name of its channel.
    :param forget: drops from the process what it has for a key; ``None``: everything.
    """

    hears: bool = False
    """Whether the subscription stands, and so whether Redis is used (rule 4)."""

    def __init__(self, redis: Redis, prefix: str, forget: Callable[[str | None], None]) -> None:
        from redis.exceptions import RedisError

        # with these Redis says of itself that it cannot do it: full, a replica, a key of others
        self._failures = (RedisAway, RedisError)
        self._ends = (RedisAway, RedisError, OSError)  # TimeoutError is one of the last
        self._redis = redis
        self._prefix = prefix
        self._channel = f"{prefix}deleted"
        self._forget = forget
        self._leases = map(f"{secrets.token_hex(8)}-{{}}".format, count())
        self._owed: set[str] = set()
        self._owes_all = False
        self._listener: asyncio.Task[None] | None = None
        self._releasing: set[asyncio.Task[bool]] = set()

    async def start(self) -> None:
        """Begin to listen; soon afterwards Redis is used."""
        self._listener = asyncio.create_task(self._listen(), name="cache listener")

    async def stop(self) -> None:
        """Stop listening."""
        tasks: list[asyncio.Task[Any]] = [*self._releasing]
        if self._listener is not None:
            tasks.append(self._listener)
        self._listener = None
        await end(*tasks)
        self.hears = False

    async def fetch(self, key: str) -> Found | str | None:
        """Return the value, or a lease to store it with; ``None``: compute, and do not store."""
        if not self.hears:
            return None
        name = self._prefix + key
        until = time.monotonic() + WAIT_SECONDS
        try:
            while True:
                lease = next(self._leases)
                # at once: between a look and a lease another may have stored, and given back his
                got = await self._redis.run(
                    lambda client, lease=lease: client.eval(  # type: ignore[misc]
                        _FETCH, 2, name, f"{name}:lease", lease, int(LEASE_SECONDS * 1000)
                    )
                )
                if isinstance(got, list):
                    body, left = got
                    try:
                        return Found(orjson.loads(body), body, left / 1000)
                    except orjson.JSONDecodeError:  # it is not ours
                        await self._redis.run(lambda client: client.delete(name))
                        continue
                if got:
                    return lease
                if time.monotonic() >= until:
                    return None
                await asyncio.sleep(POLL_SECONDS)
        except self._failures:
            return None

    async def store(self, key: str, body: bytes, ttl: float, lease: str) -> None:
        """Store what was computed under ``lease``, and give that back."""
        name = self._prefix + key
        await self._try(
            lambda client: client.eval(
                _STORE, 2, name, f"{name}:lease", lease, body, max(1, int(ttl * 1000))
            )
        )

    def release(self, key: str, lease: str) -> None:
        """Give a lease back, soon: nothing is stored, and another may compute."""
        name = f"{self._prefix}{key}:lease"
        task = asyncio.create_task(
            self._try(lambda client: client.eval(_RELEASE, 1, name, lease)), name="cache lease"
        )
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def delete(self, key: str) -> None:
        """Delete a value, and have every worker of every machine drop it."""
        self._owed.add(key)  # until it is done: it may fail, or be cancelled
        if len(self._owed) > MOST_OWED:
            self._owed.clear()
            self._owes_all = True
        if await self._try(lambda client: self._delete(client, key)):
            self._owed.discard(key)
        else:
            self.hears = False

    async def _delete(self, client: Client, key: str) -> None:
        name = self._prefix + key
        pipeline: Any = client.pipeline()  # its types are those of a client, which answers
        await pipeline.delete(name, f"{name}:lease").publish(self._channel, key).execute()

    async def _try(self, use: Callable[[Client], Awaitable[T]]) -> bool:
        try:
            await self._redis.run(use)
        except self._failures:
            return False
        return True

    async def _listen(self) -> None:
        while True:
            if self._redis.ready:
                with suppress(*self._ends):
                    await self._hear()
                self.hears = False
                self._forget(None)
            await asyncio.sleep(RETRY_SECONDS)

    async def _hear(self) -> None:
        """Subscribe, and drop what is said to be deleted, until the subscription ends."""
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(self._channel)
            heard = time.monotonic()
            subscribed = False
            while self._redis.ready:
                message: dict[str, Any] | None = await pubsub.get_message(timeout=ROUND_SECONDS)
                now = time.monotonic()
                if message is not None:
                    heard = now
                    if message["type"] == "subscribe":
                        subscribed = True
                        self._forget(None)  # what was said before was not heard
                    elif message["type"] == "message":
                        self._forget(message["data"].decode())
                elif now - heard > DEAD_SECONDS:
                    return
                else:
                    await pubsub.ping()
                if subscribed and (self._owed or self._owes_all or not self.hears):
                    await self._settle()
                    self.hears = True

    async def _settle(self) -> None:
        """Delete what is owed (rule 5)."""
        if self._owes_all:
            await self._redis.run(self._delete_all, timeout=DELETE_ALL_SECONDS)
            self._owes_all = False
        while self._owed:
            key = next(iter(self._owed))
            await self._redis.run(lambda client, key=key: self._delete(client, key))  # type: ignore[misc]
            self._owed.discard(key)

    async def _delete_all(self, client: Client) -> None:
        pattern = re.sub(r"([*?[\]\\])", r"\\\1", self._prefix) + "*"
        names = [name async for name in client.scan_iter(pattern, count=1000)]
        for at in range(0, len(names), 1000):
            await client.unlink(*names[at : at + 1000])
