"""What the server answers to other people's TLS: ``openssl s_client`` in many ways.

``make tls`` prints the table; ``tests/process/test_tls_outside.py`` runs the same.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.certificates import DAY, Authority, now
from tests.support.server import LiveServer

OPENSSL = shutil.which("openssl")
REQUEST = b"GET /who HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Seen:
    """What ``s_client`` reports."""

    version: str
    """Empty if there was no handshake."""
    alpn: str
    alert: str
    reused: bool
    compressed: bool
    verified: bool
    answered: bool
    """Whether the request on it was answered with 200."""
    text: str = field(repr=False)


@dataclass(frozen=True)
class Case:
    """One row: to which server, how, and what is to come of it."""

    name: str
    server: str
    flags: str
    version: str = ""
    alpn: str = ""
    alert: str = ""

    @property
    def expected(self) -> str:
        """The outcome in words."""
        return self.version or f"refused: {self.alert}"

    def holds(self, seen: Seen) -> bool:
        """Whether it came as expected; what is accepted must have been answered as well."""
        outcome = (seen.version, seen.alpn, seen.answered, seen.verified)
        if self.version:
            return outcome == (self.version, self.alpn, True, True) and not seen.compressed
        return not seen.answered and self.alert in seen.alert


# servers: plain (no client certificates), strict (1.3 at least), optional, required
CASES = [
    Case("TLS 1.0", "plain", "-tls1", alert="protocol version"),
    Case("TLS 1.1", "plain", "-tls1_1", alert="protocol version"),
    Case("TLS 1.2", "plain", "-tls1_2", "TLSv1.2"),
    Case("TLS 1.3", "plain", "-tls1_3", "TLSv1.3"),
    Case("1.3 at least: TLS 1.2", "strict", "-tls1_2", alert="protocol version"),
    Case("1.3 at least: TLS 1.3", "strict", "-tls1_3", "TLSv1.3"),
    Case("1.2 without forward secrecy", "plain", "-tls1_2 -cipher kRSA:@SECLEVEL=0",
         alert="handshake failure"),
    Case("1.2 without encryption", "plain", "-tls1_2 -cipher eNULL:@SECLEVEL=0",
         alert="handshake failure"),
    Case("1.2 without authentication", "plain", "-tls1_2 -cipher aNULL:@SECLEVEL=0",
         alert="handshake failure"),
    Case("1.2 with compression asked for", "plain", "-tls1_2 -comp", "TLSv1.2"),
    Case("ALPN http/1.1", "plain", "-alpn http/1.1", "TLSv1.3", "http/1.1"),
    Case("ALPN h2, http/1.1", "plain", "-alpn h2,http/1.1", "TLSv1.3", "http/1.1"),
    Case("ALPN h2 only: none is chosen", "plain", "-alpn h2", "TLSv1.3"),
    Case("without SNI", "plain", "-noservername", "TLSv1.3"),
    Case("SNI of another name", "plain", "-servername other.example", "TLSv1.3"),
    Case("certificate optional, none", "optional", "", "TLSv1.3"),
    Case("certificate optional, good", "optional", "-cert {good} -key {good_key}", "TLSv1.3"),
    Case("certificate optional, other CA", "optional", "-cert {other} -key {other_key}",
         alert="unknown ca"),
    Case("certificate required, none", "required", "", alert="certificate required"),
    Case("certificate required, none, 1.2", "required", "-tls1_2", alert="handshake failure"),
    Case("certificate required, good", "required", "-cert {good} -key {good_key}", "TLSv1.3"),
    Case("certificate required, good, 1.2", "required",
         "-tls1_2 -cert {good} -key {good_key}", "TLSv1.2"),
    Case("certificate required, other CA", "required", "-cert {other} -key {other_key}",
         alert="unknown ca"),
    Case("certificate required, expired", "required", "-cert {old} -key {old_key}",
         alert="certificate expired"),
    Case("certificate required, not yet valid", "required", "-cert {young} -key {young_key}",
         alert="bad certificate"),
]  # fmt: skip


class Servers:
    """A server for each kind of settings, and the certificates to come with."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        ours, theirs = Authority(folder), Authority(folder, "theirs")
        self.ca = ours.path
        self.names: dict[str, Path] = {}
        for name, authority, before, after in [
            ("good", ours, None, None),
            ("other", theirs, None, None),
            ("old", ours, now() - 9 * DAY, now() - DAY),
            ("young", ours, now() + DAY, now() + 9 * DAY),
        ]:
            pair = authority.issue(name, f"{name}@example.org", before=before, after=after)
            self.names[name], self.names[f"{name}_key"] = pair
        certificate, key = ours.issue("server")
        flags = ["--workers=2", f"--tls-certificate={certificate}", f"--tls-key={key}"]
        asks = [f"--tls-client-ca={ours.path}"]
        kinds = {
            "plain": [],
            "strict": ["--tls-minimum=1.3"],
            "optional": [*asks, "--tls-client-certificate=optional"],
            "required": [*asks, "--tls-client-certificate=required"],
        }
        self.all = {
            kind: stack.enter_context(LiveServer("held:app", *flags, *more))
            for kind, more in kinds.items()
        }

    def look(self, kind: str, flags: str, told: bytes = REQUEST) -> Seen:
        """Connect with ``flags`` and say what came of it."""
        ends = "-ign_eof" if told is REQUEST else ""
        written = f"{ends} -CAfile {self.ca} {flags}".format(**self.names)
        if "-cipher" not in written:  # what old versions of TLS need, or OpenSSL itself refuses
            written += " -cipher ALL:@SECLEVEL=0"
        if "servername" not in written:
            written += " -servername localhost"
        assert OPENSSL
        done = subprocess.run(
            [OPENSSL, "s_client", "-connect", f"127.0.0.1:{self.all[kind].port}",
             "-verify_hostname", "localhost", *written.split()],
            input=told,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=20,
            check=False,
        )  # fmt: skip
        return read(done.stdout.decode(errors="replace"))


def read(text: str) -> Seen:
    """Read the report of ``s_client``."""

    def found(pattern: str) -> str:
        match = re.search(pattern, text)
        return match[1] if match else ""

    return Seen(
        version=found(r"(?:New|Reused), (TLSv\S+),"),
        alpn=found(r"ALPN protocol: (\S+)"),
        alert=found(r":[\w/]+ alert ([a-z ]+):") or found(r":(no renegotiation):"),
        reused="\nReused, " in text,
        compressed="Compression: NONE" not in text,
        verified="Verify return code: 0 (ok)" in text,
        answered="HTTP/1.1 200 OK" in text,
        text=text,
    )


@contextmanager
def running(folder: Path) -> Iterator[Servers]:
    """Run the servers."""
    with ExitStack() as stack:
        yield Servers(folder, stack)


def main() -> int:
    """Print the table; return how many rows are not as expected."""
    if OPENSSL is None:
        print("there is no openssl on this machine: nothing to try", file=sys.stderr)
        return 1
    wrong = 0
    print(subprocess.run([OPENSSL, "version"], capture_output=True, text=True, check=True).stdout)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as servers:
        print(f"{'the client comes with':37} {'expected':31} {'seen':31} ALPN")
        for case in CASES:
            seen = servers.look(case.server, case.flags)
            came = seen.version if seen.answered else f"refused: {seen.alert}"
            mark = "" if case.holds(seen) else "  ← not as expected"
            wrong += bool(mark)
            print(f"{case.name:37} {case.expected:31} {came:31} {seen.alpn or '–'}{mark}")
    print(f"\n{len(CASES) - wrong} of {len(CASES)} as expected")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
