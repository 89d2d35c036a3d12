"""The settings of an application under test: those given, and defaults.

The environment is not read, so a test does on one machine what it does on the other. One default
is another than elsewhere: requests that are in the system when it stops have ``GRACEFUL`` seconds,
as nobody waits for their answers any more.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from fluxor_fast.config import Settings, knobs, load

__all__ = ["completed", "foreign_environment", "settings_of"]

GRACEFUL: Final = 1.0


def completed(given: Mapping[str, object] | None) -> dict[str, object]:
    """Return the settings given, by path, with what is another default in tests."""
    return {"server.graceful_timeout": GRACEFUL, **(given or {})}


def settings_of(given: Mapping[str, object]) -> Settings:
    """Return all settings, those given among them.

    :raises ConfigError: for what is no setting, or has a wrong value.
    """
    return load(environ={}, flags=given)


def foreign_environment() -> dict[str, str]:
    """Return the environment without the variables of this server."""
    ours = {"CONFIG_PATH", *(knob.alias for knob in knobs())}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ours and not name.startswith("FLUXOR_")
    }
