"""The arbiter's pure parts; its processes are tested in tests/process."""

from __future__ import annotations

import logging
import os
import resource
import socket
import subprocess
import sys

import pytest

from fluxor_fast.arbiter.arbiter import Backoff
from fluxor_fast.arbiter.sockets import bind_listeners, provide_descriptors
from fluxor_fast.errors import ListenError


def test_a_worker_that_lived_is_replaced_at_once_and_early_deaths_double_the_delay() -> None:
    backoff = Backoff(healthy=5.0, first=0.1, longest=1.0)
    assert [backoff.after(1.0) for _ in range(7)] == [0.0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert backoff.after(6.0) == 0.0  # one that lived makes good
    assert [backoff.after(1.0) for _ in range(3)] == [0.0, 0.1, 0.2]


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
