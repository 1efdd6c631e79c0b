"""Best and second of each block, and whether a difference from the block's baseline is more than chance.

Ranks are over the rows of a block that have a number; un-cached rows take no part. Best are the row with the best
number and all that the items do not tell from it (Friedman's test, then Wilcoxon's, Holm's correction; of a statistic
of whole sets: those whose intervals meet the best one's, or that have none); where that is every row, there is no best.
Rows of a block whose items, steps or models differ are ranked and tested apart, each with its like.
Numbers from shapes are exact. Wall-clock has no rank: nobody knows its error. The test is Wilcoxon's signed-rank
test on the values per item, paired with the baseline's, corrected over the rows of the block (Holm).

An item equal to the reference has an infinite PSNR, which no mean can hold. Where a block has such items its rows are
ranked by the median over all items, infinite being the largest; a row whose every item is equal is the best. The test
keeps such an item: a difference from infinity is larger than every finite one, and that of two infinities is 0.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import hicache
from evaluation.statistics import tied_with_best, wilcoxon_holm
from experiments.config.backend import semantic
from experiments.config.run import Settings
from experiments.errors import ConfigError, choose
from experiments.reports.columns import EXACT, directions
from experiments.reports.result_table import Cell, ResultTable, Row
from experiments.runs.folder import read_values

__all__ = ["add_ranks", "differences", "grouped", "in_order", "values_of"]


def add_ranks(table: ResultTable, results: Path) -> ResultTable:
    """The table with ranks and tests in its cells."""
    rows = list(table.rows)
    if table.preset.baseline is not None:
        choose("preset.baseline", table.preset.baseline, hicache.METHODS)
    for places in blocks(rows):
        for name, direction in directions().items():
            rank(rows, places, name, direction, results)
            if table.preset.baseline is not None:
                test(rows, places, name, direction, table.preset.baseline, results)
    return dataclasses.replace(table, rows=in_order(rows, table.preset.sort, results))


def in_order(rows: list[Row], column: str | None, results: Path) -> list[Row]:
    """The rows of each block by their number in a column, best first; rows without one come last."""
    if column is None:
        return rows
    direction = (known := directions())[choose("preset.sort", column, known)]
    ordered: list[Row] = []
    for mine in ([rows[i] for i in places] for places in grouped(rows).values()):
        places = standings(mine, range(len(mine)), column, direction, results)
        known = sorted(places, key=lambda i: places[i], reverse=True)
        ordered += [mine[i] for i in (*known, *(i for i in range(len(mine)) if i not in places))]
    return ordered


def blocks(rows: list[Row]) -> Iterator[list[int]]:
    """Positions of the rows of each block, without un-cached ones."""
    for places in grouped(rows).values():
        yield [i for i in places if (settings := rows[i].settings) is None or not settings.plain]


def grouped(rows: list[Row]) -> dict[tuple[str, str], list[int]]:
    """Positions of the rows of each block that may be compared: of the same items, steps and model.

    Rows without settings, whose runs were grouped before or cannot be run, are with the first of their block.
    """
    first: dict[str, str] = {}
    for row in rows:
        if row.settings is not None:
            first.setdefault(row.block, conditions(row.settings, row.block))
    found: dict[tuple[str, str], list[int]] = {}
    for index, row in enumerate(rows):
        own = first.get(row.block, "") if row.settings is None else conditions(row.settings, row.block)
        found.setdefault((row.block, own), []).append(index)
    return found


def conditions(settings: Settings, block: str) -> str:
    """What runs must share for their items to pair. A block that has a name may hold several models on purpose."""
    model = "" if block else semantic(settings.backend)
    return repr((settings.seed, settings.num_items, settings.num_steps, model))


def set_cell(rows: list[Row], index: int, name: str, **changes: object) -> None:
    """Replace a cell."""
    cell: Cell = dataclasses.replace(rows[index].ours[name], **changes)
    rows[index] = dataclasses.replace(rows[index], ours={**rows[index].ours, name: cell})


Standing = tuple[float, float]


def standings(rows: list[Row], places: Iterable[int], name: str, direction: int, results: Path) -> dict[int, Standing]:
    """What the rows are ranked by, more being better: the number shown, or the median where an item is infinite.

    Rows without a number have no standing. Of two infinite medians the one with a finite item is the lesser.
    """
    cells = {i: rows[i].ours[name] for i in places if name in rows[i].ours}
    means = {i: cell.value for i, cell in cells.items() if cell.value is not None}
    if any(cell.equal for cell in cells.values()):
        values = {i: values_of(rows[i].place(results), name) for i in means}
        if all(values.values()):
            means = {i: statistics.median(of.values()) for i, of in values.items()}
    found = {i: (direction * value, 0.0) for i, value in means.items()}
    return found | {i: (math.inf, 1.0) for i, cell in cells.items() if cell.value is None and cell.equal}


def rank(rows: list[Row], places: list[int], name: str, direction: int, results: Path) -> None:
    """Mark the best rows of a block and the second; those that cannot be told apart share a mark."""
    known = standings(rows, places, name, direction, results) if name != "wall_speedup" else {}
    values = {i: values_of(rows[i].place(results), name) for i in known}
    left = dict(known)
    for mark in (1, 2):
        chosen = leaders(left, {i: rows[i].ours[name] for i in left}, values, exact=name in EXACT)
        if len(chosen) == len(left) and (mark == 1 or len(left) != 1):
            return
        for i in chosen:
            set_cell(rows, i, name, rank=mark)
            del left[i]


def leaders(
    known: Mapping[int, Standing],
    cells: Mapping[int, Cell],
    values: Mapping[int, Mapping[str, float]],
    exact: bool,
) -> set[int]:
    """The best of the rows, and those that nothing tells from it."""
    if not known:
        return set()
    best = max(known, key=lambda i: known[i])
    if values[best] and all(set(values[i]) == set(values[best]) for i in known):
        beyond = {str(i): differences(values[i], values[best]) for i in known}
        return {int(i) for i in tied_with_best(beyond, str(best))}
    return {i for i in known if known[i] == known[best] or not (exact or apart(cells[i], cells[best]))}


def apart(a: Cell, b: Cell) -> bool:
    """Whether two intervals do not meet; of numbers without one, and of intervals of two levels, nobody knows."""
    if a.low is None or a.high is None or b.low is None or b.high is None or a.level != b.level:
        return False
    return a.low > b.high or b.low > a.high


def test(rows: list[Row], places: list[int], name: str, direction: int, baseline: str, results: Path) -> None:
    """Test every row of a block against its baseline's row; of several the one with the method's own policy."""
    known = {i: row for i in places if (row := rows[i]).settings is not None and row.run and name in row.ours}
    base = [i for i, row in known.items() if row.settings is not None and row.settings.method.name == baseline]
    if len(base) > 1:
        base = [i for i in base if (settings := rows[i].settings) is not None and settings.method.policy is None]
    if len(base) != 1:
        return
    values = {i: values_of(row.place(results), name) for i, row in known.items()}
    theirs = values.pop(base[0])
    paired = {str(i): differences(of, theirs) for i, of in values.items() if theirs and set(theirs) <= set(of)}
    if not paired:
        return
    for i, outcome in wilcoxon_holm({**paired, BASELINE: [0.0] * len(theirs)}, BASELINE).items():
        set_cell(rows, int(i), name, p=outcome.p_holm, better=direction * sum(paired[i]) > 0)


BASELINE = "baseline"


def differences(mine: Mapping[str, float], theirs: Mapping[str, float]) -> list[float]:
    """Mine minus theirs by item; an infinite one is twice the largest finite one, that of two infinities 0."""
    found = [0.0 if mine[item] == other else mine[item] - other for item, other in theirs.items()]
    beyond = 2 * max((abs(value) for value in found if math.isfinite(value)), default=0.0) or 1.0
    return [value if math.isfinite(value) else math.copysign(beyond, value) for value in found]


def values_of(folder: Path, name: str) -> dict[str, float]:
    """A run's values per item; empty for a metric of whole sets, or where there are none."""
    path = folder / "values" / f"{name}.json"
    if path.is_file():
        return {item: math.inf if value is None else value for item, value in read_values(path).items()}
    path = folder / "evaluation" / "values.csv"
    if not path.is_file():
        return {}
    try:
        with open(path, newline="") as handle:
            return {line["item"]: float(line[name]) for line in csv.DictReader(handle) if line.get(name)}
    except (ValueError, KeyError, csv.Error) as error:
        raise ConfigError(f"{path}: must have items and numbers (delete it), got {error}") from error
