"""FLOPs of a preset's rows from shapes alone: no weights, no run, any laptop.

An estimated step is counted as the published tables do (`convention="published"`), the speed-up is that over the
preset's un-cached run. A method whose plan depends on the data is counted with the full steps that the published
number implies, where the preset names them.
"""

from __future__ import annotations

import dataclasses

from experiments.blueprint import cost_of
from experiments.compose import compose
from experiments.config import Settings, resolve
from experiments.preset import RowConfig
from experiments.tables.build import Cell, Row, Table, published, published_cells, rows_of

__all__ = ["COLUMNS", "build_costs"]

COLUMNS = ("flops_t", "flops_speedup")


def build_costs(preset: str, overrides: list[str]) -> Table:
    """The FLOPs columns of a preset, beside the published ones."""
    config, found = rows_of(preset, overrides)
    paper = config.paper
    if paper is not None:
        shared = [config.compare[name] for name in COLUMNS if name in config.compare]
        paper = dataclasses.replace(paper, columns=[name for name in shared if name in paper.columns])
    theirs = published(paper) if paper is not None else {}
    base = baseline(preset, overrides) if any(isinstance(settings, Settings) for _, settings in found) else None
    rows: list[Row] = []
    for row, settings in found:
        beside = published_cells(paper, theirs, row.paper) if paper is not None else {}
        known = None if isinstance(settings, str) else settings
        why = settings if isinstance(settings, str) else ""
        ours = cells(row, known, base) if known is not None else {name: Cell(why=why) for name in COLUMNS}
        common = {"block": row.block, "note": row.note, "preset": row}
        rows.append(Row(label=row.label, run="", settings=known, ours=ours, paper=beside, **common))
    return Table(preset=dataclasses.replace(config, columns=[], paper=paper), rows=rows)


def baseline(preset: str, overrides: list[str]) -> float | None:
    """FLOPs of the preset's un-cached run."""
    settings = resolve(compose([f"experiment={preset}", *overrides])).reference()
    cost = cost_of(settings, "published", flops_only=True)
    return None if cost is None else cost.total


def cells(row: RowConfig, settings: Settings, base: float | None) -> dict[str, Cell]:
    """TFLOPs of one item, and the speed-up."""
    cost = cost_of(settings, "published", row.full_steps, flops_only=True)
    if cost is None or base is None:
        return {name: Cell(why="its plan depends on the data") for name in COLUMNS}
    return {"flops_t": Cell(value=cost.total / 1e12), "flops_speedup": Cell(value=base / cost.total)}
