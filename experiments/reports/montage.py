"""Pictures of runs beside each other: methods by items with their differences, one run's items, frames of a video."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from evaluation.decoders import read_frames
from experiments.reports.gallery import order_by_title, read_still, records_of
from experiments.reports.plot import identity_of, is_plain
from experiments.reports.ranks import values_of
from experiments.reports.result_table import Cell, ResultTable
from experiments.runs.folder import read_metrics
from experiments.runs.picture import gain_of, shorten
from experiments.runs.style import save, styled

__all__ = ["GRID_ROWS", "draw_contact_sheet", "draw_frames", "draw_grid"]

GRID_ROWS = 60
"""More runs than that are no picture any more: the first are shown."""
SIDE = 0.62
"""Inches of a picture in a grid."""
LINE = 8.5 / 72
"""Inches from line to line of what stands left of a row."""
DETAIL = "#555555"
BELOW_WHITE = 0.99
"""Share of the pixels of each difference that are not drawn white."""
SHEET = 100
"""Most items of a contact sheet."""
FRAMES = 6
"""Frames of a video that are shown, evenly apart."""

Records = dict[str, dict[str, Any]]


class Pictured(NamedTuple):
    """A run with pictures."""

    label: str
    folder: Path
    records: Records

    def still(self, item: str) -> Image.Image:
        """The picture of an item."""
        return read_still(self.folder / "media" / self.records[item]["files"][0])


def runs_with_pictures(table: ResultTable, results: Path) -> dict[str, Pictured]:
    """The table's runs that have pictures, by their ids, in its order; the reference first.

    Where no row is the reference, the one that all runs are compared with stands there.
    """
    found: dict[str, Pictured] = {}
    rows = [row for row in table.rows if row.run]
    if not any(is_plain(identity_of(row)) for row in table.rows):
        named = {str(reference_of(row.place(results))): row.place(results).parent for row in rows}
        if len(named) == 1:
            (one, runs), *_ = named.items()
            if one != "None" and (records := records_of(runs / one)):
                found[one] = Pictured("un-cached", runs / one, records)
    for row in sorted(rows, key=lambda row: not is_plain(identity_of(row))):
        if records := records_of(row.place(results)):
            found.setdefault(row.run, Pictured(row.label, row.place(results), records))
    if len(found) > GRID_ROWS:
        print(f"{table.preset.name}: pictures of the first {GRID_ROWS} of {len(found)} runs")
    return dict(list(found.items())[:GRID_ROWS])


def reference_of(folder: Path) -> str | None:
    """The run that one is compared with, once it is measured."""
    return read_metrics(folder / "metrics.json").get("reference")


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


def height_of_pictures(images: Sequence[Any]) -> float:
    """Inches of the tallest of pictures that are `SIDE` wide; those of more than twice that are made narrower."""
    shapes = [image.shape[:2] if isinstance(image, np.ndarray) else image.size[::-1] for image in images]
    return SIDE * min(2.0, max(height / width for height, width in shapes))


def wrap_label(label: str) -> list[str]:
    """The lines of a label left of a row."""
    return textwrap.wrap(label, 22)


def name_row(axis: Any, label: str, details: Sequence[str] = ()) -> None:
    """A label left of a row, and smaller lines below it."""
    lines = wrap_label(label)
    step = LINE / (axis.get_position().height * axis.figure.get_figheight())
    top = 0.5 + step * (len(lines) + len(details) - 1) / 2
    for place, line in enumerate((*lines, *details)):
        size = {} if place < len(lines) else {"fontsize": 6, "color": DETAIL}
        axis.text(-0.07, top - step * place, line, ha="right", va="center", transform=axis.transAxes, **size)


class Band(NamedTuple):
    """A row of a grid."""

    label: str
    details: list[str]
    images: list[Any]
    numbers: list[str]
    """Below the images; none, or one for each."""


def draw_grid(table: ResultTable, results: Path, count: int, stem: Path) -> list[Path]:
    """The first `count` items that all runs have: a row per run, below it what differs from the first, and PSNR."""
    runs = runs_with_pictures(table, results)
    if not runs:
        return []
    first = next(iter(runs.values()))
    titles = {name: str(record.get("title", "")) for name, record in first.records.items()}
    names = order_by_title({name: t for name, t in titles.items() if all(name in r.records for r in runs.values())})
    if not (names := names[:count]):
        return []
    bands = bands_of(table, runs, names)
    heads = [shorten(titles[name], 3) for name in names]
    with styled() as pyplot:
        figure = pyplot.figure()
        draw_bands(figure, bands, heads)
        return [save(figure, stem.with_name(f"{stem.name}_grid.png"), bbox_inches="tight", pad_inches=0.03)]


def bands_of(table: ResultTable, runs: Mapping[str, Pictured], names: list[str]) -> list[Band]:
    """A row per run, and one for its differences from the first where that is its reference."""
    first = next(iter(runs))
    compared = [run for run, pictured in runs.items() if reference_of(pictured.folder) == first]
    stills = {run: [pictured.still(name) for name in names] for run, pictured in runs.items()}
    apart = {run: [difference(*pair) for pair in zip(stills[run], stills[first], strict=True)] for run in compared}
    largest = max((float(np.quantile(values, BELOW_WHITE)) for of in apart.values() for values in of), default=1.0)
    gain = gain_of(largest)
    cells = {row.run: row.ours for row in table.rows}
    bands: list[Band] = []
    for run, (label, folder, _) in runs.items():
        bands.append(Band(label, costs_of(cells.get(run, {})), stills[run], []))
        if run in apart:
            kept = values_of(folder, "psnr")
            numbers = [f"{kept[name]:.1f} dB" if name in kept else "" for name in names]
            images = [np.clip(gain * values, 0, 1) for values in apart[run]]
            bands.append(Band(f"|difference| ×{gain}", mean_of(cells[run], len(kept)), images, numbers))
    return bands


def costs_of(cells: Mapping[str, Cell]) -> list[str]:
    """What a row's run computed, as far as it is known."""
    steps, factor = (cells.get(name, Cell()).value for name in ("num_full_steps", "flops_speedup"))
    said = [] if steps is None else [f"{steps:g} full steps"]
    return said if factor is None or factor == 1 else [*said, f"{factor:.2f}× fewer FLOPs"]


def mean_of(cells: Mapping[str, Cell], count: int) -> list[str]:
    """The mean over all items of a run, which are more than are shown."""
    value = cells.get("psnr", Cell()).value
    return [] if value is None else ["PSNR, mean of", f"{count} items: {value:.1f} dB"]


def draw_bands(figure: Any, bands: list[Band], heads: list[str]) -> None:
    """Rows of pictures under their titles; what stands below a row has room there, other rows are close together."""
    room = [0.05 if not band.numbers else 0.17 for band in bands]
    head = 0.05 + 0.095 * max(text.count("\n") + 1 for text in heads)
    tall = height_of_pictures(bands[0].images)
    rows = [max(tall, LINE * (len(wrap_label(band.label)) + len(band.details))) for band in bands]
    width, height = 1.3 + (SIDE + 0.03) * len(heads), head + sum(rows) + sum(room)
    figure.set_size_inches(width, height)
    low = height - head
    for row, band in enumerate(bands):
        low -= rows[row]
        for column, image in enumerate(band.images):
            place = (1.3 + (SIDE + 0.03) * column, low + (rows[row] - tall) / 2, SIDE, tall)
            axis = figure.add_axes([value / whole for value, whole in zip(place, (width, height) * 2, strict=True)])
            show(axis, image)
            axis.set_xlabel(band.numbers[column] if band.numbers else "", fontsize=6, labelpad=1.5)
            if row == 0:
                axis.set_title(heads[column], fontsize=6, pad=3)
            if column == 0:
                name_row(axis, band.label, band.details)
        low -= room[row]


def draw_row(axes: Any, label: str, images: list[Any]) -> None:
    """One row of a grid of frames."""
    for axis, image in zip(axes, images, strict=True):
        show(axis, image)
    name_row(axes[0], label)


def draw_contact_sheet(table: ResultTable, results: Path, stem: Path) -> list[Path]:
    """All items of the table's best cached run that has pictures (`SHEET` at most), each with its PSNR."""
    runs = runs_with_pictures(table, results)
    ranked = [row.run for row in table.rows if row.run in runs and not is_plain(identity_of(row))]
    if not ranked:
        return []
    means = {run: values_of(runs[run].folder, "psnr") for run in ranked}
    best = max(ranked, key=lambda run: mean(means[run]))
    label, _, records = runs[best]
    names = list(records)[:SHEET]
    columns = min(10, len(names))
    rows = math.ceil(len(names) / columns)
    stills = [runs[best].still(name) for name in names]
    high = height_of_pictures(stills)
    title = f"{label}: {len(names)} of {len(records)} items, PSNR to the un-cached one"
    with styled() as pyplot:
        lines = textwrap.wrap(title, round(SIDE * columns * 16))
        above = 0.13 * len(lines) + 0.06
        size = (SIDE * columns, (high + 0.14) * rows + above)
        figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, name, image in zip(axes.flat, names, stills, strict=False):
            axis.set_axis_on()
            show(axis, image)
            number = f"{means[best][name]:.1f} dB" if name in means[best] else ""
            axis.set_xlabel(number, fontsize=5.5, labelpad=1.5)
        figure.suptitle("\n".join(lines), y=0.995)
        room = {"hspace": 0.14 / high, "wspace": 0.05}
        figure.subplots_adjust(left=0.005, right=0.995, top=1 - above / size[1], bottom=0.14 / size[1], **room)
        return [save(figure, stem.with_name(f"{stem.name}_sheet.png"))]


def mean(values: Mapping[str, float]) -> float:
    """Mean over items; -inf for none."""
    return sum(values.values()) / len(values) if values else -math.inf


def draw_frames(table: ResultTable, results: Path, stem: Path) -> list[Path]:
    """Of runs of videos: `FRAMES` frames of the first item that all have, a row per run."""
    runs = runs_with_pictures(table, results)
    lists = [pictured.records for pictured in runs.values()]
    shared = [name for name in (lists[0] if lists else {}) if all(name in records for records in lists)]
    if not shared or not lists[0][shared[0]]["files"][0].endswith(".mp4"):
        return []
    strips: list[tuple[str, list[Image.Image], list[int]]] = []
    for label, folder, records in runs.values():
        video = read_frames(folder / "media" / records[shared[0]]["files"][0])
        at = [round(i * (len(video) - 1) / (FRAMES - 1)) for i in range(FRAMES)]
        strips.append((label, [Image.fromarray(video[i]) for i in at], at))
    high = height_of_pictures(strips[0][1])
    with styled() as pyplot:
        size = (SIDE * FRAMES + 1.35, (high + 0.06) * len(runs) + 0.3)
        figure, axes = pyplot.subplots(len(runs), FRAMES, figsize=size, squeeze=False)
        room = {"hspace": 0.06 / high, "wspace": 0.05}
        figure.subplots_adjust(left=1.3 / size[0], right=0.995, top=1 - 0.2 / size[1], bottom=0.06 / size[1], **room)
        for line, (label, images, _) in zip(axes, strips, strict=True):
            draw_row(line, label, images)
        for axis, i in zip(axes[0], strips[0][2], strict=True):
            axis.set_title(f"frame {i}", fontsize=6)
        return [save(figure, stem.with_name(f"{stem.name}_frames.png"), bbox_inches="tight", pad_inches=0.03)]
