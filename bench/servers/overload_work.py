"""What the routes of the overload benchmark do, the same for every server."""

from __future__ import annotations

import os
import time
from typing import Any

__all__ = ["POOL", "SQL", "WAIT_SECONDS", "burn", "database_url"]

CPU_SECONDS = 0.001
WAIT_SECONDS = 0.02
SQL = "select pg_sleep(0.005)"
_SIZE = int(os.environ.get("OVERLOAD_POOL", "10"))
POOL: dict[str, Any] = {"min_size": _SIZE, "max_size": _SIZE, "timeout": 2.0, "max_waiting": 1000}
"""Waits as in fluxor-fast's default settings: the others get the same."""


def burn() -> None:
    """Use one millisecond of this thread's CPU; waiting for the core does not count."""
    until = time.thread_time() + CPU_SECONDS
    while time.thread_time() < until:
        pass


def database_url() -> str | None:
    """Return the database to use; None if ``/db`` is not measured."""
    return os.environ.get("OVERLOAD_DATABASE") or None
