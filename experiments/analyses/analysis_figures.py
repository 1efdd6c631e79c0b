"""The figures of `experiments analyses`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from experiments.runs.style import COLUMN, look_of, save, styled

__all__ = ["draw_basis", "draw_bound", "draw_gaussianity", "draw_paths", "draw_prediction"]

SHOWN = (1, 2, 3)
"""Orders whose curves are drawn."""
TITLES = {"taylor": "TaylorSeer", "hermite": "HiCache"}
"""Bases whose errors are drawn."""
METHODS = {"taylor": "taylorseer", "hermite": "hicache", "scaled_taylor": "hi_taylor", "reuse": "fora"}
"""Basis -> the method that it is known by, where their names differ."""


@contextlib.contextmanager
def panels(path: Path, count: int, title: str) -> Iterator[Any]:
    """Axes side by side, each one column wide, saved to `path` at the end."""
    with styled() as pyplot:
        figure, axes = pyplot.subplots(
            1, count, figsize=(COLUMN * count, 0.9 * COLUMN), squeeze=False, layout="constrained"
        )
        yield axes[0]
        figure.suptitle(title)
        save(figure, path)


def draw_prediction(
    path: Path,
    mean: Mapping[tuple[str, int], Sequence[float]],
    ratios: Sequence[tuple[str, str, int, int, int, float]],
    sigma: float,
    interval: int,
    steps: int,
) -> None:
    """Error over horizon by order; the distribution of R over sites by order; its median by basis."""
    judged = f"order m is judged at the steps from {interval}m + 1 to {steps - 1}"
    title = f"Forecasts from true anchors every {interval} steps, mean over the modules; {judged}"
    with panels(path, 3, title) as (left, middle, right):
        reuse = mean["reuse", min(order for _, order in mean)]
        left.plot(range(1, len(reuse) + 1), reuse, color="black", linestyle=":", label="reuse")
        for (name, order), errors in mean.items():
            if order not in SHOWN or name not in TITLES:
                continue
            style = {"linestyle": "--", "marker": "s"} if name == "taylor" else {"linestyle": "-", "marker": "o"}
            label = f"{TITLES[name]}, order {order}"
            x = range(1, len(errors) + 1)
            left.plot(x, errors, color=f"C{order}", markersize=3, label=label, **style)
        left.set(yscale="log", xlabel="horizon (steps)", ylabel="relative mean square error")
        left.set_xticks(list(range(1, len(reuse) + 1)))
        left.set_title(f"σ={sigma:g}")
        left.set_ylim(top=left.get_ylim()[1] * 3)  # room for the legend
        left.legend(ncols=2, loc="upper left")
        orders = sorted({order for _, _, order, _, _, _ in ratios})
        taylor = [[row[-1] for row in ratios if row[1] == "taylor" and row[2] == order] for order in orders]
        middle.boxplot(taylor, tick_labels=orders)
        middle.axhline(1.0, color="C3", linestyle="--", label="equal errors")
        middle.set(xlabel="order", ylabel="R = MSE of TaylorSeer / MSE of HiCache")
        middle.set_title(f"all sites and horizons, σ={sigma:g}")
        middle.legend()
        for name in dict.fromkeys(row[1] for row in ratios):
            found = [median(row[-1] for row in ratios if row[1] == name and row[2] == order) for order in orders]
            right.plot(orders, found, label=name, **look_of(METHODS.get(name, name)).points)
        right.axhline(1.0, color="black", linestyle="--", label="hermite (HiCache)")
        right.set(yscale="log", xlabel="order (of those that have one, and of HiCache)", ylabel="R, median")
        right.set_xticks(orders)
        right.set_title("R = MSE of a basis / MSE of HiCache")
        right.set_ylim(top=right.get_ylim()[1] * 2)  # room for the legend
        right.legend(ncols=3, loc="upper left", columnspacing=0.8)


def draw_paths(
    path: Path, curves: Mapping[str, Mapping[str, Sequence[float]]], interval: int, order: int, sigma: float
) -> None:
    """One panel per site."""
    title = f"First principal component: true and forecast (anchors every {interval} steps, order {order}, σ={sigma:g})"
    with panels(path, len(curves), title) as axes:
        for axis, (site, lines) in zip(axes, curves.items(), strict=True):
            true = lines["true"]
            axis.plot(true, color="black", linewidth=1.2, alpha=0.6, label="true")
            for name, style, width in (("hicache", "-", 1.5), ("taylorseer", "--", 0.9)):  # often on each other
                look = look_of(name)
                axis.plot(lines[look.title], style, color=look.colour, linewidth=width, label=look.title)
            anchors = range(0, len(true), interval)
            axis.plot(anchors, [true[a] for a in anchors], "ko", markersize=3, label="anchors")
            reach = max(true) - min(true)
            axis.set(
                xlabel="step", ylabel="first principal component", ylim=(min(true) - reach / 3, max(true) + reach / 3)
            )
            axis.set_title(site)
        axes[0].legend()


def draw_basis(path: Path, k: Sequence[float], curves: Mapping[str, Mapping[int, Sequence[float]]]) -> None:
    """One panel per basis on a shared axis."""
    with panels(path, len(curves), "Basis functions: factor of the i-th difference") as axes:
        for axis, (title, found) in zip(axes, curves.items(), strict=True):
            for order, line in found.items():
                axis.plot(k, line, color=f"C{order}", label=f"order {order}")
            axis.set(xlabel="horizon k (steps)", ylabel="factor", ylim=(-2, 12))
            axis.set_title(title)
        axes[0].legend()


def draw_bound(
    path: Path, rows: Sequence[tuple[Any, ...]], over: Sequence[tuple[float, int, float]], judged: str
) -> None:
    """Error and bound over horizon; error over sigma; both of one order, `judged` says which and where."""
    title = "HiCache: truncation bound and stability condition, mean over the modules"
    with panels(path, 2, f"{title}; {judged}") as (left, right):
        for index, sigma in enumerate(sorted({row[1] for row in rows})):
            found = [row for row in rows if row[1] == sigma]
            x = [row[2] for row in found]
            left.plot(x, [row[4] for row in found], f"C{index}o-", label=f"measured, σ={sigma:g}")
            left.plot(x, [row[5] for row in found], f"C{index}--", label=f"bound, σ={sigma:g}")
        left.set(yscale="log", xlabel="horizon h (steps)", ylabel="relative error")
        left.set_xticks(sorted({row[2] for row in rows}))
        left.set_title("the bound's constant is met at h = 1")
        left.legend()
        for index, horizon in enumerate(sorted({h for _, h, _ in over})):
            found = [(sigma, error) for sigma, h, error in over if h == horizon]
            right.plot(*zip(*found, strict=True), color=f"C{index}", label=f"h = {horizon}")
            right.axvline(1 / (2**0.5 * horizon), color=f"C{index}", linestyle=":")
        right.set(yscale="log", xlabel="σ", ylabel="relative error")
        right.set_title("dotted: σ √2 h = 1")
        right.legend(loc="upper center")


def draw_gaussianity(path: Path, rows: Sequence[tuple[int, str, float, float]], mode: str) -> None:
    """p-values and effect sizes by order and phase, of `rows` (order, phase, p, excess)."""
    title = f"Energy test of finite differences ({mode}, {len(rows)} tests; a phase is the difference at its middle)"
    with panels(path, 2, title) as (left, right):
        orders, phases = sorted({row[0] for row in rows}), list(dict.fromkeys(row[1] for row in rows))
        for index, phase in enumerate(phases):
            for axis, column in ((left, 2), (right, 3)):
                for order in orders:
                    found = [row[column] for row in rows if row[0] == order and row[1] == phase]
                    spread = [order + 0.22 * (index - 1) + 0.008 * (i - len(found) / 2) for i in range(len(found))]
                    label = phase if order == orders[0] else None
                    axis.plot(spread, found, f"C{index}o", markersize=3, alpha=0.7, label=label)
        left.axhline(0.05, color="black", linestyle="--", label="p = 0.05")
        left.set(yscale="log", xlabel="order of the difference", ylabel="p-value", ylim=(6e-4, 1.5))
        right.axhline(0.0, color="black", linestyle="--", label="normal data")
        right.set(xlabel="order of the difference", ylabel="excess kurtosis (relative to normal)")
        for axis in (left, right):
            axis.set_xticks(orders)
            axis.legend(title="phase of the run", title_fontsize=6)
