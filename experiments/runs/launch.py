"""The runs that a command line of run.py means."""

from __future__ import annotations

import sys

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.config.compose import to_dataclass
from experiments.errors import check
from experiments.runs.runner import check as check_run
from experiments.settings.resolve import resolve
from experiments.settings.rows import split_rows
from experiments.settings.run import Run, prepare

__all__ = ["runs_of"]


def runs_of(config: DictConfig) -> list[Run]:
    """The runs that a command line means: one, or the rows of a preset; all are checked before any starts."""
    typed = to_dataclass(config)
    if typed.preset is None:
        runs = [prepare(resolve(typed))]
    else:
        overrides = list(HydraConfig.get().overrides.task)
        rows, absent = split_rows(typed, overrides)
        runs = [prepare(resolve(composed)) for _, composed in rows]
        for row, reason in absent:
            print(f"left out: {row.label} ({reason})", file=sys.stderr)
        check(bool(runs), "experiment", "must have a row that this version can run", typed.preset.name)
    for run in runs:
        check_run(run)
    return runs
