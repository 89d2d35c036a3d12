"""The application of the speed guards: the comparison's, and a route that holds."""

from __future__ import annotations

import asyncio

from work_fluxor import app

from fluxor_fast.http.request import Request

__all__ = ["app"]


@app.get("/hold")
async def hold(request: Request) -> str:
    """Stay in the system, so that one that takes a single request is full."""
    await asyncio.sleep(3600)
    return ""
