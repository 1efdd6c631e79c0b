"""The runs that a command line of run.py means."""

from __future__ import annotations

import sys

from experiments.config.run import RunConfig
from experiments.errors import check
from experiments.runs.runner import check as check_run
from experiments.settings.prepare import Run, prepare
from experiments.settings.resolve import resolve
from experiments.settings.rows import split_rows

__all__ = ["runs_of"]


def runs_of(config: RunConfig, overrides: list[str]) -> list[Run]:
    """The runs that a command line means: one, or the rows of a preset; all are checked before any starts."""
    if config.preset is None:
        runs = [prepare(resolve(config))]
    else:
        rows, absent = split_rows(config, overrides)
        runs = [prepare(resolve(made)) for _, made in rows]
        for row, reason in absent:
            print(f"left out: {row.label} ({reason})", file=sys.stderr)
        check(bool(runs), "experiment", "must have a row that this version can run", config.preset.name)
    for run in runs:
        check_run(run)
    return runs
