"""A new arbiter on the same sockets and in the same memory: how one hands over to the next.

The old arbiter executes Python anew, with the arguments of its own start. The new one finds in
the environment which descriptors are the listeners and the shared memory, starts its workers,
and says ``ready`` through a pipe. Then the old one has its workers drain, and leaves.

Rules:

1. Until the new arbiter says that it is ready, the old one serves as if there were none. If the
   new one leaves, for whatever reason, nothing has happened.
2. Both are in one shared memory, so the limit holds over the workers of both. A version with
   another layout refuses to start: then only a stop and a start helps.
3. The sockets are never closed in between; a Unix socket's file is the new arbiter's from then
   on when it is ready.
4. The indexes of an old arbiter that was killed are freed when their workers have gone.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fluxor_fast.arbiter.shared import SharedMemory, Word
from fluxor_fast.errors import BootError

__all__ = ["VARIABLE", "Inherited", "Successor", "home"]

VARIABLE = "_FLUXOR_UPGRADE"  # not FLUXOR_…: those are settings


@dataclass(frozen=True, slots=True)
class _Message:
    """What the old arbiter tells the new one; numbers are descriptors, but for ``pid``."""

    pid: int
    memory: int
    listeners: list[int]
    report: int
    settings: str
    pid_file: int | None = None
    control: int | None = None

    @property
    def passed(self) -> list[int]:
        """All descriptors."""
        more = [fd for fd in (self.pid_file, self.control) if fd is not None]
        return [self.memory, self.report, *self.listeners, *more]


class Successor:
    """The new arbiter, as the old one sees it. Made by executing it.

    :param settings: those that must stay as they are, as JSON (see ``reload``).
    :param folder: where the new one starts.
    :param environment: variables it has beside those of this process.
    :param pid_file: descriptor of the locked one.
    :param control: descriptor of the control socket.
    :raises OSError: if there can be no further process now.
    """

    def __init__(
        self,
        memory: SharedMemory,
        listeners: Iterable[socket.socket],
        settings: str,
        folder: Path,
        environment: Mapping[str, str],
        pid_file: int | None,
        control: int | None,
    ) -> None:
        self._pipe, report = os.pipe()
        os.set_blocking(self._pipe, False)
        fds = [each.fileno() for each in listeners]
        message = _Message(os.getpid(), memory.fd, fds, report, settings, pid_file, control)
        try:
            self.pid = os.fork()
        except OSError:
            self.close()
            raise
        finally:
            if os.getpid() == message.pid:
                os.close(report)
        if not self.pid:
            _execute(message, folder, environment)
        self.ready = False

    def look(self) -> bool:
        """Return whether the new arbiter has said that it is ready."""
        if not self.ready:
            with suppress(BlockingIOError):
                self.ready = os.read(self._pipe, 16) == b"ready"
        return self.ready

    def left(self) -> int | None:
        """Return the exit code of the new arbiter if it has left, and reap it."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._pipe)


def _execute(message: _Message, folder: Path, more: Mapping[str, str]) -> None:
    try:
        for fd in message.passed:
            os.set_inheritable(fd, True)
        os.chdir(folder)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        environment = {**os.environ, **more, VARIABLE: json.dumps(asdict(message))}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    except OSError as error:
        print(f"fluxor-fast: {sys.executable} cannot be executed: {error}", file=sys.stderr)
    finally:
        os._exit(BootError.exit_code)


class Inherited:
    """What the new arbiter has from the old one.

    :raises BootError: if it cannot be taken over; it says why.
    """

    def __init__(self, message: str) -> None:
        told = _Message(**json.loads(message))
        for fd in told.passed:
            os.set_inheritable(fd, False)
        self.pid = told.pid
        self.settings = told.settings
        self.pid_file = told.pid_file
        self.control = told.control
        self._report = told.report
        try:
            self.memory = SharedMemory.adopt(told.memory)
        except ValueError as error:
            raise BootError(
                f"the shared memory of arbiter {told.pid} cannot be taken over, so the limit would"
                f" not hold: {error}; stop that one and start this"
            ) from error
        self.listeners = [socket.socket(fileno=fd) for fd in told.listeners]

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Inherited | None:
        """Return what there is to take over, if anything, and take it out of the environment.

        :raises BootError: if it cannot be taken over.
        """
        message = environment.pop(VARIABLE, None)
        return None if message is None else cls(message)

    def say_ready(self) -> None:
        """Tell the old arbiter; it may have gone."""
        with suppress(BrokenPipeError):
            os.write(self._report, b"ready")
        os.close(self._report)

    @property
    def gone(self) -> bool:
        """Whether the old arbiter has left."""
        return os.getppid() != self.pid

    def reclaim(self, alive: Callable[[int], bool]) -> bool:
        """Free the indexes of the old arbiter whose workers are dead; return whether all are.

        A number that another process has by now is taken for the worker: that keeps an index
        longer, and never frees one in use.
        """
        owners = self.memory.owners
        left = [index for index, owner in enumerate(owners) if owner == self.pid]
        dead = [index for index in left if not alive(self.memory.region(index)[Word.PID])]
        for index in dead:
            self.memory.fold(index)
        return len(dead) == len(left)


def is_alive(pid: int) -> bool:
    """Return whether there is a process ``pid``; 0 is none."""
    if pid == 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def home() -> Path:
    """Return the current folder by the name it had at the start, if ``PWD`` tells.

    Where that is a symbolic link to the latest release, it leads to another folder by now.
    """
    named = os.environ.get("PWD")
    with suppress(OSError):
        if named is not None and Path(named).samefile("."):
            return Path(named)
    return Path.cwd()
