"""The comparison's application for granian's own interface, RSGI."""

from __future__ import annotations

from typing import Any

import work


async def app(scope: Any, protocol: Any) -> None:
    """Answer."""
    body = await protocol() if scope.method == "POST" else b""
    found = work.answer(scope.path, body)
    if found is None:
        protocol.response_empty(404, [])
    else:
        protocol.response_bytes(200, [("content-type", found[0])], found[1])
