"""How every picture looks: one style sheet, and one name, colour and marker per method.

Methods of one family share a hue and a filling; their shades and shapes tell them apart, also in greyscale. A panel is
one column of a paper wide (8 cm), its letters 6 to 8 points high, so a figure is put into a page as it is.
"""

from __future__ import annotations

import colorsys
import contextlib
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import hicache
from experiments.files import replacing

__all__ = ["COLUMN", "SOLVERS", "Look", "end_labels", "fold", "halo", "look_of", "save", "spread", "styled"]

COLUMN = 8 / 2.54
"""Width of a panel in inches."""

SHEET: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 7.0,
    "axes.labelsize": 7.0,
    "axes.titlesize": 7.5,
    "figure.titlesize": 7.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.0,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 0.9,
    "lines.markersize": 4.0,
    "lines.markeredgewidth": 0.7,
    "errorbar.capsize": 1.5,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}


class Family(NamedTuple):
    """Methods that share an idea: their hue, how their markers are filled, and their names."""

    hue: str
    fill: str
    methods: tuple[str, ...]


FAMILIES: dict[str, Family] = {
    "reference": Family("#000000", "full", ("none",)),
    "Hermite": Family("#b2182b", "full", ("hicache", "hi_taylor", "hicache_adaptive", "dmd", "auto", "custom")),
    "forecast": Family("#2b7bba", "none", ("taylorseer", "newton", "foca", "spectrum", "chebyshev", "pade")),
    "reuse": Family(
        "#e08214",
        "full",
        ("fora", "teacache", "magcache", "fbcache", "dbcache", "deepcache", "delta_dit", "pab", "smoothcache"),
    ),
    "tokens": Family("#1b7837", "bottom", ("toca", "duca", "clusca", "hi_clusca", "speca")),
    "learned": Family("#8e5ea8", "none", ("calibrated", "l2c", "lesa")),
    "steps": Family("#6b6b6b", "top", ("steps", "dpmpp", "unipc")),
}
SHAPES = ("o", "s", "D", "^", "v", "P", "X", "d", "<", ">", "p", "*")
SHIFT = {"learned": 6, "tokens": 1}
"""First shape of a family, where another one is filled alike."""
OTHER = "#6b6b6b"

SOLVERS = {"dpmpp": "DPM-Solver++", "unipc": "UniPC"}


class Look(NamedTuple):
    """What a method is called and drawn with."""

    title: str
    colour: str
    marker: str
    fill: str

    @property
    def path(self) -> str:
        """The marker as the `d` of an SVG path, about 1 wide."""
        return path_of(self.marker)

    @property
    def points(self) -> dict[str, Any]:
        """Keywords of `plot` and `errorbar`."""
        return {"color": self.colour, "marker": self.marker, "fillstyle": self.fill, "markerfacecoloralt": "white"}


@cache
def path_of(marker: str) -> str:
    """A marker as the `d` of an SVG path."""
    from matplotlib.markers import MarkerStyle

    style = MarkerStyle(marker)
    letters, parts = {1: "M", 2: "L", 3: "Q", 4: "C"}, []
    for values, code in style.get_path().transformed(style.get_transform()).iter_segments(curves=True):
        pairs = [f"{x:.3g} {-y:.3g}" for x, y in zip(values[::2], values[1::2], strict=True)]
        parts.append("Z" if code == 79 else letters[int(code)] + " ".join(pairs))
    return "".join(parts)


@cache
def look_of(method: str, title: str = "") -> Look:
    """The look of a method, or of a solver with fewer steps; `title` names what the method is combined with.

    A method that no family names is grey, and keeps its title.
    """
    own = SOLVERS.get(method) or (hicache.METHODS[method].title if method in hicache.METHODS else method)
    for name, family in FAMILIES.items():
        if method in family.methods:
            place = family.methods.index(method)
            shape = SHAPES[(place + SHIFT.get(name, 0)) % len(SHAPES)]
            colour = shade(family.hue, place / max(len(family.methods) - 1, 1))
            return Look(title or own, colour, shape, family.fill)
    return Look(title or own, OTHER, "o", "none")


def shade(hue: str, place: float) -> str:
    """A shade of a hue: the first member of a family is as given, the last is lighter; `place` in [0, 1]."""
    from matplotlib.colors import to_hex, to_rgb  # late: who reads finished runs draws nothing

    h, light, saturation = colorsys.rgb_to_hls(*to_rgb(hue))
    return to_hex(colorsys.hls_to_rgb(h, light + 0.5 * place * (0.78 - light), saturation))


@contextlib.contextmanager
def styled() -> Iterator[Any]:
    """`pyplot` under the style sheet, without a window; figures made inside are closed at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(SHEET):
        before = set(pyplot.get_fignums())
        try:
            yield pyplot
        finally:
            for number in set(pyplot.get_fignums()) - before:
                pyplot.close(number)


def save(figure: Any, path: Path, **more: Any) -> Path:
    """Write a figure in the format that its name says, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], **more)
    return path


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ordered places moved as little as possible (least squares) so that neighbours are `gap` apart, in [low, high]."""
    from scipy.optimize import isotonic_regression

    if not places:
        return []
    gap = min(gap, (high - low) / max(len(places) - 1, 1))
    moved = isotonic_regression([place - index * gap for index, place in enumerate(places)]).x
    top = max(high - gap * (len(places) - 1), low)
    return [float(min(max(place, low), top)) + index * gap for index, place in enumerate(moved)]


def halo() -> list[Any]:
    """A white edge, so that letters can be read on lines."""
    from matplotlib import patheffects

    return [patheffects.withStroke(linewidth=1.4, foreground="white")]


def fold(name: str) -> str:
    """A name in lines that a panel has room for at its side."""
    return textwrap.fill(name, 17, break_long_words=False, break_on_hyphens=False)


def end_labels(axis: Any, ends: Sequence[tuple[str, str, float, float]], inches: float, size: float = 6.0) -> None:
    """Names beside the axes, each led to the point that it names.

    Args:
        axis: with its final limits.
        ends: text, colour and the point in data coordinates.
        inches: height of the axes.
        size: of the letters, in points.
    """
    to_axes = axis.transAxes.inverted()
    placed = [(float(to_axes.transform(axis.transData.transform(end[2:]))[1]), end) for end in ends]
    placed.sort(key=lambda pair: pair[0])
    heights = spread([height for height, _ in placed], 1.15 * size / (72 * inches), 0.0, 1.0)
    for height, (_, (text, colour, x, y)) in zip(heights, placed, strict=True):
        lead = {"arrowstyle": "-", "color": colour, "linewidth": 0.4, "alpha": 0.7, "shrinkA": 1, "shrinkB": 2}
        axis.annotate(
            text,
            (x, y),
            xytext=(1.04, height),
            textcoords="axes fraction",
            fontsize=size,
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={**lead, "relpos": (0, 0.5), "patchA": None},
        )
