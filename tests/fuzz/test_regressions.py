"""Fuzzing in short: what was found once is played again, and each target runs a little.

Invariants: see the targets. This needs no atheris; ``make fuzz`` is the long form.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fluxor_fast.http.request import Head
from fluxor_fast.server.batch import BatchRunner
from fluxor_fast.server.framing import ChunkedDecoder, Reader
from fluxor_fast.server.heads import HeadCache
from fluxor_fast.server.protocol import HttpProtocol
from tests.fuzz.inputs import dictionary, found, pieces, seeds, split
from tests.fuzz.ledger import Ledger, digest
from tests.fuzz.minimise import minimised
from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import TARGETS
from tests.fuzz.watch import FOUND
from tests.support.seeds import seeded

ROOT = Path(__file__).parent.parent.parent
CASES = [(target, path.name) for target in TARGETS for path in found(target)]
RUNS = {"heads": 8000, "chunked": 10000, "reader": 5000, "protocol": 4000, "cache": 1500}


@pytest.mark.parametrize(("target", "name"), CASES)
def test_a_found_case_stays_corrected(target: str, name: str) -> None:
    (path,) = [path for path in found(target) if path.name == name]
    TARGETS[target]()(path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_a_short_run_finds_nothing(target: str) -> None:
    play = TARGETS[target]()
    pool = seeds(target)
    mutator = Mutator(pool, dictionary(), seeded(f"fuzz {target}"))
    inputs = itertools.chain(pool, (mutator.make() for _ in range(RUNS[target])))
    for data in inputs:
        try:
            play(data)
        except BaseException:
            print(f"input: {data!r}")
            raise


# A target that cannot fail shows nothing: each is given a server with a fault.

PLAIN = b"\x22\x05\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"
TWO = b"\x13\x05\n" + 2 * b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n"
BODY = b"\x00\nPOST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
CHUNKS = b"\x00\n3\r\nabc\r\n0\r\n\r\n"


def fails(target: str, data: bytes, match: str) -> None:
    with pytest.raises((AssertionError, RuntimeError), match=match):
        TARGETS[target]()(data)


def test_the_target_sees_a_head_read_two_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    original = HeadCache._plain

    def faulty(self: HeadCache, raw: bytes) -> Head | None:
        head = original(self, raw)
        if head is not None:
            head.keep_alive = not head.keep_alive
        return head

    monkeypatch.setattr(HeadCache, "_plain", faulty)
    fails("heads", b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n", "keep_alive")


def test_the_target_sees_a_chunk_that_depends_on_the_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ChunkedDecoder.feed

    def faulty(self: ChunkedDecoder, data: bytes, at: int) -> tuple[int, bytes | None]:
        return original(self, data[: at + 5], at)  # more than that it never sees

    monkeypatch.setattr(ChunkedDecoder, "feed", faulty)
    fails("chunked", CHUNKS, "more")


def test_the_target_sees_a_stream_read_two_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Reader.feed

    def faulty(self: Reader, data: bytes) -> None:
        original(self, data.replace(b"c", b"d") if len(data) == 1 else data)

    monkeypatch.setattr(Reader, "feed", faulty)
    fails("reader", BODY, "abc")


def test_the_target_sees_an_answer_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HttpProtocol, "flush", lambda self: self._out.clear())
    fails("protocol", TWO, "0 answers, 2 owed")


def test_the_target_sees_answers_in_the_wrong_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(self: HttpProtocol, request: Any, answer: bytes) -> None:
        self.order = self.current = None
        self.transport.write(answer)

    monkeypatch.setattr(HttpProtocol, "deliver", faulty)
    wire = b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\nGET /text HTTP/1.1\r\nHost: a\r\n\r\n"
    fails("protocol", b"\x13\x05\n" + wire, "/wait")


def test_the_target_sees_a_permit_that_is_not_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    original = BatchRunner._leave

    def faulty(self: BatchRunner, request: Any, *rest: Any) -> None:
        request.permit = False
        original(self, request, *rest)

    monkeypatch.setattr(BatchRunner, "_leave", faulty)
    fails("protocol", PLAIN.replace(b"GET / ", b"HEAD /text "), "1, 0")


def test_the_target_sees_a_connection_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    original = HttpProtocol.connection_lost

    def faulty(self: HttpProtocol, exc: Exception | None) -> None:
        kept.append(self)
        original(self, exc)

    monkeypatch.setattr(HttpProtocol, "connection_lost", faulty)
    fails("protocol", PLAIN, "refers to a closed connection")


def test_the_target_sees_that_it_never_comes_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    original = BatchRunner.turn

    def faulty(self: BatchRunner) -> None:
        original(self)
        self.schedule()

    monkeypatch.setattr(BatchRunner, "turn", faulty)
    fails("protocol", PLAIN, "never comes to rest")


def test_the_target_sees_that_the_cache_changes_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    original = HttpProtocol.data_received

    def faulty(self: HttpProtocol, data: bytes) -> None:
        if self._cached.get(data) is not None:
            data = data.replace(b"/text", b"/none")
        original(self, data)

    monkeypatch.setattr(HttpProtocol, "data_received", faulty)
    wire = b"GET /text HTTP/1.1\r\nHost: a\r\n\r\n"
    with pytest.raises(AssertionError):
        TARGETS["cache"]()(b"\x03\x05\n" + wire)


# the tools


def test_pieces_make_up_the_wire() -> None:
    rng = seeded("pieces")
    for _ in range(200):
        plan, wire = rng.randbytes(rng.randint(0, 5)), rng.randbytes(rng.randint(0, 300))
        parts = list(pieces(plan, wire))
        assert b"".join(parts) == wire and all(parts)
    assert list(pieces(b"\0", b"abc")) == [b"a", b"b", b"c"]
    assert split(b"plan\nwi\nre") == (b"plan", b"wi\nre")
    assert split(b"wire") == (b"", b"wire")


def test_a_failing_input_is_made_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def target(data: bytes) -> None:
        assert not (b"a" in data and b"z" in data)

    monkeypatch.setitem(TARGETS, "toy", lambda: target)
    path = tmp_path / "toy.input"
    path.write_bytes(b"the quick brown fox jumps over the lazy dog")
    assert minimised("toy", path).read_bytes() == b"az"


def test_the_ledger_adds_up_over_runs(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for number in range(3):
        Ledger(path).add(
            "heads",
            executions=1000,
            seconds=2.0,
            memory=1 << 20,
            blocks=number,
            engine="atheris",
            replayed=100,
            finding=None,
            coverage=None,
        )
    assert Ledger(path).executions("heads") == Ledger(path).executions("heads", digest()) == 3000
    assert Ledger(path).executions("heads", "other sources") == 0
    assert Ledger(path).guided("heads") == 2700
    assert "3,000" in Ledger(path).report()
    assert " 2,700    90% " in Ledger(path).report()


def test_a_run_ends_by_itself_and_its_executions_are_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.run", "--folder", str(tmp_path)]
    bounds = ["--targets", "chunked", "--engine", "blind", "--runs", "700"]
    run = subprocess.run([*command, *bounds], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    report = subprocess.run([*command, "--report", "--goal", "701"], cwd=ROOT, capture_output=True)
    assert b" 700 " in report.stdout
    assert report.returncode == 1


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("while True: pass", "has taken 0.2 s of processor time"),
        ("kept.append([data])", "blocks more after"),
        ("assert data", "AssertionError"),
    ],
    ids=["hang", "leak", "failure"],
)
def test_the_watch_keeps_the_input_and_ends_the_process(
    target: str, told: str, tmp_path: Path
) -> None:
    code = f"""
from pathlib import Path
from tests.fuzz import watch
watch.PATIENCE, watch.LOOK = 0.2, 5000
kept = []
def target(data):
    {target}
folder = Path({str(tmp_path)!r})
watched = watch.Watch("toy", target, watch.Status(folder / "status"), folder)
for _ in range(100_000):
    watched(b"")
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == FOUND
    assert told in run.stderr
    (path,) = tmp_path.glob("toy-*.input")
    assert path.read_bytes() == b""
