"""Calibrate a plan on trajectories, or store what `sigma=auto` chooses the sigma and order of HiCache from.

    python -m experiments calibrate backend=digits budget=8
    python -m experiments calibrate backend=digits budget=6,8,10 scope=modules items=32
    python -m experiments calibrate backend=digits budget=8 data=gaussian
    python -m experiments calibrate backend=digits method=hicache scope=modules interval=7
    python -m experiments calibrate backend=digits method=foca policy=placed budget=8
    python -m experiments calibrate backend=digits method=smoothcache          # or teacache, magcache

    items     calibration items, or num_items (32; 10 for curves), with seeds of their own (calibration_seed=1000)
    data      trajectories, or gaussian: no data, a Gaussian model of the noise schedule (scope output)
    memory    anchors per weight row (4 at scope output, 3 elsewhere and without data)
    place_memory  anchors that placing the full steps looks at: 1, 2 or 3 (2, and no more than memory)
    cost      of an error at a step: sampler (what the sampler makes of it), or uniform
    ridge     relative to the trace, > 0 (1e-8; 1e-4 without data)
    refine    loop: weights found under the plan; search: full steps moved under it too; none: open loop;
              newton: after all that the scope and the sampler allow, weights refined by Gauss-Newton through the whole
              sampler, on three items of four (64 items); the fourth decide, and may keep what there was.
              At scope output `search` is the default, for samplers whose next sample is a x + b f; others have `none`.
              At the other scopes `loop` is: it fits again on the model's own values along trajectories of the plan,
              `rounds` times. Without data there is only `none`.
    trials    candidates that a search for full steps scores at most (100; at scope output no more than 20 an item), and
              drawn schedules that are screened before; 0: no search
    tokens    rows of tokens, a seeded choice, that inner products inside the model are of (96)
    basis     with data=gaussian: the weights of a basis (newton, taylor, hermite, ...) of this `order` and `sigma`
              instead of least-squares ones, in the time variable `time` (index, sigma, log_snr)
    full_steps  instead of a budget: these full steps, as in full_steps=0+11+21+29+33+41+46+49, whose weights are found;
              nothing is searched, so a few items will do
    output    the file; by default the shipped place for the backend
    quality   instead of a budget: the fewest full steps with so many dB on held-out items, as in quality=40dB

With `policy=placed` full steps are moved for any method at any scope, from even and other ones, while the final samples
of the items (12) come nearer to the un-cached ones; a third of the items decides whether the found places are kept.

What is not read is refused: curves know items, calibration_seed, classes and output, `method=hicache` the first three
and time, `policy=placed` the first three, budget and trials. A plan's open-loop error is printed first. `loop` and
`search` at scope output add a closed-loop PSNR of every other item, with weights that were found on the rest. That of
`newton` is of every fourth item: weights were fitted on the rest, but these items chose among those visited, so it is
optimistic. So it is where full steps were searched, by the first 32 items.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.artefacts.artefact import SCOPES, keys_of
from experiments.artefacts.moments import Moments, moments_path, save_moments
from experiments.artefacts.plans import path_of, save_plan
from experiments.artefacts.stored_curves import curve_path, save_curves
from experiments.backends import load_backend
from experiments.backends.base import Backend, Item, sampling_of
from experiments.calibration.closed_loop import ClosedLoop, is_one_step, probe, refit
from experiments.calibration.curves import CURVES
from experiments.calibration.first_weights import find_best_start
from experiments.calibration.items import calibration_items
from experiments.calibration.newton_refinement import Inside, Outside, refine_through_sampler, split
from experiments.calibration.options import CURVE_OPTIONS, MOMENT_OPTIONS, PLAN_OPTIONS, Options
from experiments.calibration.places import place_steps
from experiments.calibration.search import SEARCH_ITEMS
from experiments.calibration.targets import cost_line, find_fewest
from experiments.calibration.trajectories import grams, split_arguments, watch
from experiments.cli import Exit
from experiments.config.compose import compose
from experiments.config.method import CalibratedConfig, decibels_of
from experiments.config.run import Settings
from experiments.errors import ConfigError, check, choose
from experiments.settings.automatic import automatic
from experiments.settings.library_method import method_of
from experiments.settings.resolve import resolve
from hicache import sampler
from hicache.fitting.calibrated_plan import CalibratedPlan, build_plan, formula_rows, total_error
from hicache.fitting.gaussian import PREDICTIONS, Gains, gaussian_gram, log_spectrum
from hicache.fitting.gaussian import carry as carry_of
from hicache.fitting.newton import psnr
from hicache.policy import Even, Late

__all__ = ["Calibration", "Options", "calibrate", "gaussian", "make_plan", "measure", "schedule"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """What plans are made from.

    Attributes:
        gram: inner products over the steps of each site, `[sites, T, T]`.
        size: mean square of the guided prediction per step.
        gains: of the sampler.
        loop: the calibration items with their un-cached trajectory, at scope output.
        clocks: time variables of the schedule.
        carry: how errors of two steps add up in the final sample, from trajectories.
        items: the calibration items.
        finals: their un-cached final samples, `[items, ...]`.
    """

    gram: Tensor
    size: Tensor
    gains: Gains
    loop: ClosedLoop | None = None
    clocks: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    carry: Tensor | None = None
    items: list[Item] = dataclasses.field(default_factory=list)
    finals: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))


def measure(settings: Settings, options: Options, backend: Backend, items: list[Item] | None = None) -> Calibration:
    """Trajectories of the calibration items, reduced; of all that `options` name, or of these."""
    scope = settings.scope
    check(scope in SCOPES, "scope", f"must be one of {', '.join(SCOPES)} to be calibrated", scope)
    sampling, items = sampling_of(settings), items or calibration_items(settings, options)
    sites: dict[str, Tensor] = {}
    gains: Gains | None = None
    clocks: dict[str, list[float]] = {}
    carry: Tensor | None = None
    paths, finals = [], []
    size = settings.batch_size if scope != "output" else len(items)
    for start in range(0, len(items), size):
        batch = items[start : start + size]
        wanted = ("output", "sample" if scope == "output" else scope)
        recorder = watch(backend, settings, batch, wanted, None if scope == "output" else options.tokens)
        if gains is None:
            gains, (alpha, sigma, _) = probe(recorder.scheduler), sampler.levels(recorder.scheduler)
            clocks, carry = sampler.clocks(alpha, sigma), carry_of(alpha, sigma, log_spectrum())
        rule = "the sampler must call the model once per step"
        check(len(gains.sample) == sampling.num_steps, "num_steps", rule, sampling.num_steps)
        finals.append(recorder.final.detach().cpu().float())
        for name in list(recorder.frames):
            values = recorder.take(name, len(batch))
            if name == "sample":
                paths.append(torch.cat([values[:, :, 0], finals[-1][:, None]], dim=1))
            else:
                sites[name] = sites.get(name, torch.zeros(())) + grams(values).sum(0) / len(items)
    assert gains is not None
    output = sites.pop("output")
    gram = output[None] if scope == "output" else torch.stack(list(sites.values()))
    loop = None
    if scope == "output":
        shared: dict[str, Any] = {"items": items, "sampling": sampling, "gains": gains, "ridge": options.penalty}
        loop = ClosedLoop(backend=backend, path=torch.cat(paths), **shared)
    found: dict[str, Any] = {"gains": gains, "loop": loop, "items": items, "clocks": clocks, "carry": carry}
    return Calibration(gram=gram, size=output.diagonal(), finals=torch.cat(finals), **found)


def gaussian(settings: Settings, backend: Backend) -> Calibration:
    """The Gram matrix of the noise schedule under Gaussian data of all scales: no model is run."""
    check(settings.scope == "output", "scope", "must be output for data=gaussian", settings.scope)
    alpha, sigma, kind, gains = schedule(settings, backend)
    rule = "must be epsilon, v_prediction, sample or flow matching for data=gaussian"
    check(kind in PREDICTIONS, "prediction_type", rule, kind)
    gram = gaussian_gram(alpha, sigma, gains, log_spectrum(), kind)
    return Calibration(gram=gram[None], size=gram.diagonal(), gains=gains, clocks=sampler.clocks(alpha, sigma))


def schedule(settings: Settings, backend: Backend) -> tuple[Tensor, Tensor, str, Gains]:
    """alpha and sigma of the steps, what is predicted, and the sampler's gains."""
    sampling = sampling_of(settings)
    backend.prepare(sampling)
    scheduler = backend.pipe.scheduler
    try:
        scheduler.set_timesteps(sampling.num_steps)
    except ValueError as error:
        raise ConfigError(f"data: must be trajectories for a schedule that depends on the size ({error})") from error
    gains = probe(copy.deepcopy(scheduler))
    return *sampler.levels(scheduler), gains


def settle(settings: Settings, options: Options, backend: Backend) -> Options:
    """The options with `refine` chosen where it is open; no model is run.

    Raises:
        ConfigError: if the closed loop is asked for and cannot be had.
    """
    if options.data == "gaussian":
        return dataclasses.replace(options, refine="none")
    if settings.scope != "output":
        rule = f"must be none, loop or newton at scope {settings.scope}"
        check(options.refine != "search", "refine", rule, options.refine)
        return dataclasses.replace(options, refine=options.refine or "loop")
    if options.refine in ("none", "newton") or is_one_step(sampler_of(settings, backend)):
        usual = "search" if options.full_steps is None else "loop"
        return dataclasses.replace(options, refine=options.refine or usual)
    rule = f"the next sample of {keys_of(settings)['solver']} is not a x + b f, which the closed loop needs"
    if options.refine is not None:
        raise ConfigError(f"refine: must be none or newton ({rule}), got {options.refine!r}")
    print(f"refine=none: {rule}", flush=True)
    return dataclasses.replace(options, refine="none")


def sampler_of(settings: Settings, backend: Backend) -> Any:
    """A scheduler of the run's own, with its timesteps set."""
    sampling = sampling_of(settings)
    backend.prepare(sampling)
    scheduler = copy.deepcopy(backend.pipe.scheduler)
    # Where the levels depend on the size of the image, what a step is does not.
    shift = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    try:
        scheduler.set_timesteps(sampling.num_steps, **shift)
    except ValueError as error:
        raise ConfigError(f"num_steps: must be steps that the sampler can do ({error})") from error
    return scheduler


def memory_of(scope: str, options: Options) -> int:
    """Anchors per weight row."""
    return options.memory or (4 if scope == "output" and options.data == "trajectories" else 3)


def cost_of(found: Calibration, options: Options) -> Tensor:
    """`c_s`, by which full steps are placed."""
    return found.gains.cost if options.cost == "sampler" else torch.ones_like(found.gains.cost)


def make_plan(
    settings: Settings, options: Options, found: Calibration, budget: int, backend: Backend
) -> CalibratedPlan:
    """The plan for so many full steps."""
    scope, options = settings.scope, settle(settings, options, backend)
    memory, cost = memory_of(scope, options), cost_of(found, options)

    def built(
        budget: int | None = None, full_steps: Sequence[int] | None = None, gram: Tensor = found.gram
    ) -> CalibratedPlan:
        chosen = {"budget": budget, "full_steps": full_steps, "place_memory": options.place_memory}
        return build_plan(gram, cost, scope, **chosen, memory=memory, ridge=options.penalty, size=found.size)

    plan = built(budget) if options.full_steps is None else built(full_steps=options.places)
    if options.basis is not None:
        plan = by_formula(settings, options, found, plan, cost)
    print(
        f"{budget} full steps {list(plan.full_steps)}: open-loop error {plan.predicted_error:.4f} of reuse", flush=True
    )
    if options.refine == "none" or budget in (1, settings.num_steps):
        return plan
    if found.loop is None:
        for _ in range(options.rounds):
            gram = refit(backend, settings, found.items, plan, options.tokens)
            plan = dataclasses.replace(plan, rows=built(full_steps=plan.full_steps, gram=gram).rows)
        if options.refine == "newton":
            chain = Inside(backend=backend, settings=settings, plan=plan, items=found.items, finals=found.finals)
            others = [] if options.full_steps is not None else [Even, Late]
            plan = find_best_start(chain, plan, lambda full: built(full_steps=full), len(found.gram), tell, others)
            return refine_through_sampler(plan, dataclasses.replace(chain, plan=plan), memory, tell)
        return plan
    linear = options.refine != "newton" or is_one_step(sampler_of(settings, backend))
    if options.refine in ("search", "newton") and linear:
        few = found.loop.part(torch.arange(len(found.items)) < SEARCH_ITEMS)
        plan = built(full_steps=few.search(plan.full_steps, memory, options.candidates, tell))
    return close_loop(found.loop, plan, options, memory, linear)


def close_loop(loop: ClosedLoop, plan: CalibratedPlan, options: Options, memory: int, linear: bool) -> CalibratedPlan:
    """The plan at scope output with weights that were found under it; `linear` where the sampler's step is."""
    full = plan.full_steps
    if options.refine == "newton":
        if linear:
            plan = dataclasses.replace(plan, rows=loop.refine(full, memory, split(len(loop.items)))[0])
        return refine_through_sampler(plan, Outside(loop=loop, full_steps=full), memory, tell)
    rows, errors = loop.refine(full, memory)
    apart = loop.held_out(full, memory)
    said = "" if apart is None else f", {apart:.2f} dB on half of them with weights of the other half"
    tell(f"closed loop: {psnr(errors):.2f} dB on the calibration items{said}")
    return dataclasses.replace(plan, rows=rows, closed_loop_psnr=apart)


def tell(line: str) -> None:
    """A line about the plan that is being made."""
    print(f"  {line}", flush=True)


def by_formula(
    settings: Settings, options: Options, found: Calibration, plan: CalibratedPlan, cost: Tensor
) -> CalibratedPlan:
    """The plan's places with the weights of a basis; the predicted error is scaled to them."""
    assert options.basis is not None
    clock = found.clocks[options.time]
    try:
        rows = formula_rows(clock, plan.full_steps, options.basis, settings.order, settings.sigma)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    before, after = (total_error(found.gram, cost, r, found.size) for r in (plan.rows, rows))
    return dataclasses.replace(plan, rows=rows, predicted_error=plan.predicted_error * after / before)


def calibrate(settings: Settings, options: Options, budgets: Sequence[int], quality: float | None = None) -> list[Path]:
    """Make a plan file per budget, or one of the fewest full steps that have `quality` dB."""
    rule = "must be left out for more than one budget, which are a file each"
    check(options.output is None or len(budgets) <= 1, "output", rule, options.output)
    started = time.monotonic()
    backend = load_backend(settings.backend)
    options, scope = settle(settings, options, backend), settings.scope
    if quality is not None:
        held = scope == "output" and options.refine != "none" and options.items > 1
        rule = "must be left out where no items are held out: scope output, a closed loop and two items are needed"
        check(held and is_one_step(sampler_of(settings, backend)), "quality", rule, quality)
    if options.data == "trajectories":
        print(cost_line(options, scope, settings.num_steps, list(budgets), memory_of(scope, options)), flush=True)
    found = gaussian(settings, backend) if options.data == "gaussian" else measure(settings, options, backend)
    print(f"{options.data}: {time.monotonic() - started:.1f} s", flush=True)

    def make_for(budget: int) -> CalibratedPlan:
        return make_plan(settings, options, found, budget, backend)

    plans: Iterable[CalibratedPlan] = map(make_for, budgets)
    if quality is not None:
        assert found.loop is not None
        cost, memory = cost_of(found, options), memory_of(scope, options)
        plans = [find_fewest(found.loop, found.gram, cost, quality, memory, make_for)]
    paths, begun = [], time.monotonic()
    for plan in plans:
        budget = len(plan.full_steps)
        config = CalibratedConfig(name="calibrated", budget=budget, plan=options.output)
        path = path_of(dataclasses.replace(settings, method=config))
        made = dataclasses.asdict(options) | {"output": None, "revision": settings.backend.revision}
        save_plan(path, plan, keys_of(settings), made)
        print(f"plan: {path} ({time.monotonic() - begun:.1f} s)", flush=True)
        paths, begun = [*paths, path], time.monotonic()
    return paths


def store_moments(settings: Settings, options: Options) -> Path:
    """Store what `sigma=auto` and `order=auto` choose from, and print their choice for these settings."""
    started = time.monotonic()
    found = measure(settings, options, load_backend(settings.backend))
    clocks = {name: times for name, times in found.clocks.items() if name != "index"}
    assert found.carry is not None
    moments = Moments(gram=found.gram, cost=found.gains.cost, size=found.size, carry=found.carry, clocks=clocks)
    path, keys = moments_path(settings), keys_of(settings) | {"scope": settings.scope}
    made = {"items": options.items, "calibration_seed": options.calibration_seed, "classes": options.classes}
    save_moments(path, moments, keys, made | {"revision": settings.backend.revision})
    print(f"moments: {path} ({time.monotonic() - started:.1f} s)", flush=True)
    chosen = automatic(dataclasses.replace(settings, time=options.time), ["sigma", "order"])
    full = method_of(settings).policy.plan(settings.num_steps)
    error = chosen.chosen["predicted_error"]
    print(f"sigma={chosen.sigma:g} order={chosen.order}: predicted error {error:.4f} of reuse at full steps {full}")
    return path


def store_curves(settings: Settings, options: Options, name: str) -> Path:
    """Measure the curves of method `name` on un-cached runs and store them."""
    started = time.monotonic()
    curves = CURVES[name](load_backend(settings.backend), settings, calibration_items(settings, options))
    path = Path(options.output) if options.output is not None else curve_path(settings, name)
    made = {"items": options.items, "calibration_seed": options.calibration_seed, "classes": options.classes}
    save_curves(path, curves, keys_of(settings), made | {"revision": settings.backend.revision})
    print(f"curves: {path} ({time.monotonic() - started:.1f} s)", flush=True)
    return path


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    own, overrides = split_arguments(arguments, ("num_items", *PLAN_OPTIONS))
    if "num_items" in own:
        number = own.pop("num_items")
        own.setdefault("items", number)
    if "policy=placed" in overrides:
        place_steps(own, overrides)
        return
    given = [o for o in overrides if o.startswith("method=")]
    name = given[0].partition("=")[2] if given else "calibrated"
    choose("method", name, ("calibrated", "hicache", "hi_taylor", *CURVES))
    read = CURVE_OPTIONS if name in CURVES else PLAN_OPTIONS if name == "calibrated" else MOMENT_OPTIONS
    for key, text in own.items():
        check(key in read, key, f"must be left out for method={name}, which does not read it", text)
    options = Options.parse({key: value for key, value in own.items() if key not in ("budget", "quality")})
    if name in CURVES:
        settings = resolve(compose(["method=none", *(o for o in overrides if o not in given)]))
        store_curves(settings, options if "items" in own else dataclasses.replace(options, items=10), name)
        return
    settings = resolve(compose(overrides if given else ["method=calibrated", *overrides]))
    if name != "calibrated":
        store_moments(settings, options)
        return
    check("time" not in own or options.basis is not None, "time", "must be left out without a basis", options.time)
    quality = decibels_of("quality", own["quality"]) if "quality" in own else None
    for aim, other in (("budget", "quality"), ("budget", "full_steps"), ("quality", "full_steps")):
        check(not {aim, other} <= own.keys(), aim, f"must be left out beside {other}", own.get(aim))
    usual = [] if quality is not None else [str(len(options.places) or 8)]
    try:
        budgets = [int(text) for text in (own["budget"].split(",") if "budget" in own else usual)]
    except ValueError:
        raise ConfigError(f"budget: must be integers, as in 6,8,10, got {own['budget']!r}") from None
    last, steps = max(options.places, default=0), settings.num_steps
    check(last < steps, "full_steps", f"must be below the {steps} steps", options.full_steps)
    for budget in budgets:
        check(1 <= budget <= settings.num_steps, "budget", f"must be from 1 to {settings.num_steps}", budget)
    calibrate(settings, options, budgets, quality)


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
