"""Tables and plots of the overload benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["closed_in_short", "in_short", "markdown", "plot", "recovered", "recovery"]

Row = Mapping[str, Any]
RECOVERED = 0.95
"""From this share of good answers on, a server is said to be back."""
COLOURS = ("#d1495b", "#8d99ae", "#2b7a78", "#e09f3e", "#5f4bb6", "#333333")


def recovery(timeline: Sequence[Row], bin_seconds: float, end: float) -> float | None:
    """Return how long after ``end`` nearly all requests were answered well again, and stayed so.

    None if that was not the case until the time line's end.
    """
    back: float | None = None
    for at, entry in enumerate(timeline):
        due = sum(entry[name] for name in ("ok", "late", "shed", "error", "unanswered"))
        start = at * bin_seconds
        if start < end:
            continue
        if entry["ok"] < RECOVERED * due:
            back = None
        elif back is None:
            back = start - end
    return back


def recovered(row: Row) -> str:
    """Return the time of recovery as text."""
    seconds = row["recovery_seconds"]
    return "not within the run" if seconds is None else f"{seconds:.2f} s"


def refused_share(row: Row) -> float:
    """Return which share of the requests was answered 503."""
    return float(row["shed"] / row["offered"]) if row["offered"] else 0.0


def least_refused(factor: float) -> float:
    """Return which share must be refused at a multiple of the capacity, at best: 1 − 1/x."""
    return max(0.0, 1 - 1 / factor)


def _ms(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def in_short(row: Row) -> str:
    """Return a row of an open loop in one line."""
    mark = ", GENERATOR-BOUND" if row["generator_bound"] else ""
    return (
        f"offered {row['offered_rps']:,.0f}/s, good {row['goodput_rps']:,.0f}/s,"
        f" refused {refused_share(row):.0%}, accepted P99 {_ms(row['accepted']['p99_ms'])} ms,"
        f" health P99 {_ms(row['probe']['p99_ms'])} ms, {row['probe']['failed']} failed;"
        f" generator {row['generator_cpu_share']:.0%} CPU,"
        f" late P99 {_ms(row['generator_late']['p99_ms'])} ms{mark}"
    )


def closed_in_short(row: Row) -> str:
    """Return a row of the closed case in one line."""
    return (
        f"accepted {row['accepted_rps']:,.0f}/s of {row['uncontended']['accepted_rps']:,.0f},"
        f" P99 {_ms(row['accepted']['p99_ms'])} ms; refused {row['refused_rps']:,.0f}/s,"
        f" told after {_ms(row['refused_after']['p99_ms'])} ms (P99);"
        f" after it was read {_told(row)} ms; {row['users_never_served']} never served;"
        f" health P99 {_ms(row['probe']['p99_ms'])} ms,"
        f" {row['probe']['failed']} failed; generator {row['generator_cpu_share']:.0%} CPU"
    )


def _told(row: Row) -> str:
    """Return the P99 of the time from reading a request to refusing it, where it is known."""
    told = row.get("told_after_read")
    return _ms(told["p99_ms"]) if told else "–"


def _of(rows: Sequence[Row], kind: str, route: str | None = None) -> list[Row]:
    return [r for r in rows if r["kind"] == kind and route in (None, r["route"])]


def _routes(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["route"] for row in rows))


def _unmeasured(row: Row) -> str | None:
    if "failed" in row:
        return f"**failed**: {row['failed']}".replace("|", "/")
    return row.get("skipped")


def _probe(row: Row) -> str:
    probe = row["probe"]
    failed = f" ({probe['failed']} of {probe['asked']} failed)" if probe["failed"] else ""
    return _ms(probe["p99_ms"]) + failed


def _open_table(rows: Sequence[Row], titles: Mapping[str, str]) -> list[str]:
    lines = [
        "| server | × | offered/s | good/s | of capacity | refused | 1 − 1/x | accepted P50, P95,"
        " P99 ms | told of refusal P99 ms | late, error, given up | `/health` P99 ms"
        " | generator CPU, late P99 ms |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        start = f"| {titles[row['server']]} | {row['factor']:g} "
        reason = _unmeasured(row)
        if reason is not None:
            lines.append(f"{start}| {reason} {'| ' * 9}|")
            continue
        accepted = row["accepted"]
        mark = " **generator-bound**" if row["generator_bound"] else ""
        lines.append(
            f"{start}| {row['offered_rps']:,.0f} | {row['goodput_rps']:,.0f}"
            f" | {row['goodput_rps'] / row['capacity_rps']:.0%} | {refused_share(row):.1%}"
            f" | {least_refused(row['factor']):.0%} | {_ms(accepted['p50_ms'])},"
            f" {_ms(accepted['p95_ms'])}, {_ms(accepted['p99_ms'])}"
            f" | {_ms(row['shed_after']['p99_ms'])}"
            f" | {row['late']:,}, {row['error']:,}, {row['unanswered']:,} | {_probe(row)}"
            f" | {row['generator_cpu_share']:.0%}, {_ms(row['generator_late']['p99_ms'])}{mark} |"
        )
    return lines


def _capacity_table(rows: Sequence[Row], titles: Mapping[str, str]) -> list[str]:
    lines = [
        "| server | capacity/s | users | P50, P99 ms | refused/s | cores used | generator CPU |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {titles[row['server']]} | {_unmeasured(row)} | | | | | |")
            continue
        lines.append(
            f"| {titles[row['server']]} | {row['accepted_rps']:,.0f} | {row['users']}"
            f" | {_ms(row['accepted']['p50_ms'])}, {_ms(row['accepted']['p99_ms'])}"
            f" | {row['refused_rps']:,.0f} | {row['server_cores']:.2f}"
            f" | {row['generator_cpu_share']:.0%} |"
        )
    return lines


def _step_table(rows: Sequence[Row], titles: Mapping[str, str]) -> list[str]:
    lines = [
        "| server | good/s in the step | of capacity | accepted P99 ms | back to normal after"
        " | `/health` P99 ms |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        reason = _unmeasured(row)
        if reason is not None:
            lines.append(f"| {titles[row['server']]} | {reason} | | | | |")
            continue
        before, during, _ = row["step_seconds"]
        first, last = (round(at / row["bin_seconds"]) for at in (before, before + during))
        good = sum(entry["ok"] for entry in row["timeline"][first:last]) / during
        lines.append(
            f"| {titles[row['server']]} | {good:,.0f} | {good / row['capacity_rps']:.0%}"
            f" | {_ms(row['accepted']['p99_ms'])} | {recovered(row)} | {_probe(row)} |"
        )
    return lines


def _closed_table(rows: Sequence[Row], titles: Mapping[str, str]) -> list[str]:
    lines = [
        "| server | accepted/s | uncontended/s | accepted P50, P99 ms | refused/s"
        " | told of refusal P99 ms (after it was read) | errors, lost connections"
        " | users never served"
        " | `/health` P99 ms | generator CPU |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {titles[row['server']]} | {_unmeasured(row)} {'| ' * 8}|")
            continue
        lines.append(
            f"| {titles[row['server']]} | {row['accepted_rps']:,.0f}"
            f" | {row['uncontended']['accepted_rps']:,.0f} | {_ms(row['accepted']['p50_ms'])},"
            f" {_ms(row['accepted']['p99_ms'])} | {row['refused_rps']:,.0f}"
            f" | {_ms(row['refused_after']['p99_ms'])} ({_told(row)}) | {row['errors']:,},"
            f" {row['connections_lost']:,} | {row['users_never_served']:,} | {_probe(row)}"
            f" | {row['generator_cpu_share']:.0%} |"
        )
    return lines


def _soak_table(rows: Sequence[Row], titles: Mapping[str, str]) -> list[str]:
    lines = ["| server | offered/s | good/s | memory over time, MB |", "|---|--:|--:|---|"]
    for row in rows:
        start = f"| {titles[row['server']]} "
        if "failed" in row:
            lines.append(f"{start}| {_unmeasured(row)} | | |")
        else:
            memory = ", ".join(f"{mb:g}" for mb in row["rss_mb"])
            lines.append(
                f"{start}| {row['offered_rps']:,.0f} | {row['goodput_rps']:,.0f} | {memory} |"
            )
    return lines


def markdown(rows: Sequence[Row], titles: Mapping[str, str]) -> str:
    """Return all tables."""
    parts: list[str] = []
    tables = (
        ("capacity", "capacity, closed loop", _capacity_table),
        ("open", "open loop, by offered load", _open_table),
        ("step", "step to 3 × the capacity", _step_table),
        ("soak", "five times the capacity for long", _soak_table),
        ("closed", "many users, closed loop, refused ones ask again at once", _closed_table),
    )
    for route in _routes(rows):
        for kind, title, table in tables:
            chosen = _of(rows, kind, route)
            if chosen:
                parts += [f"### `/{route}`: {title}", "", *table(chosen, titles), ""]
    return "\n".join(parts)


# plots


def plot(rows: Sequence[Row], titles: Mapping[str, str], folder: Path) -> list[Path]:
    """Draw what there is to draw and return the files."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {
        "svg.fonttype": "none",  # text stays text: small files
        "svg.hashsalt": "fluxor-fast",  # the same figures give the same file
        "font.size": 9,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    colours = dict(zip(titles, COLOURS, strict=False))
    done = [row for row in rows if _unmeasured(row) is None]
    made: list[Path] = []
    for route in _routes(done):
        lines = {
            name: sorted(chosen, key=lambda row: row["factor"])
            for name in titles
            if (chosen := [r for r in _of(done, "open", route) if r["server"] == name])
        }
        if lines:
            made.append(_plot_goodput(lines, titles, colours, folder / f"overload-{route}.svg"))
            made.append(
                _plot_latency(lines, titles, colours, folder / f"overload-{route}-latency.svg")
            )
            made.append(
                _plot_refused(lines, titles, colours, folder / f"overload-{route}-refused.svg")
            )
        steps = _of(done, "step", route)
        if steps:
            made.append(_plot_step(steps, titles, colours, folder / f"overload-{route}-step.svg"))
    return made


Lines = Mapping[str, Sequence[Row]]


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    # no date, so that the file changes only with the figures
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, bbox_inches="tight", metadata=metadata)
    plt.close(figure)
    return path


def _plot_goodput(
    lines: Lines, titles: Mapping[str, str], colours: Mapping[str, str], path: Path
) -> Path:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    most = max(row["factor"] for rows in lines.values() for row in rows)
    axes.plot([0, 1, most], [0, 1, 1], color="#bbbbbb", linestyle="--", label="ideal")
    for name, rows in lines.items():
        axes.plot(
            [row["factor"] for row in rows],
            [row["goodput_rps"] / row["capacity_rps"] for row in rows],
            marker="o",
            markersize=4,
            color=colours[name],
            label=titles[name],
        )
    axes.set(
        xlabel="offered load / capacity",
        ylabel="goodput / capacity",
        title=f"/{path.stem.removeprefix('overload-')}: answers within 1 s",
        ylim=(0, 1.25),
    )
    axes.legend(fontsize=8)
    return _save(figure, path)


def _plot_latency(
    lines: Lines, titles: Mapping[str, str], colours: Mapping[str, str], path: Path
) -> Path:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(9.6, 3.4), sharey=True)
    for axes, share in zip(panels, ("p50_ms", "p95_ms", "p99_ms"), strict=True):
        for name, rows in lines.items():
            points = [(r["factor"], r["accepted"][share]) for r in rows if r["accepted"][share]]
            axes.plot(
                [factor for factor, _ in points],
                [value for _, value in points],
                marker="o",
                markersize=4,
                color=colours[name],
                label=titles[name],
            )
        axes.set(title=share[:3].upper(), xlabel="offered load / capacity", yscale="log")
        axes.axhline(1000, color="#bbbbbb", linestyle="--", linewidth=1)
    panels[0].set_ylabel("latency of accepted, ms")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="lower center",
        ncol=3,
        fontsize=8,
        bbox_to_anchor=(0.5, -0.16),
    )
    return _save(figure, path)


def _plot_refused(
    lines: Lines, titles: Mapping[str, str], colours: Mapping[str, str], path: Path
) -> Path:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    most = max(row["factor"] for rows in lines.values() for row in rows)
    dense = [0.5 + at * (most - 0.5) / 100 for at in range(101)]
    axes.plot(
        dense, [least_refused(x) for x in dense], color="#bbbbbb", linestyle="--", label="1 − 1/x"
    )
    for name, rows in lines.items():
        axes.plot(
            [row["factor"] for row in rows],
            [refused_share(row) for row in rows],
            marker="o",
            markersize=4,
            color=colours[name],
            label=titles[name],
        )
    axes.set(xlabel="offered load / capacity", ylabel="share answered 503", ylim=(-0.03, 1.05))
    axes.legend(fontsize=8)
    return _save(figure, path)


def _plot_step(
    rows: Sequence[Row], titles: Mapping[str, str], colours: Mapping[str, str], path: Path
) -> Path:
    import matplotlib.pyplot as plt

    figure, (good, slow) = plt.subplots(2, 1, figsize=(7.2, 5.4), sharex=True)
    for row in rows:
        wide, full = row["bin_seconds"], row["capacity_rps"]
        times = [(at + 0.5) * wide for at in range(len(row["timeline"]))]
        colour, title = colours[row["server"]], titles[row["server"]]
        rates = [entry["ok"] / wide / full for entry in row["timeline"]]
        good.plot(times, rates, color=colour, label=title)
        points = [
            (at, e["p99_ms"]) for at, e in zip(times, row["timeline"], strict=True) if e["p99_ms"]
        ]
        slow.plot([at for at, _ in points], [value for _, value in points], color=colour)
    before, during, _ = rows[0]["step_seconds"]
    for axes in (good, slow):
        axes.axvspan(before, before + during, color="#000000", alpha=0.06, linewidth=0)
    good.set(ylabel="goodput / capacity", ylim=(0, 1.3), title="shaded: 3 × the capacity offered")
    slow.set(ylabel="P99 of accepted, ms", xlabel="seconds (when due)", yscale="log")
    slow.axhline(1000, color="#bbbbbb", linestyle="--", linewidth=1)
    figure.legend(
        *good.get_legend_handles_labels(),
        loc="lower center",
        ncol=3,
        fontsize=8,
        bbox_to_anchor=(0.5, -0.05),
    )
    return _save(figure, path)
