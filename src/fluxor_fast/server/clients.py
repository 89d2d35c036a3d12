"""How many connections one client may have, over all worker processes.

An address is counted in two buckets of a bounded table (a count-min sketch: G. Cormode and
S. Muthukrishnan, "An improved data stream summary", J. Algorithms 55, 2005), one in each half of
a row. Each worker has a row in shared memory that it alone writes; a bucket's sum over all rows
is what that bucket counts, and the lesser of its two sums is taken for the address's count.

Rules:

1. Never too low: every connection of an address is in both of its buckets. So the limit holds
   exactly, and by the argument at the head of ``admission``: raise both words, fence, sum, take
   back what is too much. Among the raises of one address that stick, the worker whose later
   store came last saw all the others in both sums.
2. Too high at times: who shares both buckets with others is refused early. With C connections
   in all, at most C/k buckets of a half hold k of others' or more; so an address is refused
   although it could have k more with a probability of at most (C / (k x size/2))². Half of the
   buckets is 4,096: for C = 5,000 and 100 connections below the limit that is 0.015 %.
3. Nobody can aim at another's buckets: they follow from a hash keyed with a secret of the
   instance (BLAKE2b, RFC 7693).
4. IPv6 addresses count by their /64, which is what one client is given (RFC 6177); IPv4 ones
   in IPv6 clothes (RFC 4291, section 2.5.5.2) as what they are. What is no address (the client
   of a Unix socket has none) is not counted, nor are those of ``exempt`` networks.
5. A dead worker's row is zeroed when it has been reaped; no timer ever does.

The module does no I/O: words, fence, lock and key are handed in. It costs a connection some
microseconds when it comes and when it goes (``bench/test_micro.py``), a request nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from ipaddress import IPv4Network, IPv6Network, ip_network

from fluxor_fast.http.address import network_of, read_address
from fluxor_fast.server.admission import Fence, Lock

__all__ = ["LOOPBACK", "ClientLimit", "Place"]

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))

Place = tuple[int, ...]
"""The words in which a connection is counted; none for one that is not."""


class ClientLimit:
    """One worker's share in the count of connections by client address.

    :param words: one row per worker, one after the other.
    :param size: words of a row, a power of 2.
    :param index: this worker's own row.
    :param fence: a full memory fence, or None to do every raise under ``lock``.
    :param key: the instance's secret, at most 64 bytes.
    :param most: connections that a client may have.
    """

    __slots__ = ("_exempt", "_fence", "_first", "_half", "_key", "_lock", "_most", "_size",
                 "_words")  # fmt: skip

    def __init__(
        self,
        words: memoryview[int],
        size: int,
        index: int,
        fence: Fence | None,
        lock: Lock,
        *,
        key: bytes,
        most: int,
        exempt: Sequence[IPv4Network | IPv6Network] = (),
    ) -> None:
        self._words = words
        self._size = size
        self._half = size // 2
        self._first = index * size
        self._fence = fence
        self._lock = lock
        self._key = key
        self._most = most
        self._exempt = tuple(exempt)

    def acquire(self, address: str) -> Place | None:
        """Count a connection from ``address``; return what to release, or None: it has too many."""
        known = read_address(address)
        if known is None:
            return ()
        for network in self._exempt:
            if known in network:
                return ()
        return self._take(*self._buckets(network_of(known)))

    def _buckets(self, owner: bytes) -> tuple[int, int]:
        """Return the two buckets of a client, one in each half of a row."""
        digest = int.from_bytes(blake2b(owner, digest_size=8, key=self._key).digest(), "big")
        half = self._half
        return digest % half, half + (digest >> 32) % half

    def _take(self, one: int, two: int) -> Place | None:
        words, fence = self._words, self._fence
        place = self._first + one, self._first + two
        if fence is not None:
            for at in place:
                words[at] += 1
            fence()
            if self._count(one, two) <= self._most:
                return place
            self.release(place)
        # who was in the way may have taken its own back: nobody is refused while there is room
        if not self._lock.acquire():
            return None
        try:
            for at in place:
                words[at] += 1
            if fence is not None:
                fence()
            if self._count(one, two) <= self._most:
                return place
            self.release(place)
            return None
        finally:
            self._lock.release()

    def _count(self, one: int, two: int) -> int:
        words, size = self._words, self._size
        return min(sum(words[one::size]), sum(words[two::size]))

    def release(self, place: Place) -> None:
        """Give back what ``acquire`` returned."""
        for at in place:
            self._words[at] -= 1
