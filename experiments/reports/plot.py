"""Quality against speed, or against a setting: one line per method, one picture per table."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib

import hicache
from experiments.config.method import StepsConfig
from experiments.files import replacing
from experiments.reports.build import Row, Table
from experiments.reports.columns import head_of

__all__ = ["plot"]

QUALITY = ("psnr", "digits_fid", "image_reward", "fid", "vbench")
AXES = {"flops_speedup": "FLOPs speed-up", "sigma": "σ"}
MARKERS = "osD^vP*Xdh"
CROWD = 12
"""More lines than that have their legend beside the axes."""
CLOUD = 60
"""More points than that are no line: they stand alone, without their intervals."""
NAMED = 40
"""No more lines than that are named in a legend."""


def family(row: Row) -> str:
    """What is joined by a line: a method, or a solver with fewer steps."""
    if row.settings is None:
        known = [part for part in row.run.split("-") if part in hicache.METHODS]
        return hicache.METHODS[known[0]].title if known else row.label
    method = row.settings.method
    if isinstance(method, StepsConfig):
        return {"dpmpp": "DPM-Solver++", "unipc": "UniPC"}.get(method.solver or "", "fewer DDIM steps")
    return hicache.METHODS[method.name].title


def plot(table: Table, path: Path) -> bool:
    """Draw the rows that have numbers; False if there are none."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [name for name in QUALITY if any(points(table, name).values())]
    if not shown:
        return False
    crowded = len(points(table, shown[0])) > CROWD
    width = 5.6 * len(shown) + 3.6 * crowded
    figure, axes = pyplot.subplots(1, len(shown), figsize=(width, 4.4 + 2 * crowded), squeeze=False)
    for axis, name in zip(axes[0], shown, strict=True):
        for index, (title, found) in enumerate(points(table, name).items()):
            colour = f"C{index % 10}"
            level = [point for point in found if point[0] is None]
            for _, value, *_ in level:
                axis.axhline(value, label=title, color=colour, linestyle="--", linewidth=1.2)
            curve = sorted(point for point in found if point[0] is not None)
            if curve:
                x, y, below, above = zip(*curve, strict=True)
                marker = MARKERS[(index + index // 10) % len(MARKERS)]
                if len(curve) > CLOUD:
                    axis.scatter(x, y, s=9, label=title, color=colour, marker=marker, alpha=0.5)
                    continue
                style = {"marker": marker, "capsize": 2, "linewidth": 1.2}
                axis.errorbar(x, y, yerr=(below, above), label=title, color=colour, **style)
        axis.set(xlabel=AXES.get(table.preset.axis, table.preset.axis), ylabel=head_of(name))
        axis.grid(alpha=0.3)
    handles, titles = axes[0][0].get_legend_handles_labels()
    if len(handles) > NAMED:
        titles = [*titles[: NAMED - 1], f"… and {len(titles) - NAMED + 1} more"]
    if crowded:
        axes[0][-1].legend(handles[:NAMED], titles, fontsize=7, loc="upper left", bbox_to_anchor=(1.02, 1), ncols=2)
    else:
        axes[0][0].legend(fontsize=8)
    figure.suptitle(textwrap.fill(table.preset.title, 62 * len(shown)), fontsize=10)
    figure.tight_layout()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=130, format="png")
    pyplot.close(figure)
    return True


Point = tuple[float | None, float, float, float]


def points(table: Table, name: str) -> dict[str, list[Point]]:
    """Position, value and the reach of its interval, by family; position None = the method has no such setting."""
    found: dict[str, list[Point]] = {}
    for row in table.rows:
        cell, position = row.ours.get(name), position_of(row, table.preset.axis)
        here = found.setdefault(family(row), [])
        if cell is not None and cell.value is not None:
            low = cell.value if cell.low is None else cell.low
            high = cell.value if cell.high is None else cell.high
            here.append((position, cell.value, cell.value - low, high - cell.value))
    return found


def position_of(row: Row, axis: str) -> float | None:
    """Where a row stands on the horizontal axis."""
    if axis in row.ours:
        return row.ours[axis].value
    if row.settings is None or axis not in hicache.METHODS[row.settings.method.name].uses:
        return None
    return float(getattr(row.settings, axis))
