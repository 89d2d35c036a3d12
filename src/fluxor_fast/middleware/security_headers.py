"""Headers that tell browsers to be careful with an answer. They are on every answer, errors too.

Rules:

1. The lines are made once, and joined in with those of other layers.
2. What an answer sets itself takes the place of ours, as of all lines of layers: a page may have
   its own policy.
3. ``Strict-Transport-Security`` is sent over https only, where alone it counts (RFC 6797, 7.2),
   as ``Request.scheme`` says; or always, for a proxy that is not trusted with that word.
4. There is no ``X-XSS-Protection``: browsers no longer have what it turned on, and it did harm.

The default policy is that of an API: a browser that opens an answer as a page loads nothing, and
frames it nowhere (OWASP's REST Security Cheat Sheet). Pages need one of their own.

Cost alone: 0.7 µs per request (``python bench/middleware.py security``), of which 0.4 is what the
first layer of a route costs.
"""

from __future__ import annotations

from typing import ClassVar, Final

from fluxor_fast.composition import Layer
from fluxor_fast.http.request import Request
from fluxor_fast.http.response import header_line

__all__ = ["API_POLICY", "SecurityHeaders"]

API_POLICY: Final = "default-src 'none'; frame-ancestors 'none'"
YEAR: Final = 31_536_000


class SecurityHeaders(Layer):
    """Middleware: security headers. None leaves a header out.

    :param policy: ``Content-Security-Policy``.
    :param frames: ``X-Frame-Options``, for browsers that do not know ``frame-ancestors``.
    :param referrer: ``Referrer-Policy``.
    :param hsts: seconds for which browsers use https alone; 0 takes that back, None is silent.
    :param hsts_subdomains: the same for all subdomains.
    :param hsts_always: also when the client is not known to use https.
    :param others: further headers, for every answer.
    :raises ValueError: for a name or value that could split an answer.
    """

    once: ClassVar[bool] = True
    on_path: ClassVar[bool] = True

    def __init__(
        self,
        *,
        policy: str | None = API_POLICY,
        frames: str | None = "DENY",
        referrer: str | None = "no-referrer",
        hsts: int | None = YEAR,
        hsts_subdomains: bool = False,
        hsts_always: bool = False,
        others: dict[str, str] | None = None,
    ) -> None:
        wanted = {
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": frames,
            "Referrer-Policy": referrer,
            "Content-Security-Policy": policy,
            **(others or {}),
        }
        made = {n.lower(): header_line(n, v) for n, v in wanted.items() if v is not None}
        strict = b""
        if hsts is not None:
            subdomains = "; includeSubDomains" if hsts_subdomains else ""
            strict = header_line("Strict-Transport-Security", f"max-age={hsts}{subdomains}")
            made["strict-transport-security"] = strict
        self._secure = b"".join(made.values())
        self._plain = self._secure if hsts_always else self._secure.removesuffix(strict)
        self.by_scheme = self._plain != self._secure

    def lines(self, request: Request) -> bytes:
        """Return the headers."""
        return self._secure if self.by_scheme and request.scheme == "https" else self._plain
