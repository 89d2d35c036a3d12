"""The control socket by itself: requests, strangers, clients that are slow, silent or too many."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fluxor_fast.arbiter.control import (
    CLIENT_SECONDS,
    MOST_CLIENTS,
    MOST_LINE,
    Answer,
    Control,
    Later,
    Refusal,
    parse,
)
from fluxor_fast.errors import ListenError


class Desk:
    """A control socket, its loop turned by hand, and a clock that stands still."""

    def __init__(self, path: Path, mode: int = 0o600, uid: int | None = None) -> None:
        self.path = path
        self.now = 100.0
        self.later: Answer | None = None
        uid = os.geteuid() if uid is None else uid
        self.control = Control(self.handle, lambda: self.now, lambda sock: uid)
        self.control.listen(path, mode)
        self.wake, self._out = os.pipe()

    def handle(self, request: Answer) -> Answer | Later:
        match request["command"]:
            case "echo":
                return request
            case "big":
                return {"text": "x" * 4_000_000}
            case "later":
                return lambda: self.later
            case "fail":
                raise ZeroDivisionError
        raise Refusal("UNKNOWN_COMMAND", "no such thing")

    def turn(self, times: int = 4) -> None:
        for _ in range(times):
            self.control.wait(self.wake, 0.0)

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self.path))
        client.settimeout(2)
        return client

    def ask(self, client: socket.socket, line: bytes) -> Any:
        client.sendall(line + b"\n")
        self.turn()
        return read(client)

    def close(self, code: int = 0) -> None:
        self.control.close(code)
        os.close(self.wake)
        os.close(self._out)


def read(client: socket.socket) -> Any:
    data = b""
    while not data.endswith(b"\n"):
        more = client.recv(65_536)
        assert more, f"closed after {data[:80]!r}"
        data += more
    return json.loads(data)


def is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "s")
    yield desk
    desk.close()


@pytest.mark.parametrize(
    "line",
    [b"", b"status", b"[]", b"{}", b'{"command":1}', b"\xff", b"[" * 4000, b"9" * 4000, b"NaN"],
    ids=lambda line: repr(line[:12]),
)
def test_what_is_no_request_is_refused(line: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        parse(line)
    assert caught.value.answer["code"] == "BAD_REQUEST"


def test_requests_of_one_client_are_answered_in_order_also_in_pieces(desk: Desk) -> None:
    with desk.connect() as client:
        client.sendall(b'{"command":"echo","n":1}\n{"command":"echo","n":2}\n{"comm')
        desk.turn()
        client.sendall(b'and":"echo","n":3}\n')
        desk.turn()
        data = b""
        while data.count(b"\n") < 3:
            data += client.recv(4096)
        assert [json.loads(line)["n"] for line in data.splitlines()] == [1, 2, 3]


def test_failures_are_documents_and_the_connection_goes_on(desk: Desk) -> None:
    with desk.connect() as client:
        for line, code in (
            (b"nonsense", "BAD_REQUEST"),
            (b'{"command":"nonsense"}', "UNKNOWN_COMMAND"),
            (b'{"command":"fail"}', "FAILED"),
        ):
            answer = desk.ask(client, line)
            assert answer["code"] == code
            assert answer["error"] == code.lower()
            assert answer["message"]
        assert desk.ask(client, b'{"command":"echo"}') == {"command": "echo"}


def test_strangers_are_refused_whatever_the_file_lets_through(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "s", uid=os.geteuid() + 1)
    with desk.connect() as client:
        desk.turn()
        assert read(client)["code"] == "FORBIDDEN"
        assert is_closed(client)
    desk.close()


def test_root_and_whom_the_mode_was_opened_to_are_served(tmp_path: Path) -> None:
    for name, mode, uid in (("root", 0o600, 0), ("group", 0o660, os.geteuid() + 1)):
        desk = Desk(tmp_path / name, mode, uid)
        with desk.connect() as client:
            assert desk.ask(client, b'{"command":"echo"}') == {"command": "echo"}
        desk.close()


def test_the_file_has_its_permissions_from_the_start_and_is_removed(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "s")
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ListenError, match="another process listens"):
        Desk(tmp_path / "s")
    desk.close()
    assert not (tmp_path / "s").exists()


def test_a_file_that_was_left_over_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    desk = Desk(tmp_path / "s")
    with desk.connect() as client:
        assert desk.ask(client, b'{"command":"echo"}') == {"command": "echo"}
    desk.close()


def test_silent_clients_are_dropped_and_hold_up_nobody(desk: Desk) -> None:
    with desk.connect() as silent, desk.connect() as half, desk.connect() as busy:
        half.sendall(b'{"command":')
        desk.turn()
        desk.now += CLIENT_SECONDS - 1
        assert desk.ask(busy, b'{"command":"echo"}') == {"command": "echo"}
        desk.now += 2
        assert desk.ask(busy, b'{"command":"echo"}') == {"command": "echo"}
        assert is_closed(silent)
        assert is_closed(half)


def test_a_client_that_does_not_read_its_answer_is_dropped(desk: Desk) -> None:
    with desk.connect() as slow, desk.connect() as other:
        slow.sendall(b'{"command":"big"}\n')
        desk.turn()
        assert desk.ask(other, b'{"command":"echo"}') == {"command": "echo"}
        desk.now += CLIENT_SECONDS
        desk.turn()
        data = b""
        while more := slow.recv(1 << 20):
            data += more
        assert 0 < len(data) < 4_000_000


def test_an_answer_larger_than_the_socket_takes_arrives_whole(desk: Desk) -> None:
    with desk.connect() as client:
        client.sendall(b'{"command":"big"}\n')
        data = b""
        while not data.endswith(b"\n"):
            desk.turn(1)
            client.setblocking(False)
            with suppress(BlockingIOError):
                data += client.recv(1 << 20)
        assert len(json.loads(data)["text"]) == 4_000_000


def test_lines_without_end_are_refused(desk: Desk) -> None:
    with desk.connect() as client:
        client.sendall(b"x" * (MOST_LINE + 1))
        desk.turn()
        assert read(client)["code"] == "TOO_LONG"
        assert is_closed(client)


def test_there_are_so_many_clients_and_no_more(desk: Desk) -> None:
    clients = [desk.connect() for _ in range(MOST_CLIENTS)]
    desk.turn()
    with desk.connect() as late:
        desk.turn()
        assert read(late)["code"] == "BUSY"
        assert is_closed(late)
    assert desk.ask(clients[0], b'{"command":"echo"}') == {"command": "echo"}
    clients.pop().close()
    desk.turn()
    clients.append(desk.connect())
    assert desk.ask(clients[-1], b'{"command":"echo"}') == {"command": "echo"}
    for client in clients:
        client.close()


def test_a_command_that_takes_time_holds_up_its_client_alone(desk: Desk) -> None:
    with desk.connect() as client, desk.connect() as other, desk.connect() as gone:
        gone.sendall(b'{"command":"later"}\n')
        client.sendall(b'{"command":"later"}\n{"command":"echo"}\n')
        desk.turn()
        gone.close()
        assert desk.ask(other, b'{"command":"echo"}') == {"command": "echo"}
        desk.now += CLIENT_SECONDS * 2  # the command's time is not the client's
        desk.later = {"done": True}
        desk.turn()
        data = client.recv(4096)
        assert data.splitlines() == [b'{"done":true}', b'{"command":"echo"}']


def test_who_is_connected_is_told_the_exit_code(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "s")
    with desk.connect() as client:
        desk.turn()
        desk.close(3)
        assert read(client) == {"left": 3}
        assert is_closed(client)


def test_a_successor_serves_only_when_it_takes_the_socket(tmp_path: Path) -> None:
    old, new = Desk(tmp_path / "s"), Desk(tmp_path / "other")
    fd = old.control.fileno()
    assert fd is not None
    new.control.close(0)
    new.control.adopt(os.dup(fd), 0o600)
    with old.connect() as client:
        new.turn()
        assert old.ask(client, b'{"command":"echo"}') == {"command": "echo"}
        new.control.take(tmp_path / "s")
        old.control.hand_over()
        assert old.ask(client, b'{"command":"echo","mine":true}')["mine"]
        with socket.socket(socket.AF_UNIX) as fresh:
            fresh.settimeout(2)
            fresh.connect(str(tmp_path / "s"))
            assert new.ask(fresh, b'{"command":"echo"}') == {"command": "echo"}
    old.close()
    assert (tmp_path / "s").exists()
    new.close()
    assert not (tmp_path / "s").exists()
