"""Best and second of each block, and whether a difference from the block's baseline is more than chance.

Ranks are over the rows of a block that have a number; un-cached rows take no part. The test is Wilcoxon's signed-rank
test on the values per item, paired with the baseline's, corrected over the rows of the block (Holm).
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import hicache
from evaluation.statistics import wilcoxon_holm
from experiments.errors import choose
from experiments.metrics import TITLES
from experiments.tables.build import Cell, Row, Table

__all__ = ["DIRECTIONS", "judged", "values_of"]

DIRECTIONS: dict[str, int] = {
    "flops_t": -1,
    "flops_speedup": 1,
    "wall_speedup": 1,
    **{name: -1 if title.endswith("↓") else 1 for name, title in TITLES.items()},
    **dict.fromkeys(("image_reward", "clip_score", "hpsv2", "pickscore", "vbench", "inception_score"), 1),
    **dict.fromkeys(("psnr", "psnr_u8wrap", "psnr_y", "ssim", "ssim_skimage7", "ssim_y", "precision", "recall"), 1),
    **dict.fromkeys(("lpips", "fid", "sfid", "chamfer"), -1),
}
"""Column -> 1 where more is better, -1 where less is."""


def judged(table: Table, results: Path) -> Table:
    """The table with ranks and tests in its cells."""
    rows = list(table.rows)
    if table.preset.baseline is not None:
        choose("preset.baseline", table.preset.baseline, hicache.METHODS)
    for places in blocks(rows):
        for name, direction in DIRECTIONS.items():
            rank(rows, places, name, direction)
            if table.preset.baseline is not None:
                test(rows, places, name, direction, table.preset.baseline, results)
    return dataclasses.replace(table, rows=in_order(rows, table.preset.sort))


def in_order(rows: list[Row], column: str | None) -> list[Row]:
    """The rows of each block by their number in a column, best first; rows without one come last."""
    if column is None:
        return rows
    direction = DIRECTIONS[choose("preset.sort", column, DIRECTIONS)]
    named = list(dict.fromkeys(row.block for row in rows))

    def place(row: Row) -> tuple[int, float]:
        value = row.ours[column].value if column in row.ours else None
        return named.index(row.block), math.inf if value is None else -direction * value

    return sorted(rows, key=place)


def blocks(rows: list[Row]) -> Iterator[list[int]]:
    """Positions of the rows of each block, without un-cached ones."""
    found: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if row.settings is None or not row.settings.plain:
            found.setdefault(row.block, []).append(index)
    yield from found.values()


def put(rows: list[Row], index: int, name: str, **changes: object) -> None:
    """Replace a cell."""
    cell: Cell = dataclasses.replace(rows[index].ours[name], **changes)
    rows[index] = dataclasses.replace(rows[index], ours={**rows[index].ours, name: cell})


def rank(rows: list[Row], places: list[int], name: str, direction: int) -> None:
    """Mark the best and the second of a block; equal numbers share a rank, and alike in all rows means no best."""
    values = {i: rows[i].ours[name].value for i in places if name in rows[i].ours}
    known = {i: direction * value for i, value in values.items() if value is not None}
    order = sorted(set(known.values()), reverse=True)
    if len(order) > 1:
        for i, value in known.items():
            put(rows, i, name, rank=order.index(value) + 1 if value in order[:2] else 0)


def test(rows: list[Row], places: list[int], name: str, direction: int, baseline: str, results: Path) -> None:
    """Test every row of a block against its baseline's row."""
    known = {i: row for i in places if (row := rows[i]).settings is not None and row.run and name in row.ours}
    base = [i for i, row in known.items() if row.settings is not None and row.settings.method.name == baseline]
    if len(base) != 1:
        return
    values = {i: values_of(results / "runs" / row.run, name) for i, row in known.items()}
    items = [item for item, value in values[base[0]].items() if math.isfinite(value)]
    shared = {str(i): [of[item] for item in items] for i, of in values.items() if items and set(items) <= set(of)}
    paired = {i: found for i, found in shared.items() if all(math.isfinite(value) for value in found)}
    if str(base[0]) not in paired or len(paired) < 2:
        return
    for i, outcome in wilcoxon_holm(paired, str(base[0])).items():
        difference = sum(a - b for a, b in zip(paired[i], paired[str(base[0])], strict=True))
        put(rows, int(i), name, p=outcome.p_holm, better=direction * difference > 0)


def values_of(folder: Path, name: str) -> dict[str, float]:
    """A run's values per item; empty for a metric of whole sets, or where there are none."""
    path = folder / "values" / f"{name}.json"
    if path.is_file():
        return {item: math.inf if value is None else value for item, value in json.loads(path.read_text()).items()}
    path = folder / "evaluation" / "values.csv"
    if not path.is_file():
        return {}
    with open(path, newline="") as handle:
        return {line["item"]: float(line[name]) for line in csv.DictReader(handle) if line.get(name)}
