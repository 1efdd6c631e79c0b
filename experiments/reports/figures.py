"""Figures of tables, plans or any runs, each one column of a paper wide; and of a backend (analyses).

    python -m experiments figures table=digits                 from the runs of presets
    python -m experiments figures plan=results/plans/NAME      from the runs of a plan
    python -m experiments figures runs=results/sweeps/3f0c...  from any runs, as `tables runs=` names them
    python -m experiments figures table=4 quality=fid speed=wall_speedup items=8
    python -m experiments figures table=digits errors=4        also the errors over the steps of 4 items, made anew
    python -m experiments figures backend=digits               all analyses of trajectories (`experiments analyses`)

`results/figures/<name>_*.png`, each where its runs are there:

    pareto     one point per run, and the front of those that no other run beats in both (also .pdf)
    sigma, interval, order    quality over one setting, a line per method
    steps      which steps are full, a strip per run
    paired     the value of every item under each method against that under the baseline
    grid       one row per run with its difference to the reference and PSNR, one column per item with the same noise
    sheet      all items of the best run
    frames     of videos: frames of one item, a row per run
    errors     with errors=: error of the sampler's state over the steps

Further key=value arguments are those of run.py.
"""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from pathlib import Path

from experiments.analyses import parts as analyses
from experiments.cli import Exit
from experiments.errors import check, choose
from experiments.files import ensure_writable
from experiments.plans.manifest import Plan
from experiments.reports.columns import directions
from experiments.reports.montage import draw_contact_sheet, draw_frames, draw_grid
from experiments.reports.plot import draw_panel, height_of, identify, look_of_row
from experiments.reports.ranks import in_order
from experiments.reports.report import whole
from experiments.reports.result_table import ResultTable, Row, build, build_plan
from experiments.reports.run_figures import draw_ablation, draw_full_steps, draw_pairs, draw_step_errors
from experiments.reports.runs import build_runs
from experiments.reports.tables import how_to_run, overrides_of, parse, presets_of
from experiments.runs.style import COLUMN, save, styled

__all__ = ["front", "main", "draw_pareto"]

SPEEDS = ("flops_speedup", "wall_speedup")
ABLATED = ("sigma", "interval", "order")
RAW_ITEMS = 4
"""With 16 tokens of each fewer rows than dimensions, as in the paper's Table 6."""


def front(points: list[tuple[float, float]], direction: int) -> list[int]:
    """Positions of the points that none beats in both, by speed; `direction` -1 means that less quality is better."""

    def beaten(mine: tuple[float, float]) -> bool:
        return any(
            other[0] >= mine[0] and direction * other[1] >= direction * mine[1] and other != mine for other in points
        )

    return sorted((i for i, point in enumerate(points) if not beaten(point)), key=lambda i: points[i][0])


def rows_with_both(table: ResultTable, speed: str, quality: str) -> list[tuple[Row, float, float]]:
    """The rows that have both numbers."""
    found = []
    for row in table.rows:
        x, y = row.ours.get(speed), row.ours.get(quality)
        if x is not None and y is not None and x.value is not None and y.value is not None:
            found.append((row, x.value, y.value))
    return found


def draw_pareto(table: ResultTable, speed: str, quality: str, stem: Path) -> list[Path]:
    """Draw the plot; nothing if fewer than two rows have both numbers."""
    found = rows_with_both(table, speed, quality)
    if len(found) < 2:
        return []
    high = height_of(len({look_of_row(row).title for row, _, _ in found}))
    best = front([(x, y) for _, x, y in found], directions()[quality])
    with styled() as pyplot:
        figure, axis = pyplot.subplots(figsize=(COLUMN, high))
        figure.subplots_adjust(left=0.15, right=0.68, bottom=0.36 / high, top=1 - 0.3 / high)
        line = [(found[i][1], found[i][2]) for i in best]
        axis.plot(*zip(*line, strict=True), color="0.75", linewidth=3, zorder=0, solid_capstyle="round")
        chosen = dataclasses.replace(table, rows=[row for row, _, _ in found])
        draw_panel(axis, chosen, quality, speed, high - 0.55)
        title = f"{table.preset.title}; grey: what no other run beats in both"
        axis.set_title(textwrap.fill(title, 62), loc="left", x=-0.16, fontsize=6.5)
        paths = [stem.with_name(f"{stem.name}_pareto{suffix}") for suffix in (".png", ".pdf")]
        return [save(figure, path, bbox_inches="tight", pad_inches=0.03) for path in paths]


def quality_of(table: ResultTable, wanted: str) -> str | None:
    """The quality on the vertical axis: as asked, or the table's first that is measured; None if it has no quality."""
    columns = [name for name in table.preset.columns if name in directions()]
    if not columns:
        return None
    if wanted:
        return choose("quality", wanted, columns)
    return next((name for name in columns if len(rows_with_both(table, "flops_speedup", name)) > 1), columns[0])


def main(arguments: list[str]) -> None:
    """Draw what the arguments mean."""
    if {"--help", "-h"} & set(arguments):
        return print(__doc__)
    given = dict(parse(argument) for argument in arguments)
    if "backend" in given and not {"table", "plan", "runs"} & set(given):
        analyses.main(arguments)
        if not {"part", "mode"} & set(given):  # the published setting of the energy test, which says nothing
            analyses.main([*arguments, "part=gaussianity", "mode=raw", f"items={RAW_ITEMS}"])
        return None
    quality, count, errors = given.pop("quality", ""), whole(given, "items", 8), given.pop("errors", "0")
    check(errors.isdecimal(), "errors", "must be an integer >= 0", errors)
    speed = choose("speed", given.pop("speed", "flops_speedup"), SPEEDS)
    tables, results, folder = tables_of(given)
    ensure_writable(folder)
    for table in tables:
        table = identify(dataclasses.replace(table, rows=in_order(list(table.rows), table.preset.sort, results)))
        stem, chosen = folder / table.preset.name, quality_of(table, quality)
        written = draw(table, results, stem, (speed, chosen, count, int(errors)))
        for path in written:
            print(f"written: {path}")
        if not written:
            print(f"{table.preset.name}: none of its rows was run{how_to_run(table)}")
    return None


def tables_of(given: dict[str, str]) -> tuple[list[ResultTable], Path, Path]:
    """The tables that the arguments name, the results folder of their runs, and that of the figures."""
    names, plan, runs = given.pop("table", ""), given.pop("plan", ""), given.pop("runs", "")
    results = Path(given.pop("results", "results"))
    rule = "must be given, or plan, or runs, or backend without them"
    check([bool(names), bool(plan), bool(runs)].count(True) == 1, "table", rule, names or plan or runs)
    if names:
        overrides = overrides_of(given)
        return [build(preset, overrides, results) for preset in presets_of(names)], results, results / "figures"
    check(not given, "argument", f"must not stand beside {'plan' if plan else 'runs'}=", sorted(given))
    if plan:
        opened = Plan.open(plan)
        return [build_plan(opened)], opened.results, opened.results / "figures"
    tables, _ = build_runs(runs.split(","), results)
    return tables, results, results / "figures"


def draw(table: ResultTable, results: Path, stem: Path, asked: tuple[str, str | None, int, int]) -> list[Path]:
    """All figures that the runs of a table are enough for; `asked`: speed, quality, items of the grid, of errors."""
    speed, quality, count, errors = asked
    written: list[Path] = []
    if quality:
        written += draw_pareto(table, speed, quality, stem)
        for key in ABLATED:
            written += draw_ablation(table, key, quality, stem)
        written += draw_pairs(table, results, quality, stem)
    written += draw_full_steps(table, results, stem)
    written += [
        *draw_grid(table, results, count, stem),
        *draw_contact_sheet(table, results, stem),
        *draw_frames(table, results, stem),
    ]
    return written + (draw_step_errors(table, errors, stem) if errors else [])


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
