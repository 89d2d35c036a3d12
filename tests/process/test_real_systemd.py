"""The printed unit under a real systemd that is PID 1, with all its hardening."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.booted import Booted, NoSystemd, booted
from tests.support.server import APPS, Client, eventually, get

ROOT = Path(__file__).parents[2]


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def system(tmp_path: Path, port: int) -> Iterator[Booted]:
    """A system with ``fx.service``, and with ``fx.socket`` for the same port."""
    units = tmp_path / "units"
    (units / "fx.service.d").mkdir(parents=True)
    flags = ("--workers=2", f"--port={port}", "--graceful-timeout=2")
    printed = subprocess.run(
        [sys.executable, "-m", "fluxor_fast", "systemd-unit", "sick:app", *flags],
        cwd=APPS,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (units / "fx.service").write_text(printed)
    # an interpreter in a home folder is closed to the service's user, who is no one of ours
    folders = f"{ROOT} {sys.prefix} {sys.base_prefix} {os.path.realpath(sys.executable)}"
    (units / "fx.service.d" / "here.conf").write_text(
        f"[Service]\nProtectHome=tmpfs\nBindReadOnlyPaths={folders}\nWatchdogSec=5\n"
        "Environment=PYTHONDONTWRITEBYTECODE=1\n"
    )
    (units / "fx.socket").write_text(f"[Socket]\nListenStream=127.0.0.1:{port}\n")
    try:
        with booted(units, tmp_path / "log") as running:
            yield running
    except NoSystemd as reason:
        pytest.skip(str(reason))


def arbiter(system: Booted) -> int:
    return int(system.show("fx.service", "MainPID"))


def test_systemd_starts_reloads_watches_and_stops_it(system: Booted, port: int) -> None:
    system("systemctl", "start", "fx.service")
    assert get(port, "/who").status == 200  # started means ready
    assert system.show("fx.service", "ActiveState") == "active"
    eventually(
        lambda: system.show("fx.service", "StatusText").startswith("ok: 2 of 2 workers serve"),
        "both serve",
    )

    before = {get(port, "/who").json["pid"] for _ in range(20)}
    system("systemctl", "reload", "fx.service")
    eventually(lambda: get(port, "/who").json["pid"] not in before, "its workers are new")
    assert system.show("fx.service", "NRestarts") == "0"

    first = arbiter(system)
    system("kill", "-STOP", str(first))  # its loop stands still: the watchdog's business
    eventually(lambda: system.show("fx.service", "NRestarts") == "1", "restarted", 20)
    eventually(lambda: arbiter(system) not in (0, first), "another arbiter")
    eventually(lambda: system.show("fx.service", "ActiveState") == "active", "it is ready")
    assert get(port, "/who").status == 200

    system("systemctl", "stop", "fx.service")
    assert system.show("fx.service", "Result") == "success"
    assert system.show("fx.service", "ActiveState") == "inactive"
    with pytest.raises(ConnectionRefusedError):
        get(port, "/who")


def test_a_connection_starts_it_by_its_socket_and_none_is_refused_in_a_restart(
    system: Booted, port: int
) -> None:
    system("systemctl", "start", "fx.socket")
    assert system.show("fx.service", "ActiveState") == "inactive"
    assert get(port, "/who").status == 200
    first = arbiter(system)
    with Client(port) as waiting:
        system("systemctl", "restart", "--no-block", "fx.service")
        eventually(lambda: arbiter(system) not in (0, first), "another arbiter", 20)
        assert get(port, "/who").status == 200
        waiting.close()


def test_bad_settings_are_not_tried_again(system: Booted, tmp_path: Path, port: int) -> None:
    bad = tmp_path / "units" / "fx.service.d" / "zz.conf"
    bad.write_text("[Service]\nEnvironment=FLUXOR_MAX_CCU=none\n")
    system("systemctl", "daemon-reload")
    system("systemctl", "start", "fx.service", check=False)
    assert system.show("fx.service", "Result") == "exit-code"
    assert system.show("fx.service", "ExecMainStatus") == "2"
    assert system.show("fx.service", "NRestarts") == "0"


def test_who_is_killed_is_started_again(system: Booted, port: int) -> None:
    system("systemctl", "start", "fx.service")
    system("systemctl", "kill", "--kill-whom=main", "-s", signal.SIGKILL.name, "fx.service")
    eventually(lambda: system.show("fx.service", "NRestarts") == "1", "restarted", 20)
    eventually(lambda: system.show("fx.service", "ActiveState") == "active", "it is ready")
    assert get(port, "/who").status == 200
