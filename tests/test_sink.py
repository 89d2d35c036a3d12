"""Lines on their way out: whole, counted, and never at the cost of who logs."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import pytest

from fluxor_fast.observability.sink import Buffer, Sink, pieces
from tests.support.server import eventually

LINE = "0123456789 abcdefghijklmnopqrstuvwxyz\n"


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    sink = Sink(path)
    sink.write("one\n")
    sink.write("two\nthree\n", 2)
    sink.close()
    assert path.read_text() == "before\none\ntwo\nthree\n"
    assert sink.dropped == 0


def test_a_full_disk_costs_lines_and_nothing_else_and_is_told_when_there_is_room(
    tmp_path: Path,
) -> None:
    link, file = tmp_path / "log", tmp_path / "file"
    link.symlink_to("/dev/full")
    sink = Sink(link)
    for _ in range(3):
        sink.write(LINE)
    sink.write(LINE * 4, 4)
    assert sink.dropped == 7
    link.unlink()
    link.symlink_to(file)
    assert sink.reopen() is None
    sink.write("now\n")
    sink.write("then\n")
    assert file.read_text() == (
        "7 lines of the log were lost: No space left on device\nnow\nthen\n"
    )


def test_a_line_that_was_cut_is_ended_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = Sink(tmp_path / "log")
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:8]))
    sink.write("one\ntwo-and-more\nthree\n", 3)  # as write(2) does when the disk becomes full
    monkeypatch.undo()
    sink.write("four\n")
    assert sink.dropped == 2
    assert (tmp_path / "log").read_text() == (
        "one\ntwo-\n2 lines of the log were lost: there was no room for all\nfour\n"
    )


def test_reopening_leaves_a_rotated_file_and_loses_nothing(tmp_path: Path) -> None:
    path, rotated = tmp_path / "log", tmp_path / "log.1"
    sink = Sink(path)
    sink.write("old\n")
    path.rename(rotated)
    sink.write("still old\n")
    sink.reopen()
    sink.write("new\n")
    assert rotated.read_text() == "old\nstill old\n"
    assert path.read_text() == "new\n"


def test_reopening_while_another_thread_writes_loses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    sink = Sink(path)
    stop = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        while not stop.is_set():
            sink.write(f"{written}\n")
            written += 1

    thread = threading.Thread(target=write)
    thread.start()
    for n in range(50):
        path.rename(tmp_path / f"log.{n}")
        sink.reopen()
    stop.set()
    thread.join()
    found = sorted(
        int(line) for file in tmp_path.iterdir() for line in file.read_text().splitlines()
    )
    assert found == list(range(written))
    assert sink.dropped == 0


def test_the_old_file_is_kept_if_the_new_one_cannot_be_had(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    sink = Sink(folder / "log")
    folder.rename(tmp_path / "away")
    fault = sink.reopen()
    assert fault is not None
    assert "No such file or directory; the old file is kept" in fault
    sink.write("here\n")
    assert (tmp_path / "away" / "log").read_text() == "here\n"


def test_a_reader_that_does_not_read_holds_nobody_up() -> None:
    reader, writer = os.pipe()
    sink = Sink(fd=writer)
    began = time.monotonic()
    for _ in range(10_000):
        sink.write(LINE)
    assert time.monotonic() - began < 2.0  # 500 s, were each line waited for
    lost = sink.dropped
    taken = 10_000 - lost
    assert 0 < taken < 3000
    data = os.read(reader, 1 << 20)
    sink.write("again\n")
    data += os.read(reader, 1 << 20)
    lines = data.decode().splitlines(keepends=True)
    assert lines[:taken] == [LINE] * taken
    assert lines[taken:] == [
        f"{lost} lines of the log were lost: the reader of the log does not read\n",
        "again\n",
    ]
    os.close(reader)
    sink.write("nobody is there\n")  # EPIPE
    assert sink.dropped == lost + 1
    os.close(writer)


def test_a_batch_goes_to_a_pipe_in_pieces_that_end_with_a_line() -> None:
    generator = random.Random(3)
    lines = [b"x" * generator.randrange(300) + b"\n" for _ in range(200)]
    found = list(pieces(b"".join(lines)))
    assert b"".join(found) == b"".join(lines)
    assert all(len(piece) <= 4096 and piece.endswith(b"\n") for piece in found)
    assert [len(piece) for piece in pieces(b"y" * 9000 + b"\n")] == [4096, 4096, 809]


def test_a_buffer_writes_soon_and_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    buffer = Buffer(Sink(path), seconds=0.01)
    buffer.write("one\n")
    eventually(lambda: path.read_text() == "one\n", "the line is written")
    buffer.write("two\n")
    buffer.close()
    assert path.read_text() == "one\ntwo\n"


def test_many_lines_do_not_wait_for_the_second_to_pass(tmp_path: Path) -> None:
    path = tmp_path / "log"
    buffer = Buffer(Sink(path), seconds=3600.0)
    for n in range(Buffer.WAKE + 10):
        buffer.write(f"{n}\n")
    eventually(lambda: path.read_text().count("\n") >= Buffer.WAKE, "they are written")
    buffer.close()
    assert path.read_text() == "".join(f"{n}\n" for n in range(Buffer.WAKE + 10))


def test_lines_of_several_threads_are_all_written(tmp_path: Path) -> None:
    path = tmp_path / "log"
    buffer = Buffer(Sink(path), seconds=0.001)

    def write(name: int) -> None:
        for n in range(3000):
            buffer.write(f"{name} {n}\n")

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    buffer.close()
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(f"{name} {n}" for name in range(4) for n in range(3000))


def test_a_buffer_is_bounded_and_says_how_many_it_did_not_take(tmp_path: Path) -> None:
    path = tmp_path / "log"
    sink = Sink(path)
    buffer = Buffer(sink, seconds=3600.0, most=5)
    for _ in range(8):
        buffer.write(LINE)
    buffer.close()
    assert sink.dropped == 3
    assert path.read_text() == (
        "3 lines of the log were lost: they came faster than they could be written\n" + LINE * 5
    )


def test_closing_a_buffer_whose_reader_does_not_read_takes_a_bounded_time() -> None:
    reader, writer = os.pipe()
    sink = Sink(fd=writer)
    buffer = Buffer(sink, seconds=3600.0)
    for _ in range(Buffer.WAKE - 1):
        buffer.write("z" * 100 + "\n")
    began = time.monotonic()
    buffer.close()
    assert time.monotonic() - began < 4.0
    assert sink.dropped > 0
    os.close(reader)
    os.close(writer)
