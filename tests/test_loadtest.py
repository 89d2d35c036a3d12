from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LOADTEST = Path(__file__).resolve().parent.parent / "loadtest"
_beside = Path(sys.executable).parent / "k6"
K6 = str(_beside) if _beside.exists() else shutil.which("k6")

pytestmark = pytest.mark.skipif(K6 is None, reason="k6 is not installed (extra: loadtest)")


def inspect(script: str, **environ: str) -> dict[str, Any]:
    assert K6 is not None
    variables = [part for name, value in environ.items() for part in ("-e", f"{name}={value}")]
    done = subprocess.run(
        [K6, "inspect", *variables, str(LOADTEST / f"{script}.js")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    options: dict[str, Any] = json.loads(done.stdout)
    return options


def users(script: str, **environ: str) -> dict[str, Any]:
    scenario: dict[str, Any] = inspect(script, **environ)["scenarios"]["users"]
    return scenario


def stages(scenario: dict[str, Any]) -> list[tuple[str, int]]:
    return [(stage["duration"], stage["target"]) for stage in scenario["stages"]]


def test_load_has_the_agreed_stages_and_thresholds():
    options = inspect("load")
    assert stages(options["scenarios"]["users"]) == [
        ("1m0s", 1000),
        ("2m0s", 5000),
        ("2m0s", 10_000),
        ("3m0s", 10_000),
        ("2m0s", 0),
    ]
    assert options["thresholds"] == {"accepted_duration": ["p(95)<200"], "failed": ["rate<0.001"]}


def test_spike_goes_up_and_down_in_two_and_a_half_minutes():
    scenario = users("spike")
    assert scenario["startVUs"] == 100
    found = stages(scenario)
    assert found == [("30s", 100), ("15s", 5000), ("1m0s", 5000), ("15s", 100), ("30s", 100)]


def test_stress_reaches_20000_users_in_eight_minutes():
    found = stages(users("stress"))
    assert found == [("2m0s", count) for count in (5000, 10_000, 15_000, 20_000)]


def test_stress_tells_its_steps_apart_at_any_scale():
    thresholds = inspect("stress", SCALE="0.1")["thresholds"]
    for step in (500, 1000, 1500, 2000):
        assert f"accepted_duration{{step:{step}}}" in thresholds
        assert f"failed{{step:{step}}}" in thresholds


def test_smoke_is_200_users_for_half_a_minute():
    scenario = users("smoke")
    assert (scenario["vus"], scenario["duration"]) == (200, "30s")


def test_scale_shrinks_users_and_time_alike():
    assert stages(users("load", SCALE="0.01")) == [
        ("600ms", 10),
        ("1.2s", 50),
        ("1.2s", 100),
        ("1.8s", 100),
        ("1.2s", 0),
    ]


def test_scale_keeps_one_user_where_it_would_leave_none():
    scenario = users("spike", SCALE="0.001")
    assert scenario["startVUs"] == 1
    assert [target for _, target in stages(scenario)] == [1, 5, 5, 1, 1]


@pytest.mark.parametrize("scale", ["0", "-1", "much"])
def test_a_scale_that_means_nothing_is_an_error(scale):
    assert K6 is not None
    command = [K6, "inspect", "-e", f"SCALE={scale}", str(LOADTEST / "smoke.js")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "SCALE is a number above 0" in done.stderr
