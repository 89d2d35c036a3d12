"""How much has been executed, over all runs: a JSON file that only grows.

Executions are kept by target, by a digest of the sources that were fuzzed, so that the report
can say how many were done on the sources as they are now, and by what made the input:
``atheris`` (guided by coverage), ``blind``, or ``replay`` of what was there when a run began.
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
        replayed: int,
        finding: str | None,
        coverage: str | None,
    ) -> None:
        """Note one process: what it executed in which time, and what it saw at most.

        :param replayed: how many of the executions were of inputs that were there before.
        """
        with self._open() as entries:
            entry = entries.setdefault(
                target,
                {"executions": {}, "seconds": 0.0, "memory": 0, "blocks": 0, "findings": []},
            )
            by_engine = entry["executions"].setdefault(digest(), {})
            for made, count in ((engine, executions - replayed), ("replay", replayed)):
                by_engine[made] = by_engine.get(made, 0) + count
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

    def guided(self, target: str) -> int:
        """Return how many inputs made by coverage ``target`` has had, on the sources of now."""
        with self._open() as entries:
            kept = entries.get(target, {"executions": {}})["executions"]
        return int(kept.get(digest(), {}).get("atheris", 0))

    def report(self) -> str:
        """Return a table of everything, a line for each target and one for all.

        Of the executions on these sources it says how many were guided by coverage, and which
        part of them that is: the rest was blind, or played what was there before again.
        """
        now = digest()
        with self._open() as entries:
            rows = sorted(entries.items())
        lines = [
            f"{'target':10} {'executions':>12} {'these sources':>14} {'guided':>12} {'share':>6}"
            f" {'exec/s':>8} {'peak MB':>8} {'blocks':>7} {'findings':>8}  coverage"
        ]
        total = here = guided = findings = 0
        for name, entry in rows:
            count = sum(sum(by.values()) for by in entry["executions"].values())
            by_engine = entry["executions"].get(now, {})
            of_now, of_guided = sum(by_engine.values()), by_engine.get("atheris", 0)
            total, here, guided = total + count, here + of_now, guided + of_guided
            findings += len(entry["findings"])
            lines.append(
                f"{name:10} {count:12,} {of_now:14,} {of_guided:12,} {_share(of_guided, of_now):>6}"
                f" {count / max(entry['seconds'], 1e-9):8,.0f} {entry['memory'] / 2**20:8.0f}"
                f" {entry['blocks']:7,} {len(entry['findings']):8}  {entry['coverage'] or '-'}"
            )
        lines.append(
            f"{'all':10} {total:12,} {here:14,} {guided:12,} {_share(guided, here):>6}"
            f" {'':8} {'':8} {'':7} {findings:8}"
        )
        return "\n".join(lines)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"
