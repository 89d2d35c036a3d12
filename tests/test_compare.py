"""The comparison with peers, and the speed guards: what is figured out, without any load."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench" / "servers"))

import check
import compare
import compare_report
import contestants
import steps
import work
from harness import Answer, Failed, Load, Memory, Round, _read_report

ROOT = Path(__file__).resolve().parent.parent


def round_of(cpu: float, rps: float = 1000.0) -> Round:
    load = Load(int(rps), 1.0, rps, 1.0, 2.0, 3.0, 4.0, 0.5)
    return Round(load, cpu, cpu * rps / 1e6, Memory(50_000_000, 80_000_000, 1), None)


def result(workload: str, connections: int, server: str, cpus: list[float]) -> dict[str, Any]:
    from dataclasses import asdict

    import harness

    rounds = [round_of(cpu, 1e6 / cpu) for cpu in cpus]
    return {
        "workload": workload,
        "said": "said",
        "connections": connections,
        "server": server,
        "title": server,
        "figures": harness.summary(rounds),
        "cpu_to_ceiling": 1.5,
        "rounds": [asdict(one) for one in rounds],
    }


def report_of(*results: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "machine": {"cpu": "a processor", "python": "a Python"},
        "versions": {"uvloop": "1"},
        "command": "python bench/compare.py",
        "settings": {"rounds": 3, "seconds": 1, "cores": "two"},
        "left_out": {"peer": "it is not installed"},
        "scaling": None,
        "results": list(results),
        **more,
    }


def test_a_ratio_is_taken_within_its_round() -> None:
    """The machine was half as fast in the second round; nobody became slower."""
    mine, its = (
        [round_of(12), round_of(24), round_of(12)],
        [round_of(10), round_of(20), round_of(10)],
    )
    assert compare_report.paired(mine, its) == pytest.approx(1.2)
    assert compare_report.paired(mine, None) is None


def test_promises_tell_what_is_kept_what_is_not_and_what_was_not_measured() -> None:
    report = report_of(
        result("health", 64, "fluxor", [10, 10, 10]),
        result("health", 64, "ceiling", [9, 9, 5]),
        result("health", 64, "uvicorn", [25, 25, 25]),
        scaling={
            "fluxor": {"1": [10, 10], "2": [12, 12]},
            "ceiling": {"1": [8, 8], "2": [9.2, 9.2]},
        },
    )
    by = {promise.said: promise for promise in compare_report.promises(report)}
    ceiling = by["`/health`, 64 connections: CPU ÷ ceiling ≤ 1.2"]
    assert ceiling.got == pytest.approx(10 / 9)
    assert ceiling.kept
    uvicorn = by["`/health`, 64 connections: RPS ÷ uvicorn ≥ 3"]
    assert uvicorn.got == pytest.approx(2.5)
    assert not uvicorn.kept
    assert by["`/health`, 64 connections: RPS ÷ fasthttp ≥ 1.1"].got is None
    two = by["two workers: CPU per request ÷ one worker's ≤ 1.1"]
    assert two.got == pytest.approx(1.2)
    assert not two.kept
    assert by["two workers: that ÷ the same of the ceiling ≤ 1.1"].kept
    text = compare_report.markdown(report)
    assert "**not kept**" in text
    assert "not measured" in text
    assert "- peer: it is not installed" in text


def test_a_verdict_on_rates_that_were_the_generators_says_so() -> None:
    ours, theirs = result("health", 64, "fluxor", [10]), result("health", 64, "fasthttp", [10])
    theirs["figures"]["generator_bound"] = True
    text = compare_report.markdown(report_of(ours, theirs))
    assert "| `/health`, 64 connections: RPS ÷ fasthttp ≥ 1.1 | 1.00 |" in text
    assert text.count("rates are the generator's") == 1


def test_a_latency_that_wrk_could_not_tell_is_no_figure() -> None:
    one = result("pipelined", 64, "fluxor", [10])
    one["figures"]["p99_ms"]["median"] = 0.0
    assert " 1.00, – " in compare_report.markdown(report_of(one))


def test_a_budget_may_differ_by_the_maker_of_the_processor() -> None:
    text = '[health_64]\nmost = { AuthenticAMD = 1.2, GenuineIntel = 1.5 }\nwhy = "x"'
    assert check.budgets(text, "AuthenticAMD")["health_64"].most == 1.2
    assert check.budgets(text, "GenuineIntel")["health_64"].most == 1.5
    assert check.budgets(text, "another")["health_64"].most == 1.5


@pytest.mark.parametrize("size", [1_000, 17_000])
def test_a_document_has_its_size_and_is_the_same_for_every_encoder(size: int) -> None:
    import orjson

    made = compare.document(size)
    assert size * 0.9 < len(made) <= size
    assert made == compare.document(size)
    assert made == orjson.dumps(json.loads(made))


def answer(body: bytes, kind: str = "application/json", status: int = 200) -> Answer:
    return Answer(b"", status, {"content-type": kind}, body)


def test_who_answers_something_else_is_not_timed() -> None:
    now = work.health()
    good = answer(json.dumps(now, separators=(",", ":")).encode())
    compare.check("health", "uvicorn", good, good)
    old = answer(json.dumps(now | {"timestamp": now["timestamp"] - 1000}).encode())
    other = answer(json.dumps(now | {"status": "unwell.", "service": ""}).encode())
    for wrong in (old, other, answer(good.body, "text/html"), answer(b"{}", status=404)):
        with pytest.raises(Failed):
            compare.check("health", "uvicorn", wrong, good)
    with pytest.raises(Failed):
        compare.check("plaintext", "uvicorn", answer(b"hello"), answer(b"Hello, World!"))


def test_what_is_not_installed_is_left_out_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = contestants.Contestant("x", lambda place: [], ("a_package_that_is_not_there",))
    monkeypatch.setitem(contestants.CONTESTANTS, "x", absent)
    assert contestants.missing("x") == "the package a_package_that_is_not_there is not installed"
    assert contestants.missing("fluxor") is None


def test_every_workload_has_somebody_to_compare_with() -> None:
    for name in compare.WORKLOADS:
        takers = [n for n, one in contestants.CONTESTANTS.items() if name in one.workloads]
        assert "fluxor" in takers
        assert len(takers) > 2


def wrk_report(requests: int, status: int) -> str:
    errors = {"connect": 0, "read": 0, "write": 0, "status": status, "timeout": 0}
    figures = {f"p{n}_us": 1 for n in (50, 95, 99)} | {"max_us": 1, "bytes": 1}
    document = {"requests": requests, "duration_us": 10**6, "errors": errors, **figures}
    return "REPORT " + json.dumps(document)


def test_refusals_are_errors_unless_all_answers_are_to_be_refusals() -> None:
    assert _read_report(wrk_report(10, 10), 0.5, refused=True).requests == 10
    for text, refused in ((wrk_report(10, 1), False), (wrk_report(10, 9), True)):
        with pytest.raises(Failed):
            _read_report(text, 0.5, refused)


# the guards


def test_a_figure_beyond_its_budget_is_told() -> None:
    allowed = check.budgets('[health_64]\nmost = 1.2\nwhy = "x"\n[short_1]\nmost = 3\nwhy = "y"')
    found = {"health_64": [1.1, 1.3, 1.4], "short_1": [2.0, 2.9, 9.0]}
    assert check.exceeded(found, allowed) == ["health_64"]
    text = check.table(found, {"health_64": "9 µs", "short_1": "3 µs"}, allowed)
    assert text.count("**OVER**") == 1


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("nonsense", "not TOML"),
        ('[nobody]\nmost = 1\nwhy = "x"', "nobody"),
        ("[health_64]\nmost = 1", "health_64"),
        ('[health_64]\nmost = -1\nwhy = "x"', "most"),
    ],
)
def test_a_wrong_budget_is_named(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        check.budgets(text)


def test_the_budgets_of_the_repository_cover_every_figure() -> None:
    allowed = check.budgets((check.HERE / "budgets.toml").read_text())
    assert set(allowed) == set(check.SERVED) | set(steps.STEPS)


@pytest.mark.parametrize("name", list(steps.STEPS))
def test_every_step_runs(name: str) -> None:
    call, requests = steps.STEPS[name]()
    call()
    assert requests >= 1


@pytest.mark.parametrize("file", ["README.md", "Makefile"])
def test_how_many_are_compared_is_told_as_it_is(file: str) -> None:
    told = re.search(r"beside (\d+) others on (\d+) workloads", (ROOT / file).read_text())
    assert told
    others = len(contestants.CONTESTANTS) - 1
    assert [int(number) for number in told.groups()] == [others, len(compare.WORKLOADS)]
