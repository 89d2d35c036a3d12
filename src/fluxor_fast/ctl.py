"""``fluxor-fast ctl``: asks and tells a running instance, at its control socket.

Exit codes: 0 it is done, 1 it was refused or failed, 5 there is no instance, 2 for usage.

What takes time (reload, scale, drain, upgrade) is followed by asking again, so that a client that
goes away holds nothing up.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from fluxor_fast.config import load
from fluxor_fast.errors import ControlError, NoInstanceError

__all__ = ["ctl", "table"]

PATIENCE: Final = 60.0
"""Seconds for an answer: an arbiter that imports an application does nothing else."""
AGAIN: Final = 0.1
"""Seconds between two questions."""

Document = dict[str, Any]


class Link:
    """A connection to an instance.

    :raises NoInstanceError: if nobody listens at ``path``.
    """

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(PATIENCE)
        try:
            self._socket.connect(str(path))
        except PermissionError as error:
            self._socket.close()
            raise ControlError(f"{path}: this user may not control the instance") from error
        except OSError as error:
            self._socket.close()
            raise NoInstanceError(f"no instance at {path}: {error.strerror or error}") from error
        self._file = self._socket.makefile("rb")

    def ask(self, command: str, **more: object) -> Document:
        """Return the answer.

        :raises ControlError: if it is refused, or the instance goes away; it says why.
        """
        try:
            self._socket.sendall(json.dumps({"command": command, **more}).encode() + b"\n")
        except BrokenPipeError:
            pass  # a last line may be there
        except OSError as error:
            raise ControlError(f"{command}: {error.strerror or error}") from error
        try:
            line = self._file.readline()
        except OSError as error:
            raise ControlError(f"{command}: no answer: {error.strerror or error}") from error
        if not line.endswith(b"\n"):
            raise ControlError("the instance has gone away")
        answer: Document = json.loads(line)
        if "error" in answer:
            raise ControlError(str(answer["message"]), answer)
        if "left" in answer and command not in ("drain", "stop", "status"):
            raise ControlError(f"the instance has left, with code {answer['left']}")
        return answer

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._socket.close()


def _say(text: str) -> None:
    click.echo(text, err=True)


def _ordered(link: Link, order: int, what: str) -> Document:
    """Follow an order to its end.

    :raises ControlError: if it did not end well.
    """
    said = ""
    while True:
        progress = link.ask("progress", order=order)
        if progress["done"]:
            if progress["problem"]:
                raise ControlError(progress["problem"])
            return progress
        roll = progress["roll"]
        text = f"{what}: waits for what is under way"
        if roll is not None:
            text = f"{roll['what']}: {roll['replaced']} started, {roll['left']} to go"
        if text != said:
            said = text
            _say(text)
        time.sleep(AGAIN)


def _leaving(link: Link, pid: int) -> Document:
    """Follow an instance until it has left.

    :raises ControlError: if it did not leave well.
    """
    said = ""
    while True:
        status = link.ask("status")
        if "left" in status:
            return _left(status)
        if status["summary"] != said:
            said = status["summary"]
            _say(f"arbiter {pid} {said}")
        time.sleep(AGAIN)


def _left(answer: Document) -> Document:
    if answer["left"]:
        raise ControlError(f"the instance left with code {answer['left']}; the log tells why")
    return answer


def _upgraded(link: Link, pid: int) -> None:
    """Follow an upgrade until the new arbiter is ready.

    :raises ControlError: if it does not get there.
    """
    while True:
        status = link.ask("status")
        if "left" in status or (status["upgrade"] or {}).get("ready"):
            return
        if status["upgrade"] is None:
            raise ControlError(f"arbiter {pid} has left before it was ready; this one goes on")
        time.sleep(AGAIN)


def table(status: Document) -> str:
    """Return a status for people."""
    limits, totals = status["limits"], status["totals"]
    lines = [
        f"fluxor-fast {status['version']}, arbiter {status['pid']}, up {_span(status['uptime'])}",
        f"{status['summary']}; {status['app']} on {', '.join(status['listeners']) or 'no socket'}",
        f"limits: {limits['max_ccu']} requests in the system, normal ones {limits['normal']},"
        f" {limits['slots']} at once, {limits['max_queue']} waiting,"
        f" {limits['max_connections']} connections; log level {status['log_level']}",
        f"totals: {totals['offered']} offered, {totals['completed']} completed,"
        f" {sum(totals['shed'].values())} refused, {totals['aborted']} aborted,"
        f" {totals['lost']} lost",
    ]
    if (roll := status["roll"]) is not None:
        lines.append(f"{roll['what']}: {roll['replaced']} started, {roll['left']} to go")
    if (upgrade := status["upgrade"]) is not None:
        ready = "ready" if upgrade["ready"] else "starting"
        lines.append(f"upgrade: arbiter {upgrade['pid']} is {ready}")
    if status["predecessor"] is not None:
        lines.append(f"upgrade: arbiter {status['predecessor']} has not left yet")
    heads = ("index", "seat", "pid", "state", "age", "completed", "connections", "permits", "rss")
    rows = [heads] + [
        (*(str(w[name]) for name in heads[:4]), _span(w["age"]),
         *(str(w[name]) for name in heads[5:8]), f"{w['rss'] / 2**20:.0f} MiB")
        for w in status["workers"]
    ]  # fmt: skip
    widths = [max(len(row[at]) for row in rows) for at in range(len(heads))]
    lines += [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join(lines)


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (rest, "s"))
    first = next((at for at, (number, _) in enumerate(parts) if number), len(parts) - 1)
    return " ".join(f"{number} {unit}" for number, unit in parts[first : first + 2])


def _stacks(answer: Document) -> str:
    return "\n\n".join(
        f"worker {each['index']} (pid {each['pid']}):\n{each.get('stacks') or each['problem']}"
        for each in answer["workers"]
    )


Act = Callable[..., tuple[Document, str]]


def _command(name: str, *parameters: Any) -> Callable[[Act], click.Command]:
    """Make a subcommand of what returns a document and its text."""

    def make(act: Act) -> click.Command:
        def run(
            control: Path | None,
            config: Path | None,
            as_json: bool,
            **more: Any,
        ) -> None:
            path = load(config, flags={"server.control": control}).server.control
            if path is None:
                raise click.UsageError("which instance? give its --control, as to serve")
            link = None
            try:
                link = Link(path)
                document, text = act(link, **more)
                click.echo(json.dumps(document, indent=2) if as_json else text)
            except ControlError as error:
                if not as_json:
                    raise
                click.echo(json.dumps(error.document, indent=2))
                sys.exit(error.exit_code)
            finally:
                if link is not None:
                    link.close()

        shared = [
            click.Option(["--control"], type=click.Path(path_type=Path),
                         help="Socket of the instance; else as the settings have it."),
            click.Option(["--config"], type=click.Path(path_type=Path),
                         help="YAML file of settings, to find the socket there."),
            click.Option(["--json", "as_json"], is_flag=True, help="Print JSON, errors too."),
        ]  # fmt: skip
        made = click.Command(name, params=[*parameters, *shared], callback=run, help=act.__doc__)
        ctl.add_command(made)
        return made

    return make


@click.group()
def ctl() -> None:
    """Ask and tell a running instance (serve --control PATH)."""


_NO_WAIT = click.Option(["--wait/--no-wait"], default=True, help="Wait until it is done.")


@_command("status")
def _status(link: Link) -> tuple[Document, str]:
    """Print the state of the instance and its workers."""
    status = link.ask("status")
    return status, "it has just left" if "left" in status else table(status)


@_command("reload", _NO_WAIT)
def _reload(link: Link, wait: bool) -> tuple[Document, str]:
    """Read settings and application anew, and replace the workers one at a time."""
    answer = link.ask("reload")
    if not wait:
        return answer, "asked for"
    done = _ordered(link, answer["order"], "reload")
    return done, f"done: {done['seats']} workers serve"


@_command("scale", click.Argument(["workers"], type=int), _NO_WAIT)
def _scale(link: Link, workers: int, wait: bool) -> tuple[Document, str]:
    """Have so many WORKERS."""
    answer = link.ask("scale", workers=workers)
    if not wait:
        return answer, "asked for"
    done = _ordered(link, answer["order"], "scaling")
    if done["seats"] != workers:  # somebody asked for another number, or a reload was stopped
        raise ControlError(f"{done['seats']} workers serve, not {workers}")
    return done, f"done: {workers} workers serve"


@_command("drain", _NO_WAIT)
def _drain(link: Link, wait: bool) -> tuple[Document, str]:
    """Stop the instance: it answers what it has, and leaves."""
    return _ended(link, "drain", wait)


@_command("stop", _NO_WAIT)
def _stop(link: Link, wait: bool) -> tuple[Document, str]:
    """Stop the instance at once: what is in the system is lost."""
    return _ended(link, "stop", wait)


def _ended(link: Link, command: str, wait: bool) -> tuple[Document, str]:
    answer = link.ask(command)
    if "left" in answer:  # it was leaving already
        return _left(answer), "done: it has left"
    if not wait:
        return answer, "asked for"
    return _leaving(link, answer["pid"]), f"done: arbiter {answer['pid']} has left"


@_command("upgrade", _NO_WAIT)
def _upgrade(link: Link, wait: bool) -> tuple[Document, str]:
    """Start a new arbiter on the same sockets; the old one leaves when that one is ready."""
    answer = link.ask("upgrade")
    if not wait:
        return answer, f"arbiter {answer['pid']} is starting"
    _say(f"arbiter {answer['pid']} is starting")
    _upgraded(link, answer["pid"])
    return answer, f"done: arbiter {answer['pid']} serves, the old one drains"


@_command("loglevel", click.Argument(["level"]))
def _loglevel(link: Link, level: str) -> tuple[Document, str]:
    """Log from LEVEL up (debug, info, warning, error), or as the settings say (reset)."""
    answer = link.ask("loglevel", level=level)
    return answer, f"{level}: workers follow within a second"


@_command("dump-stacks")
def _dump_stacks(link: Link) -> tuple[Document, str]:
    """Print the Python stacks of all workers, even of one that hangs."""
    answer = link.ask("dump-stacks")
    return answer, _stacks(answer)
