"""Ready-made checks for ``HealthChecks``: free space on a disk, an outside URL.

::

    health.add("disk", disk_space("/var/lib/app"), critical=False)
    health.add("payments", url_answers("https://payments.example.com/health"), timeout=2.0)
    health.add("redis", redis.check, critical=False)        # fluxor_fast.redis.Redis
    health.add("database", database.check, timeout=3.0)     # fluxor_fast.db.pool.Database

What they find out is up or down: no figures of the machine, and nothing that the other server says,
reaches who asks.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

__all__ = ["disk_space", "url_answers"]

LONGEST_LINE = 1024
"""Bytes of a status line, beyond which it is none."""


def disk_space(
    path: str | os.PathLike[str], *, least: int = 256 << 20, least_percent: float = 5.0
) -> Callable[[], bool]:
    """Return a check that is down while less than either is free for ordinary users.

    :param path: of a local disk: one on the network may make the worker wait for it.
    :param least: bytes.
    :param least_percent: percent of the disk, and of the files that it can hold.
    """

    def check() -> bool:
        found = os.statvfs(path)
        share = least_percent / 100
        return (
            found.f_bavail * found.f_frsize >= least
            and found.f_bavail >= share * found.f_blocks
            and found.f_favail >= share * found.f_files  # both are 0 where there is no such bound
        )

    return check


def url_answers(url: str) -> Callable[[], Awaitable[bool]]:
    """Return a check that is up if a GET of ``url`` is answered with a status below 400.

    The body is not read, and a redirection not followed. The time limit is that of the check.

    :param url: ``http`` or ``https``; the certificate has to be good.
    :raises ValueError: for another.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise ValueError(f"an URL begins with http:// or https:// and a host: {url!r}")
    tls = parts.scheme == "https"
    host, port = parts.hostname, parts.port or (443 if tls else 80)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not re.fullmatch(r"[!-~]+", target + parts.netloc):
        raise ValueError(f"an URL is visible ASCII: {url!r}")
    request = (
        f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        "User-Agent: fluxor-fast health check\r\nConnection: close\r\n\r\n"
    ).encode()

    async def check() -> bool:
        reader, writer = await asyncio.open_connection(
            host, port, ssl=tls or None, limit=LONGEST_LINE
        )
        try:
            writer.write(request)
            line = await reader.readline()
        finally:
            writer.transport.abort()  # the rest is not wanted
        status = re.match(rb"HTTP/1\.[01] ([1-5][0-9][0-9])[ \r]", line)
        return status is not None and int(status[1]) < 400

    return check
