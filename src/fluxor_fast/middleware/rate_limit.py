"""How many requests a client, user or API key may make in a time: beyond it 429 ``RATE_LIMITED``.

::

    app.add_middleware(per_client := RateLimit(1000))             # a minute, of one address

    per_user = RateLimit(5000, by="user", instead_of=per_client)  # inside of what checks the token
    per_key = RateLimit(1000, by="api_key", tiers={"standard": 5000, "premium": 10_000})

Rules:

1. The algorithm is GCRA (see ``limits.gcra``): ``limit`` a window in the long run, ``burst`` at
   once after a rest. Unless it is given, the burst is the limit: who keeps to it in every window
   is never refused, however unevenly the requests come; at most twice as many get through in a
   window.
2. Accounts are the instance's: exact over its workers, reloads and upgrades (see
   ``limits.table``). Without workers (tests, another's ASGI server) they are this process's.
3. By address: IPv6 ones by their /64, which is what one client is given (RFC 6177). The address
   is ``Request.client``: a proxy's word counts only if that proxy is trusted. Who has none (a
   Unix socket without a proxy's word) is not limited, nor is who has no user or API key, by
   these.
4. Layers of the same name, limit, window and burst share their accounts; others have their own.
   All that are around a route count, from the outside in; what the outer ones charged for a
   request that an inner one refuses stays charged.
5. With ``instead_of`` it does not: who is known by name, and has an account of that, takes
   nothing from strangers at the same address, refused or not. A request of which nobody is known
   by name (a bad token) stays charged to the address.
6. Exempt routes are never limited. The application's limits are also around 404, 405 and OPTIONS.
7. The fields on every answer are ``RateLimit-Policy`` and ``RateLimit``
   (draft-ietf-httpapi-ratelimit-headers-10), lists to which each layer adds its own: ``q``
   requests in ``w`` seconds; ``r`` are left now, and all of them in ``t`` seconds. Where the
   burst is less than the limit, ``q`` is the burst, and ``w`` the time it takes to come back. A
   refusal has ``Retry-After``, too: whole seconds (RFC 9110, section 10.2.3) after which one
   request gets through.
8. With ``redis`` the limit is one over all instances, for coroutine handlers: others cannot wait
   for it, and go by the accounts of their instance. Each request is charged to those first, and
   what they refuse Redis is not asked about. While Redis is away they decide alone (see
   ``limits.remote``).

Cost alone: 2.1 µs per request (``python bench/middleware.py rate_limit``), of which 0.4 is what the
first layer of a route costs; 7 µs for a refusal.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic_ns
from typing import Any, Final, Literal

import orjson

from fluxor_fast.composition import Layer, offer, sooner_of
from fluxor_fast.errors import HTTPError, RedisAway
from fluxor_fast.http.address import network_of, read_address
from fluxor_fast.http.request import Request
from fluxor_fast.http.response import JSON, Response, header_line
from fluxor_fast.limits import remote
from fluxor_fast.limits.gcra import SECOND, Policy
from fluxor_fast.limits.remote import Holds
from fluxor_fast.limits.table import Accounts, Table
from fluxor_fast.redis import Redis
from fluxor_fast.routing import Call, Kind, Priority, Route

__all__ = ["RateLimit", "Who"]

Who = Callable[[Request], tuple[str, str | None] | None]
"""Gives whose account a request is charged to, and the tier; None: nobody's."""

ALONE: Final = 4096
"""Accounts of a process without an instance."""


class RateLimit(Layer):
    """Middleware: 429 for who makes too many requests.

    :param limit: requests in ``window`` seconds.
    :param burst: requests at once; the limit by default, and of a tier its own.
    :param by: ``client`` (the address), ``user`` (``state["user"]``), ``api_key``
        (``state["api_key"]``, and its tier), or what gives owner and tier.
    :param tiers: limits by tier, instead of ``limit``.
    :param name: what the fields call it; ``by`` by default.
    :param instead_of: a layer further out, by another account.
    :param redis: gives the worker's ``Redis``, for a limit over all instances that have the same.
    :param clock: nanoseconds, the same in all workers.
    :raises ValueError: for what cannot be kept to.
    """

    def __init__(
        self,
        limit: int,
        *,
        window: float = 60.0,
        burst: int | None = None,
        by: Literal["client", "user", "api_key"] | Who = "client",
        tiers: Mapping[str, int] | None = None,
        name: str | None = None,
        instead_of: RateLimit | None = None,
        redis: Callable[[Request], Redis | None] | None = None,
        clock: Callable[[], int] = monotonic_ns,
    ) -> None:
        if isinstance(by, str):
            if by not in _WHO:
                raise ValueError(f"a rate limit is by client, user or api_key, not {by!r}")
            self._who = _WHO[by]
            self._named = _of_address if by == "client" else str.encode
        else:
            self._who, self._named = by, str.encode
        self._by_client = by == "client"
        called = name or (by if isinstance(by, str) else "custom")
        self._usual = _Limit(Policy(called, limit, window, limit if burst is None else burst))
        self._tiers = {
            tier: _Limit(Policy(f"{called}-{tier}", most, window, most if burst is None else burst))
            for tier, most in (tiers or {}).items()
        }
        self._instead_of = instead_of
        self._redis = redis
        self._clock = clock
        self._bound = False

    def __call__(self, call_next: Call, route: Route) -> Call:
        """Put this layer around ``call_next`` (rules 6 and 8)."""
        if route.priority is Priority.EXEMPT:
            return call_next
        if self._by_client and self._instead_of is None and route.kind is Kind.SYNC:
            return self._around(call_next)
        redis_of = self._redis
        if redis_of is None or route.kind is not Kind.ASYNC:
            return super().__call__(call_next, route)

        async def limited(request: Request) -> Any:
            redis = redis_of(request)
            if redis is None:
                early = self.begin(request)
            else:
                early = await self._begin_everywhere(request, redis)
            return await call_next(request) if early is None else early

        sooner = sooner_of(call_next)
        if sooner is not None:
            here = self._at_once(sooner)
            offer(limited, lambda r: here(r) if redis_of(r) is None else limited(r))
        return limited

    def _at_once(self, sooner: Call) -> Call:
        if self._by_client and self._instead_of is None:
            return self._around(sooner)
        return super()._at_once(sooner)

    def begin(self, request: Request) -> Any:
        """Charge the request, and refuse it if that is too much."""
        found = self._account(request)
        if found is None:
            return None
        limit, owner = found
        if not self._bound:
            self._bind(request.app)
        if self._instead_of is not None:
            self._instead_of.refund(request)
        return limit.judge(request, limit.charge(owner, self._clock()))

    def _around(self, call_next: Call) -> Call:
        """Return ``begin`` (with ``judge``) and ``call_next`` as one function: quicker, for the
        commonest case."""
        limit, clock = self._usual, self._clock
        fields, tolerance, cost = limit.fields, limit.tolerance, limit.cost

        def limited(request: Request) -> Any:
            if not self._bound:
                self._bind(request.app)
            connection = request.connection
            direct = connection.direct
            client = connection.client_of(request.head) if direct is None else direct.client[0]
            ahead = limit.charge(client, clock())
            if ahead > tolerance:
                return limit.refusal(request, ahead)
            if ahead >= 0:
                request.fields += fields % ((tolerance - ahead) // cost, -(-ahead // SECOND))
            return call_next(request)

        return limited

    async def _begin_everywhere(self, request: Request, redis: Redis) -> Any:
        """Do as ``begin``, over all instances."""
        found = self._account(request)
        if found is None:
            return None
        limit, owner = found
        if not self._bound:
            self._bind(request.app)
        outer = None
        if self._instead_of is not None:
            self._instead_of.refund(request)
            if self._instead_of._redis is not None:
                outer = self._instead_of._named_account(request)
        tolerance = limit.tolerance
        ahead = limit.holds.left(owner) + tolerance
        if ahead == tolerance:
            ahead = limit.charge(owner, self._clock())
        name = self._named(owner)
        if ahead <= tolerance and name is not None:
            with suppress(RedisAway):
                ahead = await remote.charge(redis, limit.policy, name, outer)
                if ahead > tolerance:
                    limit.holds.hold(owner, ahead - tolerance)
                    limit.accounts.refund(owner)
        return limit.judge(request, ahead)

    def _named_account(self, request: Request) -> tuple[Policy, bytes] | None:
        found = self._account(request)
        if found is None:
            return None
        limit, owner = found
        name = self._named(owner)
        return None if name is None else (limit.policy, name)

    def refund(self, request: Request) -> None:
        """Take back that ``request`` was charged here."""
        found = self._account(request)
        if found is not None and self._bound:
            limit, owner = found
            limit.accounts.refund(owner)

    def _account(self, request: Request) -> tuple[_Limit, str] | None:
        found = self._who(request)
        if found is None:
            return None
        owner, tier = found
        return (self._usual if tier is None else self._tiers.get(tier, self._usual)), owner

    def _bind(self, app: Any) -> None:
        if app.accounts is None:
            app.accounts = Table.of_this_process(ALONE, secrets.token_bytes(16))
        for limit in (self._usual, *self._tiers.values()):
            limit.accounts = Accounts(app.accounts, limit.policy, self._named)
            limit.charge = limit.accounts.charge
            limit.holds = Holds(self._clock)
        self._bound = True


class _Limit:
    """One policy, ready for answers."""

    accounts: Accounts
    charge: Callable[[str, int], int]
    holds: Holds

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.cost = policy.cost
        self.tolerance = policy.tolerance
        seconds = max(round(policy.tolerance / SECOND), 1)
        line = header_line("RateLimit-Policy", f'"{policy.name}";q={policy.burst};w={seconds}')
        self.fields = line + b'RateLimit: "%b";r=%%d;t=%%d\r\n' % policy.name.encode()
        error = HTTPError(
            429,
            f"at most {policy.limit} requests in {policy.window:g} s; try again later",
            code="RATE_LIMITED",
        )
        self._body = orjson.dumps(error.payload())

    def judge(self, request: Request, ahead: int) -> Response | None:
        """Return the refusal if a request leads too far ahead; else add the fields."""
        if ahead > self.tolerance:
            return self.refusal(request, ahead)
        if ahead >= 0:
            request.fields += self.fields % (
                (self.tolerance - ahead) // self.cost,
                -(-ahead // SECOND),
            )
        return None

    def refusal(self, request: Request, ahead: int) -> Response:
        """Return the answer to a request that would have led so far ahead."""
        full = ahead - self.cost  # it has cost nothing
        request.fields += self.fields % (0, -(-full // SECOND))
        wait = max(-(-(ahead - self.tolerance) // SECOND), 1)
        return Response(self._body, 429, {"Retry-After": str(wait)}, JSON)


def _of_address(text: str) -> bytes | None:
    """Return what tells a client from others by its address; None: that is none."""
    known = read_address(text)
    return None if known is None else network_of(known)


def _client(request: Request) -> tuple[str, None]:
    return request.connection.client_of(request.head), None


def _user(request: Request) -> tuple[str, None] | None:
    user = request.state.get("user")
    return None if user is None else (str(user.user_id), None)


def _api_key(request: Request) -> tuple[str, str | None] | None:
    key = request.state.get("api_key")
    return None if key is None else (str(key.id), key.tier)


_WHO: Final[Mapping[str, Who]] = {"client": _client, "user": _user, "api_key": _api_key}
