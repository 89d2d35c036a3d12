"""Somebody else's health checks: ``python -m tests.attack.probe PORT SECONDS``.

Each on a connection of its own, one after the other, in a process of its own, so that who
watches the attack is not in the way. Prints JSON: milliseconds of each, and what went wrong.
"""

from __future__ import annotations

import json
import socket
import sys
import time

PAUSE = 0.01
PATIENCE = 5.0


def ask(port: int) -> str:
    """Make one check; return what is wrong with the answer."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n")
        answer = client.makefile("rb").read()
    return "" if answer.startswith(b"HTTP/1.1 200 ") else f"{answer[:60]!r}"


def main() -> None:
    port, seconds = int(sys.argv[1]), float(sys.argv[2])
    until = time.monotonic() + seconds
    took, wrong = [], []
    while time.monotonic() < until:
        begun = time.monotonic()
        try:
            fault = ask(port)
        except OSError as error:
            fault = repr(error)
        took.append((time.monotonic() - begun) * 1000)
        if fault:
            wrong.append(fault)
        time.sleep(PAUSE)
    print(json.dumps({"took": took, "wrong": wrong}))


if __name__ == "__main__":
    main()
