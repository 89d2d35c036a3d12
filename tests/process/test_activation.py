"""A real server under a stand-in for systemd: a notification socket, descriptors passed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.server import APPS, ended, eventually, get, tells

# what systemd does between fork and exec (systemd.exec(5), sd_listen_fds(3))
WRAPPER = """
import os, sys
names, fds, *command = sys.argv[1:]
fds = [int(fd) for fd in fds.split(",")] if fds else []
high = [os.dup(fd) for fd in fds]
high = [os.dup2(fd, 100 + at) for at, fd in enumerate(high)]
for at, fd in enumerate(high):
    os.dup2(fd, 3 + at, inheritable=True)
if fds:
    os.environ |= {"LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": names}
    os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "fluxor_fast", "serve", *command])
"""


class Unit:
    """The server as systemd runs it."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        app: str = "held:app",
        sockets: Mapping[str, socket.socket] | None = None,
        watchdog: float = 30.0,
    ) -> None:
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = str(folder / "notify")
        self.notify.bind(path)
        self.notify.settimeout(0.05)
        self.heard: list[tuple[float, str]] = []
        passed = dict(sockets or {})
        fds = [one.fileno() for one in passed.values()]
        names = ":".join(name.partition("/")[0] for name in passed)
        environ = {n: v for n, v in os.environ.items() if n not in ("PORT", "JWT_SECRET")}
        self.process = subprocess.Popen(
            [
                sys.executable, "-c", WRAPPER, names, ",".join(map(str, fds)),
                app, "--port=0", "--workers=2", *flags,
            ],
            cwd=APPS,
            env=environ
            | {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": str(int(watchdog * 1e6))},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=fds,
        )  # fmt: skip
        self._threads = [threading.Thread(target=self._listen), threading.Thread(target=self._log)]
        self.log = ""
        self._ended = False
        for thread in self._threads:
            thread.start()

    def _listen(self) -> None:
        while not self._ended:
            try:
                self.heard.append((time.monotonic(), self.notify.recv(4096).decode()))
            except TimeoutError:
                continue

    def _log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line.decode()

    def lines(self) -> list[str]:
        return [line for _, message in list(self.heard) for line in message.splitlines()]

    def hears(self, line: str) -> None:
        eventually(lambda: line in self.lines(), f"{line}; heard {self.lines()}; {self.log}", 30)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def __enter__(self) -> Unit:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()
        self._ended = True
        for thread in self._threads:
            thread.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.notify.close()


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[dict[str, socket.socket]]:
    """What a socket unit with several sockets has open: IPv4, IPv6 where there is, Unix, other."""
    made = {"http/4": socket.create_server(("127.0.0.1", 0))}
    if socket.has_ipv6:
        with contextlib.suppress(OSError):  # no IPv6 in this machine
            made["http/6"] = socket.create_server(("::1", 0), family=socket.AF_INET6)
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "http.sock"))
    unix.listen()
    made |= {"http/unix": unix, "other": socket.create_server(("127.0.0.1", 0))}
    yield made
    for one in made.values():
        one.close()


def test_a_whole_life_is_told(tmp_path: Path) -> None:
    with Unit(tmp_path, watchdog=1.2) as unit:
        unit.hears("READY=1")
        tells(unit, "on http://127.0.0.1:")
        eventually(lambda: unit.lines().count("WATCHDOG=1") >= 6, "the watchdog is fed")
        fed = [when for when, message in unit.heard if message == "WATCHDOG=1"]
        assert max(b - a for a, b in pairwise(fed)) < 1.2
        assert any(line.startswith("STATUS=") for line in unit.lines())
        assert unit.stop() == 0
        unit.hears("STOPPING=1")
        order = [line for line in unit.lines() if line in ("READY=1", "STOPPING=1")]
        assert order == ["READY=1", "STOPPING=1"]


def test_ready_is_not_told_by_a_server_that_cannot_start(tmp_path: Path) -> None:
    with Unit(tmp_path, "--log-file=/nowhere/log") as unit:
        assert unit.process.wait(20) == 2
    assert "READY=1" not in unit.lines()


def test_all_sockets_of_the_name_http_are_served_and_no_other(
    tmp_path: Path, sockets: dict[str, socket.socket]
) -> None:
    with Unit(tmp_path, sockets=sockets) as unit:
        unit.hears("READY=1")
        for _ in range(20):
            assert get(sockets["http/4"].getsockname()[1], "/").status == 200
            assert get(str(tmp_path / "http.sock"), "/").status == 200
        if "http/6" in sockets:
            with socket.create_connection(sockets["http/6"].getsockname()[:2], 5) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
        tells(unit, "(other) is not served: closed")
        assert unit.stop() == 0
    assert (tmp_path / "http.sock").exists()  # it is systemd's


def test_a_restart_behind_systemd_s_socket_refuses_nobody(
    tmp_path: Path, sockets: dict[str, socket.socket]
) -> None:
    one = {"http": sockets["http/4"]}
    port = sockets["http/4"].getsockname()[1]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with Unit(tmp_path / "a", sockets=one) as unit:
        unit.hears("READY=1")
        assert get(port, "/").status == 200
        assert unit.stop() == 0
    with socket.create_connection(("127.0.0.1", port), 20) as early:  # nobody serves now
        early.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        with Unit(tmp_path / "b", sockets=one) as unit:
            unit.hears("READY=1")
            assert early.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_named_descriptor_beats_activation(
    tmp_path: Path, sockets: dict[str, socket.socket]
) -> None:
    with Unit(tmp_path, "--fd=3", sockets={"odd": sockets["other"]}) as unit:
        unit.hears("READY=1")
        assert get(sockets["other"].getsockname()[1], "/").status == 200


@pytest.mark.parametrize("flags", [(), ("--fd=3",)])
def test_what_systemd_has_said_is_not_passed_on_to_workers(
    tmp_path: Path, sockets: dict[str, socket.socket], flags: tuple[str, ...]
) -> None:
    one = {"http": sockets["http/4"]}
    with Unit(tmp_path, *flags, app="environ:app", sockets=one) as unit:
        unit.hears("READY=1")
        names = get(sockets["http/4"].getsockname()[1], "/").json
    assert "PATH" in names
    assert not [name for name in names if name.startswith(("LISTEN_", "NOTIFY_", "WATCHDOG_"))]


@pytest.mark.parametrize("broken", [False, True])
def test_a_reload_is_told_with_its_time_and_its_end_even_if_nothing_comes_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    bad = tmp_path / "bad"
    monkeypatch.setenv("SICK_BAD", str(bad))
    with Unit(tmp_path, app="sick:app") as unit:
        unit.hears("READY=1")
        if broken:
            bad.touch()
        before = time.monotonic_ns() // 1000
        unit.process.send_signal(signal.SIGHUP)
        unit.hears("RELOADING=1")
        (told,) = [message for _, message in unit.heard if "RELOADING=1" in message]
        reloading, usec = told.splitlines()  # one datagram: sd_notify(3) wants both together
        assert reloading == "RELOADING=1"
        assert before <= int(usec.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
        eventually(lambda: unit.lines().count("READY=1") == 2, "the end of it", 20)
        assert unit.lines().index("RELOADING=1") > unit.lines().index("READY=1")
        tells(unit, "reload: stopped" if broken else "reload: done")
        assert "STOPPING=1" not in unit.lines()
        assert unit.stop() == 0


def test_an_upgrade_tells_the_successor_s_pid_and_no_stop(tmp_path: Path) -> None:
    with Unit(tmp_path, "--graceful-timeout=2", watchdog=0.6) as unit:
        unit.hears("READY=1")
        unit.process.send_signal(signal.SIGUSR2)
        found = eventually(lambda: re.search(r"arbiter (\d+) is starting", unit.log), "started")
        successor = int(found[1])
        try:
            unit.hears(f"MAINPID={successor}")
            assert unit.process.wait(10) == 0
            assert unit.lines().count("READY=1") == 2
            assert "STOPPING=1" not in unit.lines()
            fed = unit.lines().count("WATCHDOG=1")
            eventually(lambda: unit.lines().count("WATCHDOG=1") > fed + 1, "it feeds the watchdog")
        finally:
            os.kill(successor, signal.SIGTERM)
            eventually(lambda: ended(successor), "stopped")
        unit.hears("STOPPING=1")
