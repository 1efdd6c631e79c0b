"""FLOPs of a preset's rows from shapes alone: no weights, no run, any laptop.

An estimated step is counted as the published tables do (`convention="published"`), the speed-up is that over the
preset's un-cached run. A method whose plan depends on the data is counted with the full steps that the published
number implies, where the preset names them.
"""

from __future__ import annotations

import dataclasses

from experiments.config.compose import compose
from experiments.config.preset import PresetConfig
from experiments.config.run import Settings
from experiments.plans.freeze import restore_settings
from experiments.plans.manifest import Plan
from experiments.reports.result_table import Cell, ResultTable, Row, published_cells, read_published, rows_of
from experiments.settings.cost import cost_of
from experiments.settings.resolve import resolve

__all__ = ["UNITS", "build_costs", "build_plan_costs"]

UNITS = {"flops_t": 1e12, "flops_g": 1e9}
"""Columns of FLOPs; a preset whose published FLOPs are in G is counted in G."""


def build_costs(preset: str, overrides: list[str]) -> ResultTable:
    """The FLOPs columns of a preset, beside the published ones."""
    config, found = rows_of(preset, overrides)
    paper = config.paper
    columns = ("flops_g" if "flops_g" in config.compare else "flops_t", "flops_speedup")
    if paper is not None:
        shared = [config.compare[name] for name in columns if name in config.compare]
        paper = dataclasses.replace(paper, columns=[name for name in shared if name in paper.columns])
    theirs = read_published(paper) if paper is not None else {}
    base = baseline(preset, overrides) if any(isinstance(settings, Settings) for _, settings in found) else None
    rows: list[Row] = []
    for row, settings in found:
        beside = published_cells(paper, theirs, row.paper) if paper is not None else {}
        known = None if isinstance(settings, str) else settings
        why = settings if isinstance(settings, str) else ""
        ours = {name: Cell(why=why) for name in columns}
        if known is not None:
            ours = cells(columns, known, base, row.full_steps)
        common = {"block": row.block, "note": row.note, "preset": row}
        rows.append(Row(label=row.label, run="", settings=known, ours=ours, paper=beside, **common))
    return ResultTable(preset=dataclasses.replace(config, columns=[], paper=paper), rows=rows)


def baseline(preset: str, overrides: list[str]) -> float | None:
    """FLOPs of the preset's un-cached run."""
    settings = resolve(compose([f"experiment={preset}", *overrides])).reference()
    cost = cost_of(settings, "published", flops_only=True)
    return None if cost is None else cost.total


def build_plan_costs(plan: Plan) -> ResultTable:
    """The FLOPs columns of a plan's rows, each beside its own un-cached run."""
    columns = ("flops_t", "flops_speedup")
    bases: dict[str, float | None] = {}
    rows: list[Row] = []
    for row in plan.rows:
        settings = restore_settings(row.frozen, plan.results)
        shared = row.reference or row.run
        if shared not in bases:
            cost = cost_of(settings.reference(), "published", flops_only=True)
            bases[shared] = None if cost is None else cost.total
        ours = cells(columns, settings, bases[shared])
        rows.append(Row(label=row.label, run="", settings=settings, ours=ours, paper={}, block=row.block))
    config = PresetConfig(name=plan.folder.name, title=f"Plan {plan.folder.name}", columns=[])
    return ResultTable(preset=config, rows=rows)


def cells(
    columns: tuple[str, str], settings: Settings, base: float | None, full_steps: int | None = None
) -> dict[str, Cell]:
    """FLOPs of one item, and the speed-up."""
    cost = cost_of(settings, "published", full_steps, flops_only=True)
    if cost is None or base is None:
        return {name: Cell(why="its plan depends on the data") for name in columns}
    flops, speedup = columns
    return {flops: Cell(value=cost.total / UNITS[flops]), speedup: Cell(value=base / cost.total)}
