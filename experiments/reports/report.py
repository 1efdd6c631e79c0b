"""One self-contained HTML page over runs: tables that sort, quality against speed, and a slider against the reference.

    python -m experiments report table=digits                     the tables of presets
    python -m experiments report plan=results/plans/NAME          all rows of a plan
    python -m experiments report results/runs/A /elsewhere/B      any runs, by their folders,
    python -m experiments report digits-hicache-n6o4s0.75-4987900fa20e 988b1bac     their names or digits,
    python -m experiments report results                          or all of a folder
    python -m experiments report table=3 items=12 out=page.html   more items, another file

The page is a single file that loads nothing: pictures are inside it, scaled to at most `side` pixels (384). It may be
mailed or put on a web server as it is. Further key=value arguments are those of run.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jinja2

from experiments.cli import Exit
from experiments.environment import git
from experiments.errors import ConfigError, check
from experiments.files import ASSETS, sweep, write_text
from experiments.plans.manifest import Plan
from experiments.reports.build import Cell, Table, build, build_plan
from experiments.reports.columns import decimals_of, directions, head_of
from experiments.reports.costs import UNITS
from experiments.reports.gallery import Gallery
from experiments.reports.plot import look_of_row
from experiments.reports.ranks import judged
from experiments.reports.render import LEVEL, facts, published_text
from experiments.reports.runs import build_runs
from experiments.reports.tables import overrides_of, parse, presets_of

__all__ = ["main", "page"]

TEMPLATE = ASSETS / "report.html.j2"
SPEEDS = ("flops_speedup", "wall_speedup")
NAMES = {"flops_speedup": "FLOPs speed-up", "wall_speedup": "wall speed-up"}


def shown(name: str, cell: Cell) -> dict[str, Any]:
    """A cell of ours: text, interval, rank and verdict; `sort` is the number behind it."""
    if cell.value is None:
        return {"why": cell.why, "sort": "Infinity" if cell.equal else "", "rank": cell.rank}
    decimals = decimals_of(name)
    interval = ""
    if cell.low is not None and cell.high is not None:
        interval = f"[{cell.low:.{decimals}f}, {cell.high:.{decimals}f}]"
    mark = "" if cell.p is None or cell.p >= LEVEL else ("up" if cell.better else "down")
    return {
        "text": f"{cell.value:.{decimals}f}" + (f", {cell.equal} equal" if cell.equal else ""),
        "sort": repr(cell.value),
        "interval": interval,
        "rank": cell.rank,
        "mark": mark,
    }


def published(cell: Cell) -> dict[str, Any]:
    """A published cell."""
    if cell.value is None:
        return {"why": cell.why, "sort": ""}
    return {"text": published_text(cell), "sort": repr(cell.value), "rank": 0}


def described(table: Table) -> dict[str, Any]:
    """A table for the template."""
    ours, theirs = list(table.rows[0].ours), list(table.rows[0].paper)
    rows = [
        [
            {"text": row.label, "sort": row.label, "rank": 0},
            *(shown(name, row.ours[name]) for name in ours),
            *(published(row.paper[name]) for name in theirs),
        ]
        for row in table.rows
    ]
    heads = ["method", *(NAMES.get(name, head_of(name)) for name in ours), *(f"paper: {name}" for name in theirs)]
    said = [fact for fact in facts(table) if fact]
    return {"title": table.preset.title, "facts": said, "heads": heads, "rows": rows}


def points(tables: list[Table]) -> list[dict[str, Any]]:
    """What the plot shows: each run once."""
    found: dict[str, dict[str, Any]] = {}
    for table in tables:
        for row in table.rows:
            if row.run and row.run not in found:
                values = {name: cell.value for name, cell in row.ours.items()}
                found[row.run] = {"label": row.label, "family": look_of_row(row).title, **values}
    return list(found.values())


def page(tables: list[Table], roots: list[Path], title: str, items: int, side: int) -> str:
    """The page; `roots` are the folders that runs lie in."""
    gallery = Gallery(roots, side)
    for table in tables:
        for row in table.rows:
            if row.run:
                gallery.add(row.run, row.label)
    made = points(tables)
    names = list(dict.fromkeys(name for table in tables for name in table.rows[0].ours))
    measured = [name for name in names if sum(point.get(name) is not None for point in made) > 1]
    data = {
        "points": made,
        "qualities": [name for name in measured if name in directions() and name not in (*SPEEDS, *UNITS)],
        "speeds": [name for name in SPEEDS if name in measured],
        "directions": directions(),
        "heads": {name: NAMES.get(name, head_of(name)) for name in names},
        **gallery.chosen(items),
    }
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True)
    runs = len(made)
    subtitle = f"{runs} runs, code revision {(git('rev-parse', 'HEAD') or 'unknown')[:12]}"
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return environment.from_string(TEMPLATE.read_text()).render(
        title=title, subtitle=subtitle, tables=[padded(described(table)) for table in tables], data=markup(text)
    )


def padded(table: dict[str, Any]) -> dict[str, Any]:
    """Every key of every cell, so that the template may be strict."""
    blank = {"text": "", "sort": "", "interval": "", "rank": 0, "mark": "", "why": ""}
    return {**table, "rows": [[{**blank, **cell} for cell in row] for row in table["rows"]]}


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
    put(path, page([judged(table, results) for table in tables], roots, title, items, side))
    return print(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB)")


def put(path: Path, text: str) -> None:
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
