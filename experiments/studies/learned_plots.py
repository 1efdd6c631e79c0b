"""Figures of the studies of the learned methods."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.learning.training_loop import LossPoint
from experiments.runs.style import COLUMN, save, styled
from experiments.studies.study_report import plot_lines

__all__ = ["plot_costs", "plot_losses", "plot_steps"]

MARKERS: list[dict[str, Any]] = [
    {"marker": marker, "markerfacecolor": face, "markersize": 3}
    for marker, face in (("o", None), ("s", "white"), ("^", None), ("D", "white"), ("v", None))
]
"""Every second is hollow: curves are told apart without their colours."""


def plot_steps(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """PSNR over full steps, a line per method."""
    draw_lines(path, rows, "full steps", "full steps of 50", "LESA at equal full steps")


def plot_costs(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """PSNR over the speed-up, a line per method."""
    draw_lines(path, rows, "FLOPs speed-up", "speed-up in FLOPs", "Learning-to-Cache at equal FLOPs")


def draw_lines(path: Path, rows: Sequence[Mapping[str, Any]], key: str, label: str, title: str) -> None:
    """One line per method with its bootstrap intervals."""
    columns = (key, "PSNR (dB)", "low", "high")
    found = [(str(row["method"]), *(float(row[column]) for column in columns)) for row in rows]
    plot_lines(path, title, label, [(method, x, mean, low, high) for method, x, mean, low, high in found])


def plot_losses(path: Path, curves: Mapping[str, Sequence[LossPoint]]) -> None:
    """Held-out loss over the updates, a panel per phase; its points go to the CSV of that name."""
    rows = [(title, point.phase, point.update, f"{point.held_out:.6g}") for title, of in curves.items() for point in of]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".csv"), "w", newline="") as handle:
        csv.writer(handle).writerows([("predictor", "phase", "update", "held-out L1"), *rows])
    phases = list(dict.fromkeys(row[1] for row in rows))
    with styled() as pyplot:
        size = (COLUMN, 0.6 * COLUMN * len(phases) + 0.11 * len(curves))
        figure, axes = pyplot.subplots(len(phases), 1, figsize=size, squeeze=False, layout="constrained")
        for axis, phase in zip(axes[:, 0], phases, strict=True):
            for index, (title, curve) in enumerate(curves.items()):
                own = [(point.update, point.held_out) for point in curve if point.phase == phase]
                axis.plot(*zip(*own, strict=True), label=title, color=f"C{index}", **MARKERS[index % len(MARKERS)])
            axis.set(xlabel="update", ylabel="held-out loss (L1)", title=f"{phase} phase")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center")
        save(figure, path)
