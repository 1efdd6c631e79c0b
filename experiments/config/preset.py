"""Schema of a preset: a table of the paper as a list of runs, with the published rows they stand beside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

__all__ = ["PaperConfig", "PresetConfig", "RowConfig"]


@dataclass(kw_only=True)
class RowConfig:
    """One row of a preset: overrides of the command line, and the published row it stands beside."""

    label: str = MISSING
    set: list[str] = field(default_factory=list)
    paper: str | None = None
    """Value of the preset's `paper.key` column that names the published row; null = the paper has none."""
    block: str = ""
    """Rows of one block are ranked among themselves and tested against its baseline."""
    full_steps: int | None = None
    """Full steps behind the published FLOPs, where the plan of the method depends on the data."""
    lacks: str = ""
    """What keeps this row from being run, where that is neither a method nor a backend."""
    note: str = ""
    """What the paper leaves open about this row, or why its FLOPs are not ours."""


@dataclass(kw_only=True)
class PaperConfig:
    """The published table that a preset mirrors."""

    table: str = MISSING
    file: str = MISSING
    """CSV under results/paper."""
    key: str = "method"
    """Column that names its rows, or several joined by +. The second row of a name is called `name #2`."""
    columns: list[str] = field(default_factory=list)
    note: str = ""


@dataclass(kw_only=True)
class PresetConfig:
    """A table of the paper as a list of runs: explicit `rows`, then the Cartesian product of `grid`."""

    name: str = MISSING
    title: str = MISSING
    columns: list[str] = field(default_factory=list)
    axis: str = "flops_speedup"
    """Horizontal axis of the plot: flops_speedup, or a top-level key such as sigma."""
    baseline: str | None = None
    """Method whose row of a block the others of the block are tested against."""
    wall: bool = True
    """Whether there is a column of wall-clock speed-ups, for runs that time more than one batch."""
    sort: str | None = None
    """Column by which the rows of a block stand, best first; null = as listed."""
    compare: dict[str, str] = field(default_factory=dict)
    """Our column -> the published column that measures the same thing, for the difference."""
    rows: list[RowConfig] = field(default_factory=list)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    paper: PaperConfig | None = None
