"""``fluxor-fast ctl`` against a real instance: what it says, does, refuses, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fluxor_fast.ctl import ctl
from fluxor_fast.errors import FluxorError
from tests.process.test_reload import PATIENT
from tests.support.server import Client, LiveServer, ended, eventually, get, tells
from tests.support.steady import Steady

SITE = """
import logging

from fluxor_fast import App

app = App()


@app.get("/")
def home(request):
    return {{"version": {version}}}


@app.get("/say")
def say(request):
    logging.getLogger("site").debug("said at debug")
    return {{}}
"""


class Instance(LiveServer):
    """A server with a control socket, and ``ctl`` for it."""

    socket: Path

    def ctl(self, *arguments: str) -> Result:
        """Run the command in this process: a new one takes longer than all it does."""
        return CliRunner().invoke(ctl, [*arguments, "--control", str(self.socket)])

    def done(self, *arguments: str) -> str:
        result = self.ctl(*arguments)
        assert code(result) == 0, (result.output, result.exception, self.log)
        return result.output

    def failed(self, *arguments: str, exit_code: int = 1) -> str:
        result = self.ctl(*arguments)
        assert code(result) == exit_code, (result.output, result.exception, self.log)
        return result.output + str(result.exception)

    @property
    def status(self) -> Any:
        return json.loads(self.done("status", "--json"))


def code(result: Result) -> int:
    """Return the exit code that ``fluxor-fast`` makes of it."""
    if isinstance(result.exception, FluxorError):
        return result.exception.exit_code
    return result.exit_code


@contextmanager
def serving(folder: Path, *flags: str, app: str = "site_app:app") -> Iterator[Instance]:
    (folder / "site_app.py").write_text(SITE.format(version=1))
    how = {} if app != "site_app:app" else {"cwd": folder}
    flags = (f"--control={folder}/ctl.sock", "--graceful-timeout=3", *PATIENT, *flags)
    env = {"PYTHONDONTWRITEBYTECODE": "1"}
    with Instance(app, *flags, env=env, **how) as server:  # type: ignore[arg-type]
        server.socket = folder / "ctl.sock"
        yield server


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """An instance with two workers, for what changes nothing for good."""
    with serving(tmp_path_factory.mktemp("pair"), "--workers=2") as server:
        yield server


def test_status_shows_the_instance_and_its_workers(pair: Instance) -> None:
    with Client(pair.port) as client:
        for _ in range(5):
            client.request("/")
        status = pair.status
        assert status["state"] == "serving"
        assert status["pid"] == pair.process.pid
        assert status["listeners"] == [f"127.0.0.1:{pair.port}"]
        assert status["limits"]["max_ccu"] == 5000
        assert status["roll"] is status["upgrade"] is status["predecessor"] is None
        assert sorted(w["pid"] for w in status["workers"]) == sorted(pair.workers)
        assert {w["state"] for w in status["workers"]} == {"ready"}
        assert sum(w["connections"] for w in status["workers"]) == 1
        assert sum(w["completed"] for w in status["workers"]) >= 5
        assert all(w["rss"] > 1 << 20 and w["permits"] == 0 for w in status["workers"])
        assert status["totals"]["offered"] >= status["totals"]["completed"] >= 5
    text = pair.done("status")
    assert f"arbiter {pair.process.pid}" in text
    assert all(str(pid) in text for pid in pair.workers)


def test_the_stacks_of_all_workers_are_shown(pair: Instance) -> None:
    text = pair.done("dump-stacks")
    assert text.count("most recent call first") >= 2
    assert all(f"(pid {pid})" in text for pid in pair.workers)
    assert "worker.py" in text


def test_a_stopped_worker_is_named_and_holds_up_nobody(pair: Instance) -> None:
    stopped = pair.workers[0]
    os.kill(stopped, signal.SIGSTOP)
    try:
        answer = json.loads(pair.done("dump-stacks", "--json"))
        by_pid = {each["pid"]: each for each in answer["workers"]}
        assert by_pid[stopped]["problem"] == "it has not answered"
        assert "stacks" in by_pid[pair.workers[1]]
    finally:
        os.kill(stopped, signal.SIGCONT)


def test_the_log_level_changes_in_arbiter_and_workers_and_back(pair: Instance) -> None:
    def heard() -> bool:
        """Whether a worker logs at debug now."""
        before = pair.log.count("said at debug")
        get(pair.port, "/say")
        time.sleep(0.05)  # there is nothing to be polled where nothing is to come
        return pair.log.count("said at debug") > before

    assert not heard()
    pair.done("loglevel", "debug")
    assert pair.status["log_level"] == "debug"
    eventually(lambda: all(heard() for _ in range(6)), "all workers follow")
    pair.done("loglevel", "error")
    # that command is the last of the two that are told
    tells(pair, "control: loglevel", 2)
    pair.done("loglevel", "reset")
    assert pair.log.count("control: loglevel") == 2  # the arbiter follows
    assert pair.status["log_level"] == "info"
    eventually(lambda: not any(heard() for _ in range(6)), "all workers follow")
    assert "one of debug, info" in pair.failed("loglevel", "loud")


def test_what_cannot_be_is_refused_with_the_reason(pair: Instance) -> None:
    assert "1 to 4 workers" in pair.failed("scale", "5")
    assert json.loads(pair.ctl("scale", "0", "--json").output)["code"] == "OUT_OF_RANGE"
    pair.failed("scale", "many", exit_code=2)


def test_no_instance_is_exit_code_5(tmp_path: Path) -> None:
    result = CliRunner().invoke(ctl, ["status", "--control", str(tmp_path / "none")])
    assert code(result) == 5
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    result = CliRunner().invoke(ctl, ["status", "--json", "--control", str(tmp_path / "dead")])
    assert code(result) == 5
    assert json.loads(result.output)["code"] == "NO_INSTANCE"


def test_which_instance_must_be_said() -> None:
    assert CliRunner().invoke(ctl, ["status"], env={"FLUXOR_CONTROL": None}).exit_code == 2


def test_scaling_waits_until_it_is_done_and_no_request_fails(pair: Instance) -> None:
    with Steady(pair.port, 4, pause=0.002) as kept:
        for workers in (3, 1, 1, 2):
            assert f"{workers} workers serve" in pair.done("scale", str(workers))
            status = pair.status
            ready = [w for w in status["workers"] if w["state"] == "ready"]
            assert len(ready) == status["seats"] == workers
    assert kept.failures == []
    assert kept.answered > 20


def test_a_reload_waits_and_a_broken_one_fails(pair: Instance) -> None:
    site = pair.socket.parent / "site_app.py"
    site.write_text(SITE.format(version=2))
    assert "done: 2 workers serve" in pair.done("reload")
    assert {get(pair.port, "/").json["version"] for _ in range(6)} == {2}
    site.write_text("raise RuntimeError('broken on purpose')")
    assert "2 workers stay as they are" in pair.failed("reload")
    assert {get(pair.port, "/").json["version"] for _ in range(6)} == {2}
    site.write_text(SITE.format(version=3))
    assert "asked for" in pair.done("reload", "--no-wait")
    eventually(lambda: get(pair.port, "/").json["version"] == 3, "the new version")


def test_a_drain_answers_what_is_in_the_system_and_waits_until_it_has_left(tmp_path: Path) -> None:
    """Of an instance whose socket file was left over by one that was killed."""
    with serving(tmp_path, "--workers=1") as server:
        workers = server.workers
        server.signal(signal.SIGKILL)
        server.wait()
        eventually(lambda: all(ended(pid) for pid in workers), "its workers have left")
        server.failed("status", exit_code=5)
    with serving(tmp_path, "--workers=1", app="held:app") as server, Client(server.port) as client:
        client.send("/hold?1.5")
        eventually(lambda: server.status["totals"]["ccu"] == 1, "it is held")
        assert "has left" in server.done("drain")
        assert client.read().status == 200
        assert server.wait() == 0
        assert not server.socket.exists()


def test_an_upgrade_takes_the_control_socket_along_and_a_stop_waits_for_nothing(
    tmp_path: Path,
) -> None:
    with serving(tmp_path, "--workers=1", app="held:app") as server:
        old = server.process.pid
        server.done("loglevel", "warning")
        assert "the old one drains" in server.done("upgrade")
        assert server.process.wait(10) == 0
        status = server.status
        try:
            assert status["pid"] != old
            assert status["log_level"] == "warning"
            server.done("scale", "2")
            with Client(server.port) as client:
                client.send("/hold")
                eventually(lambda: server.status["totals"]["ccu"] == 1, "it is held")
                begun = time.monotonic()
                server.ctl("stop")
                assert time.monotonic() - begun < 2.5
            assert not server.socket.exists()
        finally:
            with suppress(ProcessLookupError):
                os.kill(status["pid"], signal.SIGTERM)
            eventually(lambda: ended(status["pid"]), "it has left")


def test_the_command_line_has_it(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "fluxor_fast", "ctl", "status", "--control", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert run.returncode == 5
    assert run.stderr.startswith("fluxor-fast: no instance at")
