"""Logging: one line per event on standard error, times in UTC."""

from __future__ import annotations

import logging
import sys
import time

__all__ = ["configure", "reopen"]


class _Formatter(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


def configure(level: str) -> None:
    """Send the package's log to standard error, from ``level`` (``debug`` … ``error``) up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s[%(process)d] %(message)s"))
    root = logging.getLogger("fluxor_fast")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level.upper())


def reopen() -> None:
    """Open the log files anew, by their names: they may have been rotated."""
    for handler in logging.getLogger("fluxor_fast").handlers:
        if isinstance(handler, logging.FileHandler):
            handler.close()  # it opens its file again for the next line
