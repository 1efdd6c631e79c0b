"""Figures of the studies of the learned methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.learning.training_loop import LossPoint
from experiments.runs.style import COLUMN, save, styled
from experiments.studies.study_report import plot_lines

__all__ = ["plot_costs", "plot_losses", "plot_steps"]

MARKERS = "*osD^v"


def plot_steps(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """PSNR over full steps, a line per method."""
    lines(path, rows, "full steps", "full steps of 50", "LESA at equal full steps")


def plot_costs(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """PSNR over the speed-up, a line per method."""
    lines(path, rows, "FLOPs speed-up", "speed-up in FLOPs", "Learning-to-Cache at equal FLOPs")


def lines(path: Path, rows: Sequence[Mapping[str, Any]], key: str, label: str, title: str) -> None:
    """One line per method with its bootstrap intervals."""
    columns = (key, "PSNR (dB)", "low", "high")
    found = [(str(row["method"]), *(float(row[column]) for column in columns)) for row in rows]
    plot_lines(path, title, label, [(method, x, mean, low, high) for method, x, mean, low, high in found])


def plot_losses(path: Path, curves: Mapping[str, Sequence[LossPoint]]) -> None:
    """Held-out loss over the updates of each phase."""
    phases = list(dict.fromkeys(point.phase for curve in curves.values() for point in curve))
    with styled() as pyplot:
        size = (COLUMN * len(phases), 0.8 * COLUMN)
        figure, axes = pyplot.subplots(1, len(phases), figsize=size, squeeze=False, layout="constrained")
        for axis, phase in zip(axes[0], phases, strict=True):
            for index, (title, curve) in enumerate(curves.items()):
                own = [point for point in curve if point.phase == phase]
                x, y = [point.update for point in own], [point.held_out for point in own]
                axis.plot(x, y, label=title, color=f"C{index}", marker=MARKERS[index % len(MARKERS)], markersize=3)
            axis.set(xlabel="update", ylabel="held-out loss (L1)", title=f"{phase} phase")
        axes[0][0].legend(loc="upper right")
        save(figure, path)
