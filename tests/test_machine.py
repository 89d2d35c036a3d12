"""What of the machine is too low, and how it is read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fluxor_fast.arbiter.machine import Machine, findings
from fluxor_fast.config import load

AMPLE = Machine(
    somaxconn=4096, syn_backlog=4096, conntrack_max=262_144, open_files=65_536,
    memory=2**33, tasks=4096,
)  # fmt: skip


def found(machine: Machine, **flags: Any) -> list[str]:
    given = {f"server.{name}": value for name, value in flags.items()}
    return list(findings(load(environ={}, flags={"server.workers": 4, **given}), machine))


def test_nothing_is_found_on_an_ample_or_unknown_machine() -> None:
    assert found(AMPLE) == []
    assert found(Machine()) == []


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ({"somaxconn": 128}, "net.core.somaxconn is 128, so the backlog of 2048 is cut"),
        ({"syn_backlog": 128}, "net.ipv4.tcp_max_syn_backlog is 128"),
        ({"conntrack_max": 9000}, "net.netfilter.nf_conntrack_max is 9000: 5000 connections"),
        ({"open_files": 1024}, "5000 connections need 5128 open files and the limit is 1024"),
        ({"memory": 100 * 2**20}, "the control group may use 100 MiB of memory; 4 workers"),
        ({"tasks": 20}, "the control group may have 20 tasks; 4 workers have up to"),
    ],
)
def test_each_limit_that_is_too_low_is_one_line(what: dict[str, int], words: str) -> None:
    (line,) = found(Machine(**what))
    assert words in line
    assert "\n" not in line
    assert "(" in line  # how it is raised


def test_all_that_is_too_low_is_told() -> None:
    assert len(found(Machine(1, 1, 1, 1, 1, 1))) == 6


def test_limits_of_tcp_are_no_concern_of_a_unix_socket() -> None:
    lines = found(Machine(1, 1, 1, 1, 1, 1), uds="/run/a")
    assert len(lines) == 4
    assert not any("tcp" in line or "conntrack" in line for line in lines)


def write(root: Path, files: dict[str, str]) -> Machine:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Machine.read(root)


def test_limits_are_read_and_the_least_of_all_groups_above_counts(tmp_path: Path) -> None:
    machine = write(
        tmp_path,
        {
            "proc/sys/net/core/somaxconn": "4096\n",
            "proc/sys/net/ipv4/tcp_max_syn_backlog": "512\n",
            "proc/self/cgroup": "0::/system.slice/app.service\n",
            "sys/fs/cgroup/system.slice/app.service/memory.max": "max\n",
            "sys/fs/cgroup/system.slice/memory.max": "1000000\n",
            "sys/fs/cgroup/system.slice/app.service/pids.max": "77\n",
        },
    )
    assert (machine.somaxconn, machine.syn_backlog, machine.conntrack_max) == (4096, 512, None)
    assert (machine.memory, machine.tasks) == (1_000_000, 77)


def test_control_groups_of_version_1_are_read(tmp_path: Path) -> None:
    machine = write(
        tmp_path,
        {
            "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/docker/abc\n8:pids:/\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "5000000\n",  # as seen in a container
            "sys/fs/cgroup/pids/pids.max": "max\n",
        },
    )
    assert (machine.memory, machine.tasks) == (5_000_000, None)


def test_no_limit_in_version_1_is_a_number_beyond_all(tmp_path: Path) -> None:
    machine = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert machine.memory is None


def test_what_cannot_be_read_is_not_judged(tmp_path: Path) -> None:
    machine = Machine.read(tmp_path)
    assert (machine.somaxconn, machine.memory, machine.tasks) == (None, None, None)
    Machine.read()  # this machine


def test_check_prints_what_is_too_low_beside_the_settings(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fluxor_fast", "check", "--backlog=2000000000"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0
    assert "too low: net.core.somaxconn is " in done.stderr
    assert "too low" not in done.stdout
