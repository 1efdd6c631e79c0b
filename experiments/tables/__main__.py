"""Print a table and write it to results/tables.

    python -m experiments.tables table=digits                   rows of conf/experiment/digits_table.yaml
    python -m experiments.tables table=all seed=1               every preset, other runs
    python -m experiments.tables table=digits embedded=true     also to results/embedded, which is committed

Rows that were not run are shown as such; `python run.py experiment=<preset>` runs them. Further key=value
arguments are those of run.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.cli import Exit
from experiments.compose import options
from experiments.errors import ConfigError, check
from experiments.store import write_text
from experiments.tables.build import Table, build, preset_of
from experiments.tables.plot import plot
from experiments.tables.render import to_csv, to_latex, to_markdown

__all__ = ["main"]


def main(arguments: list[str]) -> None:
    """Build, print and write the tables that the arguments name."""
    given = dict(parse(argument) for argument in arguments)
    names = given.pop("table", "")
    results = Path(given.pop("results", "results"))
    embedded = given.pop("embedded", "false")
    check(bool(names), "table", f"must be all or one of {', '.join(options('experiment'))}", names)
    check(embedded in ("true", "false"), "embedded", "must be true or false", embedded)
    presets = options("experiment") if names == "all" else [preset_of(name) for name in names.split(",")]
    folders = [results / "tables"] + ([Path("results/embedded")] if embedded == "true" else [])
    for preset in presets:
        table = build(preset, [f"{key}={value}" for key, value in given.items()], results)
        written = [path for folder in folders for path in write(table, folder)]
        print(to_markdown(table))
        print(*(f"written: {path}" for path in written), sep="\n")


def parse(argument: str) -> tuple[str, str]:
    """`key=value` as a pair."""
    key, equals, value = argument.partition("=")
    if not equals or not key:
        raise ConfigError(f"argument: must read key=value, got {argument!r}")
    return key, value


def write(table: Table, folder: Path) -> list[Path]:
    """The table's files in a folder; the plot needs rows that were run."""
    folder.mkdir(parents=True, exist_ok=True)
    stem, written = folder / table.preset.name, []
    for suffix, render in ((".md", to_markdown), (".csv", to_csv), (".tex", to_latex)):
        written.append(stem.with_suffix(suffix))
        write_text(written[-1], render(table))
    picture = stem.with_suffix(".png")
    return [*written, picture] if plot(table, picture) else written


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
