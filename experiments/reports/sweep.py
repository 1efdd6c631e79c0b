"""A sweep ranked: one table of the runs that a command with `-m` made, best first.

Rows are labelled by the method and by the swept keys alone. Where a metric is kept per item, the column beside it has
the paired difference to the best row, the mean over items of `value - best` with its bootstrap interval, Wilcoxon's p
after Holm's correction, and the effect size r (matched-pairs rank-biserial correlation, in [-1, 1]). Runs of other
seeds, numbers of items or steps, or models are ranked and compared among themselves. The table lies in
results/sweeps/<digits>, with the list of its runs; the digits are a hash of them, so the same sweep is one folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.statistics import wilcoxon_holm
from experiments.cli import Exit
from experiments.config.compose import key
from experiments.config.preset import PresetConfig
from experiments.config.run import RunConfig, Settings
from experiments.errors import check
from experiments.files import write_json
from experiments.reports.columns import directions, head_of
from experiments.reports.montage import draw_grid
from experiments.reports.ranks import add_ranks, differences, grouped, values_of
from experiments.reports.result_table import COSTS, Cell, ResultTable, Row, cells_of
from experiments.reports.runs import METHOD_TITLES
from experiments.reports.tables import show
from experiments.runs.launch import runs_of
from experiments.runs.metrics.evidence import finite_or_none
from experiments.runs.metrics.measure import applicable
from experiments.runs.runner import Outcome, execute
from experiments.runs.summary import print_outcome
from experiments.settings.describe import announcement, without_effect
from experiments.settings.prepare import Run

__all__ = ["Sweep"]

GRID_ITEMS = 8
"""Items that are shown side by side."""
BESIDE = 5
"""Runs of `compare=`, the un-cached one with them, that stand beside each other in the terminal; more are a table."""


@dataclass
class Sweep:
    """What the jobs of one command ran, by run id."""

    settings: dict[str, Settings] = field(default_factory=dict)
    references: dict[str, Settings] = field(default_factory=dict)
    jobs: dict[str, list[list[str]]] = field(default_factory=dict)
    """Run id -> the overrides of every job that meant it."""
    found: set[str] = field(default_factory=set)
    """Runs that were finished before."""
    pictures: bool = False
    """Whether the runs are also shown side by side."""
    unshown: list[Outcome] = field(default_factory=list)
    """Those whose numbers stand beside the others' at the end."""
    objectives: dict[str, float] = field(default_factory=dict)
    """Run id -> its mean of `metrics.objective`."""
    objective: float | None = None
    """That of the last job's last run; None where it failed."""

    def run(self, config: RunConfig, overrides: list[str], outcome: Exit, alone: bool = False) -> None:
        """The runs of one composed configuration, in turn; one that this command did already is not done again.

        Keys without effect are said here where the configuration stands `alone`; those of a sweep, by its ranking.
        """
        self.objective = None
        runs = runs_of(config, overrides)
        check_objective(runs[-1].settings)
        given = {key(word) for word in overrides} if alone else set[str]()
        for line in dict.fromkeys(without_effect(run.settings, given) for run in runs):
            if line is not None:
                print(line, flush=True)
        for run in runs:
            if not self.knows(run.id, overrides):
                if (line := announcement(run)) is not None:
                    print(line, flush=True)
                outcome.guard(lambda run=run: self.execute(run, overrides))
            self.objective = self.objectives.get(run.id)

    def execute(self, run: Run, overrides: list[str]) -> None:
        """Do one run and show it."""
        done = execute(run)
        if self.pictures and done.metrics:
            self.unshown.append(done)
            print(f"run: {done.folder.path}", flush=True)
        else:
            print_outcome(done)
        self.add(done, overrides)
        if (name := run.settings.metrics.objective) in done.metrics:
            self.objectives[run.id] = done.metrics[name]["mean"]

    def rank(self) -> None:
        """Print and write the table of a sweep, and how to get it again."""
        if len(self.settings) < 2:
            for done in self.unshown:
                print_outcome(done)
            return
        results = next(iter(self.settings.values())).results
        folder = self.keep(results)
        print(*self.remarks(), sep="\n")
        table, as_named = self.table(results), None
        if self.pictures:
            places = {run: place for place, run in enumerate((*self.references, *self.settings))}
            as_named = dataclasses.replace(table, rows=sorted(table.rows, key=lambda row: places[row.run]))
        show(table, [folder], columns=as_named if len(table.rows) <= BESIDE else None)
        if as_named is not None:
            for path in draw_grid(as_named, results, GRID_ITEMS, folder / "sweep"):
                print(f"side by side: {path}")
        print(f"again: python -m experiments tables runs={folder}")

    def knows(self, run: str, overrides: list[str]) -> bool:
        """Whether the run was done by an earlier job of this command; the job is noted if so."""
        if run in self.settings:
            self.jobs[run].append(overrides)
        return run in self.settings

    def add(self, outcome: Outcome, overrides: list[str]) -> None:
        """Note a run that is done."""
        run = outcome.folder.path.name
        self.settings[run] = outcome.settings
        self.jobs[run] = [overrides]
        if outcome.found:
            self.found.add(run)
        if outcome.reference is not None:
            self.references[outcome.reference.folder.path.name] = outcome.reference.settings

    def swept(self) -> list[str]:
        """The keys that differ between the jobs."""
        return varied_keys([job for of in self.jobs.values() for job in of])

    def remarks(self) -> list[str]:
        """Keys without effect, and runs that were there."""
        lines = []
        for run, jobs in self.jobs.items():
            if keys := varied_keys(jobs):
                verb = "has" if len(keys) == 1 else "have"
                method = self.settings[run].method.name
                lines.append(f"{' and '.join(keys)} {verb} no effect on {method}: 1 run instead of {len(jobs)}")
        if self.found:
            lines.append(f"{len(self.found)} of {len(self.settings)} runs were finished before")
        return list(dict.fromkeys(lines))

    def label(self, run: str) -> str:
        """The method and the swept values that it reads."""
        method, jobs = self.settings[run].method.name, self.jobs[run]
        telling = [key for key in self.swept() if key != "method" and key not in varied_keys(jobs)]
        details = [f"{key}={value}" for key, value in assignments_of(jobs[0]).items() if key in telling]
        title = METHOD_TITLES.get(method, method)
        return f"{title} ({', '.join(details)})" if details else title

    def table(self, results: Path) -> ResultTable:
        """The rows best first by the first metric that is kept per item, and the un-cached run."""
        runs = {**self.references, **self.settings}
        metrics = list(dict.fromkeys(name for of in runs.values() for name in of.metrics.names if name in directions()))
        rows = [self.row(results, run, settings, metrics) for run, settings in runs.items()]
        config = PresetConfig(name="sweep", title=f"Sweep of {len(self.settings)} runs", columns=metrics)
        objective = next((m for m in metrics if any(values_of(results / "runs" / r.run, m) for r in rows)), None)
        made = add_ranks(ResultTable(preset=dataclasses.replace(config, sort=objective), rows=rows), results)
        return with_differences(made, objective, results) if objective else made

    def row(self, results: Path, run: str, settings: Settings, metrics: list[str]) -> Row:
        """One run."""
        ours = cells_of(results, run, settings.plain, [*COSTS, *metrics])
        label, block = (self.uncached(settings), "reference") if run in self.references else (self.label(run), "")
        return Row(label=label, run=run, settings=settings, ours=ours, paper={}, block=block)

    def uncached(self, reference: Settings) -> str:
        """The label of an un-cached run, by what tells it from others of the sweep."""
        facts = [settings_said(settings) for settings in self.references.values()]
        own = settings_said(reference)
        details = [f"{key}={value}" for key, value in own.items() if any(of[key] != value for of in facts)]
        return f"un-cached ({', '.join(details)})" if details else "un-cached"

    def folder(self, results: Path) -> Path:
        """Where the table lies."""
        digits = hashlib.sha256(" ".join(sorted(self.settings)).encode()).hexdigest()[:12]
        return results / "sweeps" / digits

    def keep(self, results: Path) -> Path:
        """Write down which runs these are; returns the folder."""
        folder = self.folder(results)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "runs.json", {run: self.label(run) for run in self.settings})
        return folder


def settings_said(settings: Settings) -> dict[str, Any]:
    """What tells un-cached runs apart, in most sweeps."""
    keys = ("seed", "num_items", "num_steps")
    return {"backend": settings.backend.name} | {key: getattr(settings, key) for key in keys}


def check_objective(settings: Settings) -> None:
    """The run whose value a sweeper gets must have it."""
    name = settings.metrics.objective
    rule = "must be left open for the un-cached run, or be a metric that does not compare with it"
    check(name is None or name in applicable(settings), "metrics.objective", rule, name)


def assignments_of(overrides: list[str]) -> dict[str, str]:
    """Key -> value of a command line."""
    return {key: value for key, _, value in (override.partition("=") for override in overrides)}


def varied_keys(jobs: list[list[str]]) -> list[str]:
    """The keys whose values differ between command lines."""
    values = [assignments_of(job) for job in jobs]
    keys = dict.fromkeys(key for job in values for key in job)
    return [key for key in keys if len({job.get(key) for job in values}) > 1]


def with_differences(table: ResultTable, name: str, results: Path) -> ResultTable:
    """The table with columns of paired differences to the best row with the same items, their p and effect size."""
    values = {row.run: values_of(results / "runs" / row.run, name) for row in table.rows if row.run}
    head = f"{head_of(name).rstrip(' ↑↓')} − best"
    rows, compared = list(table.rows), False
    for places in grouped(rows).values():
        mine = [rows[i] for i in places if rows[i].block == "" and rows[i].run]
        best = next((values[row.run] for row in mine if values[row.run]), {})
        compared |= len(mine) > 1 and bool(best)
        shifts = {row.run: differences(of, best) for row in mine if differs(of := values[row.run], best)}
        tests = wilcoxon_holm({**shifts, "best": [0.0] * len(best)}, "best") if shifts else {}
        for i in places:
            row, why = rows[i], reason(rows[i], len(mine), values.get(rows[i].run, {}), best)
            test = tests.get(row.run)
            cells = {head: Cell(why=why) if test is None else beside(row, values[row.run], best)}
            cells["p (Holm)"] = Cell(why=why) if test is None else Cell(value=test.p_holm)
            cells["effect r"] = Cell(why=why) if test is None else Cell(value=test.effect)
            rows[i] = dataclasses.replace(row, ours={**row.ours, **cells})
    return dataclasses.replace(table, rows=rows) if compared else table


def differs(values: Mapping[str, float], best: Mapping[str, float]) -> bool:
    """Whether values are of the items of the best, and others."""
    return bool(values) and set(values) == set(best) and values != best


def reason(row: Row, rows: int, values: Mapping[str, float], best: Mapping[str, float]) -> str:
    """Why one of so many rows with the same items has no difference to the best."""
    if row.block:
        return "is the reference"
    if rows == 1:
        return "no other of these items"
    return "is the best" if values == best else "not the same items"


def beside(row: Row, values: Mapping[str, float], best: Mapping[str, float]) -> Cell:
    """The difference of one row, over the items that are finite in both: infinity minus a number is none."""
    assert row.settings is not None
    shift = [values[item] - best[item] for item in best if math.isfinite(values[item]) and math.isfinite(best[item])]
    equal = len(best) - len(shift)
    if not shift:
        return Cell(why=f"infinite in {equal} items")
    mean, low, high = (finite_or_none(value) for value in row.settings.metrics.bootstrap.mean(shift))
    return Cell(value=mean, low=low, high=high, equal=equal)
