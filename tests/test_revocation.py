"""Sessions that are revoked: when each worker knows, and what it costs in memory."""

from __future__ import annotations

import asyncio

import pytest

from fluxor_fast.auth.revocation import OVERLAP, Revocations
from fluxor_fast.auth.tokens import Claims, Tokens
from fluxor_fast.errors import DatabaseBusy, HTTPError
from tests.support.pure import run

LIFE = 600.0


class Table:
    """Revocations by time, as the database has them."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.rows: list[tuple[str, float]] = []
        self.asked: list[float] = []
        self.away = False

    async def since(self, time: float) -> list[tuple[str, float]]:
        self.asked.append(time)
        if self.away:
            raise DatabaseBusy
        return sorted((row for row in self.rows if row[1] >= time), key=lambda row: row[1])

    def worker(self) -> Revocations:
        return Revocations(self.since, LIFE, lambda: self.now)


def claims(session: str | None) -> Claims:
    return Claims(1, "a", (), 0, 0, (), session)


def test_another_worker_knows_at_its_next_look() -> None:
    async def main() -> None:
        table = Table()
        one, two = table.worker(), table.worker()
        await one.look()
        await two.look()
        one.add("s")
        table.rows.append(("s", table.now))
        assert one(claims("s"))
        assert not two(claims("s"))
        await two.look()
        assert two(claims("s"))
        assert not two(claims("t"))
        assert not two(claims(None))

    run(main())


def test_a_transaction_that_ends_late_is_seen() -> None:
    async def main() -> None:
        table = Table()
        worker = table.worker()
        table.rows.append(("early", table.now))
        await worker.look()
        table.rows.append(("late", table.now - OVERLAP + 1))
        await worker.look()
        assert worker(claims("late"))

    run(main())


def test_before_the_first_look_nobody_is_let_in_who_could_be_revoked() -> None:
    async def main() -> None:
        table = Table()
        table.away = True
        worker = table.worker()
        with pytest.raises(DatabaseBusy):
            await worker.look()
        with pytest.raises(HTTPError) as refused:
            worker(claims("s"))
        assert (refused.value.status, refused.value.code) == (503, "REVOCATIONS_UNKNOWN")
        assert not worker(claims(None))
        table.away = False
        await worker.look()
        assert not worker(claims("s"))
        table.away = True
        with pytest.raises(DatabaseBusy):
            await worker.look()
        assert not worker(claims("s"))  # as old as the last look

    run(main())


def test_a_look_reaches_back_for_as_long_as_tokens_live_and_then_to_the_last() -> None:
    async def main() -> None:
        table = Table()
        worker = table.worker()
        table.rows = [("old", table.now - LIFE - 3 * OVERLAP), ("alive", table.now - LIFE + 1)]
        await worker.look()
        assert worker(claims("alive"))
        assert not worker(claims("old"))
        await worker.look()
        assert table.asked[1] == table.now - LIFE + 1 - OVERLAP

    run(main())


def test_what_no_token_can_belong_to_is_dropped() -> None:
    async def main() -> None:
        table = Table()
        worker = table.worker()
        for n in range(1000):
            table.rows = [(f"s{n}", table.now)]
            worker.add(f"own{n}")
            table.now += 1.0
            await worker.look()
        assert len(worker) <= 2 * (LIFE + OVERLAP + 1)
        assert worker(claims("s999"))
        assert not worker(claims("s0"))

    run(main())


def test_it_goes_on_looking_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxor_fast.auth.revocation.EVERY", 0.001)

    async def main() -> None:
        table = Table()
        worker = table.worker()
        table.away = True
        task = asyncio.ensure_future(worker.keep_looking())
        async with asyncio.timeout(10):
            while len(table.asked) < 3:
                await asyncio.sleep(0)
            table.away = False
            table.rows = [("s", "no time")]  # type: ignore[list-item]
            while len(table.asked) < 6:
                await asyncio.sleep(0)
            table.rows = [("s", table.now)]
            while not len(worker):
                await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(main())


def test_a_remembered_token_is_asked_about_each_time() -> None:
    async def main() -> None:
        table = Table()
        worker = table.worker()
        await worker.look()
        tokens = Tokens(b"k" * 32, 600, lambda: table.now, worker)
        token = tokens.issue(1, "a", [], session="s")
        assert tokens.verify(token).session == "s"
        worker.add("s")
        with pytest.raises(HTTPError) as refused:
            tokens.verify(token)
        assert (refused.value.status, refused.value.code) == (401, "UNAUTHORIZED")

    run(main())
