"""The figures of `experiments.analyses`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

__all__ = ["basis", "bound", "gaussianity", "paths", "prediction"]

SHOWN = (1, 2, 3)
"""Orders whose curves are drawn."""


@contextlib.contextmanager
def panels(path: Path, count: int, title: str, width: float = 4.6) -> Iterator[Any]:
    """Axes side by side, saved to `path` at the end."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=(width * count, 4.2), squeeze=False)
    yield axes[0]
    for axis in axes[0]:
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def prediction(
    path: Path,
    mean: Mapping[tuple[str, int], Sequence[float]],
    reuse: Sequence[float],
    ratios: Sequence[tuple[str, int, int, float]],
    sigma: float,
    interval: int,
) -> None:
    """Error over horizon by order; the distribution of R over sites by order."""
    title = f"Forecasts from true anchors every {interval} steps, mean over the modules"
    with panels(path, 2, title, 5.6) as (left, right):
        horizons = range(1, len(reuse) + 1)
        left.plot(horizons, reuse, color="black", linestyle=":", label="reuse")
        for (name, order), errors in mean.items():
            if order not in SHOWN:
                continue
            style = {"linestyle": "--", "marker": "s"} if name == "taylor" else {"linestyle": "-", "marker": "o"}
            label = f"{'TaylorSeer' if name == 'taylor' else 'HiCache'}, order {order}"
            left.plot(horizons, errors, color=f"C{order}", markersize=4, linewidth=1.2, label=label, **style)
        left.set(yscale="log", xlabel="horizon (steps)", ylabel="relative mean square error")
        left.set_xticks(list(horizons))
        left.set_title(f"σ={sigma:g}", fontsize=9)
        left.legend(fontsize=8, ncols=2)
        orders = sorted({m for _, m, _, _ in ratios})
        right.boxplot([[r for _, m, _, r in ratios if m == order] for order in orders], tick_labels=orders)
        right.axhline(1.0, color="C3", linestyle="--", linewidth=1.0, label="equal errors")
        right.set(xlabel="order", ylabel="R = MSE of TaylorSeer / MSE of HiCache")
        right.set_title(f"all sites and horizons, σ={sigma:g}", fontsize=9)
        right.legend(fontsize=8)


def paths(
    path: Path, curves: Mapping[str, Mapping[str, Sequence[float]]], interval: int, order: int, sigma: float
) -> None:
    """One panel per site."""
    title = f"First principal component: true and forecast (anchors every {interval} steps, order {order}, σ={sigma:g})"
    with panels(path, len(curves), title) as axes:
        for axis, (site, lines) in zip(axes, curves.items(), strict=True):
            true = lines["true"]
            axis.plot(true, color="black", linewidth=1.8, alpha=0.6, label="true")
            for name, style, width in (("HiCache", "C0-", 2.2), ("TaylorSeer", "C1--", 1.2)):  # often on each other
                axis.plot(lines[name], style, linewidth=width, label=name)
            anchors = range(0, len(true), interval)
            axis.plot(anchors, [true[a] for a in anchors], "ko", markersize=4, label="anchors")
            reach = max(true) - min(true)
            axis.set(
                xlabel="step", ylabel="first principal component", ylim=(min(true) - reach / 3, max(true) + reach / 3)
            )
            axis.set_title(site, fontsize=9)
        axes[0].legend(fontsize=8)


def basis(path: Path, k: Sequence[float], curves: Mapping[str, Mapping[int, Sequence[float]]]) -> None:
    """One panel per basis on a shared axis."""
    with panels(path, len(curves), "Basis functions: factor of the i-th difference", 4.2) as axes:
        for axis, (title, found) in zip(axes, curves.items(), strict=True):
            for order, line in found.items():
                axis.plot(k, line, color=f"C{order}", label=f"order {order}")
            axis.set(xlabel="horizon k (steps)", ylabel="factor", ylim=(-2, 12))
            axis.set_title(title, fontsize=9)
        axes[0].legend(fontsize=8)


def bound(path: Path, rows: Sequence[tuple[Any, ...]], over: Sequence[tuple[float, int, float]]) -> None:
    """Error and bound over horizon at order 2; error over sigma at order 2."""
    with panels(path, 2, "HiCache: truncation bound and stability condition, mean over the modules", 5.6) as (
        left,
        right,
    ):
        for index, sigma in enumerate(sorted({row[1] for row in rows})):
            found = [row for row in rows if row[0] == 2 and row[1] == sigma]
            x = [row[2] for row in found]
            left.plot(x, [row[4] for row in found], f"C{index}o-", label=f"measured, σ={sigma:g}")
            left.plot(x, [row[5] for row in found], f"C{index}--", label=f"bound, σ={sigma:g}")
        left.set(yscale="log", xlabel="horizon h (steps)", ylabel="relative error")
        left.set_xticks(sorted({row[2] for row in rows}))
        left.set_title("order 2; the bound's constant is met at h = 1", fontsize=9)
        left.legend(fontsize=7)
        for index, horizon in enumerate(sorted({h for _, h, _ in over})):
            found = [(sigma, error) for sigma, h, error in over if h == horizon]
            right.plot(*zip(*found, strict=True), color=f"C{index}", label=f"h = {horizon}")
            right.axvline(1 / (2**0.5 * horizon), color=f"C{index}", linestyle=":", linewidth=1.0)
        right.set(yscale="log", xlabel="σ", ylabel="relative error")
        right.set_title("order 2; dotted: σ √2 h = 1", fontsize=9)
        right.legend(fontsize=8, loc="lower right")


def gaussianity(path: Path, rows: Sequence[tuple[Any, ...]], mode: str) -> None:
    """p-values and effect sizes by order and phase."""
    title = f"Energy test of finite differences ({mode}, {len(rows)} tests)"
    with panels(path, 2, title, 5.6) as (left, right):
        orders, phases = sorted({row[1] for row in rows}), list(dict.fromkeys(row[2] for row in rows))
        for index, phase in enumerate(phases):
            for axis, column in ((left, 6), (right, 8)):
                for order in orders:
                    found = [row[column] for row in rows if row[1] == order and row[2] == phase]
                    spread = [order + 0.22 * (index - 1) + 0.008 * (i - len(found) / 2) for i in range(len(found))]
                    label = phase if order == orders[0] else None
                    axis.plot(spread, found, f"C{index}o", markersize=4, alpha=0.7, label=label)
        left.axhline(0.05, color="black", linestyle="--", linewidth=1.0, label="p = 0.05")
        left.set(yscale="log", xlabel="order of the difference", ylabel="p-value", ylim=(3e-3, 1.5))
        right.axhline(0.0, color="black", linestyle="--", linewidth=1.0, label="normal data")
        right.set(xlabel="order of the difference", ylabel="excess kurtosis (relative to normal)")
        for axis in (left, right):
            axis.set_xticks(orders)
            axis.legend(fontsize=8, title="phase of the run", title_fontsize=8)
