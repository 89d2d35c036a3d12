"""The contestants' application for granian's own interface, RSGI."""

from __future__ import annotations

from typing import Any

from answers import PATHS, documents

_HEADERS = [("content-type", "application/json")]


async def app(scope: Any, protocol: Any) -> None:
    """Answer ``/health`` and ``/``."""
    path = scope.path
    if path in PATHS:
        protocol.response_bytes(200, _HEADERS, documents(path))
    else:
        protocol.response_bytes(404, _HEADERS, b"{}")
