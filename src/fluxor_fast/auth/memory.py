"""A dictionary that does not grow beyond a number of entries: the oldest makes room."""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import suppress
from typing import TypeVar

__all__ = ["remember"]

Key = TypeVar("Key")
Value = TypeVar("Value")


def remember(memory: MutableMapping[Key, Value], key: Key, value: Value, most: int) -> None:
    """Put ``value`` under ``key``. Blocking handlers come here from several threads at once."""
    if len(memory) >= most:
        # another thread may have been faster, or have changed it between the two calls
        with suppress(KeyError, RuntimeError, StopIteration):
            del memory[next(iter(memory))]
    memory[key] = value
