"""What a column of a table is called, how it is rounded, and which direction is better.

A metric's own class or entry says so (`experiments.runs.metrics.measure`); here are only the columns that are no
metric: costs.
"""

from __future__ import annotations

from typing import NamedTuple

from experiments.runs.metrics.measure import known_metrics, metric_of

__all__ = ["COST_COLUMNS", "EXACT", "decimals_of", "decimals_shown", "directions", "head_of", "number_text"]


class Column(NamedTuple):
    """A column of costs; `direction` is 1 where more is better, -1 where less is, 0 where neither."""

    head: str
    direction: int
    decimals: int = 2


COST_COLUMNS: dict[str, Column] = {
    "num_full_steps": Column("full steps", 0, decimals=0),
    "flops_t": Column("TFLOPs", -1),
    "flops_g": Column("GFLOPs", -1),
    "flops_speedup": Column("FLOPs ×", 1),
    "wall_speedup": Column("wall ×", 1),
    "p (Holm)": Column("p (Holm)", 0, decimals=4),
    "effect r": Column("effect r", 0),
}

EXACT = ("flops_t", "flops_g", "flops_speedup")
"""Columns that come from shapes and have no error."""


def head_of(name: str) -> str:
    """Head of a column; that of an unknown one is its name."""
    if name in COST_COLUMNS:
        return COST_COLUMNS[name].head
    metric = metric_of(name)
    return name if metric is None else metric.heading()


def decimals_of(name: str) -> int:
    """Decimals that its values are shown with."""
    known = COST_COLUMNS.get(name) or metric_of(name)
    return 2 if known is None else known.decimals


def decimals_shown(name: str, value: float) -> int:
    """Decimals that one value is shown with: a mean number of steps that is no integer has one."""
    if name == "num_full_steps" and not float(value).is_integer():
        return 1
    return 5 if name == "flops_t" and 0 < abs(value) < 1 else decimals_of(name)


def directions() -> dict[str, int]:
    """Column -> 1 where more is better, -1 where less is."""
    costs = {name: column.direction for name, column in COST_COLUMNS.items() if column.direction}
    return costs | {name: 1 if metric.better == "higher" else -1 for name, metric in known_metrics().items()}


def number_text(value: float, decimals: int) -> str:
    """`0.0312`; `<0.0001` for a positive number that would read as none."""
    least = 10.0**-decimals
    return f"<{least:.{decimals}f}" if decimals and 0 < value < least / 2 else f"{value:.{decimals}f}"
