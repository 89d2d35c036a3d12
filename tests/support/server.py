"""A real server in processes of its own, and a plain blocking client for it."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fluxor_fast.testing.settings import foreign_environment

T = TypeVar("T")

APPS = Path(__file__).parent / "apps"


def eventually(check: Callable[[], T], what: str, seconds: float = 10.0) -> T:
    """Poll until ``check`` returns something true; fail after ``seconds``."""
    until = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.01)


def ended(pid: int) -> bool:
    """Whether the process is gone; one that nobody reaps counts."""
    with suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"
    return True


class Logs(Protocol):
    """A server whose standard error is kept."""

    @property
    def log(self) -> str: ...


def tells(server: Logs, words: str, times: int | None = None, seconds: float = 10.0) -> None:
    """Wait until the log has ``words``; where ``times`` is given, so often and not more.

    What is in the log already is no different: a thread of the server's writes it, a while after
    what it tells of.
    """
    try:
        eventually(lambda: server.log.count(words) >= (times or 1), words, seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{server.log}") from None
    assert times is None or server.log.count(words) == times, server.log


class Answer:
    """Status, header fields (lower-case names) and body."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection, with requests and answers apart."""

    def __init__(self, port: int | str, timeout: float = 10.0) -> None:
        if isinstance(port, str):  # the path of a Unix socket
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(timeout)
            self.socket.connect(port)
        else:
            self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.file = self.socket.makefile("rb")

    def send(self, target: str, method: str = "GET", body: bytes = b"", **headers: str) -> None:
        lines = [f"{method} {target} HTTP/1.1", "Host: test"]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    def read(self) -> Answer:
        """Read one answer; ConnectionError if the server closes instead."""
        status_line = self.file.readline()
        if not status_line:
            raise ConnectionError("closed without an answer")
        headers: dict[str, str] = {}
        while (line := self.file.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        body = self.file.read(int(headers.get("content-length", 0)))
        return Answer(int(status_line.split()[1]), headers, body)

    def request(self, target: str, method: str = "GET", body: bytes = b"", **h: str) -> Answer:
        self.send(target, method, body, **h)
        return self.read()

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def get(port: int | str, target: str, **headers: str) -> Answer:
    """Make one request on a connection of its own."""
    with Client(port) as client:
        return client.request(target, **headers)


class LiveServer:
    """``fluxor-fast serve`` in a process of its own, on a free port."""

    def __init__(
        self,
        app: str,
        *flags: str,
        env: Mapping[str, str] | None = None,
        cwd: Path = APPS,
        wait: bool = True,
        most_files: int | None = None,
        pass_fds: tuple[int, ...] = (),
        before: Callable[[], None] | None = None,
    ) -> None:
        """Start it; ``before`` is called in the new process."""
        arguments = [app] if app else []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fluxor_fast", "serve", *arguments, "--port", "0", *flags],
            cwd=cwd,
            env={**foreign_environment(), **(env or {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=pass_fds,
            preexec_fn=partial(resource.setrlimit, resource.RLIMIT_NOFILE, (most_files, most_files))
            if most_files
            else before,
        )
        self.arbiter = self.process.pid
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()
        self.port = 0
        if wait:
            try:
                self.port = eventually(self._announced, "announced", 30)
            except BaseException:
                self._end()
                print(self.log)
                raise

    def _drain(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.decode())

    def _announced(self) -> int:
        if self.process.poll() is not None:
            self._reader.join(5)
            raise AssertionError(f"left with {self.process.returncode}\n{self.log}")
        found = re.search(r"on https?://[^ ]*:(\d+)\n", self.log)
        return int(found[1]) if found else 0

    @property
    def log(self) -> str:
        """What the server wrote to standard error so far."""
        return "".join(self.lines)

    @property
    def workers(self) -> list[int]:
        """Process ids of the workers."""
        pid = self.arbiter
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 15.0) -> int:
        """Wait for the end and return the exit code."""
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code

    def follow(self, arbiter: int) -> None:
        """Go on with the arbiter that has taken over in an upgrade."""
        if self.arbiter == self.process.pid:
            self.process.wait(10)  # else it would stay as a zombie
        self.arbiter = arbiter

    def __enter__(self) -> LiveServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if self.arbiter != self.process.pid:
            with suppress(ProcessLookupError):
                os.kill(self.arbiter, signal.SIGTERM)
                eventually(lambda: ended(self.arbiter), f"{self.arbiter} has left", 15)
        elif self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                for pid in [*self.workers, self.process.pid]:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self.process.wait(5)
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()
