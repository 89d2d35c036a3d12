"""``fluxor-fast serve --tls-…`` with two workers, and other people's clients."""

from __future__ import annotations

import os
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.test_lifecycle import failed
from tests.support.certificates import Authority
from tests.support.matrix import CASES, OPENSSL, Case, Servers, running
from tests.support.server import Client, LiveServer, eventually, tells
from tests.test_cli import run

needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="there is no openssl command here")


class TlsClient(Client):
    """The blocking client, over TLS."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        super().__init__(port)
        self.file.close()
        self.socket: ssl.SSLSocket = context.wrap_socket(self.socket, server_hostname="localhost")
        self.file = self.socket.makefile("rb")

    @property
    def shown(self) -> bytes | None:
        return self.socket.getpeercert(binary_form=True)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with running(tmp_path_factory.mktemp("matrix")) as servers:
        yield servers


@needs_openssl
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_matrix(servers: Servers, case: Case) -> None:
    seen = servers.look(case.server, case.flags)
    assert case.holds(seen), f"{seen}\n{seen.text}"


@needs_openssl
def test_renegotiation_is_refused(servers: Servers) -> None:
    """It costs the server more than the client, and TLS 1.3 has none."""
    seen = servers.look("plain", "-tls1_2", told=b"R\n")
    assert "RENEGOTIATING" in seen.text
    assert seen.alert == "no renegotiation", seen.text


@needs_openssl
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_any_worker_resumes_a_session_of_any(
    servers: Servers, tmp_path: Path, version: str
) -> None:
    """The context is made before the fork, and its ticket keys with it."""
    session = tmp_path / "session"
    assert servers.look("plain", f"{version} -sess_out {session}").answered
    seen = [servers.look("plain", f"{version} -sess_in {session}") for _ in range(10)]
    assert all(one.answered and one.reused for one in seen)


@needs_openssl
def test_a_client_with_a_certificate_shows_it_each_time(servers: Servers, tmp_path: Path) -> None:
    flags = "-tls1_3 -cert {good} -key {good_key}"
    session = tmp_path / "session"
    assert servers.look("required", f"{flags} -sess_out {session}").answered
    assert not session.exists()  # no ticket was given


@pytest.mark.parametrize("command", ["serve", "check"])
def test_what_is_wrong_is_told_before_anything_starts(authority: Authority, command: str) -> None:
    one, other = authority.issue("one"), authority.issue("other")
    flags = (f"--tls-certificate={one[0]}", f"--tls-key={other[1]}")
    if command == "serve":
        code, log = failed("held:app", "--workers=2", *flags)
    else:
        done = run("check", *flags)
        code, log = done.returncode, done.stderr
    assert code == 2
    assert log == f"fluxor-fast: tls.key: {other[1]} is not the key of {one[0]}\n"


def test_check_is_content_with_a_good_pair(authority: Authority) -> None:
    certificate, key = authority.issue("one")
    done = run("check", f"--tls-certificate={certificate}", f"--tls-key={key}")
    assert done.returncode == 0, done.stderr
    assert str(certificate) in done.stdout


def test_new_certificates_are_used_without_a_restart(authority: Authority) -> None:
    """By all workers, and by one that comes later, while they are broken; old connections go on."""
    pair = authority.issue("server")
    context = authority.client()
    flags = ("--workers=2", f"--tls-certificate={pair[0]}", f"--tls-key={pair[1]}")
    with LiveServer("held:app", *flags) as server:
        old = TlsClient(server.port, context)
        first = old.shown
        by = old.request("/who").json["pid"]
        authority.replace(pair)

        def shown() -> dict[int, bytes | None]:
            """Which certificate each worker shows."""
            found = {}
            for _ in range(20):
                with TlsClient(server.port, context) as client:
                    found[client.request("/who").json["pid"]] = client.shown
            return found

        eventually(lambda: first not in shown().values(), "the new certificate")
        tells(server, "use the new certificate", 3)  # the arbiter has it too
        assert len(set(shown().values())) == 1
        assert old.request("/who").json["pid"] == by
        pair[1].write_text("no key\n")
        tells(server, "cannot be used; the old ones stay", 3)
        now = shown()
        assert first not in now.values()
        authority.replace(pair)
        eventually(lambda: not set(now.values()) & set(shown().values()), "the third one")
        third = set(shown().values())
        tells(server, "use the new certificate", 6)  # all three have it
        pair[1].write_text("no key\n")
        victim = next(pid for pid in server.workers if pid != by)
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: len(server.workers) == 2 and victim not in server.workers, "replaced")
        eventually(lambda: len(shown()) == 2, "it serves")
        assert set(shown().values()) == third
        assert old.request("/who").json["pid"] == by
        old.close()


def test_a_stop_answers_what_is_in_the_system(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue("server")
    gate = tmp_path / "gate"
    flags = ("--workers=2", f"--tls-certificate={pair[0]}", f"--tls-key={pair[1]}")
    context = authority.client()
    with LiveServer("held:app", *flags, env={"HELD_GATE": str(gate)}) as server:
        held = [TlsClient(server.port, context) for _ in range(4)]
        for client in held:
            client.send("/hold")
        idle = [TlsClient(server.port, context) for _ in range(4)]
        for client in idle:
            assert client.request("/").status == 200
        silent = socket.create_connection(("127.0.0.1", server.port), 10)
        with TlsClient(server.port, context) as client:
            eventually(lambda: client.request("/figures").json["ccu"] == 4, "held")
        server.signal(signal.SIGTERM)
        for client in idle:  # a close_notify: without it this would be an SSLEOFError
            assert client.socket.recv(1) == b""
        assert silent.recv(1) == b""
        gate.touch()
        for client in held:
            answer = client.read()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert client.socket.recv(1) == b""
        assert server.wait() == 0
        for client in held + idle:
            client.close()
        silent.close()


def test_a_plain_request_on_the_port_of_tls_is_ended(authority: Authority) -> None:
    """Whoever forgets the s of https gets an end, not a hanging connection."""
    pair = authority.issue("server")
    flags = ("--workers=1", f"--tls-certificate={pair[0]}", f"--tls-key={pair[1]}")
    with LiveServer("held:app", *flags) as server:
        with Client(server.port) as client, pytest.raises(ConnectionError):
            client.request("/")
        with TlsClient(server.port, authority.client()) as client:
            assert client.request("/").status == 200
        tells(server, f"https://127.0.0.1:{server.port}")
        assert "Traceback" not in server.log
