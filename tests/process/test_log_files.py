"""Logs of real processes: rotation, ends of all kinds, a full disk, secrets."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.support.server import Client, LiveServer, eventually, get, tells


def paths(text: str) -> list[str]:
    return [json.loads(line).get("path") for line in text.splitlines()]


def has_open(pid: int, file: Path) -> bool:
    return str(file) in [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]


def test_a_rotated_file_is_left_at_usr1_and_no_line_is_lost(tmp_path: Path) -> None:
    file, rotated = tmp_path / "log", tmp_path / "log.1"
    flags = ("--workers=2", "--access-log", "--log-format=json", f"--log-file={file}")
    with LiveServer("held:app", *flags) as server, Client(server.port) as client:
        for n in range(10):
            client.request(f"/?{n}")
        eventually(lambda: file.read_text().count('"path":"/"') == 10, "the lines are written")
        file.rename(rotated)
        for pid in server.workers:
            os.kill(pid, signal.SIGUSR1)
        eventually(
            lambda: all(has_open(pid, file) for pid in server.workers), "the file is opened anew"
        )
        for _ in range(10):
            client.request("/teapot")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        log = server.log
    assert paths(rotated.read_text()).count("/") == 10
    assert paths(file.read_text()).count("/teapot") == 10
    assert file.stat().st_mode & 0o777 == 0o640
    assert "access" not in log  # nothing of it on standard error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_lines_that_wait_are_written_at_the_end(number: signal.Signals) -> None:
    with LiveServer("held:app", "--workers=1", "--access-log") as server:
        for _ in range(5):
            assert get(server.port, "/").status == 200
        server.signal(number)
        assert server.wait() == 0
    assert server.log.count("GET / 200 ") == 5


def test_a_worker_that_is_told_to_leave_at_once_writes_its_lines_first() -> None:
    with LiveServer("held:app", "--workers=1", "--access-log") as server:
        (pid,) = server.workers
        for _ in range(5):
            assert get(server.port, "/").status == 200
        os.kill(pid, signal.SIGQUIT)
        tells(server, "GET / 200 ", 5)


def test_a_full_disk_for_logs_costs_no_request() -> None:
    flags = ("--workers=1", "--access-log", "--log-file=/dev/full")
    with LiveServer("held:app", *flags) as server, Client(server.port) as client:
        for _ in range(200):
            assert client.request("/").status == 200
        assert client.request("/fail").status == 500  # and that logs a traceback
        assert client.request("/").status == 200


def test_a_log_file_that_cannot_be_opened_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    flags = (f"--log-file={tmp_path}/missing/log",)
    with LiveServer("held:app", *flags, wait=False) as server:
        assert server.wait(30) == 2
    assert server.log.startswith("fluxor-fast: log_file: ")
    assert server.log.count("\n") == 1
