"""Figures of tables (quality against speed with its Pareto front, a grid of pictures), and of a backend (analyses).

    python -m experiments figures table=digits                 from the runs of presets
    python -m experiments figures plan=results/plans/NAME      from the runs of a plan
    python -m experiments figures table=4 quality=fid speed=wall_speedup items=8
    python -m experiments figures backend=digits               all analyses of trajectories (`experiments analyses`)

`results/figures/<name>_pareto.{png,pdf}`: one point per run, and the front of those that no other run beats in both.
`results/figures/<name>_grid.png`: one row per run, the reference first, one column per item with the same noise in it.
Further key=value arguments are those of run.py.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

from experiments.analyses import parts as analyses
from experiments.cli import Exit
from experiments.errors import check, choose
from experiments.files import ensure_writable
from experiments.plans.manifest import Plan
from experiments.reports.build import Row, Table, build, build_plan
from experiments.reports.columns import directions, head_of
from experiments.reports.gallery import read_still, records_of, varied
from experiments.reports.report import family, whole
from experiments.reports.tables import overrides_of, parse, presets_of

__all__ = ["front", "grid", "main", "pareto"]

SPEEDS = ("flops_speedup", "wall_speedup")
MARKERS = "osD^vP*Xdh"
GRID_ROWS = 60
"""More runs than that are no picture any more: the first are shown."""
RAW_ITEMS = 4
"""With 16 tokens of each fewer rows than dimensions, as in the paper's Table 6."""


def front(points: list[tuple[float, float]], direction: int) -> list[int]:
    """Positions of the points that none beats in both, by speed; `direction` -1 means that less quality is better."""

    def beaten(mine: tuple[float, float]) -> bool:
        return any(
            other[0] >= mine[0] and direction * other[1] >= direction * mine[1] and other != mine for other in points
        )

    return sorted((i for i, point in enumerate(points) if not beaten(point)), key=lambda i: points[i][0])


def measured(table: Table, speed: str, quality: str) -> list[tuple[Row, float, float]]:
    """The rows that have both numbers."""
    found = []
    for row in table.rows:
        x, y = row.ours.get(speed), row.ours.get(quality)
        if x is not None and y is not None and x.value is not None and y.value is not None:
            found.append((row, x.value, y.value))
    return found


def pareto(table: Table, speed: str, quality: str, stem: Path) -> list[Path]:
    """Draw the plot; nothing if fewer than two rows have both numbers."""
    found = measured(table, speed, quality)
    if len(found) < 2:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7.2, 4.6))
    families = list(dict.fromkeys(family(row) for row, _, _ in found))
    for index, name in enumerate(families):
        mine = [(x, y) for row, x, y in found if family(row) == name]
        style: dict[str, Any] = {"marker": MARKERS[index % len(MARKERS)], "linestyle": "none", "markersize": 7}
        axis.plot(*zip(*mine, strict=True), label=name, color=f"C{index % 10}", **style)
    best = front([(x, y) for _, x, y in found], directions()[quality])
    axis.plot([found[i][1] for i in best], [found[i][2] for i in best], "--", color="0.5", linewidth=1, zorder=0)
    for i in best:
        row, x, y = found[i]
        axis.annotate(row.label, (x, y), fontsize=7, xytext=(5, 4), textcoords="offset points")
    axis.set(xlabel=head_of(speed), ylabel=head_of(quality))
    axis.set_title(textwrap.fill(table.preset.title, 70), fontsize=10)
    axis.margins(x=0.15)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    written = [stem.with_name(f"{stem.name}_pareto{suffix}") for suffix in (".png", ".pdf")]
    for path in written:
        figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return written


def grid(table: Table, results: Path, count: int, stem: Path) -> list[Path]:
    """Draw the pictures of the first `count` items that all runs of the table's first reference have."""
    runs = results / "runs"
    records = {row.run: records_of(runs / row.run) for row in table.rows if row.run}
    labels = {row.run: row.label for row in table.rows if row.run and records[row.run]}
    if len(labels) > GRID_ROWS:
        print(f"{table.preset.name}: pictures of the first {GRID_ROWS} of {len(labels)} runs")
        labels = dict(list(labels.items())[:GRID_ROWS])
    first = next(iter(labels), None)
    if first is None:
        return []
    titles = {name: record["title"] for name, record in records[first].items()}
    shared = {name: title for name, title in titles.items() if all(name in records[run] for run in labels)}
    names = varied(shared)[:count]
    if not names:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shape = (len(labels), len(names))
    size = (1.15 * shape[1] + 2.6, 1.15 * shape[0] + 0.4)
    figure, axes = pyplot.subplots(*shape, figsize=size, squeeze=False)
    for r, (run, label) in enumerate(labels.items()):
        for c, name in enumerate(names):
            axis = axes[r][c]
            axis.imshow(read_still(runs / run / "media" / records[run][name]["files"][0]), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if r == 0:
                axis.set_title(textwrap.shorten(titles[name], 18, placeholder="…"), fontsize=8)
        axes[r][0].set_ylabel(textwrap.fill(label, 24), rotation=0, ha="right", va="center", fontsize=8, labelpad=6)
    figure.tight_layout(pad=0.4)
    path = stem.with_name(f"{stem.name}_grid.png")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return [path]


def quality_of(table: Table, wanted: str) -> str | None:
    """The quality on the vertical axis: as asked, or the table's first that is measured; None if it has no quality."""
    columns = [name for name in table.preset.columns if name in directions()]
    if not columns:
        return None
    if wanted:
        return choose("quality", wanted, columns)
    return next((name for name in columns if len(measured(table, "flops_speedup", name)) > 1), columns[0])


def main(arguments: list[str]) -> None:
    """Draw what the arguments mean."""
    if {"--help", "-h"} & set(arguments):
        return print(__doc__)
    given = dict(parse(argument) for argument in arguments)
    if "backend" in given and not {"table", "plan"} & set(given):
        analyses.main(arguments)
        if not {"part", "mode"} & set(given):  # the published setting of the energy test, which says nothing
            analyses.main([*arguments, "part=gaussianity", "mode=raw", f"items={RAW_ITEMS}"])
        return None
    names, plan = given.pop("table", ""), given.pop("plan", "")
    results = Path(given.pop("results", "results"))
    quality, count = given.pop("quality", ""), whole(given, "items", 10)
    speed = choose("speed", given.pop("speed", "flops_speedup"), SPEEDS)
    check(bool(names) != bool(plan), "table", "must be given, or plan, or backend without either", names or plan)
    if plan:
        check(not given, "argument", "must not stand beside plan=", sorted(given))
        opened = Plan.open(plan)
        results, tables = opened.results, [build_plan(opened)]
    else:
        overrides = overrides_of(given)
        tables = [build(preset, overrides, results) for preset in presets_of(names)]
    ensure_writable(results)
    folder = results / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        stem, chosen = folder / table.preset.name, quality_of(table, quality)
        plot = pareto(table, speed, chosen, stem) if chosen else []
        written = [*plot, *grid(table, results, count, stem)]
        for path in written:
            print(f"written: {path}")
        if not written:
            print(f"{table.preset.name}: none of its rows was run")
    return None


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
