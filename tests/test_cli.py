"""The command line through its own process: exit codes, one-line errors, help."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.support.command import command as run


def test_check_prints_the_effective_settings_without_secrets() -> None:
    secret = "s3cret-" * 8
    done = run("check", "--max-ccu", "1000", JWT_SECRET=secret,
               DATABASE_URL="postgresql://me:hunter2@db/app")  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert shown["server"]["max_ccu"] == 1000
    assert shown["capacity"]["normal"] == 670
    assert secret not in done.stdout
    assert "hunter2" not in done.stdout


def test_check_tells_all_that_is_wrong() -> None:
    done = run("check", "--workers=none", "--port=70000", FLUXOR_MAX_CU="7")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 3
    assert "did you mean FLUXOR_MAX_CCU" in done.stderr


def test_routes_lists_the_routes_of_an_application() -> None:
    done = run("routes", "held:app")
    assert done.returncode == 0, done.stderr
    assert any(
        line.split()[:4] == ["GET", "/hold/critical", "async", "critical"]
        for line in done.stdout.splitlines()
    )


def test_routes_prints_the_description_of_an_application() -> None:
    done = run("routes", "--openapi", "held:app")
    assert done.returncode == 0, done.stderr
    assert "get" in json.loads(done.stdout)["paths"]["/hold/critical"]
    service = json.loads(run("routes", "--openapi").stdout)
    assert service["info"]["title"] == "fluxor-fast reference service"


@pytest.mark.parametrize("arguments", [("serve", "--nonsense"), ("fly",)])
def test_usage_errors_are_exit_code_2(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_help_and_version() -> None:
    assert "serve" in run("--help").stdout
    assert "--max-ccu" in run("serve", "--help").stdout
    assert run("--version").stdout.startswith("fluxor-fast, version ")
