"""How far the refined plan is ahead of the best published forecaster, by what schedules that one may have.

    python -m experiments study margins backend=digits budgets=6,8,10,15 study_items=40      # and backend=emoji

Two sets of schedules, both without a calibration and without this project's own ones (`late`, `eased`, estimated last
steps): `intervals`, the papers' interval after 1 or 2 warm-up steps, and `intervals or even`, the same and full steps
spread evenly from the first step to the last. Every forecaster has the best of its settings (order, σ, scope) among
them on the judged items themselves (`experiments.studies.contest`); the plan is the shipped one, calibrated on others.
All schedules, this project's own and searched ones too, are in the study of the limit (`experiments study ceiling`).
Lines of other models and budgets in `results/embedded/margins.csv` are kept.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import hicache
from evaluation.statistics import bootstrap_mean
from experiments.artefacts.plans import load_plan
from experiments.calibration.trajectories import split_arguments
from experiments.cli import Exit
from experiments.config.compose import compose
from experiments.errors import ConfigError, check
from experiments.settings.resolve import resolve
from experiments.studies.bench import FOLDER, Bench
from experiments.studies.contest import Contender, contenders, hold_contest
from experiments.studies.study_report import join_stored, write_rows

__all__ = ["COLUMNS", "main", "study"]

COLUMNS = (
    *("model", "full steps", "schedules", "best published", "setting", "PSNR (dB)"),
    *("refined plan", "gain", "gain low", "gain high"),
)
PATH = FOLDER / "margins"
NOTE = (
    "PSNR (dB) against the un-cached result of the same noise, mean over {} unseen items. `best published`: of all "
    "forecasters at the best of their settings on these very items, with the papers' intervals alone, or with even "
    "full steps too. `gain`: of the refined plan, paired, with its 95 % bootstrap interval."
)


def is_interval(entry: Contender) -> bool:
    """Whether its full steps are at an interval after a warm-up."""
    return entry.schedule.startswith("N=")


def study(bench: Bench, budget: int) -> list[list[str]]:
    """The rows of a number of full steps; none of intervals where no interval has as many."""
    settings = bench.settings
    wanted = dataclasses.replace(settings, method=dataclasses.replace(settings.method, budget=budget))
    plan = bench.decibels(hicache.method("calibrated", **load_plan(wanted).knobs()))
    entries, rows = list(contenders(settings, budget)), list[list[str]]()
    intervals = hold_contest(bench, [each for each in entries if is_interval(each)])
    both = intervals + hold_contest(bench, [each for each in entries if each.schedule == "even"])
    for name, winners in (("intervals", intervals), ("intervals or even", both)):
        if not winners:
            continue
        best = max(winners, key=lambda winner: float(winner.values.mean()))
        gain = bootstrap_mean((plan - best.values).tolist(), 0.95, 2000, 0)
        numbers = (float(best.values.mean()), float(plan.mean()), *gain)
        cells = [f"{value:.2f}" for value in numbers]
        rows.append([settings.backend.name, str(budget), name, best.title, best.setting, *cells])
        print(*rows[-1], sep=" | ", flush=True)
    return rows


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    own, overrides = split_arguments(arguments, ("budgets", "study_items"))
    try:
        budgets = [int(word) for word in own.get("budgets", "6,8,10,15").split(",")]
        count = int(own.get("study_items", "40"))
    except ValueError as error:
        raise ConfigError(f"budgets, study_items: must be integers ({error})") from None
    check(count >= 10, "study_items", "must be an integer >= 10", count)
    settings = resolve(compose(["method=calibrated", *overrides]))
    for budget in budgets:
        check(2 <= budget < settings.num_steps, "budgets", f"must be from 2 to {settings.num_steps - 1}", budget)
    bench = Bench.of(settings, count)
    for budget in budgets:
        rows = join_stored(PATH, COLUMNS, study(bench, budget), slice(0, 2))
        rows.sort(key=lambda row: (row[0], int(row[1])))
        write_rows(PATH, "Margins of the refined plan by schedules of the others", NOTE.format(count), COLUMNS, rows)
    print(f"written: {PATH}.csv")


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
