"""Print a table and write it to results/tables.

    python -m experiments tables table=digits                   rows of conf/experiment/digits_table.yaml
    python -m experiments tables table=digits_table4            a table of the paper on the embedded model
    python -m experiments tables table=3 columns=flops          FLOPs of Table 3 from shapes: no weights, no runs
    python -m experiments tables table=all seed=1               every preset, other runs
    python -m experiments tables plan=results/plans/NAME        the rows of a plan; columns=flops works here too
    python -m experiments tables runs=results/sweeps/3f0c...       a sweep of run.py -m; also runs, by folder, name,
    python -m experiments tables runs=digits-hicache-*,98ab12     digits or pattern
    python -m experiments tables table=digits rows=mine.csv     with rows of your own: a column method, and any of the
                                                                table's (psnr, psnr_low, psnr_high, ...)
    python -m experiments tables table=digits embedded=true     also to results/embedded, which is committed

Rows that were not run are shown as such; `experiments plan` and `experiments execute` run them. Further key=value
arguments are those of run.py.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import sys
from collections import Counter
from pathlib import Path

from rich.console import Console

from experiments.cli import Exit
from experiments.config.compose import options, parse_override
from experiments.errors import ConfigError, check
from experiments.files import ensure_writable, sweep, write_text
from experiments.plans.manifest import Plan
from experiments.reports.costs import build_costs, build_plan_costs
from experiments.reports.ranks import add_ranks
from experiments.reports.render import beside, to_csv, to_latex, to_markdown
from experiments.reports.result_table import NOT_RUN, Cell, ResultTable, Row, build, build_plan, preset_of
from experiments.reports.runs import build_runs

__all__ = ["main", "overrides_of", "parse", "presets_of"]


def main(arguments: list[str]) -> None:
    """Build, print and write the tables that the arguments name."""
    if {"--help", "-h"} & set(arguments):
        return print(__doc__)
    given = dict(parse(argument) for argument in arguments)
    names, plan, runs = given.pop("table", ""), given.pop("plan", ""), given.pop("runs", "")
    results = Path(given.pop("results", "results"))
    extra = given.pop("rows", "")
    embedded, columns = given.pop("embedded", "false"), given.pop("columns", "all")
    known = f"must be all or one of {', '.join(options('experiment'))} (or plan=, or runs=; one of the three)"
    check([bool(names), bool(plan), bool(runs)].count(True) == 1, "table", known, names)
    check(embedded in ("true", "false"), "embedded", "must be true or false", embedded)
    check(columns in ("all", "flops"), "columns", "must be all or flops", columns)
    if plan:
        check(not given, "argument", "must not stand beside plan=", sorted(given))
        check(embedded == "false", "embedded", "must be false beside plan= (results/embedded is for presets)", embedded)
        opened = Plan.open(plan)
        ensure_writable(opened.results)
        if columns == "flops":
            return show(build_plan_costs(opened), [opened.results / "tables"], "_flops")
        return show(join_rows(add_ranks(build_plan(opened), opened.results), extra), [opened.results / "tables"])
    if runs:
        check(not given, "argument", "must not stand beside runs=", sorted(given))
        check(embedded == "false" and columns == "all", "runs", "must stand alone, or with results=", runs)
        tables, _ = build_runs(runs.split(","), results)
        ensure_writable(results)
        for table in tables:
            show(join_rows(add_ranks(table, results), extra), [results / "tables"])
        return None
    folders = [results / "tables"] + ([Path("results/embedded")] if embedded == "true" else [])
    overrides = overrides_of(given)
    ensure_writable(results)
    for preset in presets_of(names):
        if columns == "flops":
            show(build_costs(preset, overrides), folders, "_flops")
        else:
            show(join_rows(add_ranks(build(preset, overrides, results), results), extra), folders)
    return None


def presets_of(names: str) -> list[str]:
    """The presets behind `table=`: all, or those named by number, in full, or without `_table`."""
    return options("experiment") if names == "all" else [preset_of(name) for name in names.split(",")]


def join_rows(table: ResultTable, extra: str) -> ResultTable:
    """The table with the rows of a csv file behind its own; they are shown, and neither ranked nor tested.

    Raises:
        ConfigError: naming the file and what in it is no table with a column `method` and columns of this one.
    """
    if not extra:
        return table
    path, names = Path(extra), list(table.rows[0].ours)
    check(path.is_file(), "rows", "must be a csv file", extra)
    heads, lines = read_lines(path)
    known = ["method", "note", *(f"{name}{part}" for name in names for part in ("", "_low", "_high"))]
    unknown = [head for head in heads if head not in known]
    check("method" in heads and bool(lines), "rows", f"must have a row and a column method ({extra})", heads)
    check(not unknown, "rows", f"must have columns of the table ({', '.join(known)})", unknown)
    rows = []
    for number, line in lines.items():
        cells = {}
        for name in names:
            value, low, high = (numeric(extra, number, line.get(f"{name}{part}")) for part in ("", "_low", "_high"))
            cells[name] = Cell(why="not given") if value is None else Cell(value=value, low=low, high=high)
        paper = {name: Cell(why="not in the paper") for name in table.rows[0].paper}
        more = {"paper": paper, "block": "added", "note": line.get("note") or ""}
        rows.append(Row(label=line["method"], run="", settings=None, ours=cells, **more))
    return dataclasses.replace(table, rows=[*table.rows, *rows])


def read_lines(path: Path) -> tuple[list[str], dict[int, dict[str, str]]]:
    """The heads of a csv file, and its rows by the number of their last line."""
    found: dict[int, dict[str, str]] = {}
    try:
        reader = csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
        heads = next(reader, [])
        for values in filter(None, reader):
            rule = f"must have {len(heads)} values, as it has columns, in line {reader.line_num} of {path}"
            check(len(values) == len(heads), "rows", rule, values)
            found[reader.line_num] = dict(zip(heads, values, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"rows: must be a csv file in UTF-8, got {str(path)!r} ({error})") from error
    return heads, found


def numeric(path: str, number: int, text: str | None) -> float | None:
    """A number of a csv file; nothing where it has none."""
    if not (text or "").strip():
        return None
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    check(math.isfinite(value), "rows", f"must have a finite number in line {number} of {path}", text)
    return value


def how_to_run(table: ResultTable) -> str:
    """Which command runs the rows that were never run, or which shards, to be said behind something; nothing if all."""
    missing = [{cell.why for cell in row.ours.values() if cell.why.endswith(NOT_RUN)} for row in table.rows if row.run]
    name = table.preset.name
    command = f"python run.py experiment={name}" if name in options("experiment") else "python -m experiments execute"
    counts = Counter(why for reasons in missing for why in reasons)
    return "".join(
        f"; {count} of {len(table.rows)} wait: {command if why == NOT_RUN else why}" for why, count in counts.items()
    )


def show(table: ResultTable, folders: list[Path], suffix: str = "", columns: ResultTable | None = None) -> None:
    """Print and write a table; printed are `columns` in its place, a run each, where they are given."""
    written = [path for folder in folders for path in write(table, folder, suffix)]
    if columns is None:
        print(to_markdown(table))
    else:
        Console(width=None if os.environ.get("COLUMNS") else 110).print(beside(columns))
    if waiting := how_to_run(table):
        print(waiting.removeprefix("; "))
    print(*(f"written: {path}" for path in written), sep="\n")


def overrides_of(given: dict[str, str]) -> list[str]:
    """The arguments that are those of run.py; a row stands for one run, so each has one value."""
    for key, value in given.items():
        sweep = parse_override(f"{key}={value}").is_sweep_override()
        check(not sweep, key, "must be one value here (experiments plan takes several, plan= shows them)", value)
    return [f"{key}={value}" for key, value in given.items()]


def parse(argument: str) -> tuple[str, str]:
    """`key=value` as a pair."""
    key, equals, value = argument.partition("=")
    if not equals or not key:
        raise ConfigError(f"argument: must read key=value, got {argument!r}")
    return key, value


def write(table: ResultTable, folder: Path, suffix: str) -> list[Path]:
    """The table's files in a folder; the plot needs rows that were run."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    stem, written = folder / f"{table.preset.name}{suffix}", []
    for extension, render in ((".md", to_markdown), (".csv", to_csv), (".tex", to_latex)):
        written.append(stem.with_suffix(extension))
        write_text(written[-1], render(table))
    picture = stem.with_suffix(".png")
    from experiments.reports.plot import plot  # late: matplotlib

    return [*written, picture] if plot(table, picture) else written


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
