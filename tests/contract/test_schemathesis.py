"""Schemathesis against running servers: what it generates from ``/openapi.json``, sent.

It makes requests that the description allows and ones that it does not, alone and in sequences,
and holds each answer against the description. ``CONTRACT=long`` (``make contract``) goes on for
two minutes. It is an extra (``contract``): where that is not installed this is skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fluxor_fast.auth.tokens import Tokens
from fluxor_fast.service.accounts import grant_role
from tests.support.seeds import SEED
from tests.support.server import Client, LiveServer, get

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("schemathesis") is None, reason="the extra 'contract' is not installed"
)

SECRET = "the secret of this test, 32 bytes"
LONG = os.environ.get("CONTRACT") == "long"
BOUNDS = ("--max-examples=500", "--max-time=120") if LONG else ("--max-examples=20",)


def account(port: int, database_url: str, description: bytes) -> str:
    """Make an administrator of the description's examples and return a token.

    It belongs to no session: one that the generated requests log out would end what is tested.
    """
    schemas = json.loads(description)["components"]["schemas"]
    example = {name: field["examples"][0] for name, field in schemas["Login"]["properties"].items()}
    body = json.dumps(example).encode()
    with Client(port) as client:
        assert client.request("/api/auth/register", "POST", body).status == 201
        assert grant_role(database_url, example["email"], "admin")
        assert client.request("/api/auth/login", "POST", body).status == 200
    return Tokens(SECRET.encode(), 3600).issue(1, example["email"], ["user", "admin"])


def check(port: int, folder: Path, *options: str) -> None:
    """Hold the server at ``port`` against the description in ``folder``."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "schemathesis.cli",
            "run",
            "openapi.json",
            f"--url=http://127.0.0.1:{port}",
            *options,
            "--checks=all",
            "--phases=examples,coverage,fuzzing,stateful",
            f"--seed={SEED}",
            "--generation-database=none",
            "--request-timeout=10",
            "--no-color",
            *BOUNDS,
        ],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0
    paths = json.loads((folder / "openapi.json").read_bytes())["paths"].values()
    assert re.search(rf"Tested: {sum(map(len, paths))}\n", done.stdout)


@pytest.mark.timeout(300)
def test_checked_arguments_keep_to_their_description(tmp_path: Path) -> None:
    with LiveServer("annotated:app") as server:
        (tmp_path / "openapi.json").write_bytes(get(server.port, "/openapi.json").body)
        check(server.port, tmp_path)
        assert "Traceback" not in server.log


@pytest.mark.timeout(300)
def test_the_service_keeps_to_its_description(database_url: str, tmp_path: Path) -> None:
    env = {"DATABASE_URL": database_url, "JWT_SECRET": SECRET}
    with LiveServer("", "--workers=2", "--database-pool-max=20", env=env) as server:
        description = get(server.port, "/openapi.json").body
        # from a file: loaded from its address, it leaves the route of that address out
        (tmp_path / "openapi.json").write_bytes(description)
        token = account(server.port, database_url, description)
        workers = server.workers
        check(server.port, tmp_path, f"--header=Authorization: Bearer {token}")
        assert get(server.port, "/api/metrics").json["error_requests"] == 0
        assert server.workers == workers  # none was replaced
        assert "Traceback" not in server.log
        assert " ERROR " not in server.log
        assert " CRITICAL " not in server.log
