"""systemd as PID 1 of namespaces of its own, with units of the test's own and no others.

It shares the file system and the network with the test, but neither processes nor mounts; its
control groups are below one that is made for it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.server import eventually

INIT = Path("/lib/systemd/systemd")
GROUPS = Path("/sys/fs/cgroup")
TARGETS = "sysinit basic sockets network-online shutdown umount final multi-user"
SCRIPT = """
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /sys/fs/cgroup
if [ "$HYBRID" ]; then
  mkdir /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
  mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
  mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
else
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
exec /lib/systemd/systemd --system --unit=multi-user.target --show-status=no
"""


class NoSystemd(Exception):
    """It cannot be run here, and why."""


class Booted:
    """A running systemd.

    :param pid: of PID 1, as seen from here.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __call__(self, *command: str, check: bool = True) -> str:
        """Run ``command`` inside and return what it wrote."""
        done = subprocess.run(
            ["nsenter", f"--target={self.pid}", "-m", "-p", "-u", "-i", "-C", *command],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self("systemctl", "show", unit, "--value", "-p", name).strip()


@contextmanager
def booted(units: Path, log: Path) -> Iterator[Booted]:
    """Boot with the units in a folder; ``NoSystemd`` where that is not possible.

    :param log: file for what systemd says.
    """
    tools = [name for name in ("unshare", "nsenter", "systemctl") if shutil.which(name) is None]
    if os.geteuid() or not INIT.exists() or tools:
        raise NoSystemd("it takes root, systemd and util-linux")
    for name in TARGETS.split():
        (units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    hybrid = (GROUPS / "systemd").is_dir()
    above = [GROUPS / "systemd", GROUPS / "unified"] if hybrid else [GROUPS]
    groups = [folder / f"fluxor-fast-test-{os.getpid()}" for folder in above]
    try:
        for group in groups:
            group.mkdir()
    except OSError as error:
        raise NoSystemd(f"no control group can be made: {error}") from None

    def join() -> None:
        for group in groups:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    namespaces = ["--pid", "--mount", "--cgroup", "--uts", "--ipc", "--mount-proc"]
    with log.open("wb") as output:
        outer = subprocess.Popen(
            ["unshare", "--fork", "--kill-child", *namespaces, "sh", "-ec", SCRIPT],
            env={
                "PATH": os.environ["PATH"],
                "HYBRID": "1" if hybrid else "",
                "container": "other",
                "SYSTEMD_UNIT_PATH": str(units),
                "SYSTEMD_LOG_TARGET": "console",
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=join,
        )
    try:
        yield Booted(_up(outer, log))
    finally:
        outer.send_signal(signal.SIGKILL)  # and with it all that is inside
        outer.wait(10)
        for group in groups:
            eventually(lambda group=group: _removed(group), f"{group} is empty")  # type: ignore[misc]


def _up(outer: subprocess.Popen[bytes], log: Path) -> int:
    def running() -> int:
        if outer.poll() is not None:
            raise NoSystemd(f"it does not boot: {log.read_text()}")
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        with suppress(AssertionError):
            if children and Booted(int(children[0]))("systemctl", "is-system-running") != "":
                return int(children[0])
        return 0

    return eventually(running, "systemd has booted", 15)


def _removed(group: Path) -> bool:
    for below in sorted(group.rglob("*/"), reverse=True):
        with suppress(OSError):
            below.rmdir()
    with suppress(OSError):
        group.rmdir()
    return not group.exists()
