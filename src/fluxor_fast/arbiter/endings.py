"""Why a process is gone, in words, from its exit status and what the kernel counts.

The kernel tells nobody that it has killed for lack of memory: the victim gets SIGKILL, as from
anybody. It counts these, in the control group or for the machine; a count that went up since the
last look is the best hint there is.
"""

from __future__ import annotations

import signal
from pathlib import Path

from fluxor_fast.arbiter.cgroup import own_groups
from fluxor_fast.errors import AppImportError, BootError, ConfigError

__all__ = ["OutOfMemoryKills", "ending"]

_CODES = {
    0: "left by itself",
    1: "failed with an error that is not ours",
    ConfigError.exit_code: "cannot use its settings",
    BootError.exit_code: "could not start",
    AppImportError.exit_code: "could not import the application",
}
_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT)


def ending(code: int, *, out_of_memory: bool = False) -> str:
    """Return what to say of a process that nobody here has ended.

    :param code: as of ``os.waitstatus_to_exitcode``: negative for a signal.
    :param out_of_memory: the kernel has lately killed for lack of memory.
    """
    if code >= 0:
        return f"{_CODES.get(code, 'left')} (code {code})"
    if code == -signal.SIGKILL:
        if out_of_memory:
            return "was ended by SIGKILL, by the kernel for lack of memory as it seems"
        return "was ended by SIGKILL from outside"
    try:
        number = signal.Signals(-code)
    except ValueError:  # most real-time signals have no name
        return f"was ended by signal {-code}"
    return f"{'crashed: ' if number in _FAULTS else 'was ended by '}{number.name}"


class OutOfMemoryKills:
    """Counts what the kernel has killed for lack of memory, as near to us as it can be had.

    :param root: of the file system; another one in tests.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        groups = own_groups(root, "memory")
        self._files = [
            *(
                one.folder / ("memory.events" if one.unified else "memory.oom_control")
                for one in groups
            ),
            root / "proc/vmstat",
        ]
        self._before = self._count()

    def rose(self) -> bool:
        """Return whether the count went up since the last call."""
        before, self._before = self._before, self._count()
        return self._before > before

    def _count(self) -> int:
        for file in self._files:
            try:
                pairs = [line.split() for line in file.read_text().splitlines()]
            except OSError:
                continue
            for pair in pairs:
                if pair[0] == "oom_kill":
                    return int(pair[1])
        return 0
