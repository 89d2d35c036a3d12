"""What every contestant answers: the documents of the reference service, made anew each time."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import orjson

from fluxor_fast import __version__
from fluxor_fast.service.status import FEATURES

__all__ = ["PATHS", "documents"]

_next = count(1).__next__
_prefix = secrets.token_hex(8)


def _health() -> dict[str, Any]:
    return {"status": "healthy", "service": "fluxor-fast", "timestamp": int(time.time())}


def _home() -> dict[str, Any]:
    return {
        "message": "Welcome to fluxor-fast",
        "version": __version__,
        "request_id": f"{_prefix}{_next():016x}",
        "features": FEATURES,
    }


PATHS: dict[str, Callable[[], dict[str, Any]]] = {"/health": _health, "/": _home}


def documents(path: str) -> bytes:
    """Return the JSON that ``path`` answers. The same encoder for all, so that none is favoured."""
    return orjson.dumps(PATHS[path]())
