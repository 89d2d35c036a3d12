"""``fluxor-fast serve`` in processes of its own, for tests that want the real thing.

Rules:

1. The server is ready when it says where it listens: then all workers are. One that leaves before,
   or is not ready in time, fails the test with what it wrote.
2. As with the clients, settings are those given and the defaults: the variables of this server are
   taken out of its environment. Everything else is passed on, ``sys.path`` too.
3. It is ended by its pid, within a time; after that its whole session is killed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import httpx

from fluxor_fast.config import knobs
from fluxor_fast.testing.settings import completed, foreign_environment, settings_of

__all__ = ["LiveServer"]

BOOT_SECONDS: Final = 30.0
STOP_SECONDS: Final = 5.0
"""Beyond what its settings allow for a stop."""
_ANNOUNCED = re.compile(r" serves \S+ on (?:(https?://\S+)|unix:(\S+))\n")


class LiveServer:
    """A running server: ``with LiveServer("main:app", workers=2) as server: server.url``.

    :param app: the name of an application as ``module:attribute``, or an application that is an
        attribute of an imported module.
    :param workers: processes that serve.
    :param uds: have it listen on a Unix socket, ``server.uds``, instead of a free port.
    :param settings: by path, ``{"server.max_ccu": 10}``; the others have their defaults.
    :param env: more for its environment.
    :param cwd: the folder in which it is started; this process's.
    :raises ConfigError: for wrong settings.
    :raises AssertionError: if it does not start when it is entered, or stop when it is left.
    """

    url: str
    """Where it listens; through a Unix socket this is what ``client`` asks."""
    uds: Path | None = None

    def __init__(
        self,
        app: Any,
        *,
        workers: int = 1,
        uds: bool = False,
        settings: Mapping[str, object] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> None:
        self._name = app if isinstance(app, str) else _name_of(app)
        given = {"server.workers": workers, **completed(settings)}
        server = settings_of(given).server
        self._patience = server.drain_delay + server.graceful_timeout + STOP_SECONDS
        self._env = _environment(given) | dict(env or {})
        self._in_folder = uds
        self._last: str | None = None  # what it has written in all
        self._cwd = cwd

    def __enter__(self) -> LiveServer:
        """Start it, and wait until it is ready."""
        self._folder = tempfile.TemporaryDirectory(prefix="fluxor-fast-")
        place = ["--port", "0"]
        if self._in_folder:
            place = ["--uds", str(Path(self._folder.name) / "http.sock")]
        self._log = Path(self._folder.name) / "output"
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fluxor_fast", "serve", self._name, *place],
                cwd=self._cwd,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self._end()
            raise
        return self

    def _wait(self) -> None:
        until = time.monotonic() + BOOT_SECONDS
        while (found := _ANNOUNCED.search(self.output)) is None:
            code = self.process.poll()
            if code is not None:
                raise AssertionError(f"the server left with code {code}:\n{self.output}")
            if time.monotonic() > until:
                raise AssertionError(
                    f"the server is not ready after {BOOT_SECONDS:g} s:\n{self.output}"
                )
            time.sleep(0.01)
        self.url = found[1] or "http://localhost"
        self.uds = Path(found[2]) if found[2] else None

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace") if self._last is None else self._last

    def client(self, **options: Any) -> httpx.Client:
        """Return a client of the server.

        :param options: of ``httpx.Client``.
        """
        if self.uds is not None:
            options = {"transport": httpx.HTTPTransport(uds=str(self.uds)), **options}
        return httpx.Client(**{"base_url": self.url, "trust_env": False, **options})

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it; what it has written is shown if the test has failed.

        :raises AssertionError: if it does not stop.
        """
        stopped = self._end()
        if error is not None:
            error.add_note(f"the server wrote:\n{self.output}")
        elif not stopped:
            raise AssertionError(
                f"the server did not stop within {self._patience:g} s, and was killed:\n"
                f"{self.output}"
            )

    def _end(self) -> bool:
        """End it; return whether it has ended by itself."""
        try:
            self.process.terminate()
            self.process.wait(self._patience)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)  # it lives, so the number is its own
            self.process.wait()
            return False
        finally:
            self._last = self.output
            self._folder.cleanup()
        return True


def _environment(settings: Mapping[str, object]) -> dict[str, str]:
    table = {knob.path: knob for knob in knobs()}
    env = foreign_environment()
    env["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)  # noqa: PTH109
    for path, value in settings.items():
        if value is not None:
            several = value if isinstance(value, list | tuple) else (value,)
            env[table[path].env] = ",".join(map(str, several))
    return env


def _name_of(app: object) -> str:
    """Return ``module:attribute`` of an application, as it was imported here."""
    for name, module in list(sys.modules.items()):
        if name == "__main__":
            continue  # there it would be another module
        for attribute, value in list(getattr(module, "__dict__", {}).items()):
            if value is app:
                return f"{name}:{attribute}"
    raise ValueError(
        f"a server of its own imports the application: {app!r} must be an attribute of a module"
        " that can be imported, or be named module:attribute"
    )
