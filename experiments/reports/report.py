"""One self-contained HTML page over runs: tables that sort, quality against speed, and every item beside its reference.

    python -m experiments report table=digits                     the tables of presets
    python -m experiments report plan=results/plans/NAME          all rows of a plan
    python -m experiments report results/runs/A /elsewhere/B      any runs, by their folders,
    python -m experiments report digits-hicache-n6o4s0.75-4987900fa20e 988b1bac     their names or digits,
    python -m experiments report results                          or all of a folder
    python -m experiments report table=3 items=12 out=page.html   more items, another file

The page is a single file that loads nothing: pictures are inside it, scaled to at most `side` pixels (384), less where
they would take more than 4.6 MB. It may be mailed or put on a web server as it is. Runs of one backend and set of items
make a block, best first: a table, quality against speed, and the items beside their references. A filter finds runs by
words and settings. Further key=value arguments are those of run.py.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from experiments.cli import Exit
from experiments.environment import git
from experiments.errors import ConfigError, check
from experiments.files import ASSETS, sweep, write_text
from experiments.plans.manifest import Plan
from experiments.reports.columns import decimals_shown, directions, head_of, number_text
from experiments.reports.costs import UNITS
from experiments.reports.gallery import Gallery
from experiments.reports.plot import identify, identity_of, look_of_row
from experiments.reports.ranks import add_ranks
from experiments.reports.render import LEVEL, columns_of, interval_text, published_text
from experiments.reports.render import facts as facts_of
from experiments.reports.result_table import Cell, ResultTable, Row, build, build_plan
from experiments.reports.runs import build_runs
from experiments.reports.tables import overrides_of, parse, presets_of

__all__ = ["main", "page"]

TEMPLATE = ASSETS / "report.html.j2"
SPEEDS = ("flops_speedup", "wall_speedup")
NAMES = {"flops_speedup": "FLOPs speed-up", "wall_speedup": "wall speed-up"}


def own_cell(name: str, cell: Cell, levelled: bool) -> dict[str, Any]:
    """A cell of ours: text, interval (`levelled`: and its level), rank and verdict; `sort` is the number behind it."""
    if cell.value is None:
        return {"why": cell.why, "sort": "Infinity" if cell.equal else "", "rank": cell.rank}
    decimals = decimals_shown(name, cell.value)
    mark = "" if cell.p is None or cell.p >= LEVEL else ("up" if cell.better else "down")
    return {
        "text": number_text(cell.value, decimals) + (f", {cell.equal} equal" if cell.equal else ""),
        "sort": repr(cell.value),
        "interval": interval_text(cell, decimals, levelled),
        "rank": cell.rank,
        "mark": mark,
    }


def published_cell(cell: Cell) -> dict[str, Any]:
    """A published cell."""
    if cell.value is None:
        return {"why": cell.why, "sort": ""}
    return {"text": published_text(cell), "sort": repr(cell.value), "rank": 0}


def block_of(table: ResultTable, gallery: Gallery, items: int) -> dict[str, Any]:
    """A table of one backend and set of items: what the template shows, and what its script reads."""
    names, theirs = columns_of(table), list(table.rows[0].paper)
    heads = {name: NAMES.get(name, head_of(name)) for name in names}
    facts = [identity_of(row) for row in table.rows]
    known = [of for of in facts if of]
    shared = {k: v for k, v in (known or [{}])[0].items() if all(repr(of.get(k)) == repr(v) for of in known)}
    rows, levelled = [], len(table.levels) > 1
    for row, of in zip(table.rows, facts, strict=True):
        cells = [{"text": row.label, "sort": row.label, "rank": 0}]
        cells += [own_cell(name, row.ours[name], levelled) for name in names]
        cells += [published_cell(row.paper[name]) for name in theirs]
        own = words_of({key: value for key, value in of.items() if key not in shared})
        rows.append({"label": row.label, "run": row.run, "own": own, "cells": [{**BLANK, **cell} for cell in cells]})
    values = [{name: triple(cell) for name, cell in row.ours.items() if cell.value is not None} for row in table.rows]
    measured = [name for name in names if sum(name in of for of in values) > 1]
    shown_items = gallery.items([row.run for row in table.rows], items)
    script = {
        "file": table.preset.name,
        "rows": [
            {
                "label": row.label,
                "run": row.run,
                "look": look(row),
                "values": of,
                "search": f"{row.label} {row.run} {words_of(identity_of(row))}".lower(),
            }
            for row, of in zip(table.rows, values, strict=True)
        ],
        "qualities": [name for name in measured if name in directions() and name not in (*SPEEDS, *UNITS)],
        "speeds": [name for name in SPEEDS if name in measured],
        "names": heads,
        "items": shown_items,
        "metrics": list(dict.fromkeys(m for item in shown_items for entry in item["media"] for m in entry["scores"])),
    }
    read = [fact for fact in facts_of(table) if fact]
    heads_shown = ["method", *heads.values(), *(f"paper: {name}" for name in theirs)]
    shown_block = {"title": table.preset.title, "facts": read, "heads": heads_shown, "rows": rows}
    return {"shown": {**shown_block, "shared": words_of(shared)}, "script": script}


BLANK = {"text": "", "sort": "", "interval": "", "rank": 0, "mark": "", "why": ""}
"""Every key of every cell, so that the template may be strict."""


def words_of(facts: Mapping[str, Any]) -> str:
    """Settings as `key=value`."""
    return " ".join(f"{key}={value}" for key, value in facts.items())


def triple(cell: Cell) -> list[float | None]:
    """A number and its interval."""
    return [cell.value, cell.low, cell.high]


def look(row: Row) -> dict[str, str]:
    """What the points of a row's method are drawn with."""
    found = look_of_row(row)
    return {"title": found.title, "colour": found.colour, "fill": found.fill, "path": found.path}


def split_table(table: ResultTable, results: Path) -> list[ResultTable]:
    """The table by backend and set of items, ranked, each best first; rows that are no run stay with the first."""
    groups: dict[str, list[Row]] = {}
    for row in identify(table).rows:
        facts = identity_of(row)
        name = words_of({k: v for k, v in facts.items() if k.startswith("backend.") or k in SET})
        groups.setdefault(name if facts else next(iter(groups), ""), []).append(row)
    parts = []
    for name, rows in groups.items():
        title = table.preset.title if len(groups) == 1 else f"{table.preset.title}: {name.replace('backend.', '')}"
        columns = [c for c in table.preset.columns if any(has_item_values(results, row, c) for row in rows)]
        preset = dataclasses.replace(table.preset, title=title, sort=table.preset.sort or next(iter(columns), None))
        parts.append(add_ranks(dataclasses.replace(table, preset=preset, rows=rows), results))
    return parts


SET = ("num_steps", "num_items", "seed")


def has_item_values(results: Path, row: Row, name: str) -> bool:
    """Whether a run has a metric for each of its items."""
    return bool(row.run) and (row.place(results) / "values" / f"{name}.json").is_file()


LIMIT = 4.6e6
"""Bytes of a page; larger ones have smaller pictures."""
LEAST = 96
"""Pixels that pictures are not made smaller than."""


def page(tables: list[ResultTable], roots: list[Path], title: str, items: int, side: int) -> str:
    """The page; `roots` are the folders that runs lie in."""
    parts = [part for table in tables for part in split_table(table, roots[0].parent)]
    gallery = Gallery(roots)
    blocks = [block_of(part, gallery, items) for part in parts]
    images = gallery.images(side)
    while sum(map(len, images.values())) >= LIMIT and side > LEAST:
        side = max(LEAST, round(side * 0.7))
        images = gallery.images(side)
    data = {
        "directions": directions(),
        "images": images,
        "blocks": [block["script"] for block in blocks],
    }
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True)
    runs = len({row.run for part in parts for row in part.rows if row.run})
    subtitle = f"{runs} runs, code revision {(git('rev-parse', 'HEAD') or 'unknown')[:12]}"
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    shown_blocks = [block["shown"] for block in blocks]
    return environment.from_string(TEMPLATE.read_text()).render(
        title=title, subtitle=subtitle, blocks=shown_blocks, data=markup(text)
    )


def markup(text: str) -> Any:
    """JSON whose angle brackets and ampersands are escaped already."""
    from markupsafe import Markup

    return Markup(text)


def whole(given: dict[str, str], key: str, default: int) -> int:
    """A positive number among the arguments."""
    text = given.pop(key, str(default))
    check(text.isdecimal() and int(text) > 0, key, "must be an integer >= 1", text)
    return int(text)


def main(arguments: list[str]) -> None:
    """Write the page that the arguments mean."""
    if {"--help", "-h"} & set(arguments):
        return print(__doc__)
    words = [word for word in arguments if "=" not in word]
    given = dict(parse(argument) for argument in arguments if "=" in argument)
    said = set(given)
    names, plan = given.pop("table", ""), given.pop("plan", "")
    results = Path(given.pop("results", "results"))
    items, side, out = whole(given, "items", 8), whole(given, "side", 384), given.pop("out", "")
    check(out != "" or "out" not in said, "out", "must be the name of a file", out)
    rule = "must be given, or plan, or runs, and only one of them"
    check(sum(map(bool, (names, plan, words))) == 1, "table", rule, names or plan or " ".join(words))
    roots, stem = [results / "runs"], "runs"
    if names:
        overrides = overrides_of(given)
        tables = [build(preset, overrides, results) for preset in presets_of(names)]
        stem = "_".join(table.preset.name for table in tables) if len(tables) < 4 else "all"
    else:
        beside = "plan=" if plan else "runs"
        check(not given, "argument", f"must not stand beside {beside}", sorted(given))
        if plan:
            opened = Plan.open(plan)
            results, tables, stem = opened.results, [build_plan(opened)], opened.folder.name
            roots = [results / "runs"]
        else:
            tables, roots = build_runs(words, results)
    path = Path(out) if out else results / "report" / f"{stem}.html"
    title = tables[0].preset.title if len(tables) == 1 else "HiCache: runs and tables"
    write_page(path, page(tables, roots, title, items, side))
    return print(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB)")


def write_page(path: Path, text: str) -> None:
    """Write the page where it is wanted."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        write_text(path, text)
    except OSError as error:
        raise ConfigError(f"out: must be a file that can be written, got {str(path)!r} ({error.strerror})") from error


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
