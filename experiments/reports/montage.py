"""Pictures of runs beside each other: methods by items with their differences, one run's items, frames of a video."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evaluation.decoders import read_frames
from experiments.reports.gallery import order_by_title, read_still, records_of
from experiments.reports.plot import identity_of, is_plain
from experiments.reports.ranks import values_of
from experiments.reports.result_table import ResultTable
from experiments.runs.folder import read_metrics
from experiments.runs.picture import gain_of
from experiments.runs.style import save, styled

__all__ = ["GRID_ROWS", "contact_sheet", "frames", "grid"]

GRID_ROWS = 60
"""More runs than that are no picture any more: the first are shown."""
SIDE = 0.62
"""Inches of a picture in a grid."""
SHEET = 100
"""Most items of a contact sheet."""
FRAMES = 6
"""Frames of a video that are shown, evenly apart."""

Records = dict[str, dict[str, Any]]


def runs_with_pictures(table: ResultTable, results: Path) -> dict[str, tuple[str, Records]]:
    """Run -> label and records of the table's runs that have pictures, in its order; the reference first."""
    found = {}
    for row in sorted(table.rows, key=lambda row: not is_plain(identity_of(row))):
        if row.run and (records := records_of(results / "runs" / row.run)):
            found.setdefault(row.run, (row.label, records))
    if len(found) > GRID_ROWS:
        print(f"{table.preset.name}: pictures of the first {GRID_ROWS} of {len(found)} runs")
    return dict(list(found.items())[:GRID_ROWS])


def still(results: Path, run: str, record: Mapping[str, Any]) -> Image.Image:
    """The picture of a record."""
    return read_still(results / "runs" / run / "media" / record["files"][0])


def difference(a: Image.Image, b: Image.Image) -> np.ndarray:
    """`|a - b|` as grey levels `[H, W]` in [0, 1]."""
    pair = [np.asarray(image, dtype=np.float32) / 255 for image in (a, b)]
    return np.abs(pair[0] - pair[1]).mean(-1)


def show(axis: Any, image: Any) -> None:
    """A picture without ticks; differences are grey."""
    grey = {"cmap": "gray", "vmin": 0, "vmax": 1} if isinstance(image, np.ndarray) and image.ndim == 2 else {}
    axis.imshow(image, interpolation="nearest", **grey)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def name_row(axis: Any, label: str) -> None:
    """A label left of a row."""
    axis.set_ylabel(textwrap.fill(label, 22), rotation=0, ha="right", va="center", labelpad=4)


def grid(table: ResultTable, results: Path, count: int, stem: Path) -> list[Path]:
    """The first `count` items that all runs have: a row per run, below it what differs from the first, and PSNR."""
    runs = runs_with_pictures(table, results)
    if not runs:
        return []
    first = next(iter(runs))
    titles = {name: str(record.get("title", "")) for name, record in runs[first][1].items()}
    names = order_by_title(
        {name: t for name, t in titles.items() if all(name in records for _, records in runs.values())}
    )
    if not (names := names[:count]):
        return []
    compared = [run for run in runs if read_metrics(results / "runs" / run / "metrics.json").get("reference") == first]
    rows: list[tuple[str, list[Any], list[str]]] = []
    plain = [still(results, first, runs[first][1][name]) for name in names]
    stills = {run: [still(results, run, records[name]) for name in names] for run, (_, records) in runs.items()}
    apart = {run: [difference(*pair) for pair in zip(stills[run], plain, strict=True)] for run in compared}
    gain = gain_of(max((float(values.max()) for of in apart.values() for values in of), default=1.0))
    for run, (label, _) in runs.items():
        rows.append((label, stills[run], ["" for _ in names]))
        if run in apart:
            kept = values_of(results / "runs" / run, "psnr")
            numbers = [f"{kept[name]:.1f} dB" if name in kept else "" for name in names]
            rows.append((f"|difference| ×{gain}", [np.clip(gain * values, 0, 1) for values in apart[run]], numbers))
    with styled() as pyplot:
        size = (SIDE * len(names) + 1.35, (SIDE + 0.13) * len(rows) + 0.3)
        figure, axes = pyplot.subplots(len(rows), len(names), figsize=size, squeeze=False)
        for line, row in zip(axes, rows, strict=True):
            draw_row(line, *row)
        for axis, name in zip(axes[0], names, strict=True):
            axis.set_title(textwrap.shorten(titles[name], 14, placeholder="…"), fontsize=6)
        room = {"hspace": 0.22, "wspace": 0.05}
        figure.subplots_adjust(left=1.3 / size[0], right=0.995, top=1 - 0.2 / size[1], bottom=0.12 / size[1], **room)
        return [save(figure, stem.with_name(f"{stem.name}_grid.png"), bbox_inches="tight", pad_inches=0.03)]


def draw_row(axes: Any, label: str, images: list[Any], numbers: list[str]) -> None:
    """One row of a grid."""
    for axis, image, number in zip(axes, images, numbers, strict=True):
        show(axis, image)
        axis.set_xlabel(number, fontsize=5.5, labelpad=1.5)
    name_row(axes[0], label)


def contact_sheet(table: ResultTable, results: Path, stem: Path) -> list[Path]:
    """All items of the table's best cached run that has pictures (`SHEET` at most), each with its PSNR."""
    runs = runs_with_pictures(table, results)
    ranked = [row.run for row in table.rows if row.run in runs and not is_plain(identity_of(row))]
    if not ranked:
        return []
    means = {run: values_of(results / "runs" / run, "psnr") for run in ranked}
    best = max(ranked, key=lambda run: mean(means[run]))
    label, records = runs[best]
    names = list(records)[:SHEET]
    columns = min(10, len(names))
    rows = math.ceil(len(names) / columns)
    with styled() as pyplot:
        size = (SIDE * columns, (SIDE + 0.14) * rows + 0.3)
        figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, name in zip(axes.flat, names, strict=False):
            axis.set_axis_on()
            show(axis, still(results, best, records[name]))
            number = f"{means[best][name]:.1f} dB" if name in means[best] else ""
            axis.set_xlabel(number, fontsize=5.5, labelpad=1.5)
        figure.suptitle(f"{label}: {len(names)} of {len(records)} items, PSNR to the un-cached one", y=0.995)
        figure.subplots_adjust(left=0.005, right=0.995, top=1 - 0.22 / size[1], bottom=0.14 / size[1], hspace=0.25)
        return [save(figure, stem.with_name(f"{stem.name}_sheet.png"))]


def mean(values: Mapping[str, float]) -> float:
    """Mean over items; -inf for none."""
    return sum(values.values()) / len(values) if values else -math.inf


def frames(table: ResultTable, results: Path, stem: Path) -> list[Path]:
    """Of runs of videos: `FRAMES` frames of the first item that all have, a row per run."""
    runs = runs_with_pictures(table, results)
    lists = [records for _, records in runs.values()]
    shared = [name for name in (lists[0] if lists else {}) if all(name in records for records in lists)]
    if not shared or not lists[0][shared[0]]["files"][0].endswith(".mp4"):
        return []
    with styled() as pyplot:
        figure, axes = pyplot.subplots(
            len(runs), FRAMES, figsize=(SIDE * FRAMES + 1.35, (SIDE + 0.1) * len(runs) + 0.3), squeeze=False
        )
        for line, (run, (label, records)) in zip(axes, runs.items(), strict=True):
            video = read_frames(results / "runs" / run / "media" / records[shared[0]]["files"][0])
            at = [round(i * (len(video) - 1) / (FRAMES - 1)) for i in range(FRAMES)]
            draw_row(line, label, [Image.fromarray(video[i]) for i in at], ["" for _ in at])
            for axis, i in zip(axes[0], at, strict=True):
                axis.set_title(f"frame {i}", fontsize=6)
        return [save(figure, stem.with_name(f"{stem.name}_frames.png"), bbox_inches="tight", pad_inches=0.03)]
