"""A part of one enlarged image, magnified: high resolution, bicubic, un-cached, and methods at some intervals.

    python -m experiments zoom                                     rows of small_table5, to results/figures
    python -m experiments zoom preset=small_table5 item=03_chelsea embedded=true

Rows that were not run are left out. The un-cached result is compared with bicubic enlargement over all items: PSNR of
the luma without a border of 4 pixels, and the mean of the paired differences with its interval.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.fidelity import psnr
from evaluation.ground_truth import crop_border, luma
from evaluation.statistics import bootstrap_mean
from experiments.backends import backend_of
from experiments.backends.base import Item
from experiments.backends.inf_dit.images import downscale, upscale
from experiments.cli import Exit
from experiments.config.run import Settings
from experiments.errors import ConfigError, check
from experiments.reports.result_table import rows_of
from experiments.runs.picture import draw_picture
from experiments.runs.runner import folder_of, items_of
from experiments.runs.style import COLUMN, save, styled

__all__ = ["draw", "main"]

INTERVALS = (1, 4, 6, 8)
"""Of the rows that are shown."""
WINDOW = 64
"""Pixels on a side of the magnified part: the one with the most detail."""


def find_detail(image: Tensor) -> tuple[int, int]:
    """The corner of the window `[3, H, W]` whose luma differs most from its neighbours."""
    gray = image.mean(0)[None, None]
    steps = (gray[..., 1:, :-1] - gray[..., :-1, :-1]).abs() + (gray[..., :-1, 1:] - gray[..., :-1, :-1]).abs()
    busy = F.avg_pool2d(steps, WINDOW, stride=4)[0, 0]
    row, column = divmod(int(busy.argmax()), busy.shape[1])
    return 4 * row, 4 * column


def fidelity(image: Tensor, truth: Tensor) -> float:
    """PSNR of the luma in dB, without a border of 4 pixels."""
    return float(psnr(*(luma(crop_border(one[None], 4)) for one in (image, truth))))


def bicubic(truth: Tensor) -> Tensor:
    """What enlarging the reduced image by interpolation gives, in [0, 1]."""
    return upscale(downscale(truth[None] * 2 - 1, 4), 4)[0] / 2 + 0.5


def against_bicubic(preset: str, results: Path) -> str:
    """The un-cached result beside bicubic enlargement, over all items."""
    settings = next(made for _, made in rows_of(preset, [])[1] if not isinstance(made, str)).reference()
    backend: Any = backend_of(settings.backend)
    media = folder_of(dataclasses.replace(settings, results=results)).media
    pairs = []
    for item in items_of(settings):
        truth = backend.truth(settings.backend, item)
        pairs.append((fidelity(bicubic(truth), truth), fidelity(backend.load_media(media, item), truth)))
    plain, ours = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    mean, low, high = bootstrap_mean([b - a for a, b in pairs])
    spread = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}] over {len(pairs)} items"
    return f"bicubic {plain:.2f} dB, un-cached {ours:.2f} dB: {spread}"


def panels(preset: str, results: Path, name: str) -> tuple[Tensor, list[tuple[str, Tensor]]]:
    """The high-resolution image, and what stands beside it."""
    known: dict[str, Settings] = {row.label: made for row, made in rows_of(preset, [])[1] if not isinstance(made, str)}
    first = next(iter(known.values()))
    backend: Any = backend_of(first.backend)
    items: dict[str, Item] = {item.name: item for item in items_of(first)}
    check(name in items, "item", f"must be one of {', '.join(items)}", name)
    item = items[name]
    truth = backend.truth(first.backend, item)
    check(truth is not None, "preset", "must have a truth (a super-resolution preset)", preset)
    found = [("high resolution", truth), ("bicubic", bicubic(truth))]
    for label, settings in known.items():
        shown = settings.plain or settings.interval in INTERVALS[1:]
        folder = folder_of(dataclasses.replace(settings, results=results))
        if shown and (folder.media / f"{name}.png").is_file():
            found.append((label, backend.load_media(folder.media, item)))
    check(len(found) > 2, "results", f"must have runs of {preset}", str(results))
    return truth, found


def draw(preset: str, results: Path, name: str, path: Path) -> None:
    """The figure."""
    truth, found = panels(preset, results, name)
    top, left = find_detail(truth)
    columns = 3
    rows = -(-len(found) // columns)
    with styled() as pyplot:
        size = (COLUMN, (COLUMN / columns + 0.24) * rows)
        figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        for axis in axes.flat[len(found) :]:
            axis.set_visible(False)
        for axis, (label, image) in zip(axes.flat, found, strict=False):
            draw_picture(axis, image[:, top : top + WINDOW, left : left + WINDOW].permute(1, 2, 0).clamp(0, 1))
            number = "" if image is truth else f"\n{fidelity(image, truth):.2f} dB"
            axis.set_title(f"{label}{number}", fontsize=6.5, pad=3)
        save(figure, path)


def main(arguments: list[str]) -> None:
    """Draw what the arguments name."""
    if {"--help", "-h"} & set(arguments):
        return print(__doc__)
    given = {"preset": "small_table5", "item": "07_coffee", "results": "results", "embedded": "false"}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in given:
            raise ConfigError(f"argument: must be one of {', '.join(given)} as key=value, got {argument!r}")
        given[key] = value
    check(given["embedded"] in ("true", "false"), "embedded", "must be true or false", given["embedded"])
    folder = Path("results/embedded") if given["embedded"] == "true" else Path(given["results"]) / "figures"
    path = folder / f"{given['preset']}_zoom.png"
    with torch.no_grad():
        draw(given["preset"], Path(given["results"]), given["item"], path)
        print(against_bicubic(given["preset"], Path(given["results"])))
    return print(f"written: {path}")


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
