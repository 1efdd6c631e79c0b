"""How far the calibrated plan is from the limit of its kind: every method over full steps, and a fitted solver.

    python -m experiments study ceiling backend=digits budgets=6,8,10,15 study_items=60
    python -m experiments study ceiling backend=emoji budgets=6,8,10,15 ceilings=6,8 seeds=2000,3000

On unseen items, against their un-cached results: every published forecaster at the best of its settings on these items
(`experiments.studies.contest`), solvers with as few steps, the calibrated plan (stored full steps, or searched here),
the same with weights refined through the whole sampler (as stored, or here), at 8 full steps plans of one calibration
item (the mean of eight, with their own full steps, then with those of the plan) and refined ones of other calibration
seeds, and the fitted multistep solver (`experiments.calibration.solver`) with as many calls. Gains are over the best
published method at as many full steps, paired item by item. Lines of other backends and budgets in
`results/embedded/ceiling.csv` are kept, and every budget is written when it is done. With `anew="tail 1"` only settings
with these words in them compete, and with them what was stored as the best of every method: for schedules that came to
the library after the table.
"""

from __future__ import annotations

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
from experiments.backends.base import Item
from experiments.calibration.calibrate import Calibration, make_plan, measure
from experiments.calibration.newton_refinement import Outside, refine_rows, split
from experiments.calibration.options import Options
from experiments.calibration.solver import Solver, fit_solver
from experiments.calibration.trajectories import split_arguments
from experiments.cli import Exit
from experiments.config.compose import compose
from experiments.config.run import Settings
from experiments.errors import ConfigError, check
from experiments.runs.style import COLUMN, end_labels, save, styled
from experiments.settings.resolve import resolve
from experiments.studies.bench import FOLDER, SAME, Bench
from experiments.studies.contest import Winner, contenders, hold_contest, measure_fewer_steps
from experiments.studies.study_report import HEIGHT, join_stored, look_titled, read_rows, write_rows
from hicache.fitting.calibrated_plan import CalibratedPlan

__all__ = ["COLUMNS", "Row", "draw", "merge_rows"]

COLUMNS = (
    "method",
    "backend",
    "full steps",
    "setting",
    "PSNR (dB)",
    "low",
    "high",
    "gain",
    "gain low",
    "gain high",
    "seconds",
)
PLAN, ONE, NEWTON, CEILING = "calibrated", "calibrated, 1 item", "calibrated, refined", "fitted solver"
OURS = (PLAN, ONE, NEWTON, CEILING)
GIVEN = "full steps of the plan"
DASHED = {CEILING: "--", PLAN: ":"}
SPARSE = 8
"""The budget at which the plans of one item and those of other seeds are made."""
SINGLES = 8
"""Calibration items that have a plan each, of which the line of one item is the mean."""
MEMORY = 4
PATH = FOLDER / "ceiling"
NOTE = (
    "PSNR (dB) against the un-cached result of the same noise (50 steps), mean over unseen items with its 95 % "
    "bootstrap interval. Published methods are at the best of their settings on these very items: interval, warm-up 1 "
    "or 2, even, late, eased or searched full steps (for TaylorSeer or FoCa, at 6 to 15; all methods have them), "
    "order, σ, scope. `gain`: over the best of them at as many full steps, paired. `seconds`: CPU time of what the "
    "line adds to the calibration, where it was made for this table."
)
Row = list[str]


class CeilingTable:
    """Lines of one backend, measured on the same items."""

    def __init__(self, bench: Bench, anew: str = "") -> None:
        self.bench, self.anew = bench, anew
        self.rows: list[Row] = []
        self.best: dict[int, Tensor] = {}

    def add_published(self, budget: int) -> None:
        """The lines that others are compared with, best first, and solvers with as few steps."""
        entries = list(contenders(self.bench.settings, budget))
        if self.anew:
            place = [self.bench.settings.backend.name, str(budget)]
            known = {(row[0], row[3]) for row in read_rows(PATH, COLUMNS) if row[1:3] == place}
            again = [each for each in entries if (each.title, each.setting) in known]
            titles = {each.title for each in entries} - {each.title for each in again}
            check(not titles, "anew", f"must come after a whole run of {' '.join(place)}", self.anew)
            added = [each for each in entries if self.anew in each.setting and each not in again]
            caches = best_by_title([*hold_contest(self.bench, again), *hold_contest(self.bench, added)])
        else:
            caches = hold_contest(self.bench, entries)
        caches.sort(key=lambda winner: -float(winner.values.mean()))
        self.best[budget] = caches[0].values
        for winner in (*caches, *measure_fewer_steps(self.bench, budget)):
            self.add(winner, budget)

    def plan(self, title: str, plan: CalibratedPlan, seconds: float | None, setting: str = "") -> None:
        """The line of a plan."""
        values = self.bench.decibels(hicache.method("calibrated", **plan.knobs()))
        self.add(Winner(title=title, setting=setting, values=values), len(plan.full_steps), seconds)

    def add(self, line: Winner, budget: int, seconds: float | None = None) -> None:
        """A line, compared with the best published one."""
        differences = (line.values - self.best[budget]).tolist()
        spreads = (*bootstrap_mean(line.values.tolist(), 0.95, 2000, 0), *bootstrap_mean(differences, 0.95, 2000, 0))
        cells = [*(f"{value:.2f}" for value in spreads), "" if seconds is None else f"{seconds:.0f}"]
        self.rows.append([line.title, self.bench.settings.backend.name, str(budget), line.setting, *cells])
        print(" | ".join(self.rows[-1]), flush=True)

    def write(self) -> None:
        """Table and figure with what there is."""
        rows = merge_rows(self.rows)
        write_rows(PATH, "The calibrated plan and the limit of its kind", NOTE, COLUMNS, rows)
        draw(rows)


def best_by_title(winners: Sequence[Winner]) -> list[Winner]:
    """The best one of every method."""
    best: dict[str, Winner] = {}
    for winner in winners:
        if winner.title not in best or winner.values.mean() > best[winner.title].values.mean():
            best[winner.title] = winner
    return list(best.values())


def starting_plan(
    settings: Settings, options: Options, found: Calibration, budget: int, bench: Bench
) -> CalibratedPlan:
    """The plan that is refined: stored full steps where there are some, with weights of the fitted items."""
    stored = of_budget(settings, budget)
    if path_of(stored).is_file():
        plan = load_plan(stored)
    else:
        plan = make_plan(settings, dataclasses.replace(options, refine="search"), found, budget, bench.backend)
    return close_loop(found, plan)


def close_loop(found: Calibration, plan: CalibratedPlan) -> CalibratedPlan:
    """The plan with closed-loop weights of the items that are fitted; the others choose among the refined ones."""
    assert found.loop is not None
    return dataclasses.replace(plan, rows=found.loop.refine(plan.full_steps, MEMORY, split(len(found.loop.items)))[0])


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
    return psnr(torch.stack(solver.images), bench.reference).double().clamp(max=SAME)


def study(
    settings: Settings,
    bench: Bench,
    budgets: Sequence[int],
    ceilings: Sequence[int],
    options: Options,
    seeds: Sequence[int] = (),
    anew: str = "",
) -> None:
    """All lines of one backend."""
    table, clock = CeilingTable(bench, anew), time.process_time
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
        known, refined = refined is not None, refined or refine_weights(found, start)
        table.plan(NEWTON, refined, None if known else clock() - begun)
        if budget in ceilings:
            begun = clock()
            by, _ = fit_solver(found.loop, refined, MEMORY)
            seconds = clock() - begun
            unseen = dataclasses.replace(found.loop, items=bench.items, path=torch.empty(0), last=None)
            values = score_solver(bench, Solver(loop=unseen, plan=refined, memory=MEMORY), by)
            table.add(Winner(title=CEILING, setting="", values=values), budget, seconds)
        if budget == SPARSE:
            add_singles(table, found.items[:SINGLES], options, start)
            for seed in seeds:
                begun, other = clock(), dataclasses.replace(options, calibration_seed=seed, refine="search")
                again = measure(settings, other, bench.backend)
                plan = make_plan(settings, other, again, budget, bench.backend)
                refined = refine_weights(again, close_loop(again, plan))
                table.plan(NEWTON, refined, clock() - begun, f"calibration seed {seed}")
        table.write()


def add_singles(table: CeilingTable, items: Sequence[Item], options: Options, start: CalibratedPlan) -> None:
    """The lines of plans of one calibration item: means over plans that see one of these items each."""
    bench, single = table.bench, dataclasses.replace(options, items=1)
    measured = [measure(bench.settings, single, bench.backend, [item]) for item in items]
    known = dataclasses.replace(single, full_steps="+".join(map(str, start.full_steps)), refine="loop")
    budget, clock = len(start.full_steps), time.process_time
    for setting, choices in (("", single), (GIVEN, known)):
        begun = clock()
        plans = [make_plan(bench.settings, choices, found, budget, bench.backend) for found in measured]
        seconds = (clock() - begun) / len(plans)
        values = torch.stack([bench.decibels(hicache.method("calibrated", **plan.knobs())) for plan in plans]).mean(0)
        table.add(Winner(title=ONE, setting=setting, values=values), budget, seconds)


def refine_weights(found: Calibration, start: CalibratedPlan) -> CalibratedPlan:
    """The plan with weights refined through the whole sampler."""
    assert found.loop is not None
    chain = Outside(loop=found.loop, full_steps=start.full_steps)
    return dataclasses.replace(start, rows=refine_rows(chain, start, MEMORY, lambda line: None)[0])


def merge_rows(rows: list[Row]) -> list[Row]:
    """These rows, and those of other backends and budgets that are in the table already."""
    return sorted(join_stored(PATH, COLUMNS, rows, slice(1, 3)), key=lambda row: (row[1], int(row[2])))


def draw(rows: Sequence[Row]) -> None:
    """A panel per backend: PSNR over full steps, a line per method that has its name at the end."""
    backends = sorted({row[1] for row in rows})
    drawn = [row for row in rows if row[0] not in OURS or not row[3]]
    with styled() as pyplot:
        figure, axes = pyplot.subplots(
            1, len(backends), figsize=(1.5 * COLUMN * len(backends), HEIGHT), squeeze=False, layout="constrained"
        )
        for axis, backend in zip(axes[0], backends, strict=True):
            ends: list[tuple[str, str, float, float]] = []
            for title in dict.fromkeys(row[0] for row in drawn if row[1] == backend):
                here = sorted((row for row in drawn if row[:2] == [title, backend]), key=lambda row: int(row[2]))
                x, y, low, high = ([float(row[column]) for row in here] for column in (2, 4, 5, 6))
                reach = [[m - a for m, a in zip(y, low, strict=True)], [b - m for m, b in zip(y, high, strict=True)]]
                look = look_titled("calibrated plan" if title in OURS[:3] else title)
                line = "" if len(here) == 1 else DASHED.get(title, "-")
                axis.errorbar(x, y, yerr=reach, linestyle=line, elinewidth=0.5, **look.points)
                ends.append((title, look.colour, x[-1], y[-1]))
            axis.set(xlabel="full steps of 50", ylabel="PSNR to the un-cached result (dB)", title=backend)
            axis.set_xticks(sorted({int(row[2]) for row in drawn if row[1] == backend}))
            axis.autoscale_view()
            end_labels(axis, ends, 0.8 * HEIGHT)
        save(figure, PATH.with_suffix(".png"))


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    words = ("budgets", "ceilings", "study_items", "items", "trials", "seeds", "anew")
    own, overrides = split_arguments(arguments, words)
    defaults = {"budgets": "6,8,10,15", "ceilings": "6,8", "study_items": "60", "items": "32"}
    given = {key: own.get(key, text) for key, text in defaults.items()}
    try:
        budgets, ceilings = ([int(word) for word in given[key].split(",")] for key in ("budgets", "ceilings"))
        seeds = [int(word) for word in own.get("seeds", "").split(",") if word]
        count, items = int(given["study_items"]), int(given["items"])
        trials = int(own.get("trials", Options.trials))
    except ValueError as error:
        raise ConfigError(f"budgets, ceilings, seeds, study_items, items, trials: must be integers ({error})") from None
    check(count >= 10, "study_items", "must be an integer >= 10", count)
    settings = resolve(compose(["method=calibrated", *overrides]))
    for budget in budgets:
        check(2 <= budget < settings.num_steps, "budgets", f"must be from 2 to {settings.num_steps - 1}", budget)
    options = Options(items=items, trials=trials)
    bench = Bench.of(settings, count)
    study(settings, bench, budgets, ceilings, options, seeds, own.get("anew", ""))


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
