"""Whether it helps to pin workers to cores, and to steer connections to the core they came in on.

Four servers, two workers each, in turns, wrk with two threads on the same cores:

* ``free``      nothing is pinned;
* ``pin``       ``--pin``;
* ``incoming``  ``--pin``, and ``SO_INCOMING_CPU`` on each worker's listener (socket(7));
* ``cbpf``      ``--pin``, and a classic BPF program on the listeners that returns the core's
  number (``SO_ATTACH_REUSEPORT_CBPF``, socket(7)).

The last two are not in the server: an arbiter made here sets them. Each row is measured on kept
connections (64 and 1,000) and with a connection for each request. On loopback a packet is received
on the core of its sender, so steering joins client and worker on one core; real networks do not.
"""

from __future__ import annotations

import ctypes
import os
import socket
import statistics
import struct
import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import Cores, Failed, Round, Server, fetch, free_port, measured

from fluxor_fast.arbiter.arbiter import Arbiter, Version
from fluxor_fast.arbiter.pinning import cores_in_order
from fluxor_fast.config import load
from fluxor_fast.server.worker import run_worker
from tests.support.server import APPS

MODES = ("free", "pin", "incoming", "cbpf")
LOADS = {"64 kept": (64, False), "1,000 kept": (1000, False), "one request each": (64, True)}
ATTACH_REUSEPORT_CBPF = 51  # asm-generic/socket.h; not in Python's socket module
# load the number of the core (SKF_AD_OFF + SKF_AD_CPU), modulo the workers, return it
LOAD_CPU, MODULO, RETURN = (0x20, 0xFFFFF000 + 36), 0x94, 0x16


class Steering(Arbiter):
    """An arbiter whose listeners are told where their connections come in."""

    mode = "pin"

    def _bind(self) -> None:
        super()._bind()
        cores = cores_in_order(os.sched_getaffinity(0))
        for at, listener in enumerate(self._listeners):
            if self.mode == "incoming":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_INCOMING_CPU, cores[at])
            listener.listen(2048)  # in order: the program returns a place in the group
        if self.mode == "cbpf":
            steps = ((*LOAD_CPU,), (MODULO, len(cores)), (RETURN, 0))
            program = b"".join(struct.pack("HBBI", code, 0, 0, k) for code, k in steps)
            buffer = ctypes.create_string_buffer(program)
            fprog = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(buffer))
            self._listeners[0].setsockopt(socket.SOL_SOCKET, ATTACH_REUSEPORT_CBPF, fprog)


def serve(mode: str, port: int) -> int:
    """Serve as one of the four, in a process of its own."""
    os.chdir(APPS)
    flags = {
        "server.app": "held:app", "server.port": port, "server.workers": 2,
        "server.pin": mode != "free", "server.max_connections": 5000,
    }  # fmt: skip
    Steering.mode = mode
    return Steering(Version(load(environ={}, flags=flags), run_worker)).run()


def up(port: int) -> bool:
    """Return whether the application answers."""
    return fetch(port, "/who", timeout=1.0).status == 200


def figure(rounds: list[Round], name: str) -> str:
    """Return median, least and greatest of one figure."""
    values = [r.cpu_us if name == "cpu_us" else getattr(r.load, name) for r in rounds]
    form = ",.0f" if name == "rps" else ".2f"
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


@click.command(help=__doc__)
@click.option("--rounds", default=3, show_default=True)
@click.option("--seconds", default=2.0, show_default=True)
@click.option("--load", "only", type=click.Choice([*LOADS]), help="Only this one.")
@click.option("--serve", "mode", type=click.Choice(MODES), hidden=True)
@click.option("--port", default=0, hidden=True)
def main(rounds: int, seconds: float, only: str | None, mode: str | None, port: int) -> None:
    """Print one table."""
    if mode is not None:
        sys.exit(serve(mode, port))
    if len(os.sched_getaffinity(0)) < 2:
        raise Failed("two cores are wanted")
    print("| load | workers | requests/s | P99, ms | CPU µs/request |\n|---|---|--:|--:|--:|")
    for name in [only] if only else LOADS:
        connections, fresh = LOADS[name]
        script = ("requests.lua", "close") if fresh else ()
        found: dict[str, list[Round]] = {each: [] for each in MODES}
        for _ in range(rounds):
            for each in MODES:
                at = free_port()
                command = [sys.executable, __file__, "--serve", each, "--port", str(at)]
                with Server(each, command, at, ready=up) as server:
                    options = {"connections": connections, "seconds": seconds, "threads": 2}
                    found[each].append(
                        measured(server, "/who", cores=Cores.of(2), script=script, **options)
                    )
        for each, got in found.items():
            cells = (figure(got, what) for what in ("rps", "p99", "cpu_us"))
            print(f"| {name} | {each} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
