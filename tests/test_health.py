"""Health checks: concurrent, bounded, shared."""

from __future__ import annotations

import asyncio

import pytest

from fluxor_fast.errors import DatabaseBusy
from fluxor_fast.observability.health import HealthChecks
from tests.support.pure import run


def test_every_way_a_check_can_end() -> None:
    async def up() -> None: ...

    async def down() -> bool:
        return False

    async def hangs() -> None:
        await asyncio.Event().wait()

    async def busy() -> None:
        raise DatabaseBusy("no connection")

    async def own_timeout() -> None:
        raise TimeoutError

    def secret() -> None:
        raise ValueError("the password is hunter2")

    async def main() -> None:
        health = HealthChecks()
        health.add("up", up)
        health.add("plain", lambda: True)
        health.add("down", down, critical=False)
        health.add("hangs", hangs, timeout=0.01, critical=False)
        health.add("busy", busy)
        health.add("own timeout", own_timeout)
        health.add("secret", secret)
        report = await health.run()
        assert report.status == "unhealthy"
        assert {check.name: (check.status, check.error) for check in report.checks} == {
            "up": ("up", None),
            "plain": ("up", None),
            "down": ("down", None),
            "hangs": ("timeout", None),
            "busy": ("down", "no connection"),
            "own timeout": ("down", "TimeoutError"),
            "secret": ("down", "ValueError"),
        }
        assert 5 <= report.checks[3].duration_ms < 1000  # milliseconds, by a rough timer

    run(main())


@pytest.mark.parametrize(
    ("critical", "optional", "status"),
    [
        (True, True, "healthy"),
        (True, False, "degraded"),
        (False, True, "unhealthy"),
        (False, False, "unhealthy"),
    ],
)
def test_the_whole_goes_by_the_critical_ones(critical: bool, optional: bool, status: str) -> None:
    async def main() -> None:
        health = HealthChecks()
        health.add("critical", lambda: critical)
        health.add("optional", lambda: optional, critical=False)
        assert (await health.run()).status == status

    run(main())


def test_checks_run_at_the_same_time() -> None:
    async def main() -> None:
        meeting = asyncio.Barrier(3)

        async def meets() -> None:
            await meeting.wait()  # ends only if all three have begun

        health = HealthChecks()
        for name in "abc":
            health.add(name, meets)
        assert (await health.run()).status == "healthy"

    run(main())


def test_callers_share_a_run_and_its_result() -> None:
    async def main() -> None:
        now, runs, gate = 0.0, 0, asyncio.Event()

        async def counted() -> None:
            nonlocal runs
            runs += 1
            await gate.wait()

        health = HealthChecks(max_age=1.0, clock=lambda: now)
        health.add("counted", counted)
        callers = [asyncio.create_task(health.run()) for _ in range(5)]
        await asyncio.sleep(0)
        callers[0].cancel()  # the first one, who began it, leaves
        await asyncio.sleep(0)
        gate.set()
        reports = await asyncio.gather(*callers[1:])
        assert runs == 1
        assert all(report is reports[0] for report in reports)
        now = 0.99
        assert await health.run() is reports[0]
        now = 1.0
        assert await health.run() is not reports[0]
        assert runs == 2

    run(main())


def test_a_name_is_taken_once() -> None:
    health = HealthChecks()
    health.add("a", lambda: True)
    with pytest.raises(ValueError, match="a already"):
        health.add("a", lambda: True)


def test_without_checks_all_is_well() -> None:
    async def main() -> None:
        report = await HealthChecks().run()
        assert (report.status, report.checks) == ("healthy", ())

    run(main())
