"""OAuth 2 bearer tokens of another issuer, whose keys are at an address (JWKS, RFC 7517).

::

    issuer = RemoteIssuer(
        "https://login.example.com/.well-known/jwks.json",
        issuer="https://login.example.com/",
        audience=("https://api.example.com",),
    )
    app.on_startup(issuer.start)

    @app.get("/reports", middleware=[remote(issuer), require_permission("reports:read")])
    async def reports(request): ...

Rules kept here:

1. A request costs no fetch. Keys are fetched when a token names a ``kid`` that is not known, and
   in the background when they are older than ``FRESH`` seconds; never twice within ``PAUSE``
   seconds, however many unknown ``kid`` come. All who wait share one fetch.
2. While the source is away, or answers nonsense, the last good set stays, for as long as it takes.
   A key that the issuer has withdrawn is honoured until the next fetch that succeeds. Without any
   set yet the answer is 503 ``KEYS_UNAVAILABLE``.
3. The fetch runs in a thread, with limits of time and size that a slow sender does not stretch.
   The address is https, or http on a loopback address; certificates are checked; a redirect is an
   error, as it could lead anywhere; what a token says of where keys are (``jku``) is never
   followed.
4. Only public keys are taken from a set, each with one of the algorithms named here (``keys``), so
   HMAC and ``none`` are never among them. What cannot be read is left out; of two keys of one
   ``kid`` none is taken.
5. Issuer and audience must be named: a token for somebody else is none for us (RFC 9068,
   section 4). Roles are its ``roles``, permissions its ``permissions`` and the words of its
   ``scope``.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from fluxor_fast.auth.keys import HASHES, Key, KeySet
from fluxor_fast.auth.memory import remember
from fluxor_fast.auth.roles import Waiting, bearer_of
from fluxor_fast.auth.verifying import Policy, bad_token, expired, header_of, read
from fluxor_fast.errors import HTTPError
from fluxor_fast.http.request import Request

__all__ = ["RemoteIssuer", "Subject", "fetch", "remote"]

logger = logging.getLogger(__name__)

FRESH: Final = 600.0
"""Seconds until a set is fetched anew in the background."""
PAUSE: Final = 10.0
"""Least seconds between two fetches."""
TIMEOUT: Final = 5.0
"""Seconds for a fetch."""
LARGEST: Final = 65_536
"""Bytes of a set; one of ten RSA keys with certificates has about 20 KiB."""
MOST_KEYS: Final = 64
REMEMBERED: Final = 4096
REMEMBERED_LENGTH: Final = 2048
"""Tokens that are remembered; with this length at most 8 MiB, and as much for their claims."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Who a token of another issuer speaks for, as ``request.state["user"]``."""

    user_id: str
    """Its ``sub``."""
    roles: tuple[str, ...]
    permissions: tuple[str, ...]
    expires_at: float
    """Unix seconds."""
    claims: Mapping[str, Any]
    """All that it says; not to be changed."""


class RemoteIssuer:
    """The keys of one issuer, and the tokens that it signs.

    :param url: of its key set.
    :param issuer: what ``iss`` must be, to the letter.
    :param audience: who we are; one of these must be in ``aud``.
    :param algorithms: those that it may use; none of HMAC's.
    :param leeway: seconds that clocks may differ.
    :param required: claims that must be there, beside ``exp``, ``iss`` and ``aud``.
    :param fetch: gives the bytes at an address, in a thread; see ``fetch``.
    :param clock: Unix time in seconds, for claims.
    :param monotonic: seconds, for the age of keys.
    :raises ValueError: for an address that is neither https nor loopback, or such an algorithm.
    """

    def __init__(
        self,
        url: str,
        *,
        issuer: str,
        audience: Sequence[str],
        algorithms: Sequence[str] = ("RS256", "ES256", "EdDSA"),
        leeway: float = 30,
        required: Sequence[str] = ("sub",),
        fetch: Callable[[str], bytes] | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        _check_address(url)
        if isinstance(audience, str) or not audience:
            raise ValueError("the audience is a sequence of one or more names")
        if not algorithms or not HASHES.keys().isdisjoint(algorithms):
            raise ValueError("algorithms are those of public keys")
        self._url = url
        self._algorithms = tuple(algorithms)
        self._policy = Policy(
            required=("iss", "aud", *required),
            leeway=leeway,
            audience=tuple(audience),
            issuer=issuer,
        )
        self._fetch = fetch or _fetch
        self._clock = clock
        self._monotonic = monotonic
        self._keys: KeySet | None = None
        self._good_at = self._tried_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._verified: dict[str, Subject] = {}
        self.loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Fetch the keys; a startup hook. That the source is away is told in the log only."""
        self.loop = asyncio.get_running_loop()
        await self._renewed()

    def verify(self, token: str) -> Subject | None:
        """Return who a good token speaks for; None: its key is not known, see ``renew``.

        :raises HTTPError: 401 ``TOKEN_EXPIRED`` or ``UNAUTHORIZED``.
        """
        verified = self._verified  # before the keys: what they say must not outlast them
        subject = verified.get(token)
        now = self._clock()
        if subject is not None:
            if subject.expires_at <= now - self._policy.leeway:
                verified.pop(token, None)
                raise expired()
            return subject
        keys = self._keys
        if keys is None or keys.find(header_of(token)) is None:
            return None
        subject = _subject(read(token, keys, self._policy, now))
        if len(token) <= REMEMBERED_LENGTH:
            remember(verified, token, subject, REMEMBERED)
        return subject

    @property
    def stale(self) -> bool:
        """Whether the keys are old, and it is time for a try."""
        now = self._monotonic()
        return now - self._good_at >= FRESH and now - self._tried_at >= PAUSE

    def renew_behind(self) -> None:
        """Fetch the keys in the background, unless that is under way or was just tried."""
        now = self._monotonic()
        if self._fetching is None and now - self._tried_at >= PAUSE:
            self._tried_at = now
            self._fetching = asyncio.ensure_future(self._renew())

    async def renew(self, token: str) -> Subject:
        """Return who a good token speaks for, after fetching the keys if that may be done.

        :raises HTTPError: 401, or 503 ``KEYS_UNAVAILABLE`` if there have been no keys yet.
        """
        header_of(token)  # what is no token asks for no keys
        await self._renewed()
        if self._keys is None:
            raise HTTPError(
                503,
                "the issuer's keys cannot be had, try again",
                code="KEYS_UNAVAILABLE",
                headers={"Retry-After": f"{PAUSE:.0f}"},
            )
        subject = self.verify(token)
        if subject is None:
            raise bad_token()
        return subject

    async def _renewed(self) -> None:
        self.renew_behind()
        if self._fetching is not None:
            await asyncio.shield(self._fetching)

    async def _renew(self) -> None:
        try:
            data = await asyncio.to_thread(self._fetch, self._url)
            self._keys = _keys_in(data, self._algorithms)
            self._good_at = self._monotonic()
            self._verified = {}  # one of the keys may be gone
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            kept = "the last ones stay" if self._keys else "there are none yet"
            logger.warning("keys at %s: %s; %s", self._url, error, kept)
        finally:
            self._fetching = None


def _subject(claims: Mapping[str, Any]) -> Subject:
    """Return who it is (rule 5); what has another form than it should is a bad token."""
    subject, scope = claims.get("sub", ""), claims.get("scope", "")
    roles, permissions = claims.get("roles", []), claims.get("permissions", [])
    texts = [subject, scope]
    if not (isinstance(roles, list) and isinstance(permissions, list)):
        raise bad_token()
    if not all(isinstance(text, str) for text in [*texts, *roles, *permissions]):
        raise bad_token()
    granted = dict.fromkeys([*scope.split(), *permissions])
    return Subject(subject, tuple(roles), tuple(granted), claims["exp"], claims)


def _keys_in(data: bytes, algorithms: Sequence[str]) -> KeySet:
    document = json.loads(data)
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list) or len(listed) > MOST_KEYS:
        raise ValueError("this is no key set")
    found: dict[str | None, list[Key]] = {}
    for jwk in listed:
        try:
            key = Key.from_jwk(jwk, algorithms) if isinstance(jwk, dict) else None
        except ValueError as error:
            logger.debug("a key is left out: %s", error)
            continue
        if key is not None:
            found.setdefault(key.kid, []).append(key)
    keys = [same[0] for same in found.values() if len(same) == 1]
    if len(keys) > 1:
        keys = [key for key in keys if key.kid is not None]
    if not keys:
        raise ValueError("it has no key that is of use")
    return KeySet(keys)


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        local = ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not host or parts.username is not None:
        raise ValueError("the address of the keys needs a host, and no credentials")
    if parts.scheme != "https" and not (parts.scheme == "http" and local):
        raise ValueError("the address of the keys must be https (or http on loopback)")


def fetch(url: str, timeout: float = TIMEOUT, largest: int = LARGEST) -> bytes:
    """Return what is at an address; blocks.

    :param timeout: seconds to connect, for each address of the name, and again for all the rest.
        The look-up of the name is the system's, and has its limits.

    :raises OSError: also for a status that is not 200, or more than ``largest`` bytes.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    connection = (
        http.client.HTTPSConnection(
            host, parts.port, timeout=timeout, context=ssl.create_default_context()
        )
        if parts.scheme == "https"
        else http.client.HTTPConnection(host, parts.port, timeout=timeout)
    )
    late = threading.Event()
    lines: list[socket.socket] = []  # the connection itself gives its own away when it is read

    def hang_up() -> None:
        late.set()
        for line in lines:
            with contextlib.suppress(OSError):
                # not the method of a TLS socket, which is not made for two threads
                socket.socket.shutdown(line, socket.SHUT_RDWR)

    timer: threading.Timer | None = None
    try:
        connection.connect()
        lines.append(connection.sock)
        # the timeout above is for each step: who sends a byte now and then would never meet it
        timer = threading.Timer(timeout, hang_up)
        timer.start()
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"Accept": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise OSError(f"the answer is {answer.status}")
        data = answer.read(largest + 1)
        if len(data) > largest:
            raise OSError(f"more than {largest} bytes")
        if late.is_set():
            raise TimeoutError(f"not there in {timeout:.0f} s")
        return data
    except (OSError, http.client.HTTPException):
        if late.is_set():
            raise TimeoutError(f"not there in {timeout:.0f} s") from None
        raise
    finally:
        if timer is not None:
            timer.cancel()
        connection.close()


_fetch = fetch  # ``RemoteIssuer`` has a parameter of that name


class remote(Waiting):
    """Lets in requests with a good bearer token of ``issuer``; 401 else.

    Coroutine and blocking handlers only: a key that is new must be fetched. The handler finds the
    ``Subject`` in ``request.state["user"]``.
    """

    def __init__(self, issuer: RemoteIssuer) -> None:
        self._issuer = issuer

    def known(self, request: Request) -> bool:
        """Look at the token with the keys that are there."""
        subject = self._issuer.verify(bearer_of(request))
        if subject is None:
            return False
        if self._issuer.stale:
            self.loop_of(request).call_soon_threadsafe(self._issuer.renew_behind)
        request.state["user"] = subject
        return True

    async def find_out(self, request: Request) -> None:
        """Fetch the keys and look again."""
        request.state["user"] = await self._issuer.renew(bearer_of(request))

    def loop_of(self, request: Request) -> asyncio.AbstractEventLoop:
        """Return the loop in which the issuer was started."""
        loop = self._issuer.loop
        assert loop is not None, "RemoteIssuer.start is a startup hook"
        return loop
