"""Makes a failing input small: what can be left out, and fails in the same way, is left out."""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import Final

from tests.fuzz.targets import TARGETS

__all__ = ["minimised"]

SECONDS: Final = 20.0


def _failure(target: str, data: bytes) -> str | None:
    """Return where a new target fails with ``data``, and as what; None if it does not."""
    try:
        TARGETS[target]()(data)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} {frame.filename}:{frame.lineno}"
    return None


def minimised(target: str, path: Path) -> Path:
    """Write the smallest failing input found in ``SECONDS`` beside ``path``; return its path."""
    data = path.read_bytes()
    failure = _failure(target, data)
    until = time.monotonic() + SECONDS
    size = len(data) // 2
    while failure is not None and size and time.monotonic() < until:
        at, shrunk = 0, False
        while at < len(data) and time.monotonic() < until:
            shorter = data[:at] + data[at + size :]
            if _failure(target, shorter) == failure:
                data, shrunk = shorter, True
            else:
                at += size
        if not (shrunk and size == 1):
            size //= 2
    small = path.with_suffix(".min")
    small.write_bytes(data)
    return small
