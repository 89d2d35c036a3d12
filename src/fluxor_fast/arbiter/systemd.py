"""What systemd and this server tell one another: readiness, life, sockets that are open already.

*Notification* (sd_notify(3)): lines of ``NAME=value`` in one datagram to the Unix socket that
``NOTIFY_SOCKET`` names; a name that begins with ``@`` is an abstract one.

*Activation* (sd_listen_fds(3)): ``LISTEN_FDS`` descriptors from 3 on, meant for the process
``LISTEN_PID``, with the names ``LISTEN_FDNAMES``, separated by colons.

Rules:

1. Only the process that was started speaks, and what was meant for it is not passed on: the
   variables are taken out of the environment, and inherited descriptors close at an ``exec``.
2. Telling never fails and never waits: without systemd nothing is sent, and a full or missing
   socket costs a message. The watchdog is fed at half of its time (sd_watchdog_enabled(3)), by the
   arbiter's loop itself: if that hangs, systemd notices.
3. Served are the sockets named ``http`` (``FileDescriptorName=http``); if none is, those with the
   name of the first. So one socket, and several of one unit (IPv4, IPv6, a Unix socket), are served
   without being named. Others are closed, and said so.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass

__all__ = ["FIRST", "Inherited", "Notifier", "inherited", "served"]

log = logging.getLogger("fluxor_fast.arbiter")

FIRST = 3
"""The first inherited descriptor (``SD_LISTEN_FDS_START``)."""
STATUS_SECONDS = 5.0
"""How often a changing status is told."""


class Notifier:
    """Tells systemd how this process is.

    :param address: of the socket, as ``NOTIFY_SOCKET`` has it; None: nobody wants to know.
    :param watchdog: seconds until silence is taken for death; None: nobody watches.
    """

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        self._address = address
        self._socket: socket.socket | None = None
        if address is not None and address[:1] in ("/", "@"):  # vsock: is for virtual machines
            self._socket = socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            )
        self._every = watchdog / 2 if watchdog is not None else float("inf")
        self._fed = self._told = -float("inf")
        self._status = ""

    @classmethod
    def of(cls, environ: MutableMapping[str, str], pid: int) -> Notifier:
        """Take what systemd has set out of the environment of process ``pid``."""
        address = environ.pop("NOTIFY_SOCKET", None)
        usec = environ.pop("WATCHDOG_USEC", "")
        whose = environ.pop("WATCHDOG_PID", "")
        watchdog = None
        if usec.isdecimal() and int(usec) > 0 and whose in ("", str(pid)):
            watchdog = int(usec) / 1e6
        return cls(address, watchdog)

    def environment(self) -> dict[str, str]:
        """Return what a successor of this process needs to speak in its place."""
        found = {} if self._address is None else {"NOTIFY_SOCKET": self._address}
        if self._every < float("inf"):
            found["WATCHDOG_USEC"] = str(round(self._every * 2e6))
        return found

    def succeeded(self, pid: int) -> None:
        """Tell that process ``pid`` is the main one from now on; only who is may say so."""
        self.send(f"MAINPID={pid}")

    def send(self, *lines: str) -> None:
        """Send assignments, without their newlines."""
        if self._socket is None or self._address is None:
            return
        address = self._address
        place = "\0" + address[1:] if address.startswith("@") else address
        with contextlib.suppress(OSError):
            self._socket.sendto("\n".join(lines).encode(), place)

    def ready(self) -> None:
        """Tell that the start, or a reload, is complete."""
        self.send("READY=1")

    def reloading(self, now: Callable[[], int] = time.monotonic_ns) -> None:
        """Tell that a reload has begun; ``ready`` must follow."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={now() // 1000}")

    def stopping(self, status: str = "draining") -> None:
        """Tell that the stop has begun."""
        self._status = status
        self.send("STOPPING=1", f"STATUS={status}")

    def tick(self, now: float, status: Callable[[], str]) -> None:
        """Do what is due; to be called often.

        :param now: monotonic seconds.
        :param status: makes the line that ``systemctl status`` shows.
        """
        if self._socket is None:
            return
        if now - self._fed >= self._every:
            self._fed = now
            self.send("WATCHDOG=1")
        if now - self._told >= STATUS_SECONDS:
            self._told = now
            text = " ".join(status().split())
            if text != self._status:
                self._status = text
                self.send(f"STATUS={text}")


@dataclass(frozen=True)
class Inherited:
    """A descriptor that systemd has passed, and its name."""

    fd: int
    name: str


def inherited(environ: MutableMapping[str, str], pid: int) -> list[Inherited]:
    """Return the descriptors passed to the process ``pid``; the variables are removed.

    They are made to close at an ``exec``. What was meant for another process is left alone.
    """
    whose = environ.pop("LISTEN_PID", "")
    count = environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "")
    environ.pop("LISTEN_PIDFDID", None)
    if whose != str(pid) or not count.isdecimal():
        return []
    called = names.split(":") if names else []
    found = []
    for at in range(int(count)):
        fd = FIRST + at
        try:
            os.set_inheritable(fd, False)
        except OSError:
            log.warning("descriptor %d of the %s that LISTEN_FDS promises is not open", fd, count)
            break
        found.append(Inherited(fd, called[at] if at < len(called) else "unknown"))
    return found


def served(passed: Iterable[Inherited]) -> list[int]:
    """Return the descriptors that are to be served, as rule 3 has it; close the others."""
    passed = list(passed)
    if not passed:
        return []
    name = "http" if any(one.name == "http" for one in passed) else passed[0].name
    for one in passed:
        if one.name != name:
            log.warning("the inherited socket %d (%s) is not served: closed", one.fd, one.name)
            os.close(one.fd)
    return [one.fd for one in passed if one.name == name]
