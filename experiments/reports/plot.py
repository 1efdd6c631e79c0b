"""Quality against speed, or against a setting: one panel per metric, one picture per table, one column of a paper wide.

A line joins the points of a method where exactly one setting tells them apart, in the order of that setting, whose
values stand at the points. Other points stand alone. The un-cached run is a dashed line where it has the metric. A
metric whose intervals all meet tells no method from another: it has no panel, and the figure says so. More than
`LEGEND` methods are named beside the axes instead of in a legend.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import hicache
from experiments.config.method import StepsConfig
from experiments.reports.columns import head_of
from experiments.reports.result_table import ResultTable, Row
from experiments.runs.style import COLUMN, Look, end_labels, fold, halo, look_of, save, styled
from experiments.settings.identity import canonical

__all__ = [
    "SYMBOLS",
    "PlotPoint",
    "add_legend",
    "draw_panel",
    "height_of",
    "identify",
    "identity_of",
    "is_plain",
    "leaves",
    "look_of_row",
    "plot",
    "points",
    "telling",
]

QUALITY = ("psnr", "digits_fid", "image_reward", "fid", "vbench")
AXES = {
    "flops_speedup": "FLOPs speed-up",
    "wall_speedup": "wall speed-up",
    "sigma": "σ",
    "interval": "interval N",
    "order": "order m",
}
SYMBOLS = {"interval": "N", "order": "m", "sigma": "σ", "method.steps": ""}
LEGEND = 8
"""More methods than that are named beside the axes."""
NAMED = 40
"""No more methods than that are named."""
CLOUD = 60
"""More points of one method than that stand without their intervals."""

STEPS = {"method.steps": StepsConfig(name="steps").steps}
"""What the identity of a run with fewer steps leaves out."""


class PlotPoint(NamedTuple):
    """Position (None = the method has no such setting), value, the reach of its interval, and the run's settings."""

    x: float | None
    value: float
    below: float
    above: float
    facts: Mapping[str, Any]


def identity_of(row: Row) -> Mapping[str, Any]:
    """What a row's run is: dotted key -> value."""
    found = row.identity or ({} if row.settings is None else dict(leaves(canonical(row.settings))))
    return {**STEPS, **found} if found.get("method.name") == "steps" else found


def identify(table: ResultTable) -> ResultTable:
    """The table whose rows know what they are, so that it is found out once."""
    return dataclasses.replace(table, rows=[dataclasses.replace(row, identity=identity_of(row)) for row in table.rows])


def leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and values of nested settings."""
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        found += leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return found


def look_of_row(row: Row) -> Look:
    """Name, colour and marker of a row's method; a row that is no run has its label."""
    facts = identity_of(row)
    method = facts.get("method.name") or next((part for part in row.run.split("-") if part in hicache.METHODS), None)
    if method is None:
        return look_of(row.label)
    look = look_of(facts.get("method.solver") or method)
    beside = [str(facts[f"{group}.name"]) for group in ("operators", "guidance") if f"{group}.name" in facts]
    return look._replace(title=" + ".join([look.title, *beside]))


def series(table: ResultTable) -> dict[str, list[Row]]:
    """The rows of each method, by its name."""
    found: dict[str, list[Row]] = {}
    for row in table.rows:
        found.setdefault(look_of_row(row).title, []).append(row)
    return found


def points(table: ResultTable, name: str, axis: str | None = None) -> dict[str, list[PlotPoint]]:
    """The points of each method that have a number."""
    axis = axis or table.preset.axis
    return {title: [p for row in rows if (p := point(row, name, axis))] for title, rows in series(table).items()}


def point(row: Row, name: str, axis: str) -> PlotPoint | None:
    """The point of a row."""
    cell = row.ours.get(name)
    if cell is None or cell.value is None:
        return None
    low = cell.value if cell.low is None else cell.low
    high = cell.value if cell.high is None else cell.high
    return PlotPoint(position_of(row, axis), cell.value, cell.value - low, high - cell.value, identity_of(row))


def position_of(row: Row, axis: str) -> float | None:
    """Where a row stands on the horizontal axis."""
    value = row.ours[axis].value if axis in row.ours else identity_of(row).get(axis)
    return float(value) if isinstance(value, (int, float)) else None


def telling(found: list[PlotPoint]) -> str | None:
    """The one setting in which points differ, with a number for each; None if there is none or several."""
    keys = dict.fromkeys(key for point in found for key in point.facts)
    differing = [key for key in keys if len({repr(point.facts.get(key)) for point in found}) > 1]
    if len(differing) != 1 or not all(isinstance(p.facts.get(differing[0]), (int, float)) for p in found):
        return None
    return differing[0]


def tells(table: ResultTable, name: str) -> bool:
    """Whether a metric tells rows apart: not all of their intervals meet, or nobody knows them."""
    found = [point for of in points(table, name).values() for point in of]
    return max(p.value - p.below for p in found) > min(p.value + p.above for p in found)


def plot(table: ResultTable, path: Path) -> bool:
    """Draw the rows that have numbers; False if there are none."""
    table = identify(table)
    known = [name for name in QUALITY if any(points(table, name).values())]
    shown = [name for name in known if tells(table, name)] or known[:1]
    if not shown:
        return False
    left_out = [head_of(name) for name in known if name not in shown]
    heights = [height_of(len(panel_series(table, name))) for name in shown]
    with styled() as pyplot:
        figure, axes = pyplot.subplots(
            len(shown),
            1,
            figsize=(COLUMN, sum(heights)),
            squeeze=False,
            height_ratios=heights,
        )
        set_margins(figure, sum(heights), heights)
        for axis, name, high in zip(axes[:, 0], shown, heights, strict=True):
            draw_panel(axis, table, name, axis_of(table, name), high - MARGIN)
        title = textwrap.fill(table.preset.title, 62)
        if left_out:
            title += "\n" + textwrap.fill(f"not drawn, its intervals all meet: {', '.join(left_out)}", 62)
        axes[0, 0].set_title(title, loc="left", x=-0.16, fontsize=6.5)
        save(figure, path, bbox_inches="tight", pad_inches=0.03)
    return True


def axis_of(table: ResultTable, name: str) -> str:
    """The preset's axis; where all methods stand at one place of it, the one setting in which their runs differ."""
    found = [point for of in panel_series(table, name).values() for point in of]
    alone = len(found) > 1 and len({point.x for point in found}) == 1
    return (telling(found) if alone else None) or table.preset.axis


MARGIN = 0.55
"""Inches above and below the axes of a panel together."""


def set_margins(figure: Any, total: float, heights: list[float]) -> None:
    """The same margins whatever the size."""
    room = MARGIN * len(heights) / (total - MARGIN)
    figure.subplots_adjust(left=0.15, right=0.68, bottom=0.36 / total, top=1 - 0.3 / total, hspace=room)


def panel_series(table: ResultTable, name: str) -> dict[str, list[PlotPoint]]:
    """The methods that a panel shows; the un-cached run is no method."""
    return {title: of for title, of in points(table, name).items() if of and not is_reference(of)}


def is_plain(facts: Mapping[str, Any]) -> bool:
    """Whether this is the identity of an un-cached run."""
    return facts.get("method.name") == "none" and not {"operators.name", "guidance.name"} & facts.keys()


def is_reference(found: list[PlotPoint]) -> bool:
    """Whether these are points of the un-cached run alone."""
    return all(is_plain(point.facts) for point in found)


def height_of(count: int) -> float:
    """Inches of a panel: a name beside it needs a line."""
    return max(2.3, MARGIN + 0.105 * min(count, NAMED)) if count > LEGEND else 2.3


def draw_panel(axis: Any, table: ResultTable, name: str, over: str, inches: float) -> None:
    """One metric over one horizontal axis."""
    looks = {look.title: look for look in map(look_of_row, table.rows)}
    found = (
        panel_series(table, name)
        if over == table.preset.axis
        else {title: of for title, of in points(table, name, over).items() if of and not is_reference(of)}
    )
    levels = {title: of for title, of in found.items() if all(point.x is None for point in of)}
    ends: list[tuple[str, str, float, float]] = []
    marked: list[tuple[list[PlotPoint], str, str]] = []
    for title, of in found.items():
        look, key = looks[title], telling(of)
        if title in levels:
            axis.axhline(of[0].value, color=look.colour, linestyle=":", linewidth=0.8, label=title)
            continue
        curve = sorted((p for p in of if p.x is not None), key=lambda p: p.facts[key] if key else p.x or 0.0)
        draw_series(axis, look, curve, joined=key is not None and len(curve) > 1)
        last = max(curve, key=lambda p: p.x or 0.0)
        ends.append((title, look.colour, last.x or 0.0, last.value))
        if key and key != over and len(found) <= LEGEND and len(curve) > 1:
            marked.append((curve, key, look.colour))
    reference = [p for of in points(table, name).values() if is_reference(of) for p in of]
    if reference:
        axis.axhline(reference[0].value, color="black", linestyle="--", linewidth=0.7, label="un-cached")
    axis.set(xlabel=AXES.get(over, over), ylabel=head_of(name))
    axis.margins(x=0.08, y=0.1)
    axis.autoscale_view()
    mark(axis, marked)
    name_series(axis, ends, levels, looks, inches)


def draw_series(axis: Any, look: Look, curve: list[PlotPoint], joined: bool) -> None:
    """The points of one method."""
    x, y, below, above, _ = zip(*curve, strict=True)
    style = {**look.points, "linestyle": "-" if joined else "none", "label": look.title}
    if len(curve) > CLOUD:
        axis.plot(x, y, **{**style, "linestyle": "none", "markersize": 2, "alpha": 0.5})
    else:
        axis.errorbar(x, y, yerr=(below, above), elinewidth=0.6, **style)


PLACES = ((3, 2, "left", "bottom"), (3, -2, "left", "top"), (-3, 2, "right", "bottom"), (-3, -2, "right", "top"))
"""Where a value may stand beside its point: offset in points, and what of it stands there."""


def mark(axis: Any, curves: list[tuple[list[PlotPoint], str, str]]) -> None:
    """The swept values at their points, where they lie on no other if there is such a place; the axes are final.

    A value that stands there already is not written again.
    """
    scale, written, boxes = 72 / axis.figure.dpi, list[tuple[str, float, float]](), list[Box]()
    for curve, key, colour in curves:
        symbol = SYMBOLS.get(key, key.rpartition(".")[2])
        for p in curve:
            text = f"{symbol}={p.facts[key]:g}" if symbol else f"{p.facts[key]:g}"
            x, y = (float(value) * scale for value in axis.transData.transform((p.x, p.value)))
            if any(said == text and abs(x - a) < 1 and abs(y - b) < 16 for said, a, b in written):
                continue
            places = [(place, box_of(text, x, y, place)) for place in PLACES]
            place, box = next((one for one in places if not any(overlap(one[1], other) for other in boxes)), places[0])
            where = {"xytext": place[:2], "textcoords": "offset points", "ha": place[2], "va": place[3], "fontsize": 5}
            axis.annotate(text, (p.x, p.value), color=colour, path_effects=halo(), **where)
            written.append((text, x, y))
            boxes.append(box)


Box = tuple[float, float, float, float]
"""Left, bottom, right and top in points."""


def box_of(text: str, x: float, y: float, place: tuple[int, int, str, str]) -> Box:
    """Where a text of 5 points beside a point lies, nearly."""
    wide, high = 3.2 * len(text), 5.0
    left = x + place[0] - (wide if place[2] == "right" else 0)
    bottom = y + place[1] - (high if place[3] == "top" else 0)
    return left, bottom, left + wide, bottom + high


def overlap(one: Box, other: Box) -> bool:
    """Whether two boxes have a part in common."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def add_legend(axis: Any) -> None:
    """The legend beside a panel."""
    handles, names = axis.get_legend_handles_labels()
    axis.legend(
        handles, [fold(name) for name in names], loc="upper left", bbox_to_anchor=(1.0, 1.02), borderaxespad=0.2
    )


def name_series(
    axis: Any,
    ends: list[tuple[str, str, float, float]],
    levels: Mapping[str, list[PlotPoint]],
    looks: Mapping[str, Look],
    inches: float,
) -> None:
    """A legend, or names beside the axes: at the end of a line, or at a point that lies far from the edge."""
    if not ends and not levels:
        return
    if len(ends) + len(levels) <= LEGEND:
        add_legend(axis)
        return
    left, right = axis.get_xlim()
    lines = [(title, looks[title].colour, right, of[0].value) for title, of in levels.items()]
    far = [end for end in ends if (end[2] - left) / (right - left) < 0.62]
    for title, colour, x, y in far:
        where = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 5.5}
        axis.annotate(title, (x, y), color=colour, path_effects=halo(), **where)
    near = [end for end in ends if end not in far] + lines
    if len(near) > NAMED:
        near = [*near[: NAMED - 1], (f"… and {len(near) - NAMED + 1} more", "black", *near[NAMED - 1][2:])]
    end_labels(axis, near, inches)
