"""Figures of runs beyond quality against speed: ablations, full steps, paired items, errors over the steps."""

from __future__ import annotations

import dataclasses
import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas
import torch

from experiments.backends import load_backend
from experiments.calibration.trajectories import TrajectoryRecorder
from experiments.config.run import Settings
from experiments.files import write_text
from experiments.reports.columns import directions, head_of
from experiments.reports.gallery import records_of
from experiments.reports.plot import (
    AXES,
    SYMBOLS,
    add_legend,
    draw_panel,
    height_of,
    identity_of,
    is_plain,
    look_of_row,
)
from experiments.reports.ranks import values_of
from experiments.reports.result_table import ResultTable, Row
from experiments.runs.folder import read_metrics
from experiments.runs.style import COLUMN, save, styled
from experiments.settings.prepare import caching, prepare

__all__ = ["draw_ablation", "draw_full_steps", "draw_pairs", "draw_step_errors"]

MOST = 8
"""Methods of one figure, where each needs a line or a cloud of its own."""
ROWS = 40
"""Rows of the strips of full steps."""
TICK = 14
"""Points from tick to tick, at least."""
DASHES = ("-", "--", "-.", ":")
"""Lines that lie close are told apart without their colours, too."""


def draw_ablation(table: ResultTable, key: str, quality: str, stem: Path) -> list[Path]:
    """Quality over one setting: of every method the largest set of runs that differ in nothing else."""
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in table.rows:
        facts, cell = identity_of(row), row.ours.get(quality)
        if isinstance(facts.get(key), (int, float)) and cell is not None and cell.value is not None:
            rest = repr(sorted((k, repr(v)) for k, v in facts.items() if k != key))
            groups.setdefault(look_of_row(row).title, {}).setdefault(rest, []).append(row)
    largest = [max(of.values(), key=count_values(key)) for of in groups.values()]
    rows = [row for of in largest for row in of if count_values(key)(of) > 1]
    if not rows:
        return []
    chosen = dataclasses.replace(table, rows=rows, preset=dataclasses.replace(table.preset, axis=key))
    high = height_of(len({look_of_row(row).title for row in rows}))
    with styled() as pyplot:
        figure, axis = pyplot.subplots(figsize=(COLUMN, high))
        figure.subplots_adjust(left=0.15, right=0.68, bottom=0.36 / high, top=1 - 0.3 / high)
        draw_panel(axis, chosen, quality, key, high - 0.55)
        place_ticks(axis, sorted({float(identity_of(row)[key]) for row in rows}))
        title = f"{textwrap.fill(table.preset.title, 62)}\nover {AXES.get(key, key)}{held(rows, key)}"
        axis.set_title(title, loc="left", x=-0.16, fontsize=6.5)
        return [save(figure, stem.with_name(f"{stem.name}_{key}.png"), bbox_inches="tight", pad_inches=0.03)]


def held(rows: Sequence[Row], varied: str) -> str:
    """What runs share beside a varied setting, as ` at N=6, σ=0.5`; of what they do not share, all values."""
    words = []
    for key, symbol in SYMBOLS.items():
        values = {identity_of(row).get(key) for row in rows}
        numbers = sorted(float(value) for value in values if isinstance(value, (int, float)))
        if symbol and numbers and key != varied:
            words.append(f"{symbol}={' or '.join(f'{number:g}' for number in numbers)}")
    return f" at {', '.join(words)}" if words else ""


def place_ticks(axis: Any, values: Sequence[float]) -> None:
    """A tick at every value of a setting where they have room, else at round ones: whole, if all are."""
    axis.autoscale_view()
    places = [float(axis.transData.transform((value, 0))[0]) * 72 / axis.figure.dpi for value in values]
    if all(right - left >= TICK for left, right in itertools.pairwise(places)):
        axis.set_xticks(values, [f"{value:g}" for value in values])
    elif all(value.is_integer() for value in values):
        axis.locator_params(axis="x", integer=True)


def count_values(key: str) -> Any:
    """How many values of a key some rows have."""
    return lambda rows: len({identity_of(row)[key] for row in rows})


def draw_full_steps(table: ResultTable, results: Path, stem: Path) -> list[Path]:
    """A strip per run: which steps are computed in full, grey where only some items do."""
    strips: dict[str, list[float]] = {}
    for row in table.rows:
        records = records_of(row.place(results)) if row.run else {}
        plans = [record["full_steps"] for record in records.values() if record.get("full_steps")]
        if plans and row.label not in strips:
            told = read_metrics(row.place(results) / "metrics.json").get("num_steps")
            steps = max(told if isinstance(told, int) else 0, 1 + max(step for plan in plans for step in plan))
            strips[row.label] = [sum(step in plan for plan in plans) / len(plans) for step in range(steps)]
    if not strips:
        return []
    if len(strips) > ROWS:
        print(f"{table.preset.name}: full steps of the first {ROWS} of {len(strips)} runs")
        strips = dict(list(strips.items())[:ROWS])
    most = max(map(len, strips.values()))
    high = 0.55 + 0.13 * len(strips)
    with styled() as pyplot:
        figure, axis = pyplot.subplots(figsize=(COLUMN, high))
        figure.subplots_adjust(left=0.42, right=0.9, bottom=0.36 / high, top=1 - 0.18 / high)
        for at, shares in enumerate(strips.values()):
            colours = [str(1 - 0.9 * share) for share in shares]
            axis.bar(
                range(len(shares)), 0.7, bottom=at - 0.35, width=0.9, color=colours, edgecolor="0.8", linewidth=0.2
            )
            number = f"{sum(shares):.3g}"
            axis.annotate(number, (most + 4, at), ha="right", va="center", fontsize=5.5, annotation_clip=False)
        axis.set(xlim=(-0.7, most - 0.3), ylim=(len(strips) - 0.4, -0.6), xlabel="step", yticks=range(len(strips)))
        small = max(map(len, strips)) > 28
        axis.set_yticklabels([shorten_middle(label, 34) for label in strips], fontsize=5 if small else 6)
        axis.tick_params(axis="y", length=0)
        axis.grid(False)
        axis.set_title("full steps (dark) and how many", loc="right", fontsize=6.5)
        return [save(figure, stem.with_name(f"{stem.name}_steps.png"), bbox_inches="tight", pad_inches=0.03)]


def shorten_middle(label: str, most: int) -> str:
    """A label of at most so many letters; its end, where settings stand, is kept."""
    return label if len(label) <= most else f"{label[: most // 3]}…{label[len(label) - (most - most // 3 - 1) :]}"


def draw_pairs(table: ResultTable, results: Path, quality: str, stem: Path) -> list[Path]:
    """Every item's value under a method against that under the baseline; the first run of each method."""
    values = {}
    for row in table.rows:
        usable = row.run and not is_plain(identity_of(row))
        found = values_of(row.place(results), quality) if usable else {}
        finite = {item: value for item, value in found.items() if math.isfinite(value)}
        if finite and row.label not in values:
            values[row.label] = (row, finite)
    base = next((k for k, (row, _) in values.items() if is_baseline(row, table)), next(iter(values), None))
    if base is None:
        return []
    theirs = values.pop(base)[1]
    others: dict[str, tuple[Row, Mapping[str, float]]] = {}
    for row, mine in values.values():
        if set(mine) & set(theirs):
            others.setdefault(look_of_row(row).title, (row, mine))
    if not others:
        return []
    with styled() as pyplot:
        figure, axis = pyplot.subplots(figsize=(COLUMN, 2.5))
        figure.subplots_adjust(left=0.15, right=0.68, bottom=0.16, top=0.9)
        for row, mine in list(others.values())[:MOST]:
            shared = [item for item in theirs if item in mine]
            style = {**look_of_row(row).points, "linestyle": "none", "markersize": 2.6, "alpha": 0.8}
            axis.plot([theirs[item] for item in shared], [mine[item] for item in shared], label=row.label, **style)
        axis.autoscale_view()
        middle = sum(axis.get_xlim()) / 2
        axis.axline((middle, middle), slope=1, color="black", linewidth=0.6, linestyle="--", zorder=0)
        axis.set(xlabel=f"{base}: {head_of(quality)}", ylabel=f"other method: {head_of(quality)}")
        side = "above" if directions()[quality] > 0 else "below"
        title = textwrap.fill(f"a point is an item; {side} the line: better than {base}", 62)
        axis.set_title(title, fontsize=6.5, loc="left", x=-0.16)
        add_legend(axis)
        return [save(figure, stem.with_name(f"{stem.name}_paired.png"), bbox_inches="tight", pad_inches=0.03)]


def is_baseline(row: Row, table: ResultTable) -> bool:
    """Whether a row is of the method that the table's others are tested against (TaylorSeer where it names none)."""
    facts = identity_of(row)
    return facts.get("method.name") == (table.preset.baseline or "taylorseer")


def draw_step_errors(table: ResultTable, count: int, stem: Path) -> list[Path]:
    """Relative error of the sampler's state before every step, from `count` items that are generated anew.

        e_t = sum |x_t - x_t^ref|^2 / sum |x_t^ref|^2

    over the items; one run of each method with as many steps as the un-cached run, at full steps with a marker.
    """
    chosen: dict[str, tuple[Row, Settings]] = {}
    for row in table.rows:
        if row.settings is not None and not row.settings.plain and row.settings.method.name != "steps":
            chosen.setdefault(look_of_row(row).title, (row, row.settings))
    if not chosen:
        return []
    if len(chosen) > MOST:
        print(f"{table.preset.name}: errors of the first {MOST} of {len(chosen)} methods")
    chosen = dict(list(chosen.items())[:MOST])
    first = next(settings for _, settings in chosen.values())
    backend = load_backend(first.backend)
    truth, _ = states(backend, first.reference(), count)
    lines: list[tuple[str, int, float, bool]] = []
    with styled() as pyplot, torch.no_grad():
        figure, axis = pyplot.subplots(figsize=(COLUMN, 2.3))
        figure.subplots_adjust(left=0.15, right=0.68, bottom=0.16, top=0.9)
        for index, (row, settings) in enumerate(chosen.values()):
            mine, full = states(backend, settings, count)
            steps = range(1, truth.shape[1])  # the state before the first step is the noise
            errors = [float((mine[:, t] - truth[:, t]).square().sum() / truth[:, t].square().sum()) for t in steps]
            at = [i for i, t in enumerate(steps) if t in full]
            style = {**look_of_row(row).points, "markersize": 3, "markevery": at, "linestyle": DASHES[index % 4]}
            axis.plot(steps, [error or math.nan for error in errors], label=row.label, **style)
            lines += [(row.label, t, error, t in full) for t, error in zip(steps, errors, strict=True)]
        axis.set(yscale="log", xlabel="step", ylabel="relative error of the state")
        title = f"{count} items; a marker is a full step; no line where the state is that of the un-cached run"
        axis.set_title(textwrap.fill(title, 62), loc="left", x=-0.16, fontsize=6.5)
        add_legend(axis)
        path = save(figure, stem.with_name(f"{stem.name}_errors.png"), bbox_inches="tight", pad_inches=0.03)
    frame = pandas.DataFrame(lines, columns=["method", "step", "error", "full"])
    write_text(path.with_suffix(".csv"), frame.to_csv(index=False))
    return [path, path.with_suffix(".csv")]


def states(backend: Any, settings: Settings, count: int) -> tuple[torch.Tensor, set[int]]:
    """The sampler's states `[items, T, ...]` of the run's first items, and the full steps."""
    run = prepare(settings)
    batch = run.items[:count]
    recorder = TrajectoryRecorder(backend, ["sample"])
    with caching(backend, run) as handle, recorder.watching():
        backend.generate(batch, run.sampling)
        full = range(run.sampling.num_steps) if handle is None else handle.report.full_steps
    return recorder.take("sample", len(batch))[:, :, 0].double(), set(full)
