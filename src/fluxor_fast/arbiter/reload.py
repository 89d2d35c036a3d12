"""What a reload of the settings may change, and what takes a stop and a start. Pure.

The sockets stay as they are, so what they are and which protocol is spoken on them stays too.
"""

from __future__ import annotations

import json
from typing import Any, Final

from fluxor_fast.config import Settings

__all__ = ["FIXED", "fixed", "keep_fixed"]

FIXED: Final = (
    "server.host",
    "server.port",
    "server.uds",
    "server.uds_mode",
    "server.fd",
    "server.control",
    "server.control_mode",
    "server.listener",
    "server.proxy_protocol",
    "server.pid_file",
    "server.rate_limit_accounts",
    "database.embedded",
)
"""Settings that cannot change while the instance serves."""


def fixed(settings: Settings) -> str:
    """Return those that cannot change, as JSON; an upgraded arbiter is told them."""
    data = settings.model_dump(mode="json")
    return json.dumps({path: _get(data, path) for path in FIXED} | {"tls": _has_tls(settings)})


def keep_fixed(before: str, settings: Settings) -> tuple[Settings, list[str]]:
    """Return ``settings`` with what cannot change as it was, and the names of what was put back.

    :param before: what ``fixed`` has told. TLS can be changed, but neither begun nor ended: the
        name ``tls.certificate`` says that it was tried, and who serves has to refuse that.
    """
    data, old = settings.model_dump(mode="json"), json.loads(before)
    names = [path for path in FIXED if _get(data, path) != old[path]]
    for path in names:
        section, name = path.split(".")
        kind = type(getattr(settings, section))
        value = getattr(kind.model_validate({name: old[path]}), name)
        part = getattr(settings, section).model_copy(update={name: value})
        settings = settings.model_copy(update={section: part})
    if _has_tls(settings) != old["tls"]:
        names.append("tls.certificate")
    return settings, names


def _has_tls(settings: Settings) -> bool:
    return settings.tls.certificate is not None


def _get(data: dict[str, Any], path: str) -> Any:
    section, name = path.split(".")
    return data[section][name]
