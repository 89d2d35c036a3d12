"""Answers only for the hosts that it serves; others are 400 ``UNTRUSTED_HOST``.

A client writes what it likes into ``Host``: links built with it, caches keyed by it, and pages
that reach a local service under a name of their own (DNS rebinding) all go wrong with a stranger's.

Rules:

1. What counts is ``Request.host``: what a trusted proxy says, else what the request names.
2. Names are compared in lower case, without the port. ``*.example.com`` allows every subdomain,
   not ``example.com`` itself.
3. Exempt routes are left alone: probes come by address.

Cost alone: 1.0 µs per request (``python bench/middleware.py hosts``), of which 0.4 is what the
first layer of a route costs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from fluxor_fast.composition import Layer
from fluxor_fast.contract import Answer
from fluxor_fast.errors import HTTPError
from fluxor_fast.http.origins import read_host
from fluxor_fast.http.request import Request
from fluxor_fast.routing import Call, Priority, Route

__all__ = ["TrustedHosts"]

MOST_KNOWN: Final = 256
_PORT = re.compile(r":[0-9]*$")


class TrustedHosts(Layer):
    """Middleware: 400 for requests to other hosts.

    :param hosts: names or addresses, such as ``api.example.com``, ``*.example.com``, ``[::1]``.
    :raises ValueError: for what is none of these.
    """

    once: ClassVar[bool] = True
    on_path: ClassVar[bool] = True

    def __init__(self, hosts: Sequence[str]) -> None:
        names = [read_host(host) for host in hosts]
        self._exact = frozenset(name for name in names if not name.startswith("*"))
        self._suffixes = tuple(name[1:] for name in names if name.startswith("*"))
        self._known: set[str] = set()  # as they came; bounded, as ports and capitals vary

    def __call__(self, call_next: Call, route: Route) -> Call:
        """Put this layer around ``call_next`` (rule 3)."""
        return (
            call_next if route.priority is Priority.EXEMPT else super().__call__(call_next, route)
        )

    def answers(self, route: Route) -> Mapping[int, Answer]:
        """Return what it refuses with."""
        if route.priority is Priority.EXEMPT:
            return {}
        return {400: Answer("The host is not one that is served.")}

    def begin(self, request: Request) -> Any:
        """Refuse what is for another host."""
        host = request.host
        if host in self._known:
            return
        name = _PORT.sub("", host.lower())
        if name not in self._exact and not (name.endswith(self._suffixes) and name[0] != "."):
            raise HTTPError(400, "this host is not served here", code="UNTRUSTED_HOST")
        if len(self._known) < MOST_KNOWN:
            self._known.add(host)
