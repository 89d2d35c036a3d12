"""The application of the speed guards: the comparison's, and a route that refuses."""

from __future__ import annotations

import asyncio

from work_fluxor import app

from fluxor_fast.http.request import Request

__all__ = ["app"]


@app.get("/full", max_in_flight=1)
async def full(request: Request) -> str:
    """Hold the route's only place; whoever comes then is refused."""
    await asyncio.sleep(3600)
    return ""
