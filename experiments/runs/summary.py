"""The end of a run on stdout: the method beside its reference, and where everything is."""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.runs.metrics.evidence import percent
from experiments.runs.metrics.measure import known_metrics
from experiments.runs.runner import Outcome
from experiments.settings.describe import describe_method

__all__ = ["print_outcome"]

WALL = "wall speed-up"
"""The line that a run without one has not."""


def interval(summary: dict[str, Any] | None) -> str:
    """`33.52 [33.11, 33.93]`, or why there is no number."""
    if summary is None:
        return "–"
    if summary["mean"] is None:
        without = f"– ({summary['why']})" if summary.get("why") else "–"
        return f"∞ ({summary['infinite']} equal)" if summary.get("infinite") else without
    digits = 4 if abs(summary["mean"]) < 2 else 2
    text = f"{summary['mean']:.{digits}f}"
    if summary["low"] is not None:
        text += f" [{summary['low']:.{digits}f}, {summary['high']:.{digits}f}]"
    equal = summary.get("infinite")
    return text + (f", {equal} equal" if equal else "")


def column(metrics: dict[str, Any], latency: dict[str, Any] | None, names: list[str]) -> list[str]:
    """The cells of one run; `latency` is the one measured beside the other column's, if any."""
    steps, skipped = metrics["num_full_steps"], metrics.get("num_skipped_steps")
    lowest, highest = metrics.get("wall_speedup_range", (None, None))
    between = "" if lowest is None else f" [{lowest:.2f}, {highest:.2f}]"
    return [
        f"{steps:g} of {metrics['num_steps']}" + (f", {skipped:g} unguided" if skipped is not None else ""),
        f"{metrics['flops_speedup']:.2f}×",
        f"{metrics['wall_speedup']:.2f}×{between}" if "wall_speedup" in metrics else "–",
        f"{1000 * latency['median'] / latency['batch']:.1f}" if latency else "–",
        f"{metrics['cache_bytes'] / 1e6:.2f}",
        *(interval(metrics.get(name)) for name in names),
    ]


def comparison(outcome: Outcome) -> Table:
    """The method beside its reference, timed as `metrics.timing` says (see `experiments.runs.timing`)."""
    settings, metrics = outcome.settings, outcome.metrics
    names = [name for name in settings.metrics.names if name in metrics]
    title = f"{settings.backend.name}, {settings.num_items} items, seed {settings.seed}"
    table = Table(title=f"{title} ({percent(settings.metrics.level)} intervals)")
    table.add_column("")
    labels = ["full steps", "FLOPs speed-up", WALL, "ms per item", "cache, MB per batch"]
    columns = [labels + [known_metrics()[name].heading() for name in names]]
    reference = outcome.reference
    if reference is not None:
        table.add_column(describe_method(reference.settings), justify="right")
        columns.append(column(reference.metrics, metrics.get("reference_latency"), names))
    table.add_column(describe_method(settings), justify="right")
    columns.append(column(metrics, metrics.get("latency"), names))
    for cells in zip(*columns, strict=True):
        if cells[0] != WALL or "wall_speedup" in metrics:
            table.add_row(*cells)
    return table


def print_outcome(outcome: Outcome) -> None:
    """The table, the files, and `run: <folder>` as the last line."""
    shard, folder = outcome.settings.shard, outcome.folder
    if outcome.metrics:
        Console(width=None if os.environ.get("COLUMNS") else 110).print(comparison(outcome))
        if "wall_speedup" not in outcome.metrics:
            quick = outcome.settings.metrics.timing == "quick"
            why = "the run is too short for times within a tenth of it" if quick else "none was asked for"
            print(f"no wall speed-up: {why}; metrics.timing=full takes them")
        print(f"metrics: {folder.metrics_file}")
        print(f"picture: {folder.picture}")
    else:
        print(f"shard {shard.rank}/{shard.world} is done; metrics follow when all shards are")
    print(f"run: {folder.path}", flush=True)
