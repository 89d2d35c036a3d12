"""The log of a process: both forms, the request's id, and what must not be in it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fluxor_fast import App, Request
from fluxor_fast.errors import ConfigError
from fluxor_fast.observability import logs
from fluxor_fast.server.batch import BatchRunner
from tests.support.inprocess import in_loop, serving

log = logging.getLogger("fluxor_fast.test")
STAMP = r"2\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
Configure = Callable[..., Callable[[], str]]


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Configure]:
    """Configure the log as ``logs.configure`` does, to a file; returns what reads it."""
    package, root = logging.getLogger("fluxor_fast"), logging.getLogger()
    kept = package.handlers[:], root.handlers[:], package.level, root.level

    def start(form: str = "console", *, level: str = "info", secrets: Any = ()) -> Any:
        root.handlers[:] = [one for one in root.handlers if one is logs._handler]  # not pytest's
        logs.configure(level, form, tmp_path / "log", secrets)
        return lambda: (tmp_path / "log").read_text()

    yield start
    logs.close()
    package.handlers[:], root.handlers[:] = kept[0], kept[1]
    package.setLevel(kept[2])
    root.setLevel(kept[3])
    package.propagate = True
    if logs._handler is not None:
        logs._handler.sink.close()
    logs._handler = None


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_for_people(configure: Configure) -> None:
    read = configure()
    log.warning("worker %d left", 3)
    log.debug("not told")
    line = rf"{STAMP} WARNING fluxor_fast\.test\[{os.getpid()}\] worker 3 left\n"
    assert re.fullmatch(line, read())


def test_a_line_for_machines(configure: Configure) -> None:
    read = configure("json")
    log.warning("worker %d left", 3, extra={"code": 4, "where": {"host": "a"}})
    (record,) = records(read())
    assert re.fullmatch(STAMP, record.pop("time"))
    assert record == {
        "level": "WARNING",
        "logger": "fluxor_fast.test",
        "pid": os.getpid(),
        "message": "worker 3 left",
        "code": 4,
        "where": {"host": "a"},
    }


def test_the_application_and_libraries_log_to_the_same_place(configure: Configure) -> None:
    read = configure("json", level="warning")
    logging.getLogger("app.billing").warning("of the application")
    logging.getLogger("app.billing").info("less than the level")
    assert [record["message"] for record in records(read())] == ["of the application"]


HOSTILE = "x\r\n2026-01-01T00:00:00.000Z INFO forged\x1b[31m\u2028\x9b\x7f\0\u202e\udcff"


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_line_cannot_be_forged(configure: Configure, form: str) -> None:
    read = configure(form)
    log.warning("the client says %s", HOSTILE, extra={"agent": HOSTILE, HOSTILE: 1})
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        log.exception("failed")
    text = read()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]", text)
    if form == "json":
        first, second = records(text)
        assert first["message"] == f"the client says {HOSTILE}"  # escaped, not changed
        assert second["exc_info"].endswith(HOSTILE)
    else:
        lines = text.splitlines()
        assert [bool(re.match(STAMP, line)) for line in lines[:2]] == [True, True]
        assert all(line.startswith("  | ") for line in lines[2:])


@pytest.mark.parametrize("form", ["console", "json"])
def test_secrets_are_not_logged(configure: Configure, form: str) -> None:
    key, password = "k" * 32, "hunter-two"
    url = f"postgresql://app:{password}@db/app"
    read = configure(form, secrets=[key, password])
    log.info("headers %s", {"Authorization": f"Bearer {key[:20]}", "cookie": "session=oven-fresh"})
    log.info("connecting to %s with %s", url, key)
    log.info("extras", extra={"password": "p", "headers": {"cookie": "oven-fresh"}, "url": url})
    log.info("deep", extra={"list": [("authorization", "no"), url], "object": Exception(url)})
    try:
        raise ConnectionError(f"{url}: refused, {password}")
    except ConnectionError:
        log.exception("no database")
    text = read()
    for secret in (key[:20], password, "oven-fresh"):
        assert secret not in text
    if form == "json":
        assert records(text)[2]["password"] == "********"
        assert len(records(text)) == 5


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_line_that_cannot_be_made_fails_nobody(configure: Configure, form: str) -> None:
    class Bad:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    read = configure(form)
    log.info("%d", "one", extra={"asctime2": 1})
    log.info("bad: %s", Bad())
    log.info("extra", extra={"bad": {1: object(), "nan": float("nan")}})
    assert read().count("cannot be made: TypeError") == 1
    assert read().count("cannot be made: RuntimeError") == 1
    assert len(read().splitlines()) == 3


@pytest.mark.parametrize("form", ["console", "json"])
def test_lines_lost_on_a_full_disk_are_told(
    configure: Configure, tmp_path: Path, form: str
) -> None:
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    read = configure(form)
    for _ in range(3):
        log.warning("into the void")
    path.unlink()
    logs.reopen()
    log.warning("heard")
    note, heard = read().splitlines()
    assert "3 lines of the log were lost: No space left on device" in note
    assert "heard" in heard
    if form == "json":
        assert json.loads(note)["level"] == "WARNING"


def test_a_file_that_cannot_be_opened_is_an_error_of_the_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"log_file: .*log cannot be opened: No such file"):
        logs.configure("info", "console", tmp_path / "missing" / "log")


def test_a_reopening_that_fails_is_told_in_the_old_file(
    configure: Configure, tmp_path: Path
) -> None:
    configure()
    path = tmp_path / "log"
    path.rename(tmp_path / "log.1")
    path.mkdir()
    logs.reopen()
    assert "Is a directory; the old file is kept" in (tmp_path / "log.1").read_text()


def test_configuring_again_changes_form_and_level(configure: Configure) -> None:
    read = configure("console")
    log.debug("not told")
    configure("json", level="debug")
    log.debug("told")
    assert [record["message"] for record in records(read())] == ["told"]


def make_app() -> App:
    app = App()
    library = logging.getLogger("some.library")

    def deep(levels: int, message: str) -> None:
        if levels:
            deep(levels - 1, message)
        else:
            library.warning(message)

    @app.get("/sync")
    def sync(request: Request) -> dict[str, Any]:
        deep(20, "sync")
        return {}

    @app.get("/coroutine")
    async def coroutine(request: Request) -> dict[str, Any]:
        await asyncio.sleep(0)
        deep(3, "coroutine")

        async def child() -> None:
            deep(3, "child")

        await asyncio.create_task(child())
        return {}

    @app.get("/blocking", blocking=True)
    def blocking(request: Request) -> dict[str, Any]:
        deep(3, "blocking")
        return {}

    @app.get("/fails")
    def fails(request: Request) -> None:
        raise RuntimeError("on purpose")

    return app


@in_loop
async def ask(paths: list[str]) -> None:
    logs.find_requests_in(BatchRunner._execute.__code__)
    async with serving(make_app()) as server:
        client = await server.connect()
        for number, path in enumerate(paths):
            await client.get(path, f"X-Request-ID: id-{number}")
        log.warning("between")


@pytest.mark.parametrize("form", ["console", "json"])
def test_each_line_within_a_request_has_its_id(configure: Configure, form: str) -> None:
    read = configure(form)
    ask(["/sync", "/coroutine", "/blocking", "/fails", "/sync"])
    text = read()
    if form == "json":
        found = [(record["message"], record.get("request_id")) for record in records(text)]
    else:
        found = [
            (match[1], match[2])
            for match in re.finditer(r"\[\d+\] (.*?)(?: request_id=(\S+))?\n", text)
        ]
    assert found == [
        ("sync", "id-0"),
        ("coroutine", "id-1"),
        ("child", "id-1"),
        ("blocking", "id-2"),
        ("GET /fails failed (request id id-3)", "id-3"),
        ("sync", "id-4"),
        ("between", None),
    ]
