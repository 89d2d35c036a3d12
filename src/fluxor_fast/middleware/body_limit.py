"""The largest body that the routes of an application or a group take: beyond it 413.

A wholesale ``max_body``: it is the server that counts, before and while the body comes, so that
one that is too large is never held in memory. A route's own ``max_body`` comes before it.

Cost: none per request.
"""

from __future__ import annotations

from typing import ClassVar

from fluxor_fast.composition import Layer
from fluxor_fast.routing import Call, Route

__all__ = ["BodyLimit"]


class BodyLimit(Layer):
    """Middleware: the largest body in bytes, instead of the server's ``max_body``."""

    once: ClassVar[bool] = True

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"a body has no {size} bytes")
        self.size = size

    def __call__(self, call_next: Call, route: Route) -> Call:
        """Set the limit of ``route``; its calls stay as they are."""
        if route.max_body is None:
            route.max_body = self.size
        return call_next
