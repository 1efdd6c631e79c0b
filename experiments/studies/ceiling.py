"""How far the calibrated plan is from the limit of its kind: decibels over full steps, with a fitted solver above.

    python -m experiments study ceiling backend=digits budgets=6,8,10,15 study_items=60
    python -m experiments study ceiling backend=emoji budgets=6,8,10,15 ceilings=6,8

On unseen items, against their un-cached results: TaylorSeer and FoCa at scope modules with evenly placed full steps,
the calibrated plan (stored full steps, or searched here), the same with weights refined through the whole sampler (as
stored, or here), the plan of one calibration item, and the fitted multistep solver (`experiments.calibration.solver`)
with as many calls. Differences are paired, item by item. Lines of the other backend in `results/embedded/ceiling.csv`
are kept, and every budget is written when it is done.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor

import hicache
from evaluation.fidelity import psnr
from evaluation.statistics import bootstrap_mean
from experiments.artefacts.plans import load_plan, path_of
from experiments.backends.base import sampling_of
from experiments.calibration.calibrate import Calibration, make_plan, measure
from experiments.calibration.newton_refinement import Outside, newton, split
from experiments.calibration.options import Options
from experiments.calibration.solver import Solver, fit_solver
from experiments.calibration.trajectories import split_arguments
from experiments.cli import Exit
from experiments.config.compose import compose
from experiments.config.run import Settings
from experiments.errors import ConfigError, check
from experiments.runs.runner import items_of
from experiments.runs.style import COLUMN, look_of, save, styled
from experiments.settings.resolve import resolve
from experiments.studies.calibrated import FOLDER, Bench
from experiments.studies.study_report import write_rows
from hicache import CacheMethod
from hicache.fitting.calibrated_plan import CalibratedPlan

__all__ = ["COLUMNS", "Row", "draw", "merge_rows"]

COLUMNS = ("method", "backend", "full steps", "PSNR (dB)", "low", "high", "gain", "gain low", "gain high", "seconds")
PLAN, ONE, NEWTON, CEILING = "calibrated", "calibrated, 1 item", "calibrated, newton", "fitted solver"
LOOKS = {
    CEILING: ("solver", "--"),
    NEWTON: ("calibrated", "-"),
    PLAN: ("calibrated", ":"),
    ONE: ("calibrated", ""),
    "FoCa, even": ("foca", "-"),
    "TaylorSeer, even": ("taylorseer", "-"),
}
"""How a line looks: as which method, and its stroke."""
ORDERS = {"digits": 4, "emoji": 2}
"""Of TaylorSeer: what serves each model best."""
MEMORY = 4
PATH = FOLDER / "ceiling"
NOTE = (
    "PSNR (dB) against the un-cached result of the same noise (50 steps), mean over unseen items with its 95 % "
    "bootstrap interval. TaylorSeer and FoCa: scope modules, full steps evenly placed with the last one computed. "
    "`gain`: over the better of these two at as many full steps, paired. `seconds`: CPU time of what the line adds to "
    "the calibration, where it was made for this table."
)
Row = list[str]


def decibels(images: Tensor, bench: Bench) -> Tensor:
    """PSNR per item; a saturated picture may be the very same."""
    return psnr(images, bench.reference).clamp(max=120.0)


class CeilingTable:
    """Lines of one backend, measured on the same items."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.rows: list[Row] = []
        self.best: dict[int, Tensor] = {}

    def of(self, method: CacheMethod) -> Tensor:
        """PSNR per item."""
        return decibels(self.bench.images(method, sampling_of(self.bench.settings)), self.bench)

    def add_published(self, budget: int) -> None:
        """The lines that others are compared with."""
        even = {"scope": "modules", "policy": "even", "budget": budget}
        order = ORDERS.get(self.bench.settings.backend.name, 2)
        methods = {
            "TaylorSeer, even": hicache.method("taylorseer", order=order, **even),
            "FoCa, even": hicache.method("foca", **even),
        }
        found = {title: self.of(made) for title, made in methods.items()}
        self.best[budget] = max(found.values(), key=lambda values: float(values.mean()))
        for title, values in found.items():
            self.add(title, budget, values)

    def plan(self, title: str, plan: CalibratedPlan, seconds: float | None) -> None:
        """The line of a plan."""
        self.add(title, len(plan.full_steps), self.of(hicache.method("calibrated", **plan.knobs())), seconds)

    def add(self, title: str, budget: int, found: Tensor, seconds: float | None = None) -> None:
        """A line, compared with the published ones."""
        differences = (found - self.best[budget]).tolist()
        spreads = (*bootstrap_mean(found.tolist(), 0.95, 2000, 0), *bootstrap_mean(differences, 0.95, 2000, 0))
        cells = [*(f"{value:.2f}" for value in spreads), "" if seconds is None else f"{seconds:.0f}"]
        self.rows.append([title, self.bench.settings.backend.name, str(budget), *cells])
        print(" | ".join(self.rows[-1]), flush=True)

    def write(self) -> None:
        """Table and figure with what there is."""
        rows = merge_rows(self.rows, self.bench.settings.backend.name)
        write_rows(PATH, "The calibrated plan and the limit of its kind", NOTE, COLUMNS, rows)
        draw(rows)


def starting_plan(
    settings: Settings, options: Options, found: Calibration, budget: int, bench: Bench
) -> CalibratedPlan:
    """The plan that is refined: stored full steps where there are some, with weights of the fitted items."""
    assert found.loop is not None
    stored = of_budget(settings, budget)
    if path_of(stored).is_file():
        plan = load_plan(stored)
    else:
        plan = make_plan(settings, dataclasses.replace(options, refine="search"), found, budget, bench.backend)
    rows, _ = found.loop.refine(plan.full_steps, MEMORY, split(len(found.loop.items)))
    return dataclasses.replace(plan, rows=rows)


def find_refined(settings: Settings, budget: int) -> CalibratedPlan | None:
    """The stored plan, if its weights were refined through the whole sampler."""
    path = path_of(of_budget(settings, budget))
    known = path.is_file() and json.loads(path.read_text())["made"].get("refine") == "newton"
    return load_plan(of_budget(settings, budget)) if known else None


def of_budget(settings: Settings, budget: int) -> Settings:
    """The run with so many full steps."""
    return dataclasses.replace(settings, method=dataclasses.replace(settings.method, budget=budget))


def score_solver(bench: Bench, solver: Solver, by: Tensor) -> Tensor:
    """PSNR per unseen item of a fitted solver."""
    solver.final(by)
    return decibels(torch.stack(solver.images), bench)


def study(settings: Settings, bench: Bench, budgets: Sequence[int], ceilings: Sequence[int], options: Options) -> None:
    """All lines of one backend."""
    table, clock = CeilingTable(bench), time.process_time
    begun = clock()
    found = measure(settings, options, bench.backend)
    assert found.loop is not None
    recorded = clock() - begun
    for budget in budgets:
        table.add_published(budget)
        begun = clock()
        start = starting_plan(settings, options, found, budget, bench)
        table.plan(PLAN, start, recorded + clock() - begun)
        begun, refined = clock(), find_refined(settings, budget)
        if refined is None:
            chain = Outside(loop=found.loop, full_steps=start.full_steps)
            refined = dataclasses.replace(start, rows=newton(chain, start, MEMORY, lambda line: None)[0])
            table.plan(NEWTON, refined, clock() - begun)
        else:
            table.plan(NEWTON, refined, None)
        if budget in ceilings:
            begun = clock()
            by, _ = fit_solver(found.loop, refined, MEMORY)
            seconds = clock() - begun
            unseen = dataclasses.replace(found.loop, items=bench.items, path=torch.empty(0), last=None)
            solver = Solver(loop=unseen, plan=refined, memory=MEMORY)
            table.add(CEILING, budget, score_solver(bench, solver, by), seconds)
        if budget == 8:
            begun, single = clock(), dataclasses.replace(options, items=1, seconds=options.seconds / 4)
            plan = make_plan(settings, single, measure(settings, single, bench.backend), budget, bench.backend)
            table.plan(ONE, plan, clock() - begun)
        table.write()


def merge_rows(rows: list[Row], backend: str) -> list[Row]:
    """These rows, and those of other backends that are in the table already."""
    path = PATH.with_suffix(".csv")
    if not path.is_file():
        return rows
    with open(path, newline="") as handle:
        stored = list(csv.reader(handle))[1:]
    return sorted([*(row for row in stored if row[1] != backend), *rows], key=lambda row: (row[1], int(row[2])))


def draw(rows: Sequence[Row]) -> None:
    """A panel per backend: PSNR over full steps, a line per method."""
    backends = sorted({row[1] for row in rows})
    with styled() as pyplot:
        size = (1.25 * COLUMN * len(backends), 0.9 * COLUMN)
        figure, axes = pyplot.subplots(1, len(backends), figsize=size, squeeze=False)
        for axis, backend in zip(axes[0], backends, strict=True):
            for title, (name, line) in LOOKS.items():
                here = sorted((row for row in rows if row[:2] == [title, backend]), key=lambda row: int(row[2]))
                if not here:
                    continue
                x, y, low, high = ([float(row[column]) for row in here] for column in (2, 3, 4, 5))
                reach = [[m - a for m, a in zip(y, low, strict=True)], [b - m for m, b in zip(y, high, strict=True)]]
                axis.errorbar(x, y, yerr=reach, label=title, linestyle=line, **look_of(name).points)
            axis.set(xlabel="full steps of 50", ylabel="PSNR to the un-cached result (dB)", title=backend)
            axis.set_xticks(sorted({int(row[2]) for row in rows if row[1] == backend}))
            axis.legend()
        figure.tight_layout()
        save(figure, PATH.with_suffix(".png"))


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    own, overrides = split_arguments(arguments, ("budgets", "ceilings", "study_items", "items", "seconds"))
    defaults = {"budgets": "6,8,10,15", "ceilings": "6,8", "study_items": "60", "items": "32", "seconds": "30"}
    given = {key: own.get(key, text) for key, text in defaults.items()}
    try:
        budgets, ceilings = ([int(word) for word in given[key].split(",")] for key in ("budgets", "ceilings"))
        count, items, seconds = int(given["study_items"]), int(given["items"]), float(given["seconds"])
    except ValueError as error:
        raise ConfigError(f"budgets, ceilings, study_items, items, seconds: must be numbers ({error})") from None
    check(count >= 10, "study_items", "must be an integer >= 10", count)
    settings = resolve(compose(["method=calibrated", *overrides]))
    for budget in budgets:
        check(2 <= budget < settings.num_steps, "budgets", f"must be from 2 to {settings.num_steps - 1}", budget)
    options = Options(items=items, seconds=seconds)
    bench = Bench(settings, items_of(dataclasses.replace(settings, num_items=count)))
    study(settings, bench, budgets, ceilings, options)


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
