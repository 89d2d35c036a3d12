"""Explores every interleaving of several workers that run the real admission code.

Each worker runs a plain function (its *program*) on the real ``SharedLimit``, whose words, fence
and lock are doubles: every load, store, fence, lock and unlock is one *operation*. The explorer
decides who does the next one, and follows every choice.

A worker's next operation depends only on the results of those before it. So to find it, the
program is run again from the start with the recorded results, up to the first operation that
has none (``_Pause``). What is explored is the code itself, not a model of it.

Memory is that of x86 (total store order, Sewell et al., "x86-TSO", CACM 2010): a store goes into
its worker's buffer, in order; the buffer drains to memory one entry at a time, at any moment; a
load sees the worker's own newest buffered store, else memory; a fence waits until the buffer is
empty. Taking and leaving the kernel's lock are system calls with locked instructions: fences too.

A kill can come between any two operations: what is in the buffer still drains (those stores
have been executed), the lock is freed, and afterwards the arbiter zeroes the worker's words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Operation = tuple[Any, ...]
"""("load", word) ("store", word, value) ("fence",) ("lock",) ("unlock",) ("has", permits)."""
Program = Callable[["Recorder"], None]


class _Pause(BaseException):
    """Not an Exception: the code under test must not catch it."""

    def __init__(self, operation: Operation) -> None:
        self.operation = operation


class Recorder:
    """What a program works with; answers from the record and pauses at its end."""

    def __init__(self, record: tuple[int, ...], words: int) -> None:
        self._record = record
        self._at = 0
        self._words = words
        self._paused: _Pause | None = None

    def do(self, *operation: Any) -> int:
        if self._paused is not None:  # a `finally` on the way out is not an operation
            raise self._paused
        if self._at == len(self._record):
            self._paused = _Pause(operation)
            raise self._paused
        self._at += 1
        return self._record[self._at - 1]

    def has(self, permits: int) -> None:
        """Tell the explorer how many permits the program now relies on."""
        self.do("has", permits)

    def fence(self) -> None:
        self.do("fence")

    # the words

    def __getitem__(self, word: Any) -> Any:
        if isinstance(word, slice):
            return [self.do("load", one) for one in range(*word.indices(self._words))]
        return self.do("load", word)

    def __setitem__(self, word: int, value: int) -> None:
        self.do("store", word, value)

    def __iter__(self) -> Iterator[int]:
        for word in range(self._words):
            yield self[word]

    def __len__(self) -> int:
        return self._words

    # the lock

    def acquire(self) -> bool:
        return bool(self.do("lock"))

    def release(self) -> None:
        self.do("unlock")


@dataclass(frozen=True, slots=True)
class _Worker:
    record: tuple[int, ...] = ()
    buffer: tuple[tuple[int, int], ...] = ()
    has: int = 0
    dead: bool = False


@dataclass(frozen=True, slots=True)
class _State:
    memory: tuple[int, ...]
    owner: int  # of the lock, or -1
    kills: int
    workers: tuple[_Worker, ...]


@dataclass(slots=True)
class Findings:
    """What an exploration saw."""

    states: int = 0
    overshoot: list[str] | None = None
    """The first path that led to more permits than the limit."""
    most: int = 0
    ends: set[tuple[tuple[int, ...], tuple[int, ...]]] | None = None
    """(permits relied on, words) of every state in which nothing more can happen."""


class Explorer:
    """Explores ``programs`` from all words 0.

    :param limit: what the permits relied on must never exceed in sum.
    :param kills: how many workers may be killed.
    :param fences: whether a fence does anything.
    :param row: how many words each worker has, one row after the other.
    """

    def __init__(
        self,
        programs: list[Program],
        limit: int,
        *,
        kills: int = 0,
        fences: bool = True,
        row: int = 1,
    ) -> None:
        self._programs = programs
        self._limit = limit
        self._kills = kills
        self._fences = fences
        self._row = row
        self._next: dict[tuple[int, tuple[int, ...]], Operation | None] = {}

    def _operation(self, index: int, record: tuple[int, ...]) -> Operation | None:
        key = (index, record)
        if key not in self._next:
            try:
                self._programs[index](Recorder(record, self._row * len(self._programs)))
                self._next[key] = None
            except _Pause as pause:
                self._next[key] = pause.operation
        return self._next[key]

    def run(self, stop_at_overshoot: bool = True) -> Findings:
        """Follow every choice; with ``stop_at_overshoot`` only up to the first overshoot."""
        count = len(self._programs)
        first = _State((0,) * count * self._row, -1, self._kills, (_Worker(),) * count)
        seen = {first}
        parents: dict[_State, tuple[_State, str]] = {}
        stack = [first]
        found = Findings(ends=set())
        while stack:
            state = stack.pop()
            found.states += 1
            total = sum(worker.has for worker in state.workers)
            found.most = max(found.most, total)
            if total > self._limit and found.overshoot is None:
                found.overshoot = _path(state, parents)
                if stop_at_overshoot:
                    return found
            choices = list(self._choices(state))
            if not choices:
                assert found.ends is not None
                found.ends.add((tuple(w.has for w in state.workers), state.memory))
            for what, after in choices:
                if after not in seen:
                    seen.add(after)
                    parents[after] = (state, what)
                    stack.append(after)
        return found

    def _choices(self, state: _State) -> Iterator[tuple[str, _State]]:
        for index, worker in enumerate(state.workers):
            if worker.buffer:
                (word, value), rest = worker.buffer[0], worker.buffer[1:]
                memory = _with(state.memory, word, value)
                yield (
                    f"{index} drains {word}={value}",
                    self._change(state, index, worker, memory=memory, buffer=rest),
                )
            if worker.dead:
                own = range(index * self._row, (index + 1) * self._row)
                left = [word for word in own if state.memory[word]]
                if not worker.buffer and left:  # the arbiter, once it has reaped
                    memory = _with(state.memory, left[0], 0)
                    yield (
                        f"{left[0]} of {index} is folded",
                        _State(memory, state.owner, state.kills, state.workers),
                    )
                continue
            operation = self._operation(index, worker.record)
            if operation is not None:
                yield from self._perform(state, index, worker, operation)
                if state.kills:
                    dead = _Worker(worker.record, worker.buffer, 0, True)
                    owner = -1 if state.owner == index else state.owner
                    yield (
                        f"{index} is killed",
                        _State(
                            state.memory, owner, state.kills - 1, _with(state.workers, index, dead)
                        ),
                    )

    def _perform(
        self, state: _State, index: int, worker: _Worker, operation: Operation
    ) -> Iterator[tuple[str, _State]]:
        what = f"{index} {operation}"
        match operation:
            case ("load", word):
                value = state.memory[word]
                for at, stored in worker.buffer:
                    if at == word:
                        value = stored
                yield f"{what} → {value}", self._change(state, index, worker, result=value)
            case ("store", word, value):
                buffer = (*worker.buffer, (word, value))
                yield what, self._change(state, index, worker, result=0, buffer=buffer)
            case ("fence",):
                if not self._fences or not worker.buffer:
                    yield what, self._change(state, index, worker, result=0)
            case ("lock",):  # waits until it is free
                if state.owner < 0 and not worker.buffer:
                    yield what, self._change(state, index, worker, result=1, owner=index)
            case ("unlock",):
                if not worker.buffer:
                    yield what, self._change(state, index, worker, result=0, owner=-1)
            case ("has", permits):
                yield what, self._change(state, index, worker, result=0, has=permits)

    @staticmethod
    def _change(
        state: _State,
        index: int,
        worker: _Worker,
        *,
        result: int | None = None,
        memory: tuple[int, ...] | None = None,
        buffer: tuple[tuple[int, int], ...] | None = None,
        has: int | None = None,
        owner: int | None = None,
    ) -> _State:
        changed = _Worker(
            worker.record if result is None else (*worker.record, result),
            worker.buffer if buffer is None else buffer,
            worker.has if has is None else has,
            worker.dead,
        )
        return _State(
            state.memory if memory is None else memory,
            state.owner if owner is None else owner,
            state.kills,
            _with(state.workers, index, changed),
        )


def _with(values: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    return (*values[:index], value, *values[index + 1 :])


def _path(state: _State, parents: dict[_State, tuple[_State, str]]) -> list[str]:
    steps: list[str] = []
    while state in parents:
        state, what = parents[state]
        steps.append(what)
    return steps[::-1]
