"""The rows of a table: each is a run of a preset, its metrics if it was executed, and the published row.

Nothing is computed here. A number comes from the metrics.json of the run that the row names, from shapes (see
`experiments.reports.costs`), or from a CSV under results/paper; a cell without a number says why.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.config.compose import compose, options
from experiments.config.preset import PaperConfig, PresetConfig, RowConfig
from experiments.config.run import Settings
from experiments.errors import ConfigError, check, choose
from experiments.plans.freeze import restore_settings
from experiments.plans.manifest import Plan
from experiments.plans.status import State, state_in
from experiments.runs.folder import read_metrics
from experiments.runs.metrics.measure import UNSAID, paired_with_reference
from experiments.runs.status_file import is_number
from experiments.settings.identity import run_id
from experiments.settings.resolve import resolve
from experiments.settings.rows import split_rows

__all__ = [
    "COSTS",
    "NOT_RUN",
    "PAPER",
    "Cell",
    "Row",
    "ResultTable",
    "build",
    "build_plan",
    "cells_in",
    "cells_of",
    "preset_of",
    "read_published",
    "rows_of",
]

PAPER = Path(__file__).parents[2] / "results" / "paper"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number with its interval, or the reason why there is none."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    level: float | None = None
    """Of the interval, where it is one of confidence."""
    equal: int = 0
    """Items equal to the reference, whose infinite value is no part of the mean."""
    why: str = ""
    rank: int = 0
    """1 = best of its block, 2 = second."""
    p: float | None = None
    """Of the paired test against the block's baseline, corrected for the number of rows."""
    better: bool = False
    """Whether the mean is on the better side of the baseline's."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run: where its numbers come from, ours by metric, the paper's by column of its CSV."""

    label: str
    run: str
    """Empty for a row that this version cannot run."""
    settings: Settings | None
    ours: Mapping[str, Cell]
    paper: Mapping[str, Cell]
    block: str = ""
    note: str = ""
    preset: RowConfig | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What a run without settings is: dotted key -> value, as its folder says."""
    folder: Path | None = None
    """Where the run lies, if that is not among the runs of the results."""

    def place(self, results: Path) -> Path:
        """Where the run lies."""
        return self.folder or results / "runs" / self.run


@dataclass(frozen=True, kw_only=True)
class ResultTable:
    """A preset with its rows."""

    preset: PresetConfig
    rows: list[Row]

    @property
    def levels(self) -> list[float]:
        """The levels of its intervals, in order."""
        cells = (cell for row in self.rows for cell in row.ours.values())
        return sorted({cell.level for cell in cells if cell.level is not None})

    @property
    def settings(self) -> Settings | None:
        """Those of the first row that can be run: what all rows have in common is read there."""
        return next((row.settings for row in self.rows if row.settings is not None), None)


COSTS = ("num_full_steps", "flops_speedup", "wall_speedup")


def preset_of(table: str) -> str:
    """Name of the preset behind `table=`: a number, its own name, or that with `_table` appended."""
    known = options("experiment")
    for alias in (f"{table}_table", f"table{table}"):
        if alias in known:
            return alias
    return choose("table", table, known)


def read_published(paper: PaperConfig, folder: Path = PAPER) -> dict[str, dict[str, str]]:
    """The published table by its key columns; the second row of a name is `name #2`."""
    keys = paper.key.split("+")
    with open(folder / paper.file, newline="") as handle:
        lines = list(csv.DictReader(handle))
    missing = [name for name in (*keys, *paper.columns) if any(name not in line for line in lines)]
    check(not missing, "preset.paper.columns", f"must be columns of {paper.file}", missing)
    seen: Counter[str] = Counter()
    rows: dict[str, dict[str, str]] = {}
    for line in lines:
        name = " ".join(line[key] for key in keys if line[key])
        seen[name] += 1
        rows[name if seen[name] == 1 else f"{name} #{seen[name]}"] = line
    return rows


def rows_of(preset: str, overrides: list[str]) -> tuple[PresetConfig, list[tuple[RowConfig, Settings | str]]]:
    """The preset and its rows in their order: settings, or what this version lacks to run it."""
    line = [f"experiment={preset}", *overrides]
    config = compose(line)
    if config.preset is None:
        raise ConfigError(f"experiment: must be a preset with rows, got {preset!r}")
    rows, absent = split_rows(config, line)
    found: dict[str, Settings | str] = {row.label: resolve(made) for row, made in rows}
    found |= {row.label: reason for row, reason in absent}
    listed = [*config.preset.rows, *(RowConfig(label=label) for label in found)]
    by_label = {row.label: (row, found[row.label]) for row in reversed(listed)}
    order = list(dict.fromkeys(row.label for row in listed))
    return config.preset, [by_label[label] for label in order]


def build(preset: str, overrides: list[str], results: Path) -> ResultTable:
    """The table of a preset, with the runs that `overrides` (seed, num_items, ...) single out."""
    config, found = rows_of(preset, overrides)
    theirs = read_published(config.paper) if config.paper else {}
    names = [*(name for name in COSTS if config.wall or name != "wall_speedup"), *config.columns]
    rows: list[Row] = []
    for row, settings in found:
        beside = published_cells(config.paper, theirs, row.paper) if config.paper else {}
        if isinstance(settings, str):
            ours = {name: Cell(why=settings) for name in names}
            run, known = "", None
        else:
            run, known = run_id(settings), settings
            ours = cells_of(results, run, settings.plain, names)
        common = {"block": row.block, "note": row.note, "preset": row}
        rows.append(Row(label=row.label, run=run, settings=known, ours=ours, paper=beside, **common))
    return ResultTable(preset=config, rows=rows)


def build_plan(plan: Plan) -> ResultTable:
    """The table of a plan: its rows as they were frozen, with every metric that they were planned with."""
    metrics = list(dict.fromkeys(name for row in plan.rows for name in row.frozen["metrics"]["names"]))
    config = PresetConfig(name=plan.folder.name, title=f"Plan {plan.folder.name}", columns=metrics)
    rows: list[Row] = []
    for row in plan.rows:
        settings = restore_settings(row.frozen, plan.results)
        ours = cells_of(plan.results, row.run, settings.plain, [*COSTS, *metrics])
        rows.append(Row(label=row.label, run=row.run, settings=settings, ours=ours, paper={}, block=row.block))
    return ResultTable(preset=config, rows=rows)


NOT_RUN = "not run"
WHY = {
    State.DONE: "not measured",
    State.FAILED: "run failed",
    State.RUNNING: "not finished",
    State.INTERRUPTED: "not finished",
    State.WAITING: NOT_RUN,
}


def cells_of(results: Path, run: str, is_reference: bool, names: list[str]) -> dict[str, Cell]:
    """The metrics of a run of a results folder."""
    return cells_in(results / "runs" / run, is_reference, names)


def cells_in(folder: Path, is_reference: bool, names: list[str]) -> dict[str, Cell]:
    """The metrics of the run that lies in a folder."""
    try:
        metrics = read_metrics(folder / "metrics.json")
    except ConfigError:
        return {name: Cell(why="metrics.json cannot be read") for name in names}
    why = why_missing(folder) if any(metrics.get(name) is None for name in names) else ""
    found: dict[str, Cell] = {}
    for name in names:
        value = metrics.get(name)
        if is_reference and paired_with_reference(name):
            found[name] = Cell(why="is the reference")
        elif value is None:
            found[name] = Cell(why=why)
        elif not isinstance(value, dict):
            low, high = range_of(metrics, name)
            found[name] = Cell(value=float(value), low=low, high=high) if is_number(value) else Cell(why="no value")
        elif value.get("mean") is None:
            equal = value.get("infinite", 0)
            found[name] = Cell(why=f"equal in {equal} items" if equal else value.get("why", "no value"), equal=equal)
        else:
            low, high, equal = value.get("low"), value.get("high"), value.get("infinite", 0)
            level = None if low is None else value.get("level", UNSAID.level)
            found[name] = Cell(value=value["mean"], low=low, high=high, level=level, equal=equal)
    return found


def why_missing(folder: Path) -> str:
    """Why a run has not all numbers. Where only some of its shards are done, the others are named, if they are few."""
    state = state_in(str(folder)).state
    done: dict[int, set[int]] = {}
    for path in folder.glob("status-*of*.json"):
        if named := re.fullmatch(r"status-(\d{1,6})of(\d{1,6})", path.stem):
            done.setdefault(int(named[2]), set()).add(int(named[1]))
    if state is not State.WAITING or not done:
        return WHY[state]
    world = min(done, key=lambda world: world - len(done[world]))
    left = [f"{rank}/{world}" for rank in range(world) if rank not in done[world]]
    said = f"shard {' and '.join(left)}" if len(left) < 3 else f"{len(left)} of {world} shards"
    return f"{said} {NOT_RUN}" if left else "not finished"


def range_of(metrics: Mapping[str, Any], name: str) -> tuple[float | None, float | None]:
    """The least and largest of the numbers behind one, where a run keeps them."""
    ends = metrics.get(f"{name}_range")
    if not (isinstance(ends, list) and len(ends) == 2 and all(map(is_number, ends))):
        return None, None
    return float(ends[0]), float(ends[1])


def published_cells(paper: PaperConfig, theirs: dict[str, dict[str, str]], key: str | None) -> dict[str, Cell]:
    """The published numbers of a row; a dash in the paper is a dash here."""
    if key is None:
        return {name: Cell(why="not in the paper") for name in paper.columns}
    row = theirs[choose("preset.rows.paper", key, theirs)]
    return {name: number(row[name]) for name in paper.columns}


def number(text: str) -> Cell:
    """A published cell."""
    try:
        return Cell(value=float(text))
    except ValueError:
        return Cell(why="infinite" if text == "∞" else "not published")
