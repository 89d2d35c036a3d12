"""A worker that the kernel kills for lack of memory, in a control group of the test's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.test_worker_health import pids_of
from tests.support.server import LiveServer, eventually, get, tells

MOST = 256 << 20  # bytes of the whole group; two workers and the arbiter need 100 MiB


def _groups() -> tuple[Path, str]:
    """Return where this process's control groups for memory are, and the file of the limit."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            return Path("/sys/fs/cgroup/memory") / path.strip("/"), "memory.limit_in_bytes"
        if not controllers and Path("/sys/fs/cgroup/cgroup.controllers").exists():
            return Path("/sys/fs/cgroup") / path.strip("/"), "memory.max"
    raise OSError("no control groups for memory")


@pytest.fixture
def group() -> Iterator[Path]:
    try:
        above, limit = _groups()
        made = above / f"fluxor-fast-test-{os.getpid()}"
        made.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            (made / limit).write_text(str(MOST))
            swap = made / "memory.swap.max"
            if swap.exists():
                swap.write_text("0")
        except OSError as error:
            pytest.skip(f"memory cannot be limited here: {error}")
        yield made
    finally:
        eventually(lambda: _removed(made), "the group is empty")


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:  # a process of it has not gone yet
        return False
    return True


def test_a_worker_killed_for_lack_of_memory_is_told_so_and_replaced(group: Path) -> None:
    def join() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    with LiveServer("sick:app", "--workers=2", before=join) as server:
        clients = pids_of(server)
        (victim, growing), (calm, other) = clients.items()
        for _ in range(MOST >> 24):
            growing.send("/grow?16")
            try:
                growing.read()
            except ConnectionError:
                break
        eventually(lambda: victim not in server.workers and len(server.workers) == 2, "replaced")
        tells(server, f"(pid {victim}) was ended by SIGKILL")
        tells(server, "by the kernel for lack of memory as it seems")
        # the kernel kills the largest; who was calm goes on, with its connections
        assert other.request("/who").json["pid"] == calm
        assert get(server.port, "/who").status == 200
        for client in clients.values():
            client.close()
