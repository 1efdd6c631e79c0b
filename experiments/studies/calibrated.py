"""The calibrated plan against the other methods at equal full steps, and what it depends on.

    python -m experiments study calibrated backend=digits part=methods,classes,robustness,free study_items=60

Every method runs the same unseen items and is compared with the un-cached result of the same noise by PSNR. The others
choose the best of their settings (every interval with so many full steps, or even ones; order, sigma, scope) on the
very items that they are judged on: all settings run the first of them, the best few of each method all of them. The
plan is calibrated on other seeds (`part=methods`: the plans that are shipped), for `part=classes` on other classes too.
Each part writes a table (markdown and CSV) to `results/embedded`, the first two a figure.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hicache
from evaluation.fidelity import psnr
from evaluation.statistics import bootstrap_mean
from experiments.artefacts.plans import load_plan
from experiments.backends import load_backend
from experiments.backends.base import Item, Sampling, sampling_of
from experiments.calibration.calibrate import gaussian, make_plan, measure
from experiments.calibration.options import Options
from experiments.calibration.trajectories import split_arguments
from experiments.cli import Exit
from experiments.config.compose import compose
from experiments.config.run import Settings
from experiments.errors import ConfigError, check, choose
from experiments.runs.runner import items_of
from experiments.settings.resolve import resolve
from experiments.studies.study_report import StudyRow, plot_budgets, write_table
from hicache import CacheMethod
from hicache.fitting.calibrated_plan import CalibratedPlan

__all__ = ["Bench", "contenders", "intervals_for"]

BUDGETS = (6, 8, 10)
ORDERS, SIGMAS = (1, 2, 4), (0.4, 0.6, 0.7, 0.75)
WARMUP = 2
SCREEN, FINALISTS = 12, 3
"""Items on which all settings of a method are tried, and how many of them run all items."""
FOLDER = Path("results/embedded")


class Bench:
    """Unseen items with their un-cached result."""

    def __init__(self, settings: Settings, items: list[Item]) -> None:
        self.settings, self.items = settings, items
        self.backend = load_backend(settings.backend)
        self.reference = self.images(None, sampling_of(settings))

    def first(self, count: int) -> Bench:
        """The same with the first `count` items."""
        part = copy.copy(self)
        part.items, part.reference = self.items[:count], self.reference[:count]
        return part

    def images(self, method: CacheMethod | None, sampling: Sampling) -> Tensor:
        """What the items look like under a method."""
        backend, size, made = self.backend, self.settings.batch_size, []
        backend.prepare(sampling)
        for start in range(0, len(self.items), size):
            batch = self.items[start : start + size]
            if method is None:
                made += backend.generate(batch, sampling)
            else:
                with hicache.cached(backend.pipe, method):
                    made += backend.generate(batch, sampling)
        return torch.stack(made)

    def psnr(self, method: CacheMethod | None, sampling: Sampling | None = None) -> tuple[float, float, float]:
        """Mean over the items with its bootstrap interval."""
        images = self.images(method, sampling or sampling_of(self.settings))
        mean, low, high = bootstrap_mean(psnr(images, self.reference).double().tolist(), 0.95, 2000, 0)
        return mean, low, high

    def plan_psnr(self, plan: CalibratedPlan) -> tuple[float, float, float]:
        """The same under a plan, whatever it was calibrated for."""
        return self.psnr(hicache.method("calibrated", **plan.knobs()))


def intervals_for(num_steps: int, budget: int, warmup: int) -> list[int]:
    """Every interval whose schedule has `budget` full steps: they differ in how far the last one is from the end."""
    known = range(1, num_steps + 1)
    found = [interval for interval in known if len(hicache.full_steps(num_steps, interval, warmup)) == budget]
    if not found:
        raise ValueError(f"budget: no interval gives {budget} full steps of {num_steps} after a warm-up of {warmup}")
    return found


def contenders(num_steps: int, budget: int) -> Iterator[tuple[str, str, CacheMethod]]:
    """Title, setting and method of every forecaster that the plan is compared with."""
    known = intervals_for(num_steps, budget, WARMUP)
    schedules: dict[str, dict[str, Any]] = {f"N={n}": {"interval": n, "warmup_steps": WARMUP} for n in known}
    schedules["even"] = {"policy": "even", "budget": budget}
    for (schedule, chosen), scope in itertools.product(schedules.items(), ("output", "modules")):
        shared, where = {**chosen, "scope": scope}, f"{schedule}, {scope}"
        for order in ORDERS:
            yield "TaylorSeer", f"m={order}, {where}", hicache.method("taylorseer", order=order, **shared)
        for name, title in (("hicache", "HiCache"), ("hi_taylor", "Hi-Taylor")):
            for order, sigma in itertools.product(ORDERS, SIGMAS):
                made = hicache.method(name, order=order, sigma=sigma, **shared)
                yield title, f"m={order}, σ={sigma:g}, {where}", made
        for name, title in (("dmd", "HiCache++ (DMD)"), ("chebyshev", "Chebyshev"), ("foca", "FoCa")):
            yield title, where, hicache.method(name, order=2, sigma=0.6, **shared)


def best_of_each(bench: Bench, budget: int) -> list[StudyRow]:
    """A line per method: the best of its settings on all items, among those that were best on the first few."""
    screen, tried = bench.first(SCREEN), {}
    for title, setting, made in contenders(bench.settings.num_steps, budget):
        tried.setdefault(title, []).append((screen.psnr(made)[0], setting, made))
    best: list[StudyRow] = []
    for title, settings in tried.items():
        finalists = sorted(settings, key=lambda entry: -entry[0])[:FINALISTS]
        lines = [StudyRow.of(title, budget, setting, bench.psnr(made)) for _, setting, made in finalists]
        best.append(max(lines, key=lambda line: line.mean))
    for solver, title in (("unipc", "UniPC"), ("dpmpp", "DPM-Solver++")):
        fewer = Sampling(num_steps=budget, solver=solver)
        best.append(StudyRow.of(title, budget, f"{budget} steps", bench.psnr(None, fewer)))
    return best


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
    """A plan and the seconds that its calibration took."""
    started = time.monotonic()
    backend = load_backend(settings.backend)
    found = gaussian(settings, backend) if options.data == "gaussian" else measure(settings, options, backend)
    return make_plan(settings, options, found, budget, backend), time.monotonic() - started


def robustness(settings: Settings, bench: Bench, budget: int, seconds: float) -> None:
    """What the plan depends on: one line per way of calibrating it."""
    lines: list[StudyRow] = []
    options = Options(seconds=seconds)

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


def join_numbers(values: Sequence[float]) -> str:
    """`1, 2 or 4`."""
    words = [format(value, "g") for value in values]
    return f"{', '.join(words[:-1])} or {words[-1]}"


NOTE = (
    "PSNR against the un-cached result of the same noise, mean over unseen items with its 95 % bootstrap interval; "
    "in brackets the seconds of the calibration on a shared two-core machine. `none` is the open-loop plan, `loop` has "
    "its weights found under the plan, `search` its full steps too."
)


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    own, overrides = split_arguments(arguments, ("part", "study_items", "seconds"))
    parts = own.get("part", "methods,classes,robustness,free").split(",")
    for part in parts:
        choose("part", part, ("methods", "classes", "robustness", "free"))
    try:
        count, seconds = int(own.get("study_items", "60")), float(own.get("seconds", "60"))
    except ValueError as error:
        raise ConfigError(f"study_items, seconds: must be numbers ({error})") from None
    check(count >= 10, "study_items", "must be an integer >= 10", count)
    settings = resolve(compose(["method=calibrated", *overrides]))
    items = items_of(dataclasses.replace(settings, num_items=count))
    note = (
        f"PSNR against the un-cached result of the same noise, mean over {count} items with unseen seeds and its 95 % "
        "bootstrap interval. The other methods choose the best of these settings on these items: every interval with "
        f"so many full steps after {WARMUP} warm-up steps, or even ones; order {join_numbers(ORDERS)}, "
        f"σ {join_numbers(SIGMAS)}, scope output or modules; all settings run the first {SCREEN} items, the best "
        f"{FINALISTS} of a method all."
    )
    if "methods" in parts:
        plans = {
            b: load_plan(resolve(compose(["method=calibrated", f"method.budget={b}", *overrides]))) for b in BUDGETS
        }
        compare(Bench(settings, items), plans, "calibrated", "Equal full steps of 50, unseen seeds", note)
    if "classes" in parts:
        options = Options(classes="0+1+2+3+4", seconds=seconds)
        plans = {budget: refine_plan(settings, options, budget)[0] for budget in BUDGETS}
        many = items_of(dataclasses.replace(settings, num_items=2 * count))
        unseen = [item for item in many if item.title in set("56789")]
        text = note.replace("unseen seeds", "unseen seeds of classes 5 to 9 (the plan is calibrated on classes 0 to 4)")
        compare(Bench(settings, unseen), plans, "calibrated_classes", "Equal full steps of 50, unseen classes", text)
    if "free" in parts:
        without_data(settings, Bench(settings, items))
    if "robustness" in parts:
        robustness(settings, Bench(settings, items), 8, seconds)


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
