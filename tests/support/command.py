"""The command line in a process of its own, with an environment that names no settings."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.server import APPS


def command(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``fluxor-fast`` with ``arguments``, and ``env`` beside the environment's own rest."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FLUXOR_")
        and name not in ("PORT", "DB_HOST", "DATABASE_URL", "JWT_SECRET", "CONFIG_PATH")
    }
    return subprocess.run(
        [sys.executable, "-m", "fluxor_fast", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=APPS,
        env={**clean, **env},
    )
