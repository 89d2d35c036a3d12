"""What of this machine is too low for the settings, told before it hurts.

Each finding is one line: what is too low, for what, and how it is raised. ``serve`` logs them as
warnings, ``check`` prints them. A limit that cannot be read is not judged: ``/proc`` and
``/sys`` may be hidden, and not every kernel has all.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fluxor_fast.arbiter.cgroup import own_groups
from fluxor_fast.arbiter.sockets import descriptor_shortage
from fluxor_fast.config import Settings

__all__ = ["Machine", "findings"]

WORKER_BYTES = 48 * 2**20
"""Memory of a worker: 36 MB resident with a bare application, and room for a larger one's."""
CONNECTION_BYTES = 8 * 2**10
"""Memory of an idle connection, with the kernel's part, rounded up."""
OWN_TASKS = 4
"""Threads of a worker beside those of handlers and hashes: its loop, the log, the database."""


@dataclass(frozen=True)
class Machine:
    """Limits of the machine and of this process's control group; None: not known, or no limit."""

    somaxconn: int | None = None
    syn_backlog: int | None = None
    conntrack_max: int | None = None
    open_files: int | None = None
    memory: int | None = None
    """Bytes that the control group may use."""
    tasks: int | None = None

    @classmethod
    def read(cls, root: Path = Path("/")) -> Machine:
        """Read those of this machine; ``root`` is where ``proc`` and ``sys`` are."""
        sysctl = root / "proc/sys/net"
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return cls(
            somaxconn=_number(sysctl / "core/somaxconn"),
            syn_backlog=_number(sysctl / "ipv4/tcp_max_syn_backlog"),
            conntrack_max=_number(sysctl / "netfilter/nf_conntrack_max"),
            open_files=None if hard == resource.RLIM_INFINITY else hard,
            memory=_group(root, "memory.max", "memory", "memory.limit_in_bytes"),
            tasks=_group(root, "pids.max", "pids", "pids.max"),
        )


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # "max"
        return None


def _group(root: Path, name: str, controller: str, old_name: str) -> int | None:
    """Return the least limit of this process's control group and those above it (cgroups(7))."""
    limits = []
    for base, place, unified in own_groups(root, controller):
        file = name if unified else old_name
        # in a container the path may be that of the host, and its own group is at the root
        folders = [one for one in (place, *place.parents) if one.is_relative_to(base)]
        limits += [_number(folder / file) for folder in folders]
    known = [limit for limit in limits if limit is not None and limit < 2**60]  # version 1's "max"
    return min(known, default=None)


def findings(settings: Settings, machine: Machine) -> Iterator[str]:
    """Yield a line for each limit that is too low for the settings."""
    server = settings.server
    connections = server.capacity.max_connections
    if machine.somaxconn is not None and machine.somaxconn < server.backlog:
        yield (
            f"net.core.somaxconn is {machine.somaxconn}, so the backlog of {server.backlog} is cut"
            f" to that: connections of a burst are lost (sysctl -w net.core.somaxconn="
            f"{server.backlog})"
        )
    tcp = server.uds is None
    if tcp and machine.syn_backlog is not None and machine.syn_backlog < min(server.backlog, 1024):
        yield (
            f"net.ipv4.tcp_max_syn_backlog is {machine.syn_backlog}: with a backlog of"
            f" {server.backlog}, handshakes of a burst are lost"
            f" (sysctl -w net.ipv4.tcp_max_syn_backlog={server.backlog})"
        )
    if tcp and machine.conntrack_max is not None and machine.conntrack_max < 2 * connections:
        yield (
            f"net.netfilter.nf_conntrack_max is {machine.conntrack_max}: {connections} connections"
            " and those just closed do not fit, and packets of new ones are dropped"
            f" (sysctl -w net.netfilter.nf_conntrack_max={4 * connections})"
        )
    if shortage := descriptor_shortage(connections, machine.open_files):
        yield shortage
    need = server.worker_count * WORKER_BYTES + connections * CONNECTION_BYTES
    if machine.memory is not None and machine.memory < need:
        yield (
            f"the control group may use {machine.memory >> 20} MiB of memory;"
            f" {server.worker_count} workers and {connections} connections need about"
            f" {need >> 20} MiB and the bodies of requests (raise MemoryMax, or lower workers or"
            " max_connections)"
        )
    threads = server.threads + settings.auth.hash_threads + OWN_TASKS
    tasks = 1 + server.worker_count * threads
    if machine.tasks is not None and machine.tasks < tasks:
        yield (
            f"the control group may have {machine.tasks} tasks; {server.worker_count} workers have"
            f" up to {tasks} threads (raise TasksMax or --pids-limit, or lower threads)"
        )
