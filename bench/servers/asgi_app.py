"""The contestants' application for ASGI servers: no framework between server and answer."""

from __future__ import annotations

from typing import Any

from answers import PATHS, documents


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer ``/health`` and ``/``."""
    if scope["type"] != "http":
        return
    path = scope["path"]
    status, body = (200, documents(path)) if path in PATHS else (404, b"{}")
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
