"""The ready-made checks: up and down, and nothing in between that hangs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fluxor_fast.observability.checks import disk_space, url_answers
from fluxor_fast.observability.health import HealthChecks
from fluxor_fast.redis import Redis
from tests.support.pure import run
from tests.support.redis import RedisServer


async def found(check: Any, timeout: float = 10) -> tuple[str, str | None]:
    """Return what a registry with this check says of it."""
    health = HealthChecks()
    health.add("one", check, timeout=timeout)
    (result,) = (await health.run()).checks
    return result.status, result.error


def test_disk_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(found(disk_space(tmp_path, least=1, least_percent=0)))[0] == "up"
    assert run(found(disk_space(tmp_path, least=1 << 62))) == ("down", None)
    assert run(found(disk_space(tmp_path / "absent"))) == ("down", "FileNotFoundError")

    def disk(**changes: int) -> None:
        figures = {"f_frsize": 4096, "f_blocks": 10**6, "f_bavail": 10**5} | changes
        figures = {"f_files": 1000, "f_favail": 500} | figures
        monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(**figures))

    for changes, up in (
        ({}, True),
        ({"f_bavail": 49_999}, False),  # below 5 %
        ({"f_bavail": 50_000, "f_frsize": 512}, False),  # 25 MiB
        ({"f_favail": 49}, False),
        ({"f_files": 0, "f_favail": 0}, True),  # such as btrfs
    ):
        disk(**changes)
        assert run(found(disk_space("/")))[0] == ("up" if up else "down"), changes


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Serve ``answer`` to everybody; ``None``: say nothing."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        if answer is not None:
            writer.write(answer)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], heads


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nab", "up"),
        (b"HTTP/1.0 302 Found\r\n\r\n", "up"),
        (b"HTTP/1.1 503 no\r\n\r\n", "down"),
        (b"SSH-2.0-OpenSSH\r\n", "down"),
        (b"HTTP/1.1 2", "timeout"),
        (b"x" * 100_000, "down"),
        (None, "timeout"),
    ],
)
def test_an_outside_url(answer: bytes | None, status: str) -> None:
    async def scenario() -> None:
        async with answering(answer) as (port, heads):
            check = url_answers(f"http://127.0.0.1:{port}/health?deep=1")
            patience = 0.3 if status == "timeout" else 10
            assert (await found(check, patience))[0] == status
            assert heads[0].startswith(
                b"GET /health?deep=1 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % port
            )

    run(scenario())


def test_nobody_listens() -> None:
    async def scenario() -> None:
        async with answering(b"") as (port, _):
            pass
        assert await found(url_answers(f"http://127.0.0.1:{port}")) == (
            "down",
            "ConnectionRefusedError",
        )

    run(scenario())


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h/",
        "h/health",
        "http://",
        "http://u:p@h/",
        "http://h/a b",
        "http://h/\r\nX: 1",
        "http://é/",
    ],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ValueError):
        url_answers(url)


def test_redis(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        redis = Redis(redis_server.url, max_connections=1, idle=0, timeout=5, connect_timeout=5)
        await redis.open()
        try:
            assert await found(redis.check) == ("up", None)
            redis_server.stop()
            assert await found(redis.check) == ("down", "Redis is away, try again")
        finally:
            await redis.close()

    run(scenario())
