"""The arbiter's pure parts; its processes are tested in tests/process."""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fluxor_fast.arbiter.arbiter import Arbiter, Version
from fluxor_fast.arbiter.sockets import (
    bind_listeners,
    bind_unix,
    inherit,
    place_of,
    provide_descriptors,
)
from fluxor_fast.config import load
from fluxor_fast.errors import BootError, ListenError


@pytest.fixture
def no_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fail)


def one_worker() -> Version:
    return Version(load(environ={}, flags={"server.workers": 1, "server.port": 0}), lambda *_: 0)


@pytest.mark.usefixtures("no_fork")
def test_a_fork_that_fails_at_the_start_is_an_error_of_the_start() -> None:
    with pytest.raises(BootError, match="cannot start a worker: Resource temporarily"):
        Arbiter(one_worker()).run()
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])  # none is left blocked


def test_listeners_share_one_port() -> None:
    listeners = bind_listeners("127.0.0.1", 0, 3)
    try:
        assert len({listener.getsockname() for listener in listeners}) == 1
    finally:
        for listener in listeners:
            listener.close()


def test_a_shared_listener_is_one_socket_in_every_worker() -> None:
    listeners = bind_listeners("127.0.0.1", 0, 3, shared=True)
    try:
        inodes = {os.fstat(listener.fileno()).st_ino for listener in listeners}
        assert len(inodes) == 1
        assert len({listener.fileno() for listener in listeners}) == 3
    finally:
        for listener in listeners:
            listener.close()


def test_ipv6_is_listened_on() -> None:
    try:
        (listener,) = bind_listeners("::1", 0, 1)
    except ListenError:
        pytest.skip("this machine has no IPv6")
    with listener:
        assert listener.family == socket.AF_INET6


@pytest.mark.parametrize(
    ("host", "words"),
    [("192.0.2.1", "does not have that address"), ("not a host", "not a host")],
)
def test_an_address_that_cannot_be_had_is_named(host: str, words: str) -> None:
    with pytest.raises(ListenError, match=words):
        bind_listeners(host, 8080, 1)


# Unix sockets


def test_a_unix_socket_is_one_for_all_and_has_its_permissions_from_the_start(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s"
    before = os.umask(0o022)
    try:
        listeners, file = bind_unix(path, 0o606, 3, 10)
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o606
    assert len({os.fstat(listener.fileno()).st_ino for listener in listeners}) == 1
    assert place_of(listeners[0]) == f"unix:{path}"
    file.remove()
    assert not path.exists()
    file.remove()
    for listener in listeners:
        listener.close()


def test_the_file_of_another_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    (first,), file = bind_unix(path, 0o600, 1, 10)
    path.unlink()
    (second,), other = bind_unix(path, 0o600, 1, 10)
    with first, second:
        file.remove()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        other.remove()
    assert not path.exists()


def test_a_file_at_which_nobody_listens_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    (first,), _ = bind_unix(path, 0o600, 1, 10)
    first.close()
    (second,), _ = bind_unix(path, 0o600, 1, 10)
    with second, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_path_where_somebody_listens_is_refused_even_with_a_full_queue(tmp_path: Path) -> None:
    path = tmp_path / "s"
    (listener,), _ = bind_unix(path, 0o600, 1, 0)
    clients = []
    with listener:
        for _ in range(5):
            clients.append(socket.socket(socket.AF_UNIX))
            clients[-1].setblocking(False)
            try:
                clients[-1].connect(str(path))
            except BlockingIOError:
                break
        else:
            raise AssertionError("the queue takes any number")
        with pytest.raises(ListenError, match="another process listens there"):
            bind_unix(path, 0o600, 1, 10)
        assert path.is_socket()
    for client in clients:
        client.close()


def test_a_path_that_cannot_be_had_is_named_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(str(tmp_path / "datagrams"))
        for name, words in (
            ("file", "it exists and is no socket"),
            ("link", "it exists and is no socket"),
            ("datagrams", "another process listens there"),
            ("none/s", "No such file or directory"),
            ("file/s", "Not a directory"),
            ("x" * 120, "path too long"),
        ):
            with pytest.raises(ListenError, match=words) as caught:
                bind_unix(tmp_path / name, 0o600, 1, 10)
            assert str(tmp_path / name) in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "link").is_symlink()


# inherited sockets


def test_an_inherited_socket_is_one_for_all() -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        listeners = inherit(os.dup(given.fileno()), 3)
        assert {place_of(listener) for listener in listeners} == {
            f"127.0.0.1:{given.getsockname()[1]}"
        }
        for listener in listeners:
            assert not listener.get_inheritable()
            listener.close()


def test_what_is_no_listening_socket_is_refused_and_left_open(tmp_path: Path) -> None:
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    datagrams = socket.socket(type=socket.SOCK_DGRAM)
    with bound, datagrams, (tmp_path / "file").open("wb") as file:
        for fd, words in (
            (bound.fileno(), "it is no listening stream socket"),
            (datagrams.fileno(), "it is no listening stream socket"),
            (file.fileno(), "Socket operation on non-socket"),
        ):
            with pytest.raises(ListenError, match=f"descriptor {fd}: {words}"):
                inherit(fd, 1)
            os.fstat(fd)


def test_the_soft_limit_of_files_is_raised_as_far_as_needed() -> None:
    # in a process of its own: the limit is the process's
    code = (
        "import resource as r; from fluxor_fast.arbiter.sockets import provide_descriptors;"
        "hard = r.getrlimit(r.RLIMIT_NOFILE)[1]; r.setrlimit(r.RLIMIT_NOFILE, (64, hard));"
        "provide_descriptors(500); print(r.getrlimit(r.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 500 + 128


def test_a_limit_of_files_that_is_too_low_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 1000))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(logging.getLogger("fluxor_fast"), "propagate", True)
    provide_descriptors(5000)
    assert "5000 connections need 5128 open files and the limit is 1000" in caplog.text
