"""A closed-loop HTTP load generator: users who ask again as soon as they are answered.

Each user has a connection kept alive. One that is refused asks again at once, the worst that a
client can do; one whose connection is closed opens another and asks on that. Latency runs from
the moment a user wants to ask, so the time to connect counts.

wrk is lighter, but it does not tell refusals from answers. Prints one JSON document.
"""

from __future__ import annotations

import json
from typing import Any

import click
from client import REFUSED, Client, Connection, claim, clock, cpu_seconds, percentiles, request

SHARES = (0.5, 0.95, 0.99, 1)


class User:
    """What became of one user's requests."""

    __slots__ = ("served", "told", "wants")

    def __init__(self) -> None:
        self.wants = 0.0  # since when it has wanted the answer that it waits for
        self.served = 0
        self.told = 0


class Users(Client):
    """Drives one server with a fixed number of users.

    :param head: the whole request as bytes.
    """

    def __init__(self, host: str, port: int, head: bytes, count: int) -> None:
        super().__init__(host, port)
        self.head = head
        self.users = [User() for _ in range(count)]
        self.accepted: list[float] = []
        self.refused: list[float] = []
        self.errors = 0
        self.losses = 0
        self.counting = False
        self.seconds = 0.0
        self.cpu_share = 0.0
        self._again: list[User] = []
        self._asking = False
        self._settled: list[Connection] = []

    def run(self, warmup: float, seconds: float) -> None:
        """Let all users ask for ``seconds``; answers of the first ``warmup`` do not count."""
        self._again = list(self.users)
        until = clock() + 5
        while len(self._settled) < len(self.users) and clock() < until:
            self._reconnect(clock())
            self.turn(0.01)
        self._asking = True
        for connection in self._settled:  # all at once
            self.ready(connection)
        self._loop(warmup)
        self.counting = True
        cpu, start = cpu_seconds(), clock()
        self._loop(seconds)
        self.seconds = clock() - start
        self.cpu_share = (cpu_seconds() - cpu) / self.seconds
        self.close_all()

    def _loop(self, seconds: float) -> None:
        until = clock() + seconds
        while (now := clock()) < until:
            if self._again:
                self._reconnect(now)
            self.turn(0.005)

    def _reconnect(self, now: float) -> None:
        if now >= self.resume_at:
            users, self._again = self._again[:64], self._again[64:]
            for user in users:
                self.connect(user)

    def ready(self, connection: Connection) -> None:
        if not self._asking:
            self._settled.append(connection)
        elif self.is_open(connection):
            if not connection.owner.wants:
                connection.owner.wants = clock()
            self.send(connection, self.head)

    def answered(self, connection: Connection, status: int, closing: bool, now: float) -> None:
        user: User = connection.owner
        if self.counting:
            latency = now - user.wants
            user.told += 1
            if status == 200:
                user.served += 1
                self.accepted.append(latency)
            elif status == REFUSED:
                self.refused.append(latency)
            else:
                self.errors += 1
        user.wants = now
        if closing:
            self._again.append(user)
        else:
            self.send(connection, self.head)

    def lost(self, connection: Connection) -> None:
        if self.counting:
            self.losses += 1
        self._again.append(connection.owner)

    def report(self) -> dict[str, Any]:
        """Return the figures."""
        return {
            "users": len(self.users),
            "seconds": round(self.seconds, 3),
            "accepted_rps": round(len(self.accepted) / self.seconds, 1),
            "refused_rps": round(len(self.refused) / self.seconds, 1),
            "errors": self.errors,
            "connections_lost": self.losses,
            "connect_errors": self.connect_errors,
            "connections_opened": self.connects,
            "accepted": percentiles(self.accepted, *SHARES),
            "refused_after": percentiles(self.refused, *SHARES),
            "users_never_served": sum(not user.served for user in self.users),
            "users_never_told": sum(not user.told for user in self.users),
            "generator_cpu_share": round(self.cpu_share, 3),
        }


@click.command()
@click.option("--host", default="127.0.0.1")
@click.option("--port", type=int, required=True)
@click.option("--path", "target", default="/")
@click.option("--users", type=click.IntRange(1), required=True)
@click.option("--seconds", type=float, default=5.0)
@click.option("--warmup", type=float, default=0.5, help="Seconds before answers count.")
def main(host: str, port: int, target: str, users: int, seconds: float, warmup: float) -> None:
    """Let USERS ask as fast as they are answered and print what became of it as JSON."""
    claim(users)
    load = Users(host, port, request(host, port, target), users)
    load.run(warmup, seconds)
    print(json.dumps(load.report()))


if __name__ == "__main__":
    main()
