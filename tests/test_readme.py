"""The README is true: its example runs, it names every flag, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fluxor_fast.config import knobs
from tests.support.server import LiveServer, get

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_example_application_runs_as_written(tmp_path: Path) -> None:
    source = blocks("python")[0]
    (tmp_path / "hello.py").write_text(source)
    command = next(line for b in blocks("sh") for line in b.splitlines() if "hello:app" in line)
    program, verb, app, *flags = shlex.split(command)
    assert (program, verb) == ("fluxor-fast", "serve")
    with LiveServer(app, *flags, cwd=tmp_path) as server:
        assert get(server.port, "/health").json == {"status": "healthy"}
        answer = get(server.port, "/users/2")
        assert answer.json["name"] == "Grace"
        assert answer.json["request_id"] == answer.headers["x-request-id"]
        assert get(server.port, "/users/3").status == 404


def test_every_flag_is_named() -> None:
    for knob in knobs():
        if knob.flag and knob.path != "server.app":
            assert f"`{knob.flag}`" in README, knob.flag


def test_the_capacity_table_is_that_of_the_code() -> None:
    defaults = {knob.path: knob.default for knob in knobs()}
    assert f"| `max_ccu` | {defaults['server.max_ccu']} |" in README
    assert f"| `utilization` | {defaults['server.utilization']} |" in README


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z-]+)", README, re.MULTILINE):
        assert re.search(rf"^[a-z ]*\b{target}\b[a-z ]*:", makefile, re.MULTILINE), target
