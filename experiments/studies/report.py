"""Tables and figures of the studies of the calibrated plan."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

__all__ = ["Line", "plot_budgets", "write_rows", "write_table"]

COLUMNS = ("method", "full steps", "setting", "PSNR (dB)", "low", "high")
MARKERS = "*osD^vP<Xd"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One measured row."""

    method: str
    budget: int
    setting: str
    mean: float
    low: float
    high: float

    @staticmethod
    def of(method: str, budget: int, setting: str, found: tuple[float, float, float]) -> Line:
        mean, low, high = found
        return Line(method=method, budget=budget, setting=setting, mean=mean, low=low, high=high)

    def cells(self) -> list[str]:
        numbers = (f"{value:.2f}" for value in (self.mean, self.low, self.high))
        return [self.method, str(self.budget), self.setting, *numbers]


def write_table(path: Path, title: str, note: str, lines: Sequence[Line]) -> None:
    """`path.md` and `path.csv`."""
    write_rows(path, title, note, COLUMNS, [line.cells() for line in lines])


def write_rows(path: Path, title: str, note: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The same for cells that are written already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".csv"), "w", newline="") as handle:
        csv.writer(handle).writerows([columns, *rows])
    lines = [columns, ["---"] * len(columns), *rows]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    path.with_suffix(".md").write_text(f"# {title}\n\n{note}\n\n{body}\n")


def plot_budgets(path: Path, title: str, lines: Sequence[Line]) -> None:
    """PSNR over full steps, a line per method."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7.6, 4.6))
    for index, method in enumerate(dict.fromkeys(line.method for line in lines)):
        found = sorted((line for line in lines if line.method == method), key=lambda line: line.budget)
        x, y = [line.budget for line in found], [line.mean for line in found]
        reach = [[line.mean - line.low for line in found], [line.high - line.mean for line in found]]
        style = {"marker": MARKERS[index % len(MARKERS)], "capsize": 2, "linewidth": 2.2 if index == 0 else 1.1}
        axis.errorbar(x, y, yerr=reach, label=method, color=f"C{index % 10}", **style)
    axis.set(xlabel="full steps", ylabel="PSNR to the un-cached result (dB)", title=title)
    axis.set_xticks(sorted({line.budget for line in lines}))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
