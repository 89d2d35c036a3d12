"""The control socket: a Unix socket on which the arbiter is asked and told.

One JSON object a line each way; ``{"command": "status"}`` and the like. What the commands do is
``commands``' business. A failure is ``{"error", "message", "code"}``.

Rules:

1. The arbiter's loop serves it and never waits for a client: what cannot be read or written now
   is left for the next turn. A command that takes time is asked each turn whether it is done.
2. Everything is bounded: clients, the length of a line, one answer at a time for each client, and
   the seconds in which a client must have asked and have taken the answer.
3. Only our own user and root are served, by what the kernel says of the other end (SO_PEERCRED,
   unix(7)); others too if the file's mode was opened to them: then the kernel checks that.
4. A command that fails in a way that nobody thought of is told to its client and the log. It does
   not end the arbiter.
5. When the arbiter leaves, its clients get a last line with its exit code: ``{"left": 0}``.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Final, TypeVar

from fluxor_fast.arbiter.sockets import SocketFile, bind_unix

__all__ = ["Answer", "Control", "Handle", "Later", "Refusal", "parse", "peer_uid"]

log = logging.getLogger("fluxor_fast.arbiter")

MOST_CLIENTS: Final = 16
MOST_LINE: Final = 4096
"""Bytes of a request."""
CLIENT_SECONDS: Final = 5.0
"""For a client to ask, and to take the answer."""
SOON: Final = 0.02
"""Seconds between two looks at a command that takes time."""
REST: Final = 1.0
"""Seconds until the next try when a connection cannot be accepted."""

Answer = dict[str, object]
Later = Callable[[], Answer | None]
"""The answer when there is one, until then None; it must come to an end by itself."""
Handle = Callable[[Answer], Answer | Later]
T = TypeVar("T")


class Refusal(Exception):
    """A request that is not served.

    :param code: a word for programs.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.answer: Answer = {"error": code.lower(), "message": message, "code": code}


def parse(line: bytes) -> Answer:
    """Return the request that a line is.

    :raises Refusal: if it is none.
    """
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict) or not isinstance(request.get("command"), str):
        raise Refusal("BAD_REQUEST", 'a request is one line of JSON with a "command"')
    return request


def peer_uid(sock: socket.socket) -> int:
    """Return the user at the other end of a Unix socket."""
    _, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


def _attempt(act: Callable[[], T]) -> T | Answer:
    """Return what ``act`` does, or how it failed (rule 4)."""
    try:
        return act()
    except Refusal as refusal:
        return refusal.answer
    except Exception:
        log.exception("a control command failed")
        return Refusal("FAILED", "the command failed; the log tells why").answer


@dataclass(slots=True, eq=False)
class _Client:
    socket: socket.socket
    due: float
    received: bytearray = field(default_factory=bytearray)
    unsent: bytes = b""
    later: Later | None = None

    @property
    def events(self) -> int:
        if self.unsent:
            return select.POLLOUT
        return select.POLLIN if self.later is None else 0

    @property
    def asks(self) -> bool:
        return not self.unsent and self.later is None and b"\n" in self.received


class Control:
    """Serves the socket from the arbiter's loop. Without ``listen`` or ``adopt`` there is none.

    :param handle: does what a request asks for; may raise ``Refusal``.
    :param clock: monotonic seconds.
    :param peer: tells the user at the other end.
    """

    def __init__(
        self,
        handle: Handle,
        clock: Callable[[], float] = time.monotonic,
        peer: Callable[[socket.socket], int] = peer_uid,
    ) -> None:
        self._handle = handle
        self._clock = clock
        self._peer = peer
        self._listener: socket.socket | None = None
        self._file: SocketFile | None = None
        self._clients: list[_Client] = []
        self._strict = True
        self._deaf_until = 0.0

    def listen(self, path: Path, mode: int) -> None:
        """Listen at ``path``; a file that was left over there is replaced.

        :param mode: permissions of the file.
        :raises ListenError: naming the path and why it cannot be had.
        """
        (self._listener,), self._file = bind_unix(path, mode, 1, MOST_CLIENTS)
        self._strict = not mode & 0o066

    def adopt(self, fd: int, mode: int) -> None:
        """Hold the socket of another arbiter, which serves it until ``take``."""
        self._listener = socket.socket(fileno=fd)
        self._strict = not mode & 0o066
        self._deaf_until = inf

    def take(self, path: Path) -> None:
        """Serve the socket that was adopted; its file is ours from now on."""
        self._file = SocketFile(path)
        self._deaf_until = 0.0

    def fileno(self) -> int | None:
        """Return the descriptor of the listening socket, if there is one."""
        return None if self._listener is None else self._listener.fileno()

    def hand_over(self) -> None:
        """Leave socket and file to another arbiter; who is connected already stays ours."""
        self._file = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def close_copies(self) -> None:
        """Let go in a child: all of it stays the parent's."""
        if self._listener is not None:
            self._listener.close()
        for client in self._clients:
            client.socket.close()

    def close(self, code: int) -> None:
        """End; tell all clients the exit code."""
        if self._file is not None:
            self._file.remove()
        self.hand_over()
        for client in list(self._clients):
            if not client.unsent:  # a line within a line would be neither
                self._answer(client, {"left": code})
            if client in self._clients:
                self._drop(client)

    def wait(self, wake: int, seconds: float) -> None:
        """Wait until ``wake`` can be read, at most ``seconds``, and serve clients."""
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        if self._listener is not None and self._clock() >= self._deaf_until:
            poll.register(self._listener, select.POLLIN)
        for client in self._clients:
            poll.register(client.socket, client.events)
            if client.asks:
                seconds = 0.0
            elif client.later is not None:
                seconds = min(seconds, SOON)
        ready = dict(poll.poll(seconds * 1000))
        for client in list(self._clients):
            self._serve(client, ready.get(client.socket.fileno(), 0))
        if self._listener is not None and self._listener.fileno() in ready:
            self._accept()

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(MOST_CLIENTS):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                log.error("a control connection cannot be accepted: %s", error.strerror)
                self._deaf_until = self._clock() + REST
                return
            sock.setblocking(False)
            client = _Client(sock, self._clock() + CLIENT_SECONDS)
            self._clients.append(client)
            if self._strict and (uid := self._peer(sock)) not in (os.geteuid(), 0):
                log.warning("user %d is refused at the control socket", uid)
                self._refuse(client, Refusal("FORBIDDEN", f"user {uid} may not control this"))
            elif len(self._clients) > MOST_CLIENTS:
                self._refuse(client, Refusal("BUSY", f"{MOST_CLIENTS} clients are served already"))

    def _refuse(self, client: _Client, refusal: Refusal) -> None:
        """Answer, as far as that goes at once, and close."""
        self._answer(client, refusal.answer)
        if client in self._clients:
            self._drop(client)

    def _serve(self, client: _Client, event: int) -> None:
        now = self._clock()
        if event & (select.POLLERR | select.POLLHUP) and not event & select.POLLIN:
            self._drop(client)
        elif client.later is not None:
            self._look(client, client.later)
        elif event & select.POLLOUT:
            self._send(client)
        elif event & select.POLLIN and not client.asks:
            self._receive(client)
        if client.asks and client in self._clients:
            client.due = now + CLIENT_SECONDS
            line, _, rest = client.received.partition(b"\n")
            client.received = rest
            self._ask(client, bytes(line))
        elif len(client.received) > MOST_LINE and b"\n" not in client.received:
            self._refuse(client, Refusal("TOO_LONG", f"a request has {MOST_LINE} bytes at most"))
        elif client.later is None and now >= client.due and client in self._clients:
            self._drop(client)

    def _receive(self, client: _Client) -> None:
        try:
            data = client.socket.recv(MOST_LINE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        client.received += data
        if not data:
            self._drop(client)

    def _ask(self, client: _Client, line: bytes) -> None:
        answer = _attempt(lambda: self._obey(line))
        if callable(answer):
            client.later = answer
        else:
            self._answer(client, answer)

    def _obey(self, line: bytes) -> Answer | Later:
        if len(line) > MOST_LINE:
            raise Refusal("TOO_LONG", f"a request has {MOST_LINE} bytes at most")
        return self._handle(parse(line))

    def _look(self, client: _Client, later: Later) -> None:
        answer = _attempt(later)
        if answer is not None:
            client.later = None
            client.due = self._clock() + CLIENT_SECONDS
            self._answer(client, answer)

    def _answer(self, client: _Client, answer: Answer) -> None:
        client.unsent = json.dumps(answer, separators=(",", ":")).encode() + b"\n"
        self._send(client)

    def _send(self, client: _Client) -> None:
        try:
            client.unsent = client.unsent[client.socket.send(client.unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        self._clients.remove(client)
        client.unsent, client.later = b"", None
        client.received.clear()
        with suppress(OSError):
            client.socket.close()
