r"""Closed-loop calibration at scope `output`: weights and places are judged on trajectories that follow the plan.

Open-loop weights aim at the un-cached prediction F(s) of an un-cached trajectory. Under the plan the sample has
drifted, and what counts is where the sampler goes next. With a one-step sampler, x_{s+1} = a_s x_s + b_s f, the
prediction that would lead from the drifted sample back to the un-cached trajectory x* is

    f* = (x*_{s+1} - a_s x_s) / b_s,

and the weights of step s are the least-squares ones for f* on the anchors that the plan has produced. They are found
step by step in one run of the plan, so every step sees the drift of those before it: no iteration is left over.
Other samplers are told apart by `is_one_step`, and have the open-loop plan.

*Other scopes.* There the prediction is not a weighted sum, so the weights are fitted again to the model's own values
along trajectories of the plan (`refit`), as often as wanted.

*Places.* Full steps are moved one at a time (`experiments.calibration.search`); a move stays if the mean PSNR of the
final samples under closed-loop weights grows. It starts from the open-loop optimum, schedules without data, and
drawn ones: as many as there are trials are screened on a few items, and the best of them go on. Every
item judges, under weights of all items: with 32 of them unseen items have as much.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import hicache
from experiments.backends.base import Backend, Item, Sampling, sampling_of
from experiments.calibration.around import Step, stepping
from experiments.calibration.search import SCREEN_ITEMS, Places, find_starts, search
from experiments.calibration.trajectories import TrajectoryRecorder, grams
from experiments.config.run import Settings
from hicache.adapters.modules import replaced
from hicache.fitting.calibrated_plan import CalibratedPlan, StepWeights, solve
from hicache.fitting.gaussian import Gains
from hicache.fitting.newton import psnr
from hicache.forecast.combine import combine
from hicache.policy import Eased, Even, Late

__all__ = ["ClosedLoop", "Rule", "by_rows", "is_one_step", "probe", "refit"]

MOVES = (2, 1, 3)
"""By how much the search moves a full step, in this order."""
Rule = Callable[[int, Tensor, list[int], list[Tensor]], Tensor]
"""`(step, sample, anchors, values of the anchors) -> prediction` for an estimated step."""


def probe(scheduler: Any) -> Gains:
    """`a_s` and `b_s` of a diffusers scheduler, measured: one chain, disturbed at one step per element.

    Elements 1..T get another sample before step j, T+1..2T another prediction; both are compared with element 0 right
    after step j. Schedulers are linear in both, so the difference is the gain itself. The timesteps are set already
    and no step is done.
    """
    timesteps = scheduler.timesteps
    num_steps = len(timesteps)
    sample = torch.zeros(1 + 2 * num_steps, 1, 1, 1, dtype=torch.float64)
    a, b = torch.zeros(num_steps, dtype=torch.float64), torch.zeros(num_steps, dtype=torch.float64)
    for j, t in enumerate(timesteps):
        prediction = torch.zeros_like(sample)
        sample[1 + j] += 1.0
        prediction[1 + num_steps + j] += 1.0
        sample = scheduler.step(prediction, t, sample, return_dict=False)[0].double()
        a[j], b[j] = (float(sample[i] - sample[0]) for i in (1 + j, 1 + num_steps + j))
    return Gains(sample=a, prediction=b)


def is_one_step(scheduler: Any, tolerance: float = 1e-3) -> bool:
    """Whether every step is `x_{s+1} = a_s x_s + b_s f`, on one chain of random predictions.

    A multistep solver has terms of earlier predictions, a clipped or a stochastic one is no such line. The timesteps
    are set already and no step is done; the scheduler is left as it is.
    """
    gains, scheduler = probe(copy.deepcopy(scheduler)), copy.deepcopy(scheduler)
    noise = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 1, 8, 8, dtype=torch.float64, generator=noise)
    for s, t in enumerate(scheduler.timesteps):
        prediction = torch.randn(sample.shape, dtype=torch.float64, generator=noise)
        expected = gains.sample[s] * sample + gains.prediction[s] * prediction
        sample = scheduler.step(prediction, t, sample, return_dict=False)[0].double()
        if not bool((sample - expected).abs().max() <= tolerance * expected.abs().max()):
            return False
    return True


def by_rows(rows: Mapping[int, StepWeights]) -> Rule:
    """The estimates of given weights."""

    def rule(s: int, sample: Tensor, anchors: list[int], values: list[Tensor]) -> Tensor:
        del sample
        return combine([w[0] for w in rows[s].weights], [values[anchors.index(a)] for a in rows[s].anchors])

    return rule


@dataclass
class ClosedLoop:
    """Runs plans on fixed items whose un-cached trajectory is known.

    Attributes:
        backend: the model; its scheduler must be a one-step one with the given gains.
        items: one batch.
        sampling: steps and solver.
        gains: of the scheduler.
        path: the un-cached samples `[items, T + 1, ...]`, the last one final.
    """

    backend: Backend
    items: list[Item]
    sampling: Sampling
    gains: Gains
    path: Tensor
    ridge: float = 1e-8
    last: Any = dataclasses.field(default=None, repr=False)
    """What the model gave at its last call with these items."""
    computed: dict[int, Tensor] = dataclasses.field(default_factory=dict, repr=False)
    """The predictions of the full steps of the last run."""

    def run(self, full_steps: Sequence[int], rule: Rule, known: Mapping[int, Tensor] | None = None) -> Tensor:
        """Final samples under the plan, with the estimates that `rule` makes.

        Args:
            full_steps: the plan.
            rule: gives the predictions of the other steps.
            known: predictions of full steps at which the model need not be run.
        """
        known = {} if known is None else known
        self.backend.prepare(self.sampling)
        anchors, values, count, final = [], [], [0], []

        def around(step: Step, prediction: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            s = count[0]
            if s in full_steps:
                anchors.append(s)
                values.append(known.get(s, prediction))
                prediction = values[-1]
            else:
                prediction = rule(s, sample, anchors, values)
            count[0] += 1
            result = step(prediction, timestep, sample, *args, **kwargs)
            final[:] = [result[0]]
            return result

        skipped = self.skipping(lambda: count[0] in full_steps and count[0] not in known)
        with stepping(self.backend.pipe.scheduler, around), skipped:
            self.backend.generate(self.items, self.sampling)
        self.computed = dict(zip(anchors, values, strict=True))
        return final[0]

    def skipping(self, needed: Callable[[], bool]) -> AbstractContextManager[None]:
        """Calls of the model that are not needed give the result of the last one that was."""
        model = self.backend.transformer
        own = model.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.last is None or needed():
                self.last = own(*args, **kwargs)
            return self.last

        return replaced([(model, forward)])

    def part(self, chosen: Tensor) -> ClosedLoop:
        """The same with some of the items."""
        items = [item for item, taken in zip(self.items, chosen.tolist(), strict=True) if taken]
        return dataclasses.replace(self, items=items, path=self.path[chosen], last=None)

    def refine(
        self,
        full_steps: Sequence[int],
        memory: int,
        train: Tensor | None = None,
        known: Mapping[int, Tensor] | None = None,
    ) -> tuple[dict[int, StepWeights], Tensor]:
        """Closed-loop rows at these full steps, and the mean square error of each item's final sample.

        Args:
            full_steps: the plan.
            memory: anchors per row.
            train: which items the weights are found on; by default all.
            known: predictions of full steps at which the model need not be run.
        """
        rows: dict[int, StepWeights] = {}
        chosen = torch.ones(len(self.items), dtype=torch.bool) if train is None else train

        def rule(s: int, sample: Tensor, anchors: list[int], values: list[Tensor]) -> Tensor:
            basis = torch.stack(values[-memory:])
            weights = self.weigh(s, sample, basis, chosen)
            rows[s] = StepWeights(anchors=tuple(anchors[-memory:]), weights=tuple((float(w),) for w in weights))
            return torch.einsum("k,k...->...", weights.to(basis.dtype), basis)

        return rows, self.lost(self.run(full_steps, rule, known))

    def weigh(self, s: int, sample: Tensor, basis: Tensor, chosen: Tensor) -> Tensor:
        """Least-squares weights `[k]` of the basis `[k, items, ...]` for f* of step s, on the chosen items."""
        a, b = float(self.gains.sample[s]), float(self.gains.prediction[s])
        wanted = (self.path[chosen, s + 1] - a * sample[chosen]) / b
        flat = basis[:, chosen].flatten(1).double()
        return solve(flat @ flat.T, flat @ wanted.flatten().double(), self.ridge)

    def lost(self, final: Tensor) -> Tensor:
        """Mean square error of each item's final sample."""
        return (final - self.path[:, -1]).square().flatten(1).mean(1)

    def held_out(self, full_steps: Sequence[int], memory: int) -> float | None:
        """PSNR of every other item, under rows that are found on the rest; None if there is one item."""
        train = torch.arange(len(self.items)) % 2 == 0
        return None if bool(train.all()) else psnr(self.refine(full_steps, memory, train)[1][~train])

    def follow(self, full_steps: Sequence[int], rows: dict[int, StepWeights]) -> Tensor:
        """Mean square error of each item's final sample under given rows."""

        return self.lost(self.run(full_steps, by_rows(rows)))

    def search(self, full_steps: Sequence[int], memory: int, trials: int, report: Callable[[str], None]) -> list[int]:
        """Move full steps while the PSNR of the final samples grows under weights that were found on them.

        Args:
            full_steps: a start; others are drawn, and screened on `SCREEN_ITEMS` items.
            memory: anchors per row.
            trials: how many candidates are scored at most (`experiments.calibration.search`), and how many screened.
            report: is told of every better one.
        """
        steps, few = self.sampling.num_steps, self.part(torch.arange(len(self.items)) < SCREEN_ITEMS)
        plain = [tuple(policy(budget=len(full_steps)).steps(steps)) for policy in (Even, Late, Eased)]
        starts = find_starts(Scores(few, memory, lambda line: None), [tuple(full_steps), *plain], steps, trials)
        return list(search(Scores(self, memory, report), starts, steps, trials, MOVES))


class Scores:
    """PSNR of places under `ClosedLoop.refine`; full steps that the best ones begin with too are not run again."""

    def __init__(self, loop: ClosedLoop, memory: int, report: Callable[[str], None]) -> None:
        self.loop, self.memory, self.report = loop, memory, report
        self.most, self.best, self.values = -math.inf, Places(), dict[int, Tensor]()

    def __call__(self, places: Places) -> float:
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(places, self.best, strict=False))
        known = {s: self.values[s] for s, _ in same}
        found = psnr(self.loop.refine(places, self.memory, known=known)[1])
        if found > self.most:
            if self.best:
                self.report(f"full steps {list(places)}: {found:.2f} dB")
            self.most, self.best, self.values = found, places, self.loop.computed
        return found


def refit(
    backend: Backend, settings: Settings, items: list[Item], plan: CalibratedPlan, tokens: int | None = None
) -> Tensor:
    """Gram matrices `[sites, T, T]` of the model's own values along trajectories that follow `plan`.

    At an estimated step the un-cached forward runs first, for the observers alone; then the plan makes the step.
    """
    sites: dict[str, Tensor] = {}
    sampling, size = sampling_of(settings), settings.batch_size
    for start in range(0, len(items), size):
        batch = items[start : start + size]
        backend.prepare(sampling)
        with hicache.cached(backend.pipe, hicache.method("calibrated", **plan.knobs())):
            recorder = TrajectoryRecorder(backend, (plan.scope,), tokens)
            with recorder.watching(calls=False):
                before = shadow(backend.transformer, recorder, plan.full_steps)
                hook = backend.transformer.register_forward_pre_hook(before, with_kwargs=True)
                try:
                    backend.generate(batch, sampling)
                finally:
                    hook.remove()
        for name in list(recorder.frames):
            found = grams(recorder.take(name, len(batch))).sum(0) / len(items)
            sites[name] = sites.get(name, torch.zeros(())) + found
    return torch.stack(list(sites.values()))


def shadow(model: nn.Module, recorder: TrajectoryRecorder, full_steps: Sequence[int]) -> Callable[..., None]:
    """A hook before the forward of a model: at estimated steps its class's own forward runs too.

    Of a model without an adapter it runs at every step, because what the method does is not to be seen.
    """

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if recorder.features is not None:
            recorder.features.see(lambda: type(model).forward(model, *args, **kwargs))
        elif recorder.step not in full_steps:
            type(model).forward(model, *args, **kwargs)

    return before
