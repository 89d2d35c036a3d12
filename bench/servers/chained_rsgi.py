"""The peer of ``bench/chain.py``: the same profile by granian's own interface, bare."""

from __future__ import annotations

from typing import Any

import orjson
from chained_profile import profile_of

_HEADERS = [("content-type", "application/json")]


async def app(scope: Any, protocol: Any) -> None:
    """Answer ``/api/users/ID``, and ``/health`` to who waits for it to be there."""
    id = scope.path.rpartition("/")[2]
    body = orjson.dumps(profile_of(0 if id == "health" else int(id)))
    protocol.response_bytes(200, _HEADERS, body)
