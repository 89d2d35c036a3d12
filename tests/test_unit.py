"""The units: what they say, what systemd says of them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fluxor_fast.arbiter.unit import Place, closed, quoted, unit
from fluxor_fast.config import Settings, load

DEPLOY = Path(__file__).parent.parent / "deploy"
SYSTEMD = DEPLOY / "systemd"
PLACE = Place(
    ["/opt/fluxor-fast/bin/fluxor-fast"],
    Path("/opt/fluxor-fast"),
    Path("/etc/fluxor-fast/environment"),
)
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze (package systemd)"
)


def keys(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def made(
    place: Place = PLACE, arguments: tuple[str, ...] = (), **flags: Any
) -> dict[str, list[str]]:
    given = {name.replace("__", "."): value for name, value in flags.items()}
    return keys(unit(load(environ={}, flags=given), place, arguments))


def analyze(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def exposure(file: Path) -> float:
    said = analyze("security", "--offline=yes", "--no-pager", file)
    match = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert match, said
    return float(match[1])


def test_the_unit_that_is_shipped_is_the_one_that_is_made() -> None:
    comment, _, text = (SYSTEMD / "fluxor-fast.service").read_text().partition("\n")
    assert comment.startswith("# ")
    assert text == unit(Settings(), PLACE)


def verified(folder: Path, service: str) -> str:
    """Have systemd check a service together with the socket and the drop-in that are shipped."""
    for file in SYSTEMD.rglob("*"):
        if file.is_file() and file.suffix in (".socket", ".conf"):
            target = folder / file.relative_to(SYSTEMD)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    (folder / "fluxor-fast.service").write_text(service)
    program = re.search(r"^ExecStart=(\S+)", service, re.MULTILINE)
    assert program
    said = analyze(
        "verify",
        "--recursive-errors=no",
        "--man=no",  # whether its pages are installed here
        folder / "fluxor-fast.service",
        folder / "fluxor-fast.socket",
    )
    return "\n".join(line for line in said.splitlines() if "fluxor-fast" in line)


@needs_systemd
def test_systemd_finds_no_fault_with_what_is_shipped(tmp_path: Path) -> None:
    service = (SYSTEMD / "fluxor-fast.service").read_text()
    program = "/opt/fluxor-fast/bin/fluxor-fast"  # is not on this machine
    assert program in service
    assert verified(tmp_path, service.replace(program, "/bin/true")) == ""


@needs_systemd
def test_systemd_sees_a_fault_where_there_is_one(tmp_path: Path) -> None:
    service = (
        (SYSTEMD / "fluxor-fast.service").read_text().replace("KillMode=mixed", "KillMode=odd")
    )
    with pytest.raises(AssertionError, match="Failed to parse kill mode"):
        verified(tmp_path, service)


@needs_systemd
@pytest.mark.parametrize(("port", "most"), [(8080, 1.5), (80, 2.0)])
def test_little_is_exposed(tmp_path: Path, port: int, most: float) -> None:
    file = tmp_path / "fluxor-fast.service"
    file.write_text(unit(load(environ={}, flags={"server.port": port}), PLACE))
    assert exposure(file) <= most


def test_times_and_limits_are_those_of_the_settings() -> None:
    one = made(server__graceful_timeout=5, server__boot_timeout=3, server__max_connections=20_000)
    assert one["TimeoutStopSec"] == ["15"]
    assert one["TimeoutStartSec"] == ["16"]
    assert one["LimitNOFILE"] == ["20128"]
    assert one["KillMode"] == ["mixed"]
    assert one["OOMPolicy"] == ["continue"]


def test_a_port_below_1024_takes_one_capability_and_no_more() -> None:
    one = made(server__port=443)
    assert one["CapabilityBoundingSet"] == one["AmbientCapabilities"] == ["CAP_NET_BIND_SERVICE"]
    assert "PrivateUsers" not in one
    assert made()["CapabilityBoundingSet"] == [""]
    assert made(server__port=443, server__fd=3)["CapabilityBoundingSet"] == [""]


def test_reloads_are_told_as_the_version_of_systemd_knows_them() -> None:
    old = made()
    assert (old["Type"], old["ExecReload"]) == (["notify"], ["/bin/kill -HUP $MAINPID"])
    new = made(Place(PLACE.program, PLACE.folder, PLACE.environment_file, systemd=253))
    assert new["Type"] == ["notify-reload"]
    assert "ExecReload" not in new


def test_what_is_written_to_is_writable() -> None:
    one = made(
        server__uds="/run/app/http.sock",
        observability__log_file="/var/log/app/log",
        database__embedded="/var/lib/app",
    )
    assert one["RuntimeDirectory"] == one["LogsDirectory"] == one["StateDirectory"] == ["app"]
    assert made(observability__log_file="/srv/log/a")["ReadWritePaths"] == ["/srv/log"]


def test_a_service_may_live_in_a_home_folder() -> None:
    assert made()["ProtectHome"] == ["yes"]
    place = Place(["/home/ada/venv/bin/python"], Path("/srv"), Path("/e"), user="ada", group="ada")
    one = made(place)
    assert one["ProtectHome"] == ["read-only"]
    assert (one["User"], one["Group"]) == (["ada"], ["ada"])
    assert "DynamicUser" not in one


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("app:app", "app:app"),
        ("--name=two words", '"--name=two words"'),
        ("100%", '"100%%"'),
        ("$HOME", '"$$HOME"'),
        ('a"b\\c', '"a\\"b\\\\c"'),
        ("", '""'),
        ("a;b", '"a;b"'),
    ],
)
def test_words_are_quoted(word: str, text: str) -> None:
    assert quoted(word) == text


def cli(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fluxor_fast", "systemd-unit", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_the_command_prints_a_unit_for_this_machine_without_secrets(tmp_path: Path) -> None:
    done = cli(
        "hello:app", "--port=8099", "--adaptive", "--service-name=two words",
        "--database-url=postgresql://a:hunter22@b/c", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "hunter22" not in done.stdout + done.stderr
    assert "left out: put FLUXOR_DATABASE_URL into /etc/fluxor-fast/environment" in done.stderr
    one = keys(done.stdout)
    assert shlex.split(one["ExecStart"][0]) == [
        sys.executable, "-m", "fluxor_fast", "serve", "hello:app", "--port=8099", "--adaptive",
        "--service-name=two words",
    ]  # fmt: skip
    assert one["WorkingDirectory"] == [str(tmp_path)]
    if shutil.which("systemd-analyze"):
        assert verified(tmp_path, done.stdout) == ""


def test_the_example_of_an_environment_file_is_good() -> None:
    lines = (SYSTEMD / "environment.example").read_text().splitlines()
    pairs = [
        line.removeprefix("# ").split("=", 1) for line in lines if re.match(r"(# )?[A-Z_]+=", line)
    ]
    settings = load(environ=dict(pairs))
    assert settings.observability.log_format == "json"
    assert settings.observability.access_log
    assert settings.database.effective_url


def test_each_sysctl_has_a_reason() -> None:
    text = (DEPLOY / "sysctl.d" / "90-fluxor-fast.conf").read_text()
    before = ""
    found = []
    for line in text.splitlines():
        if re.match(r"-?net\.", line):
            assert re.fullmatch(r"-?[\w.]+ = [\d ]+", line), line
            assert before.startswith(("#", "-net.")), line
            found.append(line.split()[0].lstrip("-"))
        before = line
    assert {"net.core.somaxconn", "net.ipv4.ip_local_port_range"} <= set(found)
    assert len(found) == len(set(found))


def test_an_interpreter_behind_a_link_counts_as_where_it_really_is(tmp_path: Path) -> None:
    link = tmp_path / "python"
    link.symlink_to("/home/nobody/bin/python3")
    assert made(Place([str(link)], Path("/opt"), Path("/etc/x")))["ProtectHome"] == ["read-only"]


def test_folders_that_are_closed_to_the_services_own_user_are_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    shut = tmp_path / "shut"
    (shut / "bin").mkdir(parents=True)
    shut.chmod(0o700)
    program = [str(shut / "bin" / "python")]
    place = Place(program, Path("/opt"), Path("/etc/x"))
    assert shut in closed(place)
    assert closed(Place(program, Path("/opt"), Path("/etc/x"), user="me")) == []
    shut.chmod(0o755)
    assert shut not in closed(place)
