"""``arbiter.pidfile``: one instance, and what a killed one leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fluxor_fast.arbiter.pidfile import PidFile
from fluxor_fast.errors import ListenError
from tests.support.forks import ended, forked


def test_it_has_the_pid_and_is_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    file = PidFile(path)
    assert path.read_text() == f"{os.getpid()}\n"
    file.remove()
    assert not path.exists()


def test_a_second_one_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    first = PidFile(path)
    with pytest.raises(ListenError, match=rf"another instance runs \(pid {os.getpid()}\)"):
        PidFile(path)
    first.remove()
    PidFile(path).remove()


def test_a_stale_file_is_taken_over_whatever_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("1\nmuch more than a pid\n")
    file = PidFile(path)
    assert path.read_text() == f"{os.getpid()}\n"
    file.remove()


def test_the_file_of_another_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    file = PidFile(path)
    path.unlink()
    path.write_text("another's")
    file.remove()
    assert path.read_text() == "another's"


def test_a_child_that_closes_it_leaves_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    file = PidFile(path)
    with forked(file.close) as (child,):
        assert ended(child) == 0
    with pytest.raises(ListenError):
        PidFile(path)
    file.remove()


def test_a_place_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name, words in (("none/pid", "No such file"), ("link", "symbolic links")):
        with pytest.raises(ListenError, match=words):
            PidFile(tmp_path / name)
    assert not (tmp_path / "elsewhere").exists()


def test_who_adopts_it_has_the_same_lock_and_is_told_by_it_from_take_on(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    before = PidFile(path)
    told_before = path.read_text()

    def adopt_and_take() -> None:
        after = PidFile.adopt(before.fileno())
        assert path.read_text() == told_before
        after.take()

    with forked(adopt_and_take) as (child,):
        assert ended(child) == 0
    assert path.read_text() == f"{child}\n"
    with pytest.raises(ListenError, match=rf"another instance runs \(pid {child}\)"):
        PidFile(path)
    before.remove()
    assert path.exists()  # it is the other's to remove


def test_who_adopts_it_and_never_takes_it_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    before = PidFile(path)
    with forked(lambda: PidFile.adopt(before.fileno()).remove()) as (child,):
        assert ended(child) == 0
    with pytest.raises(ListenError, match=rf"another instance runs \(pid {os.getpid()}\)"):
        PidFile(path)
    before.remove()
    assert not path.exists()
