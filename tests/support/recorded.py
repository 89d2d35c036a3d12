"""A connection without a socket: the real protocol, batch and loop, over a transport that records.

``Stage.play`` gives the pieces to a new connection one by one, as often as it wants to be read,
and returns all that came of it. It is bounded: what does not come to rest fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from fluxor_fast import App, HTTPError
from fluxor_fast.server.framing import Reader
from fluxor_fast.server.heads import HeadCache, Limits
from tests.support.inprocess import Answer
from tests.support.turns import Bench, Transport

TURNS = 5_000  # of the loop, in which a connection must come to rest
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [\x20-\x7e]+")
_FIELD = re.compile(rb"([A-Za-z0-9-]+): ([\x20-\x7e]*)")


class Recorder(Transport):
    """Records what is written, whether it was ended, and whether it is being read."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = False
        self.paused = False

    def write(self, data: bytes) -> None:
        assert not self.ended, "written behind the end"
        super().write(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


def parse_answers(data: bytes, methods: Iterable[str]) -> list[Answer]:
    """Return the final answers in ``data``; what is no well-formed answer fails the test.

    :param methods: of the requests answered, in order; what has none is taken for a GET.
    """
    answers: list[Answer] = []
    remaining = iter(methods)
    while data:
        raw, end, data = data.partition(b"\r\n\r\n")
        assert end, f"half a head: {raw!r}"
        line, *lines = raw.split(b"\r\n")
        match = _STATUS_LINE.fullmatch(line)
        assert match, f"not a status line: {line!r}"
        if (status := int(match[1])) < 200:
            continue
        headers: dict[str, str] = {}
        for one in lines:
            found = _FIELD.fullmatch(one)
            assert found, f"not a header line: {one!r}"
            name = found[1].decode().lower()
            assert name not in headers, f"{name} comes twice"
            headers[name] = found[2].decode()
        empty = next(remaining, "GET") == "HEAD" or status in (204, 304)
        size = 0 if empty else int(headers["content-length"])
        assert len(data) >= size, "half a body"
        answers.append(Answer(status, headers, data[:size], raw))
        data = data[size:]
    return answers


@dataclass
class Outcome:
    """What came of the bytes that a connection was given."""

    answers: list[Answer]
    closed: bool

    @property
    def statuses(self) -> list[int]:
        return [answer.status for answer in self.answers]

    @property
    def said(self) -> list[tuple[int, bytes]]:
        """The answers but for what is another each time: date and id."""
        return [(answer.status, answer.body) for answer in self.answers]


@dataclass
class Stage:
    """An application behind the real protocol, with a head cache that can be exchanged."""

    app: App
    limits: Limits
    bench: Bench = field(init=False)
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.bench = Bench(self.app, loop)
        self.router = self.app.router()
        self.use_cache(self.new_cache())
        loop.set_exception_handler(lambda _, context: self.errors.append(repr(context)))
        log = logging.getLogger("fluxor_fast")
        self._handler = _Collect(self.errors)
        log.addHandler(self._handler)

    def new_cache(self, **options: Any) -> HeadCache:
        """Return an empty head cache."""
        runner = self.bench.runner
        return HeadCache(self.router, self.limits, lambda: runner.counters.offered, **options)

    def use_cache(self, heads: HeadCache) -> None:
        """Have the connections to come share ``heads``."""
        self.bench.service = replace(self.bench.service, heads=heads)

    def fill(self, heads: HeadCache, wires: Iterable[bytes]) -> None:
        """Have ``heads`` read each of ``wires``."""
        for wire in wires:
            reader = Reader(heads)
            reader.feed(wire)
            with contextlib.suppress(HTTPError):
                while (message := reader.next()) is not None and message[1] is not None:
                    pass

    def methods_of(self, wire: bytes) -> list[str]:
        """Return the methods of the requests in ``wire``, as a reader of its own finds them."""
        reader = Reader(self.new_cache(entries=0))
        reader.feed(wire)
        found = []
        with contextlib.suppress(HTTPError):
            while (message := reader.next()) is not None:
                found.append(message[0].method)
                if message[1] is None:  # it is answered before its body has come
                    while reader.in_body and reader.piece():
                        pass
                    if reader.in_body:
                        break
        return found

    async def play(
        self,
        pieces: list[bytes],
        methods: Iterable[str] = (),
        *,
        behind: bytes = b"",
    ) -> Outcome:
        """Give ``pieces`` to a new connection; return what came of them.

        :param methods: of the requests that are in the pieces, as far as they are known.
        :param behind: is sent once nothing more comes; the outcome is then of both.
        """
        connection = self.bench.connect(Recorder)
        transport = connection.transport
        for piece in pieces:
            await self._until(lambda: not transport.paused or transport.closing)
            if transport.closing:
                break
            connection.data_received(piece)
            await asyncio.sleep(0)
        await self._rest()
        if behind and not transport.closing:
            connection.data_received(behind)
            await self._rest()
        connection.connection_lost(None)
        answers = parse_answers(b"".join(transport.written), methods)
        return Outcome(answers, transport.closing or transport.ended)

    async def _rest(self) -> None:
        await self._until(lambda: self.bench.runner.busy == 0)
        await asyncio.sleep(0)  # the turn in which the last answers leave

    async def _until(self, condition: Callable[[], bool]) -> None:
        for turn in range(TURNS):
            if condition():
                return
            await asyncio.sleep(0 if turn < 20 else 0.0005)
        raise AssertionError("it does not come to rest")

    def finish(self) -> None:
        """Check that no error reached the loop or the log, and that nothing is left over."""
        logging.getLogger("fluxor_fast").removeHandler(self._handler)
        assert self.errors == []
        self.bench.assert_empty()
        assert self.bench.memory.connections.tolist() == [0, 0]
        assert not self.bench.service.open


class _Collect(logging.Handler):
    def __init__(self, into: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._into = into

    def emit(self, record: logging.LogRecord) -> None:
        self._into.append(record.getMessage())
