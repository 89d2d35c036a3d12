"""The settings of an application under test: those given, and defaults.

The environment is not read, so a test does on one machine what it does on the other. One default
is another than elsewhere: requests that are in the system when it stops have ``GRACEFUL`` seconds,
as nobody waits for their answers any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fluxor_fast.config import Settings, load

__all__ = ["completed", "settings_of"]

GRACEFUL: Final = 1.0


def completed(given: Mapping[str, object] | None) -> dict[str, object]:
    """Return the settings given, by path, with what is another default in tests."""
    return {"server.graceful_timeout": GRACEFUL, **(given or {})}


def settings_of(given: Mapping[str, object]) -> Settings:
    """Return all settings, those given among them.

    :raises ConfigError: for what is no setting, or has a wrong value.
    """
    return load(environ={}, flags=given)
