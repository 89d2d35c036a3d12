"""Prints what the micro-benchmarks found as microseconds per operation.

pytest-benchmark's own table is per round, and a round is a batch in some of them.
"""

from __future__ import annotations

from typing import Any

import pytest


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    found = [] if session is None else [b for b in session.benchmarks if b.stats]
    if not found:
        return
    terminalreporter.section("microseconds per operation")
    width = max(len(bench.extra_info.get("operation", bench.name)) for bench in found)
    terminalreporter.line(f"{'operation':{width}}  {'median':>8}  {'least':>8}  {'rounds':>7}")
    for bench in found:
        count = bench.extra_info.get("operations_per_iteration", 1)
        name = bench.extra_info.get("operation", bench.name)
        median, least = (value * 1e6 / count for value in (bench.stats.median, bench.stats.min))
        terminalreporter.line(
            f"{name:{width}}  {median:8.3f}  {least:8.3f}  {len(bench.stats.data):7}"
        )
