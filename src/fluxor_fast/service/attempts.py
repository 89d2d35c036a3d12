"""How often a login may be tried: so many times in a quarter of an hour, over all workers.

Rules kept here:

1. The counts are in the database, which all workers and instances ask anyway at a login: so they
   are exact, and outlast a restart. An attempt is counted before its password is looked at, and
   taken back if that was right, or nobody had time to look: who tries all at once gets no more.
2. Three counts: of the address (an IPv6 one by its /64), of the account from this address, and of
   the account from anywhere. The first ends trying one password on many accounts, the second
   guessing, the third guessing from many addresses; as it is higher, nobody locks an owner out
   from a few addresses. Who commands many can, for the rest of the window: that is the price.
3. Nobody learns whether an account exists: the name that was sent is counted, whatever it is, and
   beyond a count the right password is refused as well, before it is hashed.
4. Rows hold a hash and a number, and are swept when their window has ended. An address that is
   beyond its count adds no more, so there are at most 2 x ``ADDRESS`` + 1 for each address.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from fluxor_fast.db.pool import Database
from fluxor_fast.errors import HTTPError
from fluxor_fast.http.address import network_of, read_address

__all__ = ["Attempts"]

WINDOW: Final = 900
"""Seconds from the first attempt until counting begins anew."""
ADDRESS: Final = 100
ACCOUNT_FROM_ADDRESS: Final = 10
ACCOUNT: Final = 50


@dataclass(frozen=True, slots=True)
class Attempts:
    """Counts logins."""

    database: Database

    async def begin(self, account: str, address: str) -> None:
        """Count an attempt.

        :param account: the name that was sent; case is not looked at.
        :param address: of the client; what is no IP address is not counted.
        :raises HTTPError: 429 ``TOO_MANY_ATTEMPTS`` with ``Retry-After``, or ``DatabaseBusy``.
        """
        for name, most in _counted(account, address):
            row = await self.database.fetch_one(
                "insert into login_attempts as a (key, count, until)"
                " values (sha256(convert_to(lower(%s), 'UTF8')), 1, now() + %s * interval '1 s')"
                " on conflict (key) do update set"
                " count = case when a.until <= now() then 1 else a.count + 1 end,"
                " until = case when a.until <= now() then excluded.until else a.until end"
                " returning count, extract(epoch from until - now())::float8 as left",
                name,
                WINDOW,
            )
            assert row is not None
            if row["count"] > most:
                raise HTTPError(
                    429,
                    "too many attempts, try again later",
                    code="TOO_MANY_ATTEMPTS",
                    headers={"Retry-After": str(max(1, math.ceil(row["left"])))},
                )

    async def take_back(self, account: str, address: str) -> None:
        """Count an attempt no longer: its password was right, or has not been looked at."""
        await self.database.execute(
            "update login_attempts set count = greatest(count - 1, 0) where key in"
            " (select sha256(convert_to(lower(name), 'UTF8')) from unnest(%s::text[]) name)",
            [name for name, _ in _counted(account, address)],
        )


def _counted(account: str, address: str) -> list[tuple[str, int]]:
    """Return the names under which an attempt is counted, with the most for each."""
    counted = [(f"account {account}", ACCOUNT)]
    known = read_address(address)
    if known is None:
        return counted
    place = network_of(known).hex()
    return [
        (f"address {place}", ADDRESS),
        (f"account from {place} {account}", ACCOUNT_FROM_ADDRESS),
        *counted,
    ]
