"""``arbiter.endings``: why a process is gone."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from fluxor_fast.arbiter.endings import OutOfMemoryKills, ending


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "left by itself (code 0)"),
        (1, "failed with an error that is not ours (code 1)"),
        (2, "cannot use its settings (code 2)"),
        (3, "could not start (code 3)"),
        (4, "could not import the application (code 4)"),
        (77, "left (code 77)"),
        (-signal.SIGKILL, "was ended by SIGKILL from outside"),
        (-signal.SIGTERM, "was ended by SIGTERM"),
        (-signal.SIGSEGV, "crashed: SIGSEGV"),
        (-(signal.SIGRTMIN + 3), f"was ended by signal {signal.SIGRTMIN + 3}"),
    ],
)
def test_each_end_has_its_words(code: int, words: str) -> None:
    assert ending(code) == words


def test_lack_of_memory_explains_sigkill_alone() -> None:
    assert "lack of memory" in ending(-signal.SIGKILL, out_of_memory=True)
    assert ending(-signal.SIGTERM, out_of_memory=True) == "was ended by SIGTERM"


@pytest.mark.parametrize(
    ("group", "file"),
    [
        ("0::/system.slice/app.service", "sys/fs/cgroup/system.slice/app.service/memory.events"),
        ("4:memory:/app", "sys/fs/cgroup/memory/app/memory.oom_control"),
        ("3:cpuset:/", "proc/vmstat"),
    ],
)
def test_the_count_nearest_to_us_is_looked_at(tmp_path: Path, group: str, file: str) -> None:
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    write("proc/self/cgroup", f"9:name=systemd:/x\n{group}\n")
    write("proc/vmstat", "nr_free_pages 1\noom_kill 5\n")
    write(file, "low 0\noom_kill 7\noom_group_kill 0\n")
    kills = OutOfMemoryKills(tmp_path)
    assert not kills.rose()
    write(file, "low 0\noom_kill 8\noom_group_kill 0\n")
    assert kills.rose()
    assert not kills.rose()


def test_a_machine_that_counts_nothing_gives_no_hint(tmp_path: Path) -> None:
    assert not OutOfMemoryKills(tmp_path).rose()
