"""How evenly connections spread over two workers, by kind of listener.

Opens connections to an application that tells which process answered, one after the other and
all at once, and prints how many each worker got, with Jain's index of fairness (R. Jain, D. Chiu,
W. Hawe, "A Quantitative Measure of Fairness", DEC-TR-301, 1984): 1 is even, 1/2 all in one.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.server import Client, LiveServer

WORKERS = 2


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


def main() -> None:
    """Print a table."""
    print("| listener | connections | opened | per worker | Jain |\n|---|--:|---|---|--:|")
    for listener in ("reuseport", "shared"):
        for count in (64, 1000):
            for at_once in (False, True):
                got = spread(listener, count, at_once=at_once)
                jain = sum(got) ** 2 / (WORKERS * sum(n * n for n in got))
                opened = "at once" if at_once else "one by one"
                print(f"| {listener} | {count:,} | {opened} | {got} | {jain:.3f} |")


if __name__ == "__main__":
    main()
