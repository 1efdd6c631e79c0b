"""Tables and figures of the studies of the calibrated plan."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hicache
from experiments.runs.style import COLUMN, SOLVERS, Look, end_labels, look_of, save, styled

__all__ = [
    "HEIGHT",
    "StudyRow",
    "look_titled",
    "plot_budgets",
    "plot_lines",
    "join_stored",
    "read_rows",
    "write_rows",
    "write_table",
]

COLUMNS = ("method", "full steps", "setting", "PSNR (dB)", "low", "high")
HEIGHT = 0.8 * COLUMN
"""Of a figure, in inches."""
TICKS = 8
"""So many whole numbers have a tick each; other places are left to matplotlib."""


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """One measured row."""

    method: str
    budget: int
    setting: str
    mean: float
    low: float
    high: float

    @staticmethod
    def of(method: str, budget: int, setting: str, found: tuple[float, float, float]) -> StudyRow:
        mean, low, high = found
        return StudyRow(method=method, budget=budget, setting=setting, mean=mean, low=low, high=high)

    def cells(self) -> list[str]:
        numbers = (f"{value:.2f}" for value in (self.mean, self.low, self.high))
        return [self.method, str(self.budget), self.setting, *numbers]


def write_table(path: Path, title: str, note: str, lines: Sequence[StudyRow]) -> None:
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


def read_rows(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """The rows of a written table; none where there is none, or one with other columns."""
    if not path.with_suffix(".csv").is_file():
        return []
    with open(path.with_suffix(".csv"), newline="") as handle:
        heads, *known = csv.reader(handle)
    return known if heads == list(columns) else []


def join_stored(path: Path, columns: Sequence[str], rows: list[list[str]], key: slice) -> list[list[str]]:
    """These rows after those of `path.csv` whose cells `key`, such as a model and its budget, are others."""
    made = {tuple(row[key]) for row in rows}
    return [*(row for row in read_rows(path, columns) if tuple(row[key]) not in made), *rows]


def plot_budgets(path: Path, title: str, lines: Sequence[StudyRow]) -> None:
    """PSNR over full steps, a line per method."""
    found = [(line.method, line.budget, line.mean, line.low, line.high) for line in lines]
    plot_lines(path, title, "full steps", found)


def plot_lines(path: Path, title: str, label: str, rows: Sequence[tuple[str, float, float, float, float]]) -> None:
    """PSNR with its interval over `label`, a named line per method; rows are method, place, mean, low, high."""
    with styled() as pyplot:
        figure, axis = pyplot.subplots(figsize=(COLUMN, HEIGHT), layout="constrained")
        ends = []
        for method in dict.fromkeys(row[0] for row in rows):
            x, mean, low, high = zip(*sorted(row[1:] for row in rows if row[0] == method), strict=True)
            reach = [[m - v for m, v in zip(mean, low, strict=True)], [v - m for m, v in zip(mean, high, strict=True)]]
            look = look_titled(method)
            axis.errorbar(x, mean, yerr=reach, elinewidth=0.5, **look.points)
            ends.append((method, look.colour, x[-1], mean[-1]))
        axis.set(xlabel=label, ylabel="PSNR to the un-cached result (dB)", title=title)
        places = sorted({row[1] for row in rows})
        if len(places) <= TICKS and all(float(place).is_integer() for place in places):
            axis.set_xticks(places)
        axis.autoscale_view()  # names are placed by the final limits
        end_labels(axis, ends, 0.8 * HEIGHT)
        save(figure, path)


def look_titled(title: str) -> Look:
    """The look of the method, or of the solver, that a table calls so."""
    titles = {name: method.title for name, method in hicache.METHODS.items()} | SOLVERS
    return look_of(next((name for name, known in titles.items() if known.startswith(title)), title), title)
