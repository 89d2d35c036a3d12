"""The control group of this process: where its files are, in version 2 and 1 (cgroups(7))."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

__all__ = ["Group", "own_groups"]


class Group(NamedTuple):
    """The group in one hierarchy."""

    base: Path
    """Where the hierarchy is."""
    folder: Path
    """That of the group, below ``base``; in a container it may be the host's, and not there."""
    unified: bool
    """Whether it is version 2, whose files have other names."""


def own_groups(root: Path, controller: str) -> list[Group]:
    """Return this process's groups that ``controller`` may be in; none if that is not to be known.

    :param root: of the file system; another one in tests.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    mounts = root / "sys/fs/cgroup"
    groups = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            groups.append(Group(mounts, mounts / path.strip("/"), True))
        elif controller in controllers.split(","):
            base = mounts / controller
            groups.append(Group(base, base / path.strip("/"), False))
    return groups
