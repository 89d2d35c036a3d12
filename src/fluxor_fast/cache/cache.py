"""A cache in front of functions: what was returned is returned again, until it is too old.

::

    cache = Cache()

    @app.get("/api/users/{id:int}", middleware=(signed_in,))
    @cache.cached(ttl=300, key=lambda request, id: id)
    async def get_user(request: Request, id: int) -> User:
        ...

    await get_user.forget(id)      # after a change, when it is committed

There are two tiers: the worker's own memory, and Redis where there is one, for all machines (see
``memory``, ``flights`` and ``remote``). Rules kept here:

1. A key holds all that the answer depends on, and only its author knows what that is: of a
   function that takes a request it has to be given. Values of different types never are one key.
2. What is returned is what JSON makes of it, whichever tier it comes from and also the first
   time. It is shared: callers do not change it.
3. Errors are not cached, and neither is ``None``, unless ``none_ttl`` says for how long.
4. A middleware around a cached handler runs for each request: who may not see it is not answered
   from the cache.
5. The memory has values as objects, for who calls the function, and those of coroutine functions
   as JSON, too, for the route whose handler it may be: what is known is not encoded again.
6. A value is computed once at a time in a process (see ``flights``), for each key; with Redis once
   on all machines, as far as waiting for it is worthwhile (see ``remote``). A plain function that
   is called in the event loop never waits, and does not ask Redis: neither may block the loop.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import orjson

from fluxor_fast.cache.flights import Flights
from fluxor_fast.cache.memory import Generations, LocalGenerations, Memory, Stamp
from fluxor_fast.cache.remote import DEAF_SECONDS, Found, Remote
from fluxor_fast.composition import offer
from fluxor_fast.http.response import Json, encode_value
from fluxor_fast.tasks import end

if TYPE_CHECKING:
    from fluxor_fast.app import App
    from fluxor_fast.redis import Redis

__all__ = ["Cache", "Figures"]

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

LONGEST_KEY: Final = 200
"""Characters of a key; of a longer one, or one that is not ASCII, the hash is taken."""
PUBLISH_SECONDS: Final = 1.0
REMOTE_SECONDS: Final = 10.0
"""Most that a thread waits for the event loop to ask Redis; the loop has ended then."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a worker's cache has done so far, and holds now."""

    memory_hits: int
    redis_hits: int
    waited: int
    """Calls that got what another one computed at the time."""
    misses: int
    """Calls that computed."""
    evicted: int
    """Entries that left for want of room."""
    entries: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Rule:
    """How one function is cached. Seconds."""

    prefix: str
    ttl: float
    none_ttl: float | None
    routed: bool
    """Whether it may be the handler of a route that asks for JSON."""

    def ttl_of(self, value: Any) -> float:
        """For how long ``value`` is kept; 0: not at all."""
        return self.ttl if value is not None else self.none_ttl or 0.0


class Cache:
    """The cache of one worker; an application has one, or their figures would mix.

    It works at once; ``start`` gives it Redis, sizes, and the other workers.

    :param clock: monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._names: set[str] = set()
        self._remote: Remote | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._publisher: asyncio.Task[None] | None = None
        self._jobs: dict[tuple[str, Stamp], Future[Any]] = {}  # computed in threads
        self._jobs_lock = threading.Lock()
        self._memory_hits = self._redis_hits = self._misses = self._jobs_waited = 0
        self._hold(10_000, 16 << 20, LocalGenerations())

    def _hold(self, most: int, most_bytes: int, generations: Generations) -> None:
        self._memory = Memory(most, most_bytes, self._clock, generations)
        self._flights = Flights(self._memory.stamp)

    async def start(self, app: App, redis: Redis | None = None) -> None:
        """Begin to work with the other workers, and with Redis; for a startup hook.

        :param redis: opened; it stays the caller's.
        """
        settings = app.settings.cache
        self._loop = asyncio.get_running_loop()
        self._hold(settings.entries, settings.bytes, app.shared or LocalGenerations())
        if redis is not None:
            name = app.settings.observability.service_name
            self._remote = Remote(redis, f"fluxor:{name}:", self._drop)
            await self._remote.start()
        if app.metrics is not None:
            self._publisher = asyncio.create_task(self._publish(app), name="cache figures")

    async def stop(self) -> None:
        """End what ``start`` began; for a shutdown hook, before Redis is closed."""
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            await end(publisher)
        remote, self._remote = self._remote, None
        if remote is not None:
            await remote.stop()
        self._loop = None

    @property
    def figures(self) -> Figures:
        """What it has done."""
        memory = self._memory
        return Figures(
            memory_hits=self._memory_hits,
            redis_hits=self._redis_hits,
            waited=self._flights.waited + self._jobs_waited,
            misses=self._misses,
            evicted=memory.evicted,
            entries=len(memory),
            bytes=memory.bytes,
        )

    def cached(
        self,
        *,
        ttl: float,
        key: Callable[..., Any] | None = None,
        name: str | None = None,
        none_ttl: float | None = None,
    ) -> Callable[[F], F]:
        """Return a decorator for plain, blocking and coroutine functions and handlers.

        What is decorated gets a coroutine function ``forget(key)``, which has every worker of every
        machine drop what it has for what ``key`` gave: at once on this machine, on others as soon
        as Redis has told them. Call it when the change is committed.

        :param ttl: seconds that a value is good for.
        :param key: called with the arguments, gives an int or a text, or a tuple or list of what
            JSON can hold. By default it is the arguments, all of which must be such.
        :param name: what sets the keys of this function apart, in Redis too; by default module and
            name. Change it when a value means something else than before.
        :param none_ttl: seconds that ``None`` is good for; by default it is not cached.
        :raises ValueError: for a name that is taken, or seconds that are not above 0.
        :raises TypeError: for a function that takes a request, without a key.
        """

        if ttl <= 0 or (none_ttl is not None and none_ttl <= 0):
            raise ValueError(f"a value is good for more than 0 seconds: {ttl}, {none_ttl}")

        def decorate(function: F) -> F:
            routed = inspect.iscoroutinefunction(function)
            rule = _Rule(self._claim(function, name), ttl, none_ttl, routed)
            key_of = key or _arguments(function, rule.prefix)
            if routed:
                wrapper = self._coroutine(function, rule, key_of)
            else:
                wrapper = self._plain(function, rule, key_of)

            async def forget(key: Any) -> None:
                await self._forget(_text(rule.prefix, key))

            wrapper.forget = forget
            return cast(F, wrapper)

        return decorate

    def _claim(self, function: Callable[..., Any], name: str | None) -> str:
        name = name or f"{function.__module__}.{function.__qualname__}"
        if name in self._names:
            raise ValueError(f"{name} is cached already: give one of them another name")
        self._names.add(name)
        return name

    # coroutine functions

    def _coroutine(self, function: Any, rule: _Rule, key_of: Callable[..., Any]) -> Any:
        prefix = rule.prefix

        def computed(text: str, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
            return self._flights.run(
                text,
                lambda stamp: self._compute(text, stamp, rule, lambda: function(*args, **kwargs)),
            )

        def at_once(*args: Any, **kwargs: Any) -> Any:
            value = key_of(*args, **kwargs)
            # the commonest, as ``_text`` has it
            text = f"{prefix}:{value}" if type(value) is int else _text(prefix, value)
            entry = self._memory.get(text)
            if entry is not None:
                self._memory_hits += 1
                return entry.value[1]
            return computed(text, *args, **kwargs)

        @wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            text = _text(prefix, key_of(*args, **kwargs))
            entry = self._memory.get(text)
            if entry is not None:
                self._memory_hits += 1
                return entry.value[0]
            return await computed(text, *args, **kwargs)

        offer(wrapper, at_once)  # to routes: what is known needs no task
        return wrapper

    async def _compute(
        self, text: str, stamp: Stamp, rule: _Rule, function: Callable[[], Awaitable[Any]]
    ) -> Any:
        remote = self._remote
        found = None if remote is None else await remote.fetch(text)
        if isinstance(found, Found):
            return self._take(text, stamp, rule, found)
        lease = found
        try:
            self._misses += 1
            value, body = _as_json(await function())
            if self._keep(text, stamp, rule, value, body) and remote is not None and lease:
                await remote.store(text, body, rule.ttl_of(value), lease)
                lease = None
            return value
        finally:
            if remote is not None and lease:
                remote.release(text, lease)

    # plain functions, in the event loop or in threads

    def _plain(self, function: Any, rule: _Rule, key_of: Callable[..., Any]) -> Any:
        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            text = _text(rule.prefix, key_of(*args, **kwargs))
            entry = self._memory.get(text)
            if entry is not None:
                self._memory_hits += 1
                return entry.value[0]
            stamp = self._memory.stamp(text)
            if _in_event_loop():
                self._misses += 1
                value, body = _as_json(function(*args, **kwargs))
                self._keep(text, stamp, rule, value, body)
                return value
            return self._in_thread(text, stamp, rule, lambda: function(*args, **kwargs))

        return wrapper

    def _in_thread(self, text: str, stamp: Stamp, rule: _Rule, function: Callable[[], Any]) -> Any:
        """Compute in this thread, or wait for another that does."""
        with self._jobs_lock:
            place = text, stamp  # who comes after a change does not wait for what was before it
            job = self._jobs.get(place)
            if job is not None:
                self._jobs_waited += 1
            else:
                mine = self._jobs[place] = Future[Any]()
        if job is not None:
            return job.result()
        try:
            value = self._compute_in_thread(text, stamp, rule, function)
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(value)
            return value
        finally:
            del self._jobs[place]

    def _compute_in_thread(
        self, text: str, stamp: Stamp, rule: _Rule, function: Callable[[], Any]
    ) -> Any:
        remote, loop = self._remote, self._loop

        def ask(asked: Coroutine[Any, Any, T]) -> T | None:
            assert loop is not None
            # when the loop ends, so does this thread
            with suppress(RuntimeError, TimeoutError, CancelledError):
                return asyncio.run_coroutine_threadsafe(asked, loop).result(REMOTE_SECONDS)
            return None

        found = None if remote is None else ask(remote.fetch(text))
        if isinstance(found, Found):
            return self._take(text, stamp, rule, found)
        lease = found
        try:
            self._misses += 1
            value, body = _as_json(function())
            if self._keep(text, stamp, rule, value, body) and remote is not None and lease:
                ask(remote.store(text, body, rule.ttl_of(value), lease))
                lease = None
            return value
        finally:
            if remote is not None and loop is not None and lease:
                loop.call_soon_threadsafe(remote.release, text, lease)

    # the tiers

    def _take(self, text: str, stamp: Stamp, rule: _Rule, found: Found) -> Any:
        """Return what Redis had, and keep it."""
        self._redis_hits += 1
        kept = _kept(rule, found.value, found.body)
        self._memory.put(text, kept, found.seconds, len(found.body), stamp)
        return found.value

    def _keep(self, text: str, stamp: Stamp, rule: _Rule, value: Any, body: bytes) -> bool:
        """Keep what was computed, if it is to be; return whether it is."""
        seconds = rule.ttl_of(value)
        if not seconds:
            return False
        deaf = self._remote is not None and not self._remote.hears
        here = min(seconds, DEAF_SECONDS) if deaf else seconds
        self._memory.put(text, _kept(rule, value, body), here, len(body), stamp)
        return True

    # what is outdated

    async def _forget(self, text: str) -> None:
        try:
            # first Redis: who asks it afterwards finds nothing there
            if self._remote is not None:
                await self._remote.delete(text)
        finally:
            self._memory.outdate(text)

    def _drop(self, text: str | None) -> None:
        """Drop what another machine says is outdated; ``None``: all, for want of knowing."""
        if text is None:
            self._memory.clear()
        else:
            self._memory.outdate(text)

    async def _publish(self, app: App) -> None:
        try:
            while True:
                self._publish_now(app)
                await asyncio.sleep(PUBLISH_SECONDS)
        finally:
            self._publish_now(app)

    def _publish_now(self, app: App) -> None:
        now = self.figures
        results = (now.memory_hits, now.redis_hits, now.waited, now.misses, now.evicted)
        app.metrics.publish_cache(results, now.entries, now.bytes)


def _as_json(value: Any) -> tuple[Any, bytes]:
    """Return what JSON makes of ``value`` (rule 2), and the JSON."""
    body = encode_value(value)
    return orjson.loads(body), body


def _kept(rule: _Rule, value: Any, body: bytes) -> tuple[Any, Any]:
    """Return the value, and what a route answers for it: if that is JSON it is ready (rule 5)."""
    is_json = type(value) is dict or type(value) is list
    return value, Json(body) if is_json and rule.routed else value


def _in_event_loop() -> bool:
    """Whether an event loop runs in this thread."""
    return asyncio._get_running_loop() is not None


# keys


def _arguments(function: Callable[..., Any], prefix: str) -> Callable[..., Any]:
    """Return what makes a key of the arguments of ``function``."""
    signature = inspect.signature(function)
    first = next(iter(signature.parameters.values()), None)
    if first is not None and (first.name == "request" or "Request" in str(first.annotation)):
        raise TypeError(
            f"{prefix} takes a request: only you know what its answer depends on, so give a key"
        )

    def key_of(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return (*bound.args, bound.kwargs) if bound.kwargs else bound.args

    return key_of


def _text(prefix: str, key: Any) -> str:
    """Return the key as text: different for different values, and for different types."""
    if type(key) is int:
        text = f"{prefix}:{key}"
    elif type(key) is str:
        text = f"{prefix}:={key}"
    else:
        text = f"{prefix}:{orjson.dumps(key, option=orjson.OPT_SORT_KEYS).decode()}"
    if len(text) > LONGEST_KEY or not text.isascii():
        hashed = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16)
        return f"{prefix}:#{hashed.hexdigest()}"
    return text
