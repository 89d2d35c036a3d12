"""The live server for tests: the real command, ready when entered, gone when left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fluxor_fast import App
from fluxor_fast.errors import ConfigError
from fluxor_fast.testing import LiveServer
from tests.support.apps import tested
from tests.support.server import APPS, ended, eventually


def test_it_serves_with_as_many_workers_as_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXOR_MAX_CCU", "7")  # of the machine: it must not count
    settings = {"server.max_ccu": 500, "auth.jwt_secret": "a secret of 32 bytes, for the tests"}
    env = {"MARK": "of the test"}
    server = LiveServer("tested:app", workers=2, settings=settings, env=env, cwd=APPS)
    pids = set()
    with server:
        assert server.url.startswith("http://127.0.0.1:")

        def both() -> bool:
            with server.client() as client:
                seen = client.get("/").json()
            pids.add(seen.pop("pid"))
            assert seen == {
                "client": "127.0.0.1",
                "most": 500,
                "secret": True,
                "mark": "of the test",
            }
            return len(pids) == 2

        eventually(both, "both workers answer")
        with server.client(headers={"X-A": "b"}) as client:
            client.get("/print")
        eventually(lambda: "said by a handler" in server.output, "its output is there")
    assert all(ended(pid) for pid in (server.process.pid, *pids))


def test_an_application_that_is_there_already_is_found_by_its_module() -> None:
    with LiveServer(tested.app) as server, server.client() as client:
        assert client.get("/").status_code == 200


def test_it_listens_on_a_unix_socket() -> None:
    with LiveServer("tested:app", uds=True, cwd=APPS) as server, server.client() as client:
        assert server.uds is not None and server.uds.is_socket()
        assert client.get("/").json()["client"] == "unix"
    assert not server.uds.parent.exists()


def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(AssertionError, match=r"left with code 4:(.|\n)*no_such_module"):
        LiveServer("no_such_module:app").__enter__()


def test_what_the_server_wrote_is_shown_when_the_test_fails() -> None:
    with (
        pytest.raises(ZeroDivisionError) as caught,
        LiveServer("tested:app", cwd=APPS) as server,
        server.client() as client,
    ):
        client.get("/print")
        eventually(lambda: "said by a handler" in server.output, "it is written")
        raise ZeroDivisionError
    assert "said by a handler" in "".join(caught.value.__notes__)


def test_a_server_that_does_not_stop_is_killed_and_fails_the_test(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("fluxor_fast.testing.live.STOP_SECONDS", 0.1)
    (tmp_path / "stubborn.py").write_text(
        "import asyncio\nfrom fluxor_fast import App\napp = App()\n"
        "@app.on_shutdown\nasync def stop() -> None:\n    await asyncio.sleep(60)\n"
    )
    server = LiveServer("stubborn:app", settings={"server.graceful_timeout": 0.1}, cwd=tmp_path)
    with pytest.raises(AssertionError, match=r"did not stop within 0\.2 s"), server:
        pid = server.process.pid
        worker = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
    eventually(lambda: ended(worker), "its worker is gone too")
    assert ended(pid)
    assert "stubborn:app" in server.output


def test_an_application_that_nothing_names_cannot_be_served() -> None:
    with pytest.raises(ValueError, match="must be an attribute of a module"):
        LiveServer(App())


def test_wrong_settings_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match="no such setting"):
        LiveServer("tested:app", settings={"server.max_cuc": 1})


def test_variables_of_the_server_do_not_leak_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1")
    monkeypatch.setenv("JWT_SECRET", "x")
    with LiveServer("tested:app", cwd=APPS) as server, server.client() as client:
        assert client.get("/").json()["secret"] is False
        assert ":1/" not in server.url
    assert os.environ["PORT"] == "1"
