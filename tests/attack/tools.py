"""Other people's tools: slowhttptest, which is slow, and h2load, which is not."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Final

PACKAGES: Final = {"slowhttptest": "slowhttptest", "h2load": "nghttp2-client"}
"""Programs, and the Debian packages that have them."""
NO_SUCH: Final = "{}: not installed (Debian: {}; bench/install-debian.sh installs all that is used)"

_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_COUNT: Final = re.compile(r"^(pending|connected|error|closed): +(\d+)", re.MULTILINE)
_EXIT: Final = re.compile(r"Exit status: (.*)")
_DONE: Final = re.compile(
    r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout.*"
    r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx",
    re.DOTALL,
)


def missing() -> list[str]:
    """Return a line for each tool that is not here."""
    return [
        NO_SUCH.format(program, package)
        for program, package in PACKAGES.items()
        if shutil.which(program) is None
    ]


class Tool:
    """A program that runs beside others; it is ended with the block that it was started for."""

    def __init__(self, command: Sequence[str], output: IO[bytes]) -> None:
        self._output = output
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        """Return all it has printed, without colours."""
        self._output.seek(0)
        return _COLOURS.sub("", self._output.read().decode(errors="replace"))


@contextmanager
def running(command: Sequence[str]) -> Iterator[Tool]:
    """Run ``command`` beside the block."""
    with TemporaryFile() as output:
        tool = Tool(command, output)
        try:
            yield tool
        finally:
            if tool.running:
                tool.process.kill()
            tool.process.wait()


def slowhttptest(port: int, path: str, connections: int, seconds: int, *mode: str) -> list[str]:
    """Return the command that opens ``connections`` as fast as it can, and keeps them.

    It ends by itself when none is left, or after ``seconds``.
    """
    return [
        "slowhttptest", *mode, "-c", str(connections), "-r", str(connections),
        "-l", str(seconds), "-p", "5", "-u", f"http://127.0.0.1:{port}{path}",
    ]  # fmt: skip


@dataclass(frozen=True)
class SlowSaid:
    """What slowhttptest says at its end."""

    error: int
    """Connections that could not be made, or broke."""
    ended: str
    """Why it ended."""


def read_slowhttptest(text: str) -> SlowSaid:
    """Read its last words."""
    counts = dict(_COUNT.findall(text))  # of the last status, as later ones replace earlier ones
    ended = _EXIT.findall(text)
    return SlowSaid(int(counts.get("error", 0)), ended[-1].strip() if ended else "")


def h2load(port: int, path: str, clients: int, rate: int, seconds: int) -> list[str]:
    """Return the command that sends ``rate`` requests a second on kept connections."""
    return [
        "h2load", "--h1", "-t", "1", "-c", str(clients), "--rps", str(rate / clients),
        "-D", str(seconds), f"http://127.0.0.1:{port}{path}",
    ]  # fmt: skip


@dataclass(frozen=True)
class LoadSaid:
    """What h2load says at its end."""

    good: int
    """Answers of 2xx."""
    refused: int
    """Answers of 5xx."""
    lost: int
    """Requests without an answer."""


def read_h2load(text: str) -> LoadSaid:
    """Read its last words.

    :raises ValueError: if there are none.
    """
    found = _DONE.search(text)
    if found is None:
        raise ValueError(f"h2load said nothing: {text.strip()[-300:]}")
    _, _, errored, timeout, good, _, _, refused = map(int, found.groups())
    return LoadSaid(good, refused, errored + timeout)
