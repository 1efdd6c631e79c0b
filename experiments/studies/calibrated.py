"""What the calibrated plan depends on, and what it has on classes that it was not calibrated on.

    python -m experiments study calibrated backend=digits part=classes,robustness,free study_items=60

Every method runs the same unseen items and is compared with the un-cached result of the same noise by PSNR. For
`part=classes` the plan is calibrated on some classes and judged on the others, beside every other method at the best of
its settings on the very items (`experiments.studies.contest`). Each part writes a table (markdown and CSV) to
`results/embedded`, the first a figure. How far the plan is ahead on unseen items of the same classes: `study ceiling`.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Sequence

from evaluation.statistics import bootstrap_mean
from experiments.backends import load_backend
from experiments.calibration.calibrate import gaussian, make_plan, measure
from experiments.calibration.options import Options
from experiments.calibration.trajectories import split_arguments
from experiments.cli import Exit
from experiments.config.compose import compose
from experiments.config.run import Settings
from experiments.errors import ConfigError, check, choose
from experiments.runs.runner import items_of
from experiments.settings.resolve import resolve
from experiments.studies.bench import FOLDER, Bench
from experiments.studies.contest import contenders, hold_contest, measure_fewer_steps
from experiments.studies.study_report import StudyRow, plot_budgets, write_table
from hicache.fitting.calibrated_plan import CalibratedPlan

BUDGETS = (6, 8, 10)


def best_of_each(bench: Bench, budget: int) -> list[StudyRow]:
    """A line per method: the best of its settings."""
    winners = [*hold_contest(bench, contenders(bench.settings, budget)), *measure_fewer_steps(bench, budget)]
    spreads = [(winner, bootstrap_mean(winner.values.tolist(), 0.95, 2000, 0)) for winner in winners]
    return [StudyRow.of(winner.title, budget, winner.setting, spread) for winner, spread in spreads]


def compare(bench: Bench, plans: dict[int, CalibratedPlan], name: str, title: str, note: str) -> None:
    """Table and figure of all methods at every budget."""
    lines: list[StudyRow] = []
    for budget, plan in plans.items():
        best = best_of_each(bench, budget)
        others = max(line.mean for line in best)
        ours = StudyRow.of("calibrated plan (ours)", budget, plan.scope, bench.plan_psnr(plan))
        lines += [ours, *sorted(best, key=lambda line: -line.mean)]
        print(f"{name}, {budget} full steps: {ours.mean:.2f} dB, best other {others:.2f} dB", flush=True)
        write_table(FOLDER / name, title, note, lines)
        plot_budgets(FOLDER / f"{name}.png", title, lines)


def refine_plan(settings: Settings, options: Options, budget: int) -> tuple[CalibratedPlan, float]:
    """A plan and the CPU seconds that its calibration took."""
    started = time.process_time()
    backend = load_backend(settings.backend)
    found = gaussian(settings, backend) if options.data == "gaussian" else measure(settings, options, backend)
    return make_plan(settings, options, found, budget, backend), time.process_time() - started


def study_robustness(settings: Settings, bench: Bench, budget: int, trials: int) -> None:
    """What the plan depends on: one line per way of calibrating it."""
    lines: list[StudyRow] = []
    options = Options(trials=trials)

    def add(label: str, setting: str, judge: Bench, made: tuple[CalibratedPlan, float]) -> None:
        lines.append(
            StudyRow.of(label, len(made[0].full_steps), f"{setting} ({made[1]:.0f} s)", judge.plan_psnr(made[0]))
        )
        print(f"{label}, {setting}: {lines[-1].mean:.2f} dB", flush=True)
        title = f"What the calibrated plan depends on ({budget} full steps of {settings.num_steps} unless stated)"
        write_table(FOLDER / "calibrated_robustness", title, NOTE, lines)

    for refine in ("none", "loop", "search"):
        add("refinement", refine, bench, refine_plan(settings, dataclasses.replace(options, refine=refine), budget))
    loop = dataclasses.replace(options, refine="loop")
    for items in (1, 4, 8, 16):
        add(
            "calibration items",
            f"{items}, loop",
            bench,
            refine_plan(settings, dataclasses.replace(loop, items=items), budget),
        )
    add("calibration items", "8, search", bench, refine_plan(settings, dataclasses.replace(options, items=8), budget))
    for scope, refine in itertools.product(("stack", "modules"), ("none", "loop")):
        inner, few = dataclasses.replace(settings, scope=scope), dataclasses.replace(options, refine=refine, items=16)
        add(f"scope {scope}", f"{refine}, 16 items", bench, refine_plan(inner, few, budget))
    for guidance in (1.0, 4.0):
        other = dataclasses.replace(settings, backend=dataclasses.replace(settings.backend, guidance=guidance))
        judge = Bench(other, bench.items)
        bench.backend = load_backend(settings.backend)
        made = refine_plan(settings, loop, budget)
        judge.backend = load_backend(other.backend)
        add("used at another guidance", f"calibrated at 1.5, used at {guidance:g}, loop", judge, made)
        add("calibrated there", f"guidance {guidance:g}, loop", judge, refine_plan(other, loop, budget))
    for steps in (20, 100):
        other = dataclasses.replace(settings, num_steps=steps)
        add("other step counts", f"{steps} steps, loop", Bench(other, bench.items), refine_plan(other, loop, budget))


def without_data(settings: Settings, bench: Bench) -> None:
    """Plans from the noise schedule alone: least-squares weights, and those of Newton's basis in three times."""
    lines: list[StudyRow] = []
    for budget in BUDGETS:
        plans = {"least squares": Options(data="gaussian", refine="none")}
        for variable in ("index", "sigma", "log_snr"):
            free = Options(data="gaussian", refine="none", basis="newton", time=variable)
            plans[f"Newton, order 2, time={variable}"] = free
        for setting, options in plans.items():
            plan, _ = refine_plan(dataclasses.replace(settings, order=2), options, budget)
            lines.append(StudyRow.of("plan without data", budget, setting, bench.plan_psnr(plan)))
            print(f"without data, {budget} full steps, {setting}: {lines[-1].mean:.2f} dB", flush=True)
    title = "Plans without calibration data: full steps placed by the Gaussian model of the noise schedule"
    write_table(FOLDER / "calibrated_free", title, FREE_NOTE, lines)


FREE_NOTE = (
    "PSNR against the un-cached result of the same noise, mean over unseen items with its 95 % bootstrap interval. The "
    "model has two constants, the largest variance (100) and the ridge (1e-4), chosen among 28 settings on 16 of these "
    "very items."
)


NOTE = (
    "PSNR against the un-cached result of the same noise, mean over unseen items with its 95 % bootstrap interval; "
    "in brackets the CPU seconds of the calibration. `none` is the open-loop plan, `loop` has "
    "its weights found under the plan, `search` its full steps too."
)


CLASSES_NOTE = (
    "PSNR against the un-cached result of the same noise, mean over {} items with unseen seeds of classes 5 to 9 and "
    "its 95 % bootstrap interval; the plan is calibrated on classes 0 to 4. The other methods choose the best of their "
    "settings on these items: interval, even or late full steps, order, σ, scope."
)


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    own, overrides = split_arguments(arguments, ("part", "study_items", "trials"))
    parts = own.get("part", "classes,robustness,free").split(",")
    for part in parts:
        choose("part", part, ("classes", "robustness", "free"))
    try:
        count, trials = int(own.get("study_items", "60")), int(own.get("trials", Options.trials))
    except ValueError as error:
        raise ConfigError(f"study_items, trials: must be integers ({error})") from None
    check(count >= 10, "study_items", "must be an integer >= 10", count)
    settings = resolve(compose(["method=calibrated", *overrides]))
    items = items_of(dataclasses.replace(settings, num_items=count))
    if "classes" in parts:
        options = Options(classes="0+1+2+3+4", trials=trials)
        plans = {budget: refine_plan(settings, options, budget)[0] for budget in BUDGETS}
        many = items_of(dataclasses.replace(settings, num_items=2 * count))
        unseen = [item for item in many if item.title in set("56789")]
        text = CLASSES_NOTE.format(len(unseen))
        compare(Bench(settings, unseen), plans, "calibrated_classes", "Equal full steps of 50, unseen classes", text)
    if "free" in parts:
        without_data(settings, Bench(settings, items))
    if "robustness" in parts:
        study_robustness(settings, Bench(settings, items), 8, trials)


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
