"""What docs/TESTING.md shows runs as it stands there."""

from __future__ import annotations

import re
import sys

import pytest

from fluxor_fast import testing
from tests.support.docs import FOLDER

pytest_plugins = ["pytester"]

TEXT = (FOLDER / "TESTING.md").read_text()


def test_its_blocks_are_an_application_and_tests_that_pass(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if "/src" in path))
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == TEXT.count("```python"), "each names its file"
    for name, source in blocks:
        (pytester.path / name).write_text(source)
    pytester.makeini("[pytest]\nfluxor_app = main:app\npythonpath = .")
    result = pytester.runpytest_subprocess(
        "-p", "pytest_fluxor_fast", "-p", "no:cacheprovider", "-Werror"
    )
    result.assert_outcomes(passed=sum(source.count("\ndef test_") for _, source in blocks))


def test_it_tells_of_everything_that_there_is() -> None:
    for name in testing.__all__:
        assert f"`{name}" in TEXT or f".{name}`" in TEXT, name
