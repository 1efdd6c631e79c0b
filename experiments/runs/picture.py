"""The picture of a run: reference, method and their difference, one column per class or prompt."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from experiments.backends.base import Item
from experiments.runs.folder import read_values
from experiments.runs.metrics.audio import spectrum
from experiments.runs.metrics.evidence import Evidence
from experiments.runs.style import save, styled
from experiments.settings.describe import describe_method

__all__ = ["draw_comparison", "draw_picture", "gain_of", "shorten", "take_still"]

COLUMNS = 10
SPECTRUM = (128, 256)
GAINS = (1, 2, 5, 10, 20, 50)
"""The differences of a picture are drawn this many times brighter: the largest that leaves them below white."""


def columns_of(items: list[Item]) -> list[Item]:
    """The first item of each of the first titles."""
    first: dict[str, Item] = {}
    for item in items:
        first.setdefault(item.title, item)
    return list(first.values())[:COLUMNS]


def take_still(media: Tensor) -> Tensor:
    """An image as it is, the middle frame of a video, the spectrum of audio up to 100 dB down; `[H, W, C]`.

    A spectrum has low notes at the bottom and the size `SPECTRUM`, whatever the length of the audio.
    """
    if media.ndim == 2:
        decibels = 20 * spectrum(media).mean(0).log10()
        levels = F.interpolate((1 + decibels / 100).clamp(0, 1)[None, None], SPECTRUM, mode="area")
        return levels[0, 0].flip(0)[:, :, None].float()
    image = media[len(media) // 2] if media.ndim == 4 else media
    return image.permute(1, 2, 0).float()


def shorten(text: str, lines: int = 2) -> str:
    """At most so many lines, as wide as a column."""
    return textwrap.fill(text, 13, max_lines=lines, placeholder=" …")


def gain_of(largest: float) -> int:
    """How many times brighter differences of at most `largest` are drawn."""
    return max((gain for gain in GAINS if gain * largest <= 1), default=1)


def draw_comparison(evidence: Evidence, path: Path) -> None:
    """Three rows; a reference run, which has nothing to be compared with, has one."""
    columns = columns_of(evidence.items)
    method = describe_method(evidence.settings).replace(" (", "\n(")
    samples = [take_still(evidence.backend.load_media(evidence.media, item)) for item in columns]
    rows: list[tuple[str, list[Tensor]]] = [(method, samples)]
    if evidence.reference is not None:
        references = [take_still(evidence.backend.load_media(evidence.reference, item)) for item in columns]
        apart = [(a - b).abs() for a, b in zip(samples, references, strict=True)]
        gain = gain_of(max(float(values.max()) for values in apart))
        differences = [(gain * values).clamp(0, 1) for values in apart]
        rows = [("reference", references), *rows, (f"|difference| ×{gain}", differences)]
    numbers = numbers_of(evidence, columns)
    with styled() as pyplot:
        tall = min(2.0, max(image.shape[0] / image.shape[1] for image in samples))
        high = max(0.75 * tall, 0.27) + 0.03  # the name of a row has two lines
        size = (0.75 * len(columns) + 1.5, high * len(rows) + 0.4)
        figure, axes = pyplot.subplots(len(rows), len(columns), figsize=size, squeeze=False)
        for line, (name, images) in zip(axes, rows, strict=True):
            for axis, image in zip(line, images, strict=True):
                draw_picture(axis, image)
            line[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=6)
        for axis, item in zip(axes[0], columns, strict=True):
            axis.set_title(shorten(item.title))
        for axis, number in zip(axes[-1], numbers, strict=True):
            axis.set_xlabel(number, fontsize=6, labelpad=2)
        figure.tight_layout(pad=0.4)
        save(figure, path)


def numbers_of(evidence: Evidence, columns: list[Item]) -> list[str]:
    """PSNR of each column's item to the reference, where it was measured."""
    path = evidence.media.parent / "values" / "psnr.json"
    kept = read_values(path) if evidence.reference is not None else {}
    found = []
    for item in columns:
        value = kept.get(item.name)
        equal = item.name in kept and value is None
        found.append("equal" if equal else "" if value is None else f"{value:.1f} dB")
    return found


def draw_picture(axis: Any, image: Tensor) -> None:
    """One picture `[H, W, C]`."""
    gray = image.shape[-1] == 1
    shown = image.squeeze(-1) if gray else image
    axis.imshow(shown, cmap="gray" if gray else None, vmin=0, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)
