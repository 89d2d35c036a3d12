"""docs/VALIDATION.md is true: its example runs, and is refused what it says is."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import orjson
import pytest

from fluxor_fast import validation
from tests.support.pure import Asker, document, run

TEXT = (Path(__file__).parent.parent / "docs" / "VALIDATION.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    return str(found)


def test_the_example_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_of_validation_md.py").write_text(block("python"))
    monkeypatch.syspath_prepend(tmp_path)
    app = importlib.import_module("shop_of_validation_md").app

    async def main() -> None:
        await app.start()
        asker = Asker(app)
        json = {"Content-Type": "application/json"}
        item = {"name": "x", "price": 1, "tags": ["a"]}
        made = await asker.ask("PUT", "/items/1", json=item, headers=json)
        assert document(made) == item
        listed = await asker.ask("GET", "/items?tag=a&limit=1")
        assert document(listed) == [item]
        assert (await asker.ask("GET", "/items?limit=101")).status == 422
        bad = {"name": "x", "price": "1", "colour": "red"}
        refused = await asker.ask("PUT", "/items/1", json=bad, headers=json)
        assert document(refused) == orjson.loads(block("json"))
        assert "/items" in document(await asker.ask("GET", "/openapi.json"))["paths"]
        assert (await asker.ask("GET", "/docs")).status == 200

    run(main())


def test_its_numbers_are_those_of_the_code() -> None:
    assert f"at most {validation.MOST_TOLD}, with names cut to {validation.MOST_NAME}" in TEXT
    assert f"more than {validation.MOST_LISTED}\nfaults" in TEXT
    assert f"{validation.MAX_BODY // 1024} KiB" in TEXT
