"""What TLS costs: per request on kept connections, per handshake, and in memory.

One worker on a core of its own, the client on the other. Requests: wrk on 64 connections, with
and without TLS in turn. Handshakes: ``openssl s_time``, one connection after the other, so the
client limits how many there are; the server's CPU time for each is what counts, and what a core
could do is its inverse. Memory: what 1,000 idle connections add to the server.
"""

from __future__ import annotations

import re
import ssl
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import click
import trustme
from harness import (
    Cores,
    Failed,
    Server,
    command_of,
    cpu_seconds,
    cpu_since,
    free_port,
    measured,
    memory_of,
    pinned,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.server import APPS, Client

CONNECTIONS = 64
IDLE = 1000
KEYS = {"ECDSA P-256": trustme.KeyType.ECDSA, "RSA 2048": trustme.KeyType.RSA}


class TlsClient(Client):
    """The plain client, over TLS."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        super().__init__(port)
        self.file.close()
        self.socket = context.wrap_socket(self.socket)
        self.file = self.socket.makefile("rb")


def trusting() -> ssl.SSLContext:
    """Return the context of a client that asks for no name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def client(port: int, tls: bool) -> Client:
    return TlsClient(port, trusting()) if tls else Client(port)


@contextmanager
def serving(cores: Cores, key: trustme.KeyType | None) -> Iterator[Server]:
    """Serve with one worker; with a certificate for a key of that type, if one is given."""
    port = free_port()
    command = [
        command_of("fluxor-fast"), "serve", "held:app", "--port", str(port), "--workers", "1",
        "--log-level", "warning", "--graceful-timeout", "1",
    ]  # fmt: skip

    def ready(port: int) -> bool:
        with closing(client(port, key is not None)) as one:
            return one.request("/who").status == 200

    with ExitStack() as stack:
        if key is not None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            path = Path(folder) / "both.pem"
            issued = trustme.CA(key_type=key).issue_cert("127.0.0.1", key_type=key)
            issued.private_key_and_cert_chain_pem.write_to_path(str(path))
            command += ["--tls-certificate", str(path)]
        name = "with TLS" if key else "without TLS"
        yield stack.enter_context(
            Server(
                name,
                command,
                port,
                ready=ready,
                cpus=cores.server,
                environ={"PYTHONPATH": str(APPS)},
            )
        )


def requests(cores: Cores, rounds: int, seconds: float) -> None:
    """Print what a request costs with and without TLS."""
    costs: dict[str, list[float]] = {"http": [], "https": []}
    rates: dict[str, list[float]] = {"http": [], "https": []}
    with serving(cores, None) as plain, serving(cores, trustme.KeyType.ECDSA) as secured:
        for _ in range(rounds):
            for scheme, server in (("http", plain), ("https", secured)):
                found = measured(
                    server,
                    "/who",
                    cores=cores,
                    connections=CONNECTIONS,
                    seconds=seconds,
                    scheme=scheme,
                )
                costs[scheme].append(found.cpu_us)
                rates[scheme].append(found.load.rps)
    for scheme in costs:
        print(
            f"{scheme:6} {statistics.median(costs[scheme]):6.1f} µs of CPU per request"
            f" ({min(costs[scheme]):.1f} to {max(costs[scheme]):.1f}),"
            f" {statistics.median(rates[scheme]):,.0f} requests/s"
        )


def handshakes(cores: Cores, seconds: float) -> None:
    """Print what a handshake costs the server, full and resumed."""
    for name, key in KEYS.items():
        with serving(cores, key) as server:
            # s_time does not wait for the tickets of TLS 1.3, so it cannot resume there
            for version, way in (("1_3", "new"), ("1_2", "new"), ("1_2", "reuse")):
                before = cpu_seconds(server.pid)
                with pinned(cores.generator):
                    done = subprocess.run(
                        ["openssl", "s_time", "-connect", f"127.0.0.1:{server.port}",
                         f"-{way}", f"-tls{version}", "-time", str(round(seconds))],
                        capture_output=True, text=True, check=False,
                    )  # fmt: skip
                used = cpu_since(before, server.pid)
                counts = re.findall(r"(\d+) connections in \d+ real", done.stdout)
                if not counts:
                    raise Failed(f"s_time: {done.stderr.strip()[-200:]}")
                each = used / int(counts[-1])
                print(
                    f"{name:11}  TLS {version.replace('_', '.')}  {way:6}"
                    f" {each * 1e6:5.0f} µs of CPU each: a core does {1 / each:,.0f} a second"
                )


def memory(cores: Cores) -> None:
    """Print what an idle connection adds to the server."""
    for name, key in (("http", None), ("https", trustme.KeyType.ECDSA)):
        with serving(cores, key) as server:
            before = memory_of(server.tree).pss
            clients = [client(server.port, key is not None) for _ in range(IDLE)]
            for one in clients:
                one.request("/who")
            each = (memory_of(server.tree).pss - before) / IDLE
            for one in clients:
                one.close()
        print(f"{name:6} {each / 1024:6.1f} KiB for each of {IDLE} idle connections")


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=3.0, show_default=True, help="Of each measurement.")
def main(rounds: int, seconds: float) -> None:
    """Print what TLS costs."""
    cores = Cores.of(1)
    print(f"{ssl.OPENSSL_VERSION}; {cores.said.replace('wrk', 'the client')}")
    requests(cores, rounds, seconds)
    handshakes(cores, seconds)
    memory(cores)


if __name__ == "__main__":
    main()
