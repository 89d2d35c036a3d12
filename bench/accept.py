"""How evenly connections, and slots, are shared by two workers.

Opens connections to an application that tells which process answered, one after the other and
all at once, and prints how many each worker got, with Jain's index of fairness (R. Jain, D. Chiu,
W. Hawe, "A Quantitative Measure of Fairness", DEC-TR-301, 1984): 1 is even, 1/2 all in one.

Then has many connections of one worker and few of the other ask a route that waits, as fast as
they are answered, for too few slots, and prints how many answers each worker gave, and the
longest time in which a worker gave none.
"""

from __future__ import annotations

import selectors
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.server import Client, LiveServer

WORKERS = 2
SLOTS = 20
SECONDS = 4.0
HOLD = "/hold?0.01"


def spread(listener: str, count: int, *, at_once: bool) -> list[int]:
    """Return how many of ``count`` connections each worker took."""
    flags = (f"--workers={WORKERS}", "--max-connections=5000", f"--listener={listener}")
    with LiveServer("held:app", *flags) as server:
        taken = Counter[int]()
        clients: list[Client] = []
        for _ in range(count):
            clients.append(Client(server.port))
            if not at_once:
                taken[clients[-1].request("/who").json["pid"]] += 1
        if at_once:
            for client in clients:
                client.send("/who")
            for client in clients:
                taken[client.read().json["pid"]] += 1
        for client in clients:
            client.close()
        return sorted(taken[pid] for pid in server.workers)


def jain(shares: list[int]) -> float:
    """Return Jain's index: 1 is even, 1/n all in one."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


def connect(server: LiveServer, wanted: tuple[int, ...]) -> list[list[Client]]:
    """Return so many connections of each worker."""
    found: list[list[Client]] = [[] for _ in server.workers]
    while any(len(mine) < most for mine, most in zip(found, wanted, strict=True)):
        client = Client(server.port)
        at = server.workers.index(client.request("/who").json["pid"])
        if len(found[at]) < wanted[at]:
            found[at].append(client)
        else:
            client.close()
    return found


def contend(counts: tuple[int, ...]) -> tuple[list[int], float]:
    """Return the answers of each worker, and the longest time in which one with users gave none."""
    flags = (f"--workers={WORKERS}", f"--slots={SLOTS}", "--queue-target=0", "--queue-deadline=60")
    with LiveServer("held:app", *flags) as server, selectors.DefaultSelector() as selector:
        for worker, clients in enumerate(connect(server, counts)):
            for client in clients:
                selector.register(client.socket, selectors.EVENT_READ, (worker, client))
                client.send(HOLD)
        answers = [0] * WORKERS
        last = [time.monotonic()] * WORKERS
        longest = 0.0
        until = time.monotonic() + SECONDS
        while (now := time.monotonic()) < until:
            for key, _ in selector.select(0.1):
                worker, client = key.data
                assert client.read().status == 200
                client.send(HOLD)
                answers[worker] += 1
                longest = max(longest, now - last[worker])
                last[worker] = now
        for key in list(selector.get_map().values()):
            key.data[1].close()
        return answers, longest


def main() -> None:
    """Print two tables."""
    print("| listener | connections | opened | per worker | Jain |\n|---|--:|---|---|--:|")
    for listener in ("reuseport", "shared"):
        for count in (64, 1000):
            for at_once in (False, True):
                got = spread(listener, count, at_once=at_once)
                opened = "at once" if at_once else "one by one"
                print(f"| {listener} | {count:,} | {opened} | {got} | {jain(got):.3f} |")
    print(f"\n{SLOTS} slots, a route that takes 10 ms, {SECONDS:g} s")
    print("| connections per worker | answers per worker | Jain | longest without any |")
    print("|---|---|--:|--:|")
    for counts in ((120, 120), (220, 40), (240, 0)):
        answers, longest = contend(counts)
        index = f"{jain(answers):.3f}" if all(counts) else "–"
        print(f"| {list(counts)} | {answers} | {index} | {longest * 1000:.0f} ms |")


if __name__ == "__main__":
    main()
