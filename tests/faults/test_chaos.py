"""The short form of the fault injection; ``make chaos`` is the long one.

What must hold is checked by ``tests.faults.chaos`` after each fault, and told in its module heads.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxor_fast.db.embedded import EmbeddedPostgres
from tests.faults.chaos import database
from tests.faults.chaos.run import kills
from tests.faults.chaos.torment import tormented
from tests.support.seeds import seeded

SRC = Path(__file__).parents[2] / "src"


def test_faults_under_load_cost_no_more_than_what_a_dead_worker_held(tmp_path: Path) -> None:
    rng = seeded("chaos")
    with tormented(tmp_path, rng) as torment:
        faults = ["kill_all", "pause", "disk", "clock", "descriptors", "scale", "block"]
        for name in rng.sample(faults, len(faults)):
            torment.inflict(name)
        kills(torment, 2, 10)
        assert torment.broken == []
        assert torment.load.account.answered > 100


@pytest.fixture
def own(postgres_folder: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(postgres_folder / "chaos", max_connections=30)
    try:
        server.start()
        yield server
    finally:
        server.close()


def test_a_database_that_is_killed_is_told_and_served_again_and_no_connection_is_leaked(
    own: EmbeddedPostgres,
) -> None:
    found = database.restarts(own, ["immediate"], away=0.5)
    assert found["broken"] == []
    assert found["answered"] > 50


WALL_CLOCK = {
    # where the wall clock is what is meant: a date for clients and logs, the life of a token
    "arbiter/shared.py": 1,
    "auth/apikeys.py": 1,
    "auth/jwks.py": 1,
    "auth/revocation.py": 1,
    "auth/tokens.py": 1,
    "middleware/access_log.py": 1,
    "files.py": 2,
    "server/worker.py": 2,
    "service/status.py": 1,
}


def is_wall_clock(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom) and node.module == "time":
        return any(alias.name == "time" for alias in node.names)
    return (
        isinstance(node, ast.Attribute)
        and node.attr == "time"
        and isinstance(node.value, ast.Name)
        and node.value.id == "time"
    )


def test_the_wall_clock_measures_no_duration() -> None:
    """Each use of ``time.time`` is known; durations are by the monotonic clock."""
    found: dict[str, int] = {}
    for path in sorted(SRC.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if is_wall_clock(node):
                name = str(path.relative_to(SRC / "fluxor_fast"))
                found[name] = found.get(name, 0) + 1
    assert found == WALL_CLOCK
