"""What is told to systemd and taken from it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxor_fast.arbiter.systemd import Inherited, Notifier, inherited, served

PID = 4711


class Listener:
    """A notification socket as systemd has it."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return messages


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@fluxor-{os.getpid()}"


@pytest.fixture
def listener(address: str) -> Iterator[Listener]:
    listener = Listener(address)
    yield listener
    listener.socket.close()


@pytest.fixture
def notifier(address: str, listener: Listener) -> Iterator[Notifier]:
    notifier = Notifier(address, watchdog=10.0)
    yield notifier
    assert notifier._socket is not None
    notifier._socket.close()


def test_each_state_is_told(notifier: Notifier, listener: Listener) -> None:
    notifier.ready()
    notifier.reloading(lambda: 1_234_567_890)
    notifier.succeeded(12)
    notifier.stopping()
    assert listener.heard() == [
        "READY=1",
        "RELOADING=1\nMONOTONIC_USEC=1234567",
        "MAINPID=12",
        "STOPPING=1\nSTATUS=draining",
    ]


def test_the_watchdog_is_fed_at_half_its_time_and_a_status_told_when_it_changes(
    notifier: Notifier, listener: Listener
) -> None:
    told: dict[int, list[str]] = {}
    for tenth in range(250):
        now = 100 + tenth / 10
        status = "one\nline" if now < 112 else "another"
        notifier.tick(now, lambda text=status: text)  # type: ignore[misc]
        if heard := listener.heard():
            told[tenth] = heard
    assert told == {
        0: ["WATCHDOG=1", "STATUS=one line"],
        50: ["WATCHDOG=1"],
        100: ["WATCHDOG=1"],
        150: ["WATCHDOG=1", "STATUS=another"],
        200: ["WATCHDOG=1"],
    }


def test_what_systemd_has_set_is_taken_out_of_the_environment() -> None:
    environ = {
        "NOTIFY_SOCKET": "@x",
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(PID),
        "A": "b",
    }
    notifier = Notifier.of(environ, PID)
    assert environ == {"A": "b"}
    assert notifier.environment() == {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "3000000"}
    assert notifier._every == 1.5
    assert notifier._socket is not None
    notifier._socket.close()


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "vsock:2:1234"},
        {"NOTIFY_SOCKET": ""},
    ],
)
def test_without_systemd_nothing_is_sent(environ: dict[str, str]) -> None:
    notifier = Notifier.of(environ, PID)
    notifier.ready()
    notifier.stopping()
    notifier.tick(1.0, lambda: "status")
    assert notifier._every == float("inf")
    assert environ == {}


def test_a_missing_or_full_socket_costs_a_message_and_nothing_else(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    notifier = Notifier(path)
    notifier.ready()
    listener = Listener(path)
    for _ in range(2000):  # net.unix.max_dgram_qlen is 10, or some hundreds
        notifier.send("WATCHDOG=1")
    assert 0 < len(listener.heard()) < 2000
    notifier.ready()
    assert listener.heard() == ["READY=1"]
    listener.socket.close()
    assert notifier._socket is not None
    notifier._socket.close()


# activation


def test_nothing_was_passed() -> None:
    for environ in (
        {},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "one", "LISTEN_PID": str(PID)},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "-1", "LISTEN_PID": str(PID)},
    ):
        assert inherited(environ, PID) == []
        assert environ == {}


def test_what_was_passed_has_names_and_closes_at_an_exec(monkeypatch: pytest.MonkeyPatch) -> None:
    closing: list[tuple[int, bool]] = []
    monkeypatch.setattr(os, "set_inheritable", lambda fd, on: closing.append((fd, on)))
    environ = {"LISTEN_FDS": "3", "LISTEN_PID": str(PID), "LISTEN_FDNAMES": "http:admin", "A": "b"}
    found = inherited(environ, PID)
    assert found == [Inherited(3, "http"), Inherited(4, "admin"), Inherited(5, "unknown")]
    assert closing == [(3, False), (4, False), (5, False)]
    assert environ == {"A": "b"}


def test_a_promised_descriptor_that_is_not_open_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int, on: bool) -> None:
        if fd == 4:
            raise OSError

    monkeypatch.setattr(os, "set_inheritable", fail)
    assert inherited({"LISTEN_FDS": "3", "LISTEN_PID": str(PID)}, PID) == [Inherited(3, "unknown")]
    assert "descriptor 4" in caplog.text


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([], []),
        (["anything"], [0]),
        (["admin", "http"], [1]),
        (["http", "admin", "http"], [0, 2]),
        (["web.socket", "web.socket"], [0, 1]),
        (["unknown", "unknown", "unknown"], [0, 1, 2]),
        (["first", "second"], [0]),
    ],
)
def test_served_is_what_is_named_http_or_what_has_the_first_name(
    names: list[str], chosen: list[int]
) -> None:
    passed = [Inherited(os.open("/dev/null", os.O_RDONLY), name) for name in names]
    assert served(passed) == [passed[at].fd for at in chosen]
    for at, one in enumerate(passed):
        if at in chosen:
            os.close(one.fd)
        else:
            with pytest.raises(OSError):
                os.fstat(one.fd)
