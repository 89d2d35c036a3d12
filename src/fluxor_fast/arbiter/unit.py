"""The unit that has systemd run this server: made from settings, so that both agree.

``deploy/systemd/fluxor-fast.service`` is what :func:`unit` gives for the default settings and an
installation in ``/opt/fluxor-fast``; ``fluxor-fast systemd-unit`` prints the one for this machine.

Rules:

1. systemd waits as long as the server may take: its times are those of the settings and a margin.
2. The server may do what it does, and no more: no new privileges, no device, no writing
   outside the places it was given, no system call of administrators. What is left out has its
   reason beside it.
3. No secret is in a unit, which everyone can read: secrets come from the environment file.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fluxor_fast.arbiter.sockets import descriptors_for
from fluxor_fast.config import Settings

__all__ = ["Place", "closed", "quoted", "unit"]

MARGIN = 10
"""Seconds for what is not a request: hooks, closed pools, workers that get SIGKILL."""
RELOADS_SINCE = 253
"""The version of systemd that knows ``Type=notify-reload``; older ones would take it for simple."""
SAFE = re.compile(r"[\w@+=:,./-]+")


@dataclass(frozen=True)
class Place:
    """Where and as whom the server runs.

    :param user: None: one that systemd makes for the time (``DynamicUser=``).
    :param systemd: version of the systemd that is to read the unit.
    """

    program: Sequence[str]
    folder: Path
    environment_file: Path
    user: str | None = None
    group: str | None = None
    systemd: int = 252


def quoted(word: str) -> str:
    """Return a word as it stands in ``ExecStart=`` (systemd.syntax(7), systemd.service(5))."""
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    text = text.replace("\n", "\\n").replace("\t", "\\t")
    return text if SAFE.fullmatch(text) else f'"{text}"'


def unit(settings: Settings, place: Place, arguments: Sequence[str] = ()) -> str:
    """Return the text of a service.

    :param arguments: of ``fluxor-fast serve``.
    """
    server, observability = settings.server, settings.observability
    command = " ".join(map(quoted, [*place.program, "serve", *arguments]))
    files = max(descriptors_for(server.capacity.max_connections), 4096)
    low_port = server.uds is None and server.fd is None and 0 < server.port < 1024
    folders = [
        path.absolute() if path == settings.database.embedded else path.absolute().parent
        for path in (server.uds, observability.log_file, settings.database.embedded)
        if path is not None
    ]
    reloads = place.systemd >= RELOADS_SINCE
    lines = [
        "[Unit]",
        "Description=fluxor-fast HTTP server",
        "Documentation=man:systemd.service(5)",
        "After=network-online.target",
        "Wants=network-online.target",
        "",
        "[Service]",
        f"Type={'notify-reload' if reloads else 'notify'}",
        "NotifyAccess=main",
        f"ExecStart={command}",
    ]
    if not reloads:
        lines.append("ExecReload=/bin/kill -HUP $MAINPID")
    lines += [
        f"WorkingDirectory={str(place.folder).replace('%', '%%')}",
        f"EnvironmentFile=-{str(place.environment_file).replace('%', '%%')}",
        *_user(place),
        "",
        "# a worker starts first and alone, then the others: each has its boot timeout",
        f"TimeoutStartSec={_seconds(2 * server.boot_timeout)}",
        "# requests have the graceful timeout to end; then what is left is ended",
        f"TimeoutStopSec={_seconds(server.drain_delay + server.graceful_timeout)}",
        "# SIGTERM is for the arbiter, which drains its workers; the final SIGKILL for all",
        "KillMode=mixed",
        "# fed by the arbiter's loop; a worker that hangs is the arbiter's own business",
        "WatchdogSec=30",
        "Restart=on-failure",
        "RestartSec=1",
        "# settings and an application that cannot be imported do not get better by themselves",
        "RestartPreventExitStatus=2 4",
        "# a worker ended for want of memory is replaced; the others go on",
        "OOMPolicy=continue",
        f"LimitNOFILE={files}",
        "",
        *_folders(folders),
        *_hardening(low_port, _home(place)),
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"


def _seconds(seconds: float) -> str:
    return f"{seconds + MARGIN:g}"


def _user(place: Place) -> list[str]:
    if place.user is None:
        return ["DynamicUser=yes", "User=fluxor-fast"]
    return [f"User={place.user}", *([f"Group={place.group}"] if place.group else [])]


def _folders(paths: Iterable[Path]) -> list[str]:
    """Return what makes these folders writable, and makes them where systemd does that."""
    lines = []
    for path in dict.fromkeys(paths):
        for base, name in (("/run", "Runtime"), ("/var/log", "Logs"), ("/var/lib", "State")):
            if path.is_relative_to(base) and path != Path(base):
                lines.append(f"{name}Directory={quoted(str(path.relative_to(base)))}")
                break
        else:
            lines.append(f"ReadWritePaths={quoted(str(path))}")
    return lines


def _needed(place: Place) -> list[Path]:
    """Return what the service must be able to get at; a program may be a link to another one."""
    program = Path(place.program[0])
    return [place.folder, program, program.resolve()]


def _home(place: Place) -> str:
    """Return what the service may see of home folders: it may live in one."""
    homes = ("/home", "/root", "/run/user")
    inside = any(path.is_relative_to(home) for path in _needed(place) for home in homes)
    return "read-only" if inside else "yes"


def closed(place: Place) -> list[Path]:
    """Return the folders that keep a user whom systemd makes from what the service needs."""
    if place.user is not None:
        return []
    above = dict.fromkeys(folder for path in _needed(place) for folder in reversed(path.parents))
    return [f for f in above if f.is_dir() and not f.stat().st_mode & stat.S_IXOTH]


def _hardening(low_port: bool, home: str) -> list[str]:
    capabilities = "CAP_NET_BIND_SERVICE" if low_port else ""
    lines = [
        "# systemd.exec(5). ProcSubset=pid is not here: the start-up check reads /proc/sys.",
        "NoNewPrivileges=yes",
        f"CapabilityBoundingSet={capabilities}",
        f"AmbientCapabilities={capabilities}",
    ]
    if not low_port:  # such a capability would be one of the user's own namespace
        lines.append("PrivateUsers=yes")
    return [
        *lines,
        "ProtectSystem=strict",
        f"ProtectHome={home}",
        "PrivateTmp=yes",
        "PrivateMounts=yes",
        "PrivateDevices=yes",
        "DevicePolicy=closed",
        "ProtectClock=yes",
        "ProtectControlGroups=yes",
        "ProtectHostname=yes",
        "ProtectKernelLogs=yes",
        "ProtectKernelModules=yes",
        "ProtectKernelTunables=yes",
        "ProtectProc=invisible",
        "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
        "RestrictNamespaces=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "LockPersonality=yes",
        "MemoryDenyWriteExecute=yes",
        "RemoveIPC=yes",
        "UMask=0027",
        "KeyringMode=private",
        "SystemCallArchitectures=native",
        "# what daemons need, but for administrators' calls; pinning and limits are resources",
        "SystemCallFilter=@system-service",
        "SystemCallFilter=~@privileged",
        "SystemCallErrorNumber=EPERM",
    ]
