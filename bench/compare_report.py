"""What the comparison found, as tables, plots, and beside what was promised."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import Round

if TYPE_CHECKING:
    from compare import Cell, Comparison

__all__ = ["Promise", "brief", "markdown", "paired", "plot", "promises", "spread_of"]

Result = Mapping[str, Any]


def paired(rounds: Sequence[Round], ceiling: Sequence[Round] | None) -> float | None:
    """Return the median of the ratios of CPU per request to the ceiling's in the same round."""
    if not ceiling:
        return None
    return statistics.median(
        mine.cpu_us / its.cpu_us for mine, its in zip(rounds, ceiling, strict=True)
    )


def brief(comparison: Comparison, group: Sequence[Cell]) -> str:
    """Return the latest round of one workload in a line."""
    last = {name: comparison.found[w, c, name][-1] for w, c, name in group}
    parts = [
        f"{name} {done.load.rps / 1000:.1f}k {done.cpu_us:.1f}µs" for name, done in last.items()
    ]
    return f"{group[0][0]} {group[0][1]}: " + ", ".join(parts)


def spread_of(values: Sequence[float], form: str) -> str:
    """Return the median, and least and greatest in parentheses."""
    shown = [form.format(f(values)) for f in (statistics.median, min, max)]
    return f"{shown[0]} ({shown[1]}–{shown[2]})"


def _ms(value: float) -> str:
    """Return a latency; wrk gives 0 where it could not tell it from pipelined answers."""
    return f"{value:.2f}" if value else "–"


def _row(result: Result) -> str:
    figures = result["figures"]
    rps, cpu = figures["rps"], figures["cpu_us_per_request"]
    memory = figures.get("pss_bytes", figures["rss_bytes"])["median"] / 1e6
    ratio = result["cpu_to_ceiling"]
    mark = " **generator-bound**" if figures["generator_bound"] else ""
    return (
        f"| {result['title']} | {rps['median']:,.0f} ({rps['least']:,.0f}–{rps['greatest']:,.0f})"
        f" | {_ms(figures['p50_ms']['median'])}, {_ms(figures['p99_ms']['median'])}"
        f" | {cpu['median']:.1f} ({cpu['least']:.1f}–{cpu['greatest']:.1f})"
        f" | {'–' if ratio is None else f'{ratio:.2f}'}"
        f" | {figures['generator_cpu_share']['median']:.0%}{mark} | {memory:.0f} |"
    )


def markdown(report: Mapping[str, Any]) -> str:
    """Return everything as Markdown."""
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in report["results"]:
        groups.setdefault((result["workload"], result["connections"]), []).append(result)
    settings, lines = report["settings"], []
    lines.append(
        f"`{report['command']}`: {report['machine']['cpu']}, {report['machine']['python']},"
        f" {settings['cores']},"
        f" {settings['rounds']} rounds of {settings['seconds']} s, medians (least–most)."
    )
    lines.append(", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    for (workload, count), results in groups.items():
        lines += [
            "",
            f"### {workload}: {results[0]['said']}; {count:,} connections",
            "",
            "| server | RPS | P50, P99 ms | CPU µs per request | × ceiling | wrk's CPU | PSS MB |",
            "|---|--:|--:|--:|--:|--:|--:|",
            *(_row(r) for r in sorted(results, key=lambda r: -r["figures"]["rps"]["median"])),
        ]
    left_out = [f"- {name}: {reason}" for name, reason in report["left_out"].items()]
    lines += ["", "Left out:", "", *(left_out or ["- nobody"])]
    lines += ["", "| promised | got | |", "|---|--:|---|"]
    for promise in promises(report):
        kept = "–" if promise.got is None else "kept" if promise.kept else "**not kept**"
        if promise.bound_by_generator and not promise.kept:
            kept += "; rates are the generator's"
        got = "not measured" if promise.got is None else f"{promise.got:.2f}"
        lines.append(f"| {promise.said} | {got} | {kept} |")
    return "\n".join(lines)


class Promise:
    """A bound, and the figure that it is held against; None: it was not measured."""

    def __init__(
        self,
        said: str,
        got: float | None,
        bound: float,
        *,
        most: bool = False,
        bound_by_generator: bool = False,
    ) -> None:
        self.said = f"{said} {'≤' if most else '≥'} {bound:g}"
        self.got = got
        self.kept = got is not None and (got <= bound if most else got >= bound)
        self.bound_by_generator = bound_by_generator


def promises(report: Mapping[str, Any]) -> list[Promise]:
    """Return what was promised, with what was got."""
    by = {(r["workload"], r["connections"], r["server"]): r for r in report["results"]}

    def rounds(workload: str, count: int, name: str) -> list[Any]:
        found = by.get((workload, count, name))
        return found["rounds"] if found else []

    def ratio(
        a: tuple[str, int, str], b: tuple[str, int, str], of: Callable[[Any], float]
    ) -> float | None:
        pairs = list(zip(rounds(*a), rounds(*b), strict=False))
        return statistics.median(of(x) / of(y) for x, y in pairs) if pairs else None

    def bound(count: int, name: str) -> bool:
        found = by.get(("health", count, name))
        return bool(found and found["figures"]["generator_bound"])

    def rps(one: Any) -> float:
        return float(one["load"]["rps"])

    def cpu(one: Any) -> float:
        return float(one["cpu_us"])

    made: list[Promise] = []
    for count in (64, 1000):
        mine = ("health", count, "fluxor")
        at = f"`/health`, {count:,} connections:"
        made += [
            Promise(f"{at} CPU ÷ ceiling", ratio(mine, ("health", count, "ceiling"), cpu), 1.2,
                    most=True),
            Promise(f"{at} RPS ÷ fasthttp", ratio(mine, ("health", count, "fasthttp"), rps), 1.1,
                    bound_by_generator=bound(count, "fluxor") or bound(count, "fasthttp")),
            Promise(f"{at} CPU of fasthttp ÷ ours",
                    ratio(("health", count, "fasthttp"), mine, cpu), 1.1),
            Promise(f"{at} RPS ÷ granian RSGI",
                    ratio(mine, ("health", count, "granian-rsgi"), rps), 2),
            Promise(f"{at} RPS ÷ uvicorn", ratio(mine, ("health", count, "uvicorn"), rps), 3),
        ]  # fmt: skip
    cold, warm = ("cold", 64, "fluxor"), ("health", 64, "fluxor")
    deep = ("pipelined", 64, "fluxor")
    made += [
        # by CPU: the generator, which makes each head, is the slower one here
        Promise("cold heads: CPU of cached ÷ CPU of cold", ratio(warm, cold, cpu), 0.8),
        Promise("cold heads: RPS ÷ granian RSGI", ratio(cold, ("cold", 64, "granian-rsgi"), rps),
                1),
        Promise("pipelined by 16: RPS ÷ not pipelined", ratio(deep, warm, rps), 3.5),
        Promise("pipelined by 16: RPS ÷ fasthttp", ratio(deep, ("pipelined", 64, "fasthttp"), rps),
                1.15),
        Promise("pipelined by 16: RPS ÷ granian RSGI at its defaults",
                ratio(deep, ("pipelined", 64, "granian-rsgi"), rps), 6),
        Promise("one row: RPS ÷ uvicorn with psycopg's pool",
                ratio(("db", 64, "fluxor"), ("db", 64, "uvicorn"), rps), 1.5),
        Promise("one row: CPU of uvicorn with psycopg's pool ÷ ours",
                ratio(("db", 64, "uvicorn"), ("db", 64, "fluxor"), cpu), 1.5),
    ]  # fmt: skip
    many = by.get(("health", 3350, "fluxor"))
    cores = memory = None
    if many:
        cores = many["figures"]["cpu_us_per_request"]["median"] * 50_000 / 1e6
        figures = many["figures"]
        memory = figures.get("pss_bytes", figures["rss_bytes"])["median"] / 1e6
    made += [
        Promise("3,350 connections: cores for 50,000 RPS", cores, 1.3, most=True),
        Promise("3,350 connections: memory in MB", memory, 250, most=True),
    ]
    scaled = report.get("scaling")
    two = alone = None
    if scaled:
        two = _more(scaled["fluxor"])
        alone = two / _more(scaled["ceiling"])
    made += [
        Promise("two workers: CPU per request ÷ one worker's", two, 1.1, most=True),
        Promise("two workers: that ÷ the same of the ceiling", alone, 1.1, most=True),
    ]
    return made


def _more(scaled: Mapping[str, Sequence[float]]) -> float:
    """Return CPU per request with two processes over that with one, each within its round."""
    pairs = zip(scaled["2"], scaled["1"], strict=True)
    return statistics.median(both / one for both, one in pairs)


def plot(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw RPS and CPU per request for each workload, and return the files."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "fluxor-fast"
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in report["results"]:
        groups.setdefault((result["workload"], result["connections"]), []).append(result)
    made: list[Path] = []
    figures: tuple[tuple[str, str, str], ...] = (
        ("rps", "requests per second", "compare-rps.svg"),
        ("cpu_us_per_request", "CPU µs per request", "compare-cpu.svg"),
    )
    for key, label, file in figures:
        columns = 3
        rows = -(-len(groups) // columns)
        figure, axes = plt.subplots(rows, columns, figsize=(13, 3.2 * rows), squeeze=False)
        for axis in axes.flat[len(groups) :]:
            axis.set_visible(False)
        for axis, ((workload, count), results) in zip(axes.flat, groups.items(), strict=False):
            ordered = sorted(results, key=lambda r: r["figures"]["rps"]["median"])
            titles = [r["title"] for r in ordered]
            values = [r["figures"][key]["median"] for r in ordered]
            low = [v - r["figures"][key]["least"] for v, r in zip(values, ordered, strict=True)]
            high = [r["figures"][key]["greatest"] - v for v, r in zip(values, ordered, strict=True)]
            colours = [
                "#c0392b" if r["server"] == "fluxor"
                else "#bbbbbb" if "constant" in r["title"] else "#5b7fa6"
                for r in ordered
            ]  # fmt: skip
            axis.barh(titles, values, xerr=(low, high), color=colours)
            axis.set_title(f"{workload}, {count:,} connections", fontsize=9)
            axis.tick_params(labelsize=7)
        figure.suptitle(label)
        figure.tight_layout()
        path = folder / file
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
        made.append(path)
    return made
