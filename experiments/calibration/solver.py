r"""A fitted multistep solver: the limit of everything that adds up predictions of K model calls.

Between two calls the sampler is `x_{k+1} = A_k x_k + sum_j C_kj F_j`: what estimated steps do to the sample is a choice
of the coefficients `A` and `C`, so without them the solver has no other freedom than these and the times of the calls.
All are fitted through the whole sampler (`hicache.fitting.newton`), from a plan's own: at the end of gap k is added

    sum_j delta_kj F_j + gamma_k x_k,          j over the last m calls,

and call k is told the time `t_k + tau_k (t_{k+1} - t_k)`, where t_{k+1} is that of the next step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from experiments.calibration.around import Step, stepping
from experiments.calibration.closed_loop import ClosedLoop, by_rows
from experiments.calibration.newton_refinement import split
from hicache.fitting.calibrated_plan import CalibratedPlan
from hicache.fitting.newton import Fit, levenberg

__all__ = ["Solver", "fit_solver"]

NUDGES = {"delta": 0.01, "gamma": 0.01, "tau": 0.1}


@dataclass
class Solver:
    """The final samples of a loop's items as a function of the freedom beside a plan.

    Attributes:
        loop: the items.
        plan: what the freedom is beside; its full steps are the calls.
        memory: how many calls a gap adds up.
    """

    loop: ClosedLoop
    plan: CalibratedPlan
    memory: int
    images: list[Tensor] = field(default_factory=list, repr=False)
    known: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @property
    def layout(self) -> list[tuple[str, int, int]]:
        """Of every parameter: what it is, its gap, and the call that it weighs."""
        found = []
        for gap in range(len(self.plan.full_steps)):
            found += [("delta", gap, j) for j in range(max(0, gap + 1 - self.memory), gap + 1)]
            found += [("gamma", gap, gap)] + ([("tau", gap, gap)] if gap else [])
        return found

    def final(self, by: Tensor, since: int = -1) -> Tensor:
        """Final samples `[items, D]`; calls before number `since` give what they gave in the last whole run."""
        loop, full = self.loop, list(self.plan.full_steps)
        extra = {key: float(value) for key, value in zip(self.layout, by, strict=True)}
        loop.backend.prepare(loop.sampling)
        rule, count, anchors, values, states = by_rows(self.plan.rows), [0], [], [], []
        ends, final = {*(s - 1 for s in full[1:]), loop.sampling.num_steps - 1}, []

        def around(step: Step, prediction: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            s = count[0]
            if s in full:
                prediction = self.known[s] if len(anchors) < since else prediction
                anchors.append(s)
                values.append(prediction)
                states.append(sample)
            else:
                prediction = rule(s, sample, anchors, values)
            count[0] += 1
            result = step(prediction, timestep, sample, *args, **kwargs)[0]
            if s in ends:
                gap = len(anchors) - 1
                for j in range(max(0, gap + 1 - self.memory), gap + 1):
                    result = result + extra["delta", gap, j] * values[j]
                result = result + extra["gamma", gap, gap] * states[gap]
            final[:] = [result]
            return (result,)

        shifts = {s: extra.get(("tau", gap, gap), 0.0) for gap, s in enumerate(full)}
        skipped = loop.skipping(lambda: count[0] in full[max(since, 0) :])
        with stepping(loop.backend.pipe.scheduler, around), skipped, self.tell_times(count, shifts):
            self.images = loop.backend.generate(loop.items, loop.sampling)
        if since < 0:
            self.known = dict(zip(anchors, values, strict=True))
        return final[0].cpu().float().flatten(1)

    def tell_times(self, count: list[int], shifts: dict[int, float]) -> Any:
        """The model is told other times at the calls; a context."""
        scheduler = self.loop.backend.pipe.scheduler

        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            s, times = count[0], scheduler.timesteps
            share = shifts.get(s, 0.0)
            if share == 0.0:
                return args, kwargs
            after = times[s + 1] if s + 1 < len(times) else torch.zeros_like(times[s])
            factor = 1 + share * float(after - times[s]) / float(times[s])
            return args, {**kwargs, "timestep": kwargs["timestep"] * factor}

        return self.loop.backend.transformer.register_forward_pre_hook(before, with_kwargs=True)

    def residuals(self, by: Tensor) -> Tensor:
        """What the final samples lack."""
        return self.final(by) - self.loop.path[:, -1].flatten(1)

    def jacobian(self, by: Tensor) -> Tensor:
        """`[items, D, P]` by differences."""
        here, columns = self.final(by), []
        for index, (kind, gap, _) in enumerate(self.layout):
            nudged = by.clone()
            nudged[index] += NUDGES[kind]
            columns.append((self.final(nudged, gap if kind == "tau" else gap + 1) - here) / NUDGES[kind])
        return torch.stack(columns, dim=-1)


def fit_solver(
    loop: ClosedLoop, plan: CalibratedPlan, memory: int, report: Callable[[str], None] = lambda line: None
) -> tuple[Tensor, Fit]:
    """The freedom of the least held-out error, beside a plan."""
    train: Tensor = split(len(loop.items))
    whole, fitted = (Solver(loop=part, plan=plan, memory=memory) for part in (loop, loop.part(train)))
    start = torch.zeros(len(whole.layout), dtype=torch.float64)
    fit = levenberg(whole.residuals, fitted.jacobian, start, train, report=report)
    return fit.parameters, fit
