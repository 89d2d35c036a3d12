"""``arbiter.pidfile``: one instance, and what a killed one leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fluxor_fast.arbiter.pidfile import PidFile
from fluxor_fast.errors import ListenError


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
    child = os.fork()
    if not child:
        file.close()
        os._exit(0)
    os.waitpid(child, 0)
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
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        after = PidFile.adopt(before.fileno())
        told = path.read_text()
        after.take()
        os.write(writing, b"1" if told == told_before else b"0")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 1) == b"1"
    assert path.read_text() == f"{child}\n"
    with pytest.raises(ListenError, match=rf"another instance runs \(pid {child}\)"):
        PidFile(path)
    before.remove()
    assert path.exists()  # it is the other's to remove
    for fd in (reading, writing):
        os.close(fd)


def test_who_adopts_it_and_never_takes_it_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    before = PidFile(path)
    child = os.fork()
    if not child:
        PidFile.adopt(before.fileno()).remove()
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(ListenError, match=rf"another instance runs \(pid {os.getpid()}\)"):
        PidFile(path)
    before.remove()
    assert not path.exists()
