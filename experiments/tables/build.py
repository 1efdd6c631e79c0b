"""The rows of a table: each is a run of a preset, its metrics if it was executed, and the published row.

Nothing is computed here. A number comes from the metrics.json of the run that the row names, or from a CSV
under results/paper; a cell without a number says why.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.compose import compose, options, row_configs
from experiments.config import PaperConfig, PresetConfig, Settings, resolve
from experiments.errors import ConfigError, check, choose
from experiments.identity import run_id
from experiments.metrics import PAIRED
from experiments.store import RunFolder

__all__ = ["PAPER", "Cell", "Row", "Table", "build", "preset_of", "published"]

PAPER = Path(__file__).parents[2] / "results" / "paper"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number with its interval, or the reason why there is none."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    equal: int = 0
    """Items equal to the reference, whose infinite value is no part of the mean."""
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run: where its numbers come from, ours by metric, the paper's by column of its CSV."""

    label: str
    run: str
    settings: Settings
    ours: Mapping[str, Cell]
    paper: Mapping[str, Cell]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A preset with its rows."""

    preset: PresetConfig
    rows: list[Row]


COSTS = ("num_full_steps", "flops_speedup", "wall_speedup")


def preset_of(table: str) -> str:
    """Name of the preset behind `table=`: its own name, or that with `_table` appended."""
    known = options("experiment")
    alias = f"{table}_table"
    return alias if alias in known else choose("table", table, known)


def published(paper: PaperConfig, folder: Path = PAPER) -> dict[str, dict[str, str]]:
    """The published table by its key column."""
    with open(folder / paper.file, newline="") as handle:
        rows = {row[paper.key]: row for row in csv.DictReader(handle)}
    missing = [name for name in paper.columns if any(name not in row for row in rows.values())]
    check(not missing, "preset.paper.columns", f"must be columns of {paper.file}", missing)
    return rows


def build(preset: str, overrides: list[str], results: Path) -> Table:
    """The table of a preset, with the runs that `overrides` (seed, num_items, ...) single out."""
    line = [f"experiment={preset}", *overrides]
    config = compose(line)
    if config.preset is None:
        raise ConfigError(f"experiment: must be a preset with rows, got {preset!r}")
    paper = config.preset.paper
    theirs = published(paper) if paper else {}
    rows: list[Row] = []
    for row, composed in row_configs(config, line):
        settings = resolve(composed)
        folder = RunFolder(results, run_id(settings), settings.shard)
        ours = {name: cell_of(folder, settings, name) for name in (*COSTS, *config.preset.columns)}
        beside = published_cells(paper, theirs, row.paper) if paper else {}
        rows.append(Row(label=row.label, run=folder.id, settings=settings, ours=ours, paper=beside))
    return Table(preset=config.preset, rows=rows)


def cell_of(folder: RunFolder, settings: Settings, name: str) -> Cell:
    """A metric of a run."""
    state = folder.status().get("state")
    value: Any = folder.metrics().get(name)
    if settings.method.name == "none" and name in PAIRED:
        return Cell(why="is the reference")
    if value is None:
        reasons = {None: "not run", "done": "not measured", "failed": "run failed", "running": "not finished"}
        return Cell(why=reasons.get(state, "not finished"))
    if isinstance(value, dict):
        if value["mean"] is None:
            return Cell(why=f"equal in {value.get('infinite', 0)} items" if "infinite" in value else "no value")
        return Cell(value=value["mean"], low=value["low"], high=value["high"], equal=value.get("infinite", 0))
    return Cell(value=float(value))


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
        return Cell(why="not published")
