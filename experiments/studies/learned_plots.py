"""Figures of the studies of the learned methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from experiments.learning.loop import Point

__all__ = ["plot_costs", "plot_losses", "plot_steps"]

MARKERS = "*osD^v"
QUALITY = "PSNR to the un-cached result (dB)"


def plot_steps(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """PSNR over full steps, a line per method."""
    lines(path, rows, "full steps", "full steps of 50", "LESA at equal full steps")


def plot_costs(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """PSNR over the speed-up, a line per method."""
    lines(path, rows, "FLOPs speed-up", "speed-up in FLOPs", "Learning-to-Cache at equal FLOPs")


def lines(path: Path, rows: Sequence[Mapping[str, Any]], key: str, label: str, title: str) -> None:
    """One line per method with its bootstrap intervals."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7.0, 4.4))
    for index, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        own = sorted((row for row in rows if row["method"] == method), key=lambda row: float(row[key]))
        x, y = ([float(row[k]) for row in own] for k in (key, "PSNR (dB)"))
        low, high = ([float(row[k]) for row in own] for k in ("low", "high"))
        reach = [[m - v for m, v in zip(y, low, strict=True)], [v - m for m, v in zip(y, high, strict=True)]]
        style = {"marker": MARKERS[index % len(MARKERS)], "capsize": 2, "linewidth": 2.2 if index == 0 else 1.1}
        axis.errorbar(x, y, yerr=reach, label=method, color=f"C{index}", **style)
    axis.set(xlabel=label, ylabel=QUALITY, title=title)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def plot_losses(path: Path, curves: Mapping[str, Sequence[Point]]) -> None:
    """Held-out loss over the updates of each phase."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    phases = list(dict.fromkeys(point.phase for curve in curves.values() for point in curve))
    figure, axes = pyplot.subplots(1, len(phases), figsize=(4.6 * len(phases), 4.0), squeeze=False)
    for axis, phase in zip(axes[0], phases, strict=True):
        for index, (title, curve) in enumerate(curves.items()):
            own = [point for point in curve if point.phase == phase]
            x, y = [point.update for point in own], [point.held_out for point in own]
            axis.plot(x, y, label=title, color=f"C{index}", marker=MARKERS[index % len(MARKERS)], markersize=3)
        axis.set(xlabel="update", ylabel="held-out loss (L1)", title=f"{phase} phase")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7, loc="upper right")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
