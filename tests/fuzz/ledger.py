"""How much has been executed, over all runs: a JSON file that only grows.

Executions are kept by target and by a digest of the sources that were fuzzed, so that the report
can say how many were done on the sources as they are now.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Ledger", "digest"]

SOURCES = Path(__file__).parent.parent.parent / "src" / "fluxor_fast"


def digest() -> str:
    """Return a short digest of what is fuzzed: the server's modules and what they are made of."""
    total = hashlib.sha256()
    for folder in ("server", "http"):
        for path in sorted((SOURCES / folder).glob("*.py")):
            total.update(path.read_bytes())
    total.update((SOURCES / "routing.py").read_bytes())
    return total.hexdigest()[:12]


class Ledger:
    """The file, read and written under a lock: several runs may go on at once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def _open(self) -> Iterator[dict[str, Any]]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            entries: dict[str, Any] = {}
            if self._path.exists():
                entries = json.loads(self._path.read_text())
            yield entries
            new = self._path.with_suffix(".new")
            new.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")
            new.replace(self._path)

    def add(
        self,
        target: str,
        *,
        executions: int,
        seconds: float,
        memory: int,
        blocks: int,
        engine: str,
        finding: str | None,
        coverage: str | None,
    ) -> None:
        """Note one process: what it executed in which time, and what it saw at most."""
        with self._open() as entries:
            entry = entries.setdefault(
                target,
                {"executions": {}, "seconds": 0.0, "memory": 0, "blocks": 0, "findings": []},
            )
            by_engine = entry["executions"].setdefault(digest(), {})
            by_engine[engine] = by_engine.get(engine, 0) + executions
            entry["seconds"] += seconds
            entry["memory"] = max(entry["memory"], memory)
            entry["blocks"] = max(entry["blocks"], blocks)
            entry["coverage"] = coverage or entry.get("coverage")
            if finding is not None and finding not in entry["findings"]:
                entry["findings"].append(finding)

    def executions(self, target: str, of: str | None = None) -> int:
        """Return how many executions ``target`` has had, on the sources ``of`` if that is given."""
        with self._open() as entries:
            kept = entries.get(target, {"executions": {}})["executions"]
        return sum(sum(by.values()) for key, by in kept.items() if of in (None, key))

    def report(self) -> str:
        """Return a table of everything, a line for each target and one for all."""
        now = digest()
        with self._open() as entries:
            rows = sorted(entries.items())
        lines = [
            f"{'target':10} {'executions':>12} {'these sources':>14} {'exec/s':>8}"
            f" {'peak MB':>8} {'blocks':>7} {'findings':>8}  coverage"
        ]
        total = here = findings = 0
        for name, entry in rows:
            count = sum(sum(by.values()) for by in entry["executions"].values())
            of_now = sum(entry["executions"].get(now, {}).values())
            total, here = total + count, here + of_now
            findings += len(entry["findings"])
            lines.append(
                f"{name:10} {count:12,} {of_now:14,} {count / max(entry['seconds'], 1e-9):8,.0f}"
                f" {entry['memory'] / 2**20:8.0f} {entry['blocks']:7,} {len(entry['findings']):8}"
                f"  {entry['coverage'] or '-'}"
            )
        lines.append(f"{'all':10} {total:12,} {here:14,} {'':8} {'':8} {'':7} {findings:8}")
        return "\n".join(lines)
