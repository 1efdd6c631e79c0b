"""The picture of a run: reference, method and their difference, one column per class or prompt."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib
from torch import Tensor

from experiments.backends.base import Item
from experiments.files import replacing
from experiments.runs.metrics.evidence import Evidence
from experiments.settings.describe import describe_method

__all__ = ["draw_comparison"]

COLUMNS = 10
GAIN = 2.0
"""The difference is drawn this many times brighter."""


def columns_of(items: list[Item]) -> list[Item]:
    """The first item of each of the first titles."""
    first: dict[str, Item] = {}
    for item in items:
        first.setdefault(item.title, item)
    return list(first.values())[:COLUMNS]


def still(media: Tensor) -> Tensor:
    """An image as it is, the middle frame of a video; `[H, W, C]`."""
    image = media[len(media) // 2] if media.ndim == 4 else media
    return image.permute(1, 2, 0).float()


def shortened(text: str) -> str:
    """At most two lines, as wide as a column."""
    return "\n".join(textwrap.wrap(text, 16, max_lines=2, placeholder=" …"))


def draw_comparison(evidence: Evidence, path: Path) -> None:
    """Three rows; a reference run, which has nothing to be compared with, has one."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = columns_of(evidence.items)
    method = describe_method(evidence.settings).replace(" (", "\n(")
    samples = [still(evidence.backend.load_media(evidence.media, item)) for item in columns]
    rows: list[tuple[str, list[Tensor]]] = [(method, samples)]
    if evidence.reference is not None:
        references = [still(evidence.backend.load_media(evidence.reference, item)) for item in columns]
        differences = [(GAIN * (a - b).abs()).clamp(0, 1) for a, b in zip(samples, references, strict=True)]
        rows = [("reference", references), *rows, (f"|difference| ×{GAIN:g}", differences)]
    figure, axes = pyplot.subplots(
        len(rows), len(columns), figsize=(1.1 * len(columns) + 2.0, 1.15 * len(rows) + 0.6), squeeze=False
    )
    for r, (name, images) in enumerate(rows):
        for c, image in enumerate(images):
            axis = axes[r][c]
            gray = image.shape[-1] == 1
            axis.imshow(
                image.squeeze(-1) if gray else image,
                cmap="gray" if gray else None,
                vmin=0,
                vmax=1,
                interpolation="nearest",
            )
            axis.set(xticks=[], yticks=[])
            if r == 0:
                axis.set_title(shortened(columns[c].title), fontsize=9)
        axes[r][0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10, labelpad=8)
    figure.tight_layout(pad=0.4)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=130, format="png")
    pyplot.close(figure)
