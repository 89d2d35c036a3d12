"""Real processes on Unix sockets and inherited ones, and behind PROXY headers."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
from pathlib import Path

import pytest

from tests.process.test_lifecycle import failed
from tests.support.server import Client, LiveServer, eventually, get, tells

LINE = b"PROXY TCP4 203.0.113.9 192.0.2.1 56324 443\r\n"


def serve_at(path: Path, *flags: str) -> LiveServer:
    server = LiveServer("held:app", f"--uds={path}", *flags, wait=False)
    try:
        tells(server, f"on unix:{path}\n", seconds=30)
    except AssertionError:
        server.__exit__()
        raise
    return server


def test_all_workers_serve_one_unix_socket_whose_file_goes_at_the_stop(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with serve_at(path, "--workers=2") as server:
        assert stat.S_IMODE(path.lstat().st_mode) == 0o660
        tells(server, f"curl -i --unix-socket {path} http://localhost/")
        clients = [Client(str(path)) for _ in range(40)]
        for client in clients:
            assert client.request("/").status == 200
        for client in clients:
            client.close()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_file_outlives_a_worker(number: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with serve_at(path, "--workers=1", "--uds-mode=0600") as server:
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        before = path.lstat().st_ino
        first = server.workers
        os.kill(first[0], number)
        eventually(lambda: server.workers and server.workers != first, "a new worker")
        assert get(str(path), "/").status == 200
        assert path.lstat().st_ino == before


def test_a_file_that_was_left_over_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with serve_at(path, "--workers=1") as server:
        workers = server.workers
        server.signal(signal.SIGKILL)
        server.wait()
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "gone")
    assert path.is_socket()
    with serve_at(path, "--workers=1"):
        assert get(str(path), "/").status == 200


def test_a_second_instance_at_the_same_path_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with serve_at(path, "--workers=1"):
        code, log = failed("held:app", f"--uds={path}")
        assert (code, log) == (
            5,
            f"fluxor-fast: cannot listen on {path}: another process listens there\n",
        )
        assert get(str(path), "/").status == 200


def test_an_inherited_socket_outlives_the_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, fd = listener.getsockname()[1], listener.fileno()
        with LiveServer("held:app", f"--fd={fd}", "--workers=2", pass_fds=(fd,)) as server:
            assert server.port == port
            assert get(port, "/").status == 200
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
        with Client(port) as waits:  # in the queue of the socket, which nobody serves now
            waits.send("/")
            with LiveServer("held:app", f"--fd={fd}", "--workers=1", pass_fds=(fd,)):
                assert waits.read().status == 200


def test_an_inherited_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "http.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        fd = listener.fileno()
        with LiveServer("held:app", f"--fd={fd}", pass_fds=(fd,), wait=False) as server:
            assert get(path, "/").status == 200
            tells(server, f"on unix:{path}\n", seconds=30)
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
    assert Path(path).exists()  # it is not ours


def test_what_cannot_be_listened_on_is_one_line_and_exit_code_5(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, log = failed("held:app", f"--uds={tmp_path / 'file'}")
    assert code == 5
    assert log.endswith("it exists and is no socket\n") and len(log.splitlines()) == 1
    code, log = failed("held:app", "--fd=99")
    assert (code, log) == (5, "fluxor-fast: cannot listen on descriptor 99: Bad file descriptor\n")


def test_proxy_headers_from_nobody_are_a_fault_of_the_settings(tmp_path: Path) -> None:
    code, log = failed("held:app", "--proxy-protocol")
    assert (code, log) == (
        2,
        "fluxor-fast: proxy_protocol: trusted_proxies must say whose PROXY headers count\n",
    )
    path = tmp_path / "http.sock"
    with serve_at(path, "--workers=1", "--proxy-protocol") as server:
        with Client(str(path)) as client:
            client.socket.sendall(LINE)
            assert client.request("/").status == 200
        assert server.process.poll() is None


def test_the_log_has_the_address_of_the_header() -> None:
    flags = ("--workers=1", "--proxy-protocol", "--trusted-proxies=127.0.0.0/8", "--access-log")
    with LiveServer("held:app", *flags) as server:
        with Client(server.port) as client:
            client.socket.sendall(LINE + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.read().status == 200
        with Client(server.port) as client:
            client.send("/", X_Forwarded_For="198.51.100.1")
            with pytest.raises(ConnectionError):
                client.read()
        tells(server, "what came first is no PROXY header")
        with Client(server.port) as waits, Client(server.port) as begun:
            begun.socket.sendall(LINE[:20])
            time.sleep(0.05)
            began = time.monotonic()
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
            assert time.monotonic() - began < 5  # who sends no header is not waited for
            assert waits.file.read() == begun.file.read() == b""
        (line,) = (line for line in server.log.splitlines() if " / 200 " in line)
        assert " 203.0.113.9 " in line
        assert "198.51.100.1" not in server.log
