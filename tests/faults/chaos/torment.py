"""Faults for a running instance, and what must hold after each of them.

Invariants:

1. The handlers that run at once never exceed the limit, and reach it again.
2. A request is lost only on a connection to a worker that died; none fails or hangs, and every
   connection can be made.
3. At rest no permit, slot or claim is held, and the totals add up:
   offered = accepted + shed; accepted = completed + aborted + lost.
4. As many workers as wanted are ready, no process is left over, and who died is replaced.
5. Descriptors, threads and memory of arbiter and workers are flat.
"""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.faults.chaos.clients import Doom, Load
from tests.faults.chaos.instance import Files, Instance, descriptors
from tests.support.server import Client, LiveServer

LIMIT = 12
WORKERS = 3
HEARTBEAT = 2.0
GROWN = 200  # MiB, from where on a worker is recycled
MATURE = 1.2  # seconds from where on a death is no early one: the breaker forgives it
FLAGS = (
    f"--workers={WORKERS}", f"--max-ccu={LIMIT}", "--utilization=100", f"--slots={LIMIT}",
    "--max-connections=2000", "--refusal-pause=0", "--queue-target=0", "--graceful-timeout=3",
    f"--heartbeat-timeout={HEARTBEAT}", f"--max-worker-memory={GROWN}", "--access-log",
)  # fmt: skip


class Torment:
    """One instance under load, with faults by name."""

    def __init__(self, server: LiveServer, load: Load, files: Files, rng: random.Random) -> None:
        self.server, self.load, self.files, self.rng = server, load, files, rng
        self.instance = Instance(server)
        self.wanted = WORKERS
        self.broken: list[str] = []
        self.counts: dict[str, int] = {}
        self.times: dict[str, list[float]] = {}
        self.loss_of: list[int] = []
        self._checked = 0
        self.flat_from: dict[str, int] = {}

    def note(self, name: str, value: float) -> None:
        self.times.setdefault(name, []).append(value)

    def wrong(self, what: str) -> None:
        self.broken.append(what)
        print(f"BROKEN: {what}", flush=True)

    def wait(self, check: Callable[[], Any], what: str, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not check():
            if time.monotonic() > until:
                self.wrong(f"not within {seconds} s: {what}")
                return False
            time.sleep(0.003)
        return True

    # what is done

    def inflict(self, name: str) -> None:
        """Inflict the fault ``name``, and check what must hold."""
        before = len(self.broken)
        getattr(self, f"fault_{name}")()
        self.settle()
        self.counts[name] = self.counts.get(name, 0) + 1
        if len(self.broken) > before:
            print(f"  after {name}; {self.instance.ready()}", flush=True)

    def kill(self) -> None:
        """SIGKILL a worker that is no early death, and follow what becomes of its place."""
        if not self.wait(lambda: self.instance.mature(MATURE), "a worker has lived", 15):
            return
        pid = self.rng.choice(self.instance.mature(MATURE))
        before, lost, losses = set(self.instance.ready()), self.instance.lost, self.lost_here()
        doom = self.load.doomed(pid)
        os.kill(pid, signal.SIGKILL)
        self.replaced(doom, before)
        self.loss_of.append(self.lost_here() - losses)
        if self.instance.lost - lost > LIMIT:
            self.wrong(f"{pid} lost {self.instance.lost - lost} requests: more than the limit")

    def lost_here(self) -> int:
        return len(self.load.account.losses)

    def replaced(self, doom: Doom, before: set[int]) -> None:
        """Wait until a worker that is not in ``before`` has answered; note both times."""

        def successors() -> set[int]:
            return set(self.instance.ready()) - before

        if not self.wait(successors, f"{doom.pid} is replaced", 10):
            return
        doom.gone = time.monotonic()
        self.note("ready after the end of a worker", doom.gone - doom.begun)
        if self.wait(
            lambda: any(map(self.load.seen, successors())), "the successor has answered", 10
        ):
            first = min(at for at in map(self.load.seen, successors()) if at is not None)
            self.note("answered after the end of a worker", first - doom.begun)

    # the faults

    def fault_kill(self) -> None:
        self.kill()

    def fault_kill_all(self) -> None:
        """SIGKILL every worker at once."""
        if not self.wait(
            lambda: len(self.instance.mature(MATURE)) == self.wanted, "all have lived", 20
        ):
            return
        before = set(self.instance.ready())
        dooms = [self.load.doomed(pid) for pid in before]
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        self.wait(lambda: not before & set(self.server.workers), "all are reaped", 5)
        self.replaced(dooms[0], before)
        self.all_ready()
        for doom in dooms:
            doom.gone = time.monotonic()

    def fault_pause(self) -> None:
        """SIGSTOP, and SIGCONT before the heartbeat is missed: nothing is lost."""
        pid = self.rng.choice(sorted(self.instance.ready()))
        os.kill(pid, signal.SIGSTOP)
        time.sleep(self.rng.uniform(0.1, 0.8))
        os.kill(pid, signal.SIGCONT)
        if pid not in self.instance.ready():
            self.wrong(f"{pid} was ended though it went on")

    def fault_stop(self) -> None:
        """SIGSTOP for good: it is replaced."""
        self._silent(lambda pid: os.kill(pid, signal.SIGSTOP), "stopped")

    def fault_block(self) -> None:
        """A handler that never gives the loop back, in Python or in C."""
        path = self.rng.choice(["/spin/python", "/spin/c"])
        with ExitStack() as stack:

            def block(pid: int) -> None:
                for _ in range(300):
                    client = Client(self.server.port)
                    stack.callback(client.close)
                    if client.request("/who").json["pid"] == pid:
                        client.send(path)
                        return
                raise AssertionError(f"no connection to {pid}")

            self._silent(block, "blocked")

    def _silent(self, harm: Callable[[int], None], name: str) -> None:
        self.wait(lambda: self.instance.mature(MATURE), "a worker has lived", 15)
        pid = self.rng.choice(self.instance.mature(MATURE))
        before, now = set(self.instance.ready()), time.monotonic()
        calm = self.load.p99(now - 2, now, but=pid)
        doom = self.load.doomed(pid)
        harm(pid)
        begun = time.monotonic()
        if not self.wait(lambda: pid not in self.server.workers, f"{pid} is ended", HEARTBEAT + 4):
            return
        ended = time.monotonic()
        self.note(f"{name} worker ended", ended - begun)
        during = self.load.p99(begun, ended, but=pid)
        if calm is not None and during is not None:
            self.note("P99 of other workers before", calm)
            self.note("P99 of other workers while one is silent", during)
        until = time.monotonic() + 10
        while not set(self.instance.ready()) - before and time.monotonic() < until:
            time.sleep(0.003)
        doom.gone = time.monotonic()

    def fault_grow(self) -> None:
        """Have a worker grow beyond its limit: it is recycled, and no request is lost."""
        with Client(self.server.port) as client:
            for _ in range(1 + GROWN // 32):
                answer = client.request("/grow?32")
                if answer.headers.get("connection") == "close":
                    break  # it is being recycled
        pid = answer.json["pid"]
        began = time.monotonic()
        self.wait(lambda: pid not in self.server.workers, f"{pid} has been recycled", 20)
        self.note("grown worker recycled", time.monotonic() - began)

    def fault_reloads(self) -> None:
        """A reload each second."""
        for _ in range(self.rng.randint(2, 4)):
            os.kill(self.instance.arbiter, signal.SIGHUP)
            time.sleep(1)

    def fault_scale(self) -> None:
        """TTIN and TTOU at random, up and down again."""
        moves = [signal.SIGTTIN, signal.SIGTTOU] * self.rng.randint(1, 2)
        self.rng.shuffle(moves)
        seats = WORKERS
        for move in moves:
            seats += 1 if move == signal.SIGTTIN else -1
            os.kill(self.instance.arbiter, move)
            time.sleep(self.rng.uniform(0.05, 0.5))

    def fault_disk(self) -> None:
        """No room for the log: it is written again afterwards."""
        self.files.point_log(Path("/dev/full"))
        os.kill(self.instance.arbiter, signal.SIGUSR1)
        time.sleep(0.4)
        self.files.point_log(self.files.target)
        size = self.files.target.stat().st_size
        os.kill(self.instance.arbiter, signal.SIGUSR1)
        self.wait(lambda: self.files.target.stat().st_size > size, "the log is written again", 5)
        if size > 50 << 20:
            os.truncate(self.files.target, 0)

    def fault_clock(self) -> None:
        """The wall clock steps, back and forth."""
        for _ in range(3):
            step = self.rng.choice([-1, 1]) * self.rng.choice([0.3, 5, 3600, 86_400 * 365])
            self.files.step_clock(step)
            time.sleep(0.25)
        with Client(self.server.port) as client:
            if abs(client.request("/clock").json["time"] - time.time() - step) > 5:
                self.wrong("the clock of the instance did not step")
        self.files.step_clock(0)

    def fault_descriptors(self) -> None:
        """So many idle connections that workers have no descriptor left; then they go."""
        before = {}
        for pid in self.instance.ready():
            before[pid] = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors(pid) + 3, before[pid][1]))
        # whoever connects now is closed at once (libuv does that); who has a connection is served
        doom = self.load.doomed(0)
        answered = self.load.account.answered
        with ExitStack() as stack:
            for _ in range(60):
                stack.callback(socket.create_connection(("127.0.0.1", self.server.port)).close)
            time.sleep(0.8)
            if self.load.account.answered == answered:
                self.wrong("nobody was answered while there were no descriptors")
        for pid, limits in before.items():
            if pid in self.instance.ready():
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        doom.gone = time.monotonic()

    # what must hold

    def all_ready(self) -> None:
        def whole() -> bool:
            ready = set(self.instance.ready())
            return len(ready) == self.wanted and ready == set(self.server.workers)

        self.wait(whole, f"{self.wanted} workers, and nobody else", 30)

    def exact(self) -> None:
        """Check invariants 1 and 2 under load, since the last check."""
        if self.files.most > LIMIT:
            self.wrong(f"{self.files.most} handlers ran at once, of {LIMIT}")
        self.files.reset()
        self.wait(lambda: self.files.most >= LIMIT, "the limit is reached again", 5)
        account = self.load.account
        losses = account.losses[self._checked :]
        self._checked += len(losses)
        if wrong := [loss for loss in losses if not self.load.excused(loss)]:
            places = [self.load.places.get(loss.word) for loss in wrong[:3]]
            self.wrong(f"{len(wrong)} lost, on connections to {places}: {wrong[:3]}")
        for name in ("failed", "hung", "unconnected"):
            found = getattr(account, name)
            if found:
                self.wrong(f"{len(found)} {name}: {found[:3]}")
                found.clear()

    def settle(self) -> None:
        """Wait for the workers, check all invariants, with a rest of the load."""
        self.all_ready()
        self.exact()
        with self.resting():
            self.wait(lambda: not any(self.instance.held().values()), "nothing is held at rest", 3)
            until = time.monotonic() + 1  # a count is written at the end of a turn
            while (wrong := self.instance.imbalance()) and time.monotonic() < until:
                time.sleep(0.003)
            if wrong:
                self.wrong(wrong)
            self.flat()

    @contextmanager
    def resting(self) -> Iterator[None]:
        if not self.load.rest():
            self.wrong("a request does not end")
        try:
            yield
        finally:
            self.load.go_on()

    def flat(self) -> None:
        """Check invariant 5; what a roll holds while it goes on has five seconds to go."""
        if not self.flat_from:
            self.flat_from = self.instance.holdings()
        until = time.monotonic() + 5
        while (grown := self.grown()) and time.monotonic() < until:
            time.sleep(0.1)
        for what in grown:
            self.wrong(what)

    def grown(self) -> list[str]:
        found = []
        for name, value in self.instance.holdings().items():
            first = self.flat_from[name]
            # a thread pool that was not needed before, a page that was not touched before; and
            # listeners, which are never closed: there are up to twice as many as at first
            room = {"descriptors": WORKERS + 1, "threads": 2, "rss": max(16_384, first // 4)}
            if value > first + room[name.split()[1]]:
                found.append(f"{name}: {first} at first, {value} now")
        return found

    def report(self) -> dict[str, Any]:
        """Return the figures."""
        account = self.load.account
        return {
            "faults": self.counts,
            "requests": {
                "sent": account.sent,
                "answered": account.answered,
                "refused": account.refused,
                "lost": len(account.losses),
                "codes": dict(account.codes),
            },
            "kills": len(self.loss_of),
            "lost per kill, most": max(self.loss_of, default=0),
            "seconds": {
                name: {
                    "count": len(values),
                    "median": round(statistics.median(values), 4),
                    "p99": round(sorted(values)[len(values) * 99 // 100], 4),
                    "most": round(max(values), 4),
                }
                for name, values in self.times.items()
            },
            "held first": self.flat_from,
            "held last": self.instance.holdings(),
            "broken": self.broken,
        }


@contextmanager
def tormented(folder: Path, rng: random.Random) -> Iterator[Torment]:
    """Start an instance with load on it."""
    files = Files(folder)
    flags = (*FLAGS, f"--log-file={files.log}")
    with LiveServer("chaotic:app", *flags, env=files.env, wait=False) as server:
        until = time.monotonic() + 30
        port = 0
        while not port and time.monotonic() < until:
            time.sleep(0.05)
            port = _port(files.target.read_text() + server.log)
        assert port, server.log
        server.port = port
        with Load(port) as load:
            torment = Torment(server, load, files, rng)
            try:
                torment.settle()
                yield torment
            finally:
                torment.instance.close()


def _port(log: str) -> int:
    found = re.search(r"on https?://[^ ]*:(\d+)", log)
    return int(found[1]) if found else 0
