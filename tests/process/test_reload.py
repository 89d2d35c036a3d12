"""SIGHUP: new settings and a new application, one worker at a time, and nobody notices."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.server import Client, LiveServer, eventually, get

APP = """
from fluxor_fast import App

app = App()


@app.get("/")
def home(request):
    return {{"version": {version}, "max_ccu": request.app.settings.server.max_ccu}}
"""


def write(folder: Path, version: int | str) -> None:
    """Write a version of the application; of another size, or Python takes the compiled one."""
    (folder / "site_app.py").write_text(APP.format(version=version) + "#" * int(time.time() % 997))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "site_app.py").write_text(APP.format(version=1))
    (tmp_path / "site.yaml").write_text("server: {max_ccu: 100}\n")
    return tmp_path


@contextmanager
def serving(folder: Path, *flags: str, app: str = "site_app:app") -> Iterator[LiveServer]:
    flags = ("--config=site.yaml", "--graceful-timeout=4", *flags)
    with LiveServer(app, *flags, cwd=folder, env={"PYTHONDONTWRITEBYTECODE": "1"}) as server:
        yield server


def reloaded(server: LiveServer, times: int = 1) -> None:
    eventually(lambda: server.log.count("reload: done") == times, f"reloaded\n{server.log}")


class Steady:
    """Clients with connections of their own that ask again and again; it counts what fails.

    A request fails if it was sent on an open connection that then closes without an answer, or if
    its answer is a 5xx. After ``Connection: close`` a client makes a new connection.
    """

    def __init__(self, port: int, clients: int, pause: float = 0.0) -> None:
        self.answered = self.connections = 0
        self.failures: list[str] = []
        self._port, self._pause = port, pause
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Steady:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with Client(self._port) as client:
                    self.connections += 1
                    while not self._stop.is_set():
                        answer = client.request("/")
                        self.answered += 1
                        if answer.status >= 500:
                            self.failures.append(str(answer.status))
                        if answer.headers.get("connection") == "close":
                            break
                        time.sleep(self._pause)
            except OSError as error:
                self.failures.append(repr(error))
                time.sleep(0.01)


def test_a_reload_takes_the_new_application_and_settings_and_no_request_fails(
    folder: Path,
) -> None:
    with serving(folder, "--workers=2") as server:
        old = server.workers
        with Steady(server.port, 6, pause=0.002) as clients:
            write(folder, 2)
            (folder / "site.yaml").write_text("server: {max_ccu: 200}\n")
            server.signal(signal.SIGHUP)
            reloaded(server)
            for _ in range(10):
                assert get(server.port, "/").json == {"version": 2, "max_ccu": 200}
            eventually(lambda: not set(old) & set(server.workers), "the old ones have left")
            assert len(server.workers) == 2
        assert clients.failures == []
        assert clients.answered > 100
