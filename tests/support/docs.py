"""Tables of a document that are made from what tests hold: a test keeps the two alike."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs"


def table(header: str, rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown; ``header`` has its columns between bars."""
    cells = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([header, re.sub(r"[^|]+", "---", header), *lines])


def check(document: str, name: str, text: str) -> None:
    """Check that ``document`` has ``text`` between the marks of ``name``.

    With ``WRITE_DOCS=1`` in the environment it is written there instead.
    """
    path = FOLDER / document
    begin, end = f"<!-- {name}: made by a test -->", f"<!-- end of {name} -->"
    before, found, rest = path.read_text().partition(begin)
    inside, closed, after = rest.partition(end)
    assert found and closed, f"{path} has no {begin} … {end}"
    if os.environ.get("WRITE_DOCS"):
        path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
    else:
        assert inside.strip() == text, f"{path}, {name}: run the test with WRITE_DOCS=1"
