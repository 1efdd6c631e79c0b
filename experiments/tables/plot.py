"""Quality against speed: one line per method over its intervals, one picture per table."""

from __future__ import annotations

from pathlib import Path

import matplotlib

import hicache
from experiments.config import StepsConfig
from experiments.metrics import TITLES
from experiments.tables.build import Row, Table

__all__ = ["plot"]

QUALITY = ("psnr", "digits_fid")


def family(row: Row) -> str:
    """What is joined by a line: a method, or a solver with fewer steps."""
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
    figure, axes = pyplot.subplots(1, len(shown), figsize=(5.6 * len(shown), 4.2), squeeze=False)
    markers = "osD^vP*Xdh"
    for axis, name in zip(axes[0], shown, strict=True):
        for marker, (title, found) in zip(markers, points(table, name).items(), strict=False):
            if found:
                speeds, values, below, above = zip(*sorted(found), strict=True)
                axis.errorbar(
                    speeds, values, yerr=(below, above), marker=marker, label=title, capsize=2, linewidth=1.2
                )
        axis.set(xlabel="FLOPs speed-up", ylabel=TITLES.get(name, name))
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.suptitle(table.preset.title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return True


def points(table: Table, name: str) -> dict[str, list[tuple[float, float, float, float]]]:
    """Speed-up, value and the reach of its interval, by family, in the order of the rows."""
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for row in table.rows:
        speed, cell = row.ours["flops_speedup"].value, row.ours.get(name)
        here = found.setdefault(family(row), [])
        if speed is not None and cell is not None and cell.value is not None:
            low, high = cell.low or cell.value, cell.high or cell.value
            here.append((speed, cell.value, cell.value - low, high - cell.value))
    return found
