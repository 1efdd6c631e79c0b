r"""The calibrated plan: which steps to compute, and with which weights to estimate the others, from trajectories.

Forecasters that combine past anchors linearly differ in their weights only. Given the inner products of the
values over the steps, `G[s, s'] = E <F(s), F(s')>`, the best weights are a least-squares problem, and the best steps
to compute are a shortest path:

    weights   (G_AA + lambda tr(G_AA) I) w = G_As                        for step s from the anchors A
    error     e(s | A) = G_ss - 2 w^T G_As + w^T G_AA w                   >= 0, of un-cached trajectories (open loop)
    anchors   min sum_s c_s sqrt(e(s | last m anchors)) over all sets of K steps that start with 0

`c_s = |d x_{s+1} / d prediction_s|` is the sampler's (`hicache.fitting.gaussian`). The cost of the steps between two
neighbouring anchors depends on the last m anchors alone, so the minimum is found exactly by dynamic programming
over them.

With several sites every site has its own weights; the error is then the mean relative one, times the size of the
guided prediction. The ridge is relative to the trace, so weights do not depend on the unit of the values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hicache import typed
from hicache.forecast import BASES, ElementwiseBasis
from hicache.forecast.table import StepWeights

__all__ = [
    "CalibratedPlan",
    "best_scale",
    "build_plan",
    "error_of",
    "fit",
    "formula_rows",
    "place",
    "solve",
    "total_error",
    "weigh",
]

RIDGE = 1e-8


@dataclass(frozen=True, kw_only=True)
class CalibratedPlan:
    """What is computed and how the rest is estimated.

    Attributes:
        num_steps: steps of the run that it is made for.
        scope: whose values the weights combine.
        full_steps: the steps that are computed.
        rows: the weights of the others.
        predicted_error: the minimised sum for least-squares weights (open loop), divided by that of reusing the last
            anchor at these full steps.
        closed_loop_psnr: in dB, of the final samples of some calibration items under the plan's full steps; None where
            it was not measured. With `refine=loop` and `search` (scope output) these are every other item, under
            weights found on the rest; the plan's own weights are of all items. With `refine=newton` these are every
            fourth item, under the plan's own weights: they were fitted on the rest, but these items chose among those
            visited, so it is optimistic. So it is where full steps were searched: the first 32 items judged them.
    """

    num_steps: int
    scope: str
    full_steps: tuple[int, ...]
    rows: Mapping[int, StepWeights] = field(repr=False)
    predicted_error: float
    closed_loop_psnr: float | None = None

    @property
    def memory(self) -> int:
        """How many anchors are kept."""
        return max((len(row.anchors) for row in self.rows.values()), default=1)

    def knobs(self) -> dict[str, Any]:
        """What `hicache.method("calibrated", ...)` is to be given."""
        options = {"rows": self.rows, "memory": self.memory, "num_steps": self.num_steps}
        return {"scope": self.scope, "policy": "mask", "mask": list(self.full_steps), "basis_options": options}

    def as_data(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        rows = {
            str(step): {"anchors": list(row.anchors), "weights": [list(w) for w in row.weights]}
            for step, row in self.rows.items()
        }
        measured = {} if self.closed_loop_psnr is None else {"closed_loop_psnr": self.closed_loop_psnr}
        return {
            "num_steps": self.num_steps,
            "scope": self.scope,
            "full_steps": list(self.full_steps),
            "predicted_error": self.predicted_error,
            **measured,
            "rows": rows,
        }

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> CalibratedPlan:
        """The inverse of `as_data`."""
        rows = {
            int(step): StepWeights(anchors=tuple(row["anchors"]), weights=tuple(tuple(w) for w in row["weights"]))
            for step, row in data["rows"].items()
        }
        return CalibratedPlan(
            num_steps=int(data["num_steps"]),
            scope=str(data["scope"]),
            full_steps=tuple(data["full_steps"]),
            rows=rows,
            predicted_error=float(data["predicted_error"]),
            closed_loop_psnr=float(data["closed_loop_psnr"]) if "closed_loop_psnr" in data else None,
        )


def fit(gram: Tensor, anchors: Sequence[int], target: int, ridge: float = RIDGE) -> Tensor:
    """Least-squares weights `[..., m]` of the anchors for step `target`, from `gram` `[..., T, T]`."""
    chosen = list(anchors)
    inner = gram[..., chosen, :][..., chosen]
    return solve(inner, gram[..., chosen, target], ridge)


def solve(inner: Tensor, against: Tensor, ridge: float) -> Tensor:
    """Weights `[..., m]` from the anchors' inner products `[..., m, m]` and those with the target `[..., m]`."""
    trace = inner.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=torch.finfo(inner.dtype).tiny)
    eye = torch.eye(inner.shape[-1], dtype=inner.dtype)
    return typed.solve(inner + ridge * trace[..., None, None] * eye, against)


def error_of(gram: Tensor, anchors: Sequence[int], target: int, weights: Tensor) -> Tensor:
    """Open-loop error `[...]` of any weights `[..., m]`."""
    chosen = list(anchors)
    inner, against = gram[..., chosen, :][..., chosen], gram[..., chosen, target]
    quadratic = (weights[..., None, :] @ inner @ weights[..., :, None])[..., 0, 0]
    return (gram[..., target, target] - 2 * (weights * against).sum(-1) + quadratic).clamp(min=0.0)


def _errors(gram: Tensor, memory: int, ridge: float, size: Tensor) -> Tensor:
    """`sqrt e(s | a_1..a_m)` for all ordered anchors, `[T] * memory + [T]`; a repeated anchor counts once."""
    steps = gram.shape[-1]
    sets = torch.tensor([c for c in itertools.product(range(steps), repeat=memory) if list(c) == sorted(c)])
    inner = gram[:, sets[:, :, None], sets[:, None, :]]
    against = gram[:, sets, :]
    weights = solve(inner, against, ridge)
    explained = 2 * (weights * against).sum(-2) - (weights * (inner @ weights)).sum(-2)
    total = gram.diagonal(dim1=-2, dim2=-1)[:, None, :]
    relative = ((total - explained) / total.clamp(min=torch.finfo(gram.dtype).tiny)).clamp(min=0.0).mean(0)
    found = torch.full((steps,) * (memory + 1), math.inf, dtype=gram.dtype)
    found[tuple(sets.T)] = (relative * size).sqrt()
    return found


def place(
    gram: Tensor, cost: Tensor, budget: int, memory: int = 2, ridge: float = RIDGE, size: Tensor | None = None
) -> list[int]:
    """The `budget` full steps of least total error (see the module docstring).

    Args:
        gram: `[sites, T, T]`.
        cost: `c_s`, `[T]`.
        budget: number of full steps, from 1 to T.
        memory: m, 1 to 3.
        ridge: lambda.
        size: mean square of the guided prediction per step; by default that of the first site.
    """
    steps = gram.shape[-1]
    if not 1 <= budget <= steps:
        raise ValueError(f"budget: must be an integer from 1 to {steps}, got {budget}")
    if memory not in (1, 2, 3):
        raise ValueError(f"memory: must be 1, 2 or 3 to place full steps, got {memory}")
    size = gram[0].diagonal() if size is None else size
    errors = _errors(gram, memory, ridge, size)
    errors = torch.where(cost > 0, cost * errors, torch.zeros_like(errors))  # 0 x inf is not a number
    last = torch.arange(steps)
    later = last[None, :] > last[:, None]
    waiting = torch.where(later, errors, torch.zeros_like(errors)).cumsum(-1)
    waiting = torch.cat([torch.zeros_like(waiting[..., :1]), waiting], dim=-1)
    onward = torch.where(later, waiting[..., :steps], math.inf)
    value = torch.full((steps,) * memory, math.inf, dtype=gram.dtype)
    value[(0,) * memory] = 0.0
    choices: list[Tensor] = []
    for _ in range(budget - 1):
        value, chosen = (value[..., None] + onward).min(dim=0)
        choices.append(chosen)
    state = [int(i) for i in torch.unravel_index((value + waiting[..., steps]).argmin(), value.shape)]
    found = [state[-1]]
    for chosen in reversed(choices):
        state = [int(chosen[tuple(state)]), *state[:-1]]
        found.append(state[-1])
    return found[::-1]


def weigh(
    gram: Tensor, full_steps: Sequence[int], memory: int, ridge: float = RIDGE, shared: bool = False
) -> dict[int, StepWeights]:
    """Least-squares rows of all other steps, each from the last `memory` full steps; `shared` = by all sites."""
    pooled = gram.sum(0, keepdim=True) if shared else gram
    rows: dict[int, StepWeights] = {}
    for step in sorted(set(range(gram.shape[-1])) - set(full_steps)):
        anchors = [a for a in full_steps if a < step][-memory:]
        weights = fit(pooled, anchors, step, ridge)
        rows[step] = StepWeights(anchors=tuple(anchors), weights=tuple(tuple(w) for w in typed.tolist(weights.T)))
    return rows


def total_error(gram: Tensor, cost: Tensor, rows: Mapping[int, StepWeights], size: Tensor) -> float:
    """`sum_s c_s sqrt e(s)` of the rows."""
    total = 0.0
    for step, row in rows.items():
        weights = torch.tensor(row.weights, dtype=gram.dtype).T.expand(gram.shape[0], -1)
        relative = error_of(gram, row.anchors, step, weights) / gram[:, step, step].clamp(min=1e-300)
        total += float(cost[step] * (relative.mean() * size[step]).sqrt())
    return total


def build_plan(
    gram: Tensor,
    cost: Tensor,
    scope: str,
    budget: int | None = None,
    full_steps: Sequence[int] | None = None,
    memory: int = 2,
    ridge: float = RIDGE,
    size: Tensor | None = None,
    place_memory: int | None = None,
) -> CalibratedPlan:
    """Place the full steps, unless they are given, and weigh them.

    Args:
        gram: inner products of the values over the steps, `[sites, T, T]` (or `[T, T]`), float64.
        cost: `c_s` of the sampler, `[T]`.
        scope: the scope that the values belong to.
        budget: number of full steps; exactly one of `budget` and `full_steps` is given.
        full_steps: the full steps themselves.
        memory: anchors per weight row.
        ridge: lambda, relative to the trace.
        size: mean square of the guided prediction per step; by default that of the first site.
        place_memory: how many of a row's anchors placement looks at, up to 3; by default no more than two.
    """
    gram = gram if gram.dim() == 3 else gram[None]
    size = gram[0].diagonal() if size is None else size
    if (budget is None) == (full_steps is None):
        raise ValueError(f"budget: must be given exactly when full_steps is not, got {budget} and {full_steps}")
    if full_steps is None:
        full_steps = place(gram, cost, budget or 0, place_memory or min(memory, 2), ridge, size)
    rows = weigh(gram, full_steps, memory, ridge)
    reuse = {step: StepWeights(anchors=row.anchors[-1:], weights=((1.0,),)) for step, row in rows.items()}
    baseline = total_error(gram, cost, reuse, size)
    error = total_error(gram, cost, rows, size) / baseline if baseline else 0.0
    return CalibratedPlan(
        num_steps=gram.shape[-1], scope=scope, full_steps=tuple(full_steps), rows=rows, predicted_error=error
    )


def best_scale(
    gram: Tensor,
    cost: Tensor,
    full_steps: Sequence[int],
    basis: str = "hermite",
    orders: Sequence[int] = (1, 2, 3, 4),
    sigmas: Sequence[float] = tuple(i / 20 for i in range(1, 31)),
    warmup_steps: int = 1,
    size: Tensor | None = None,
    clock: Sequence[float] | None = None,
    carry: Tensor | None = None,
) -> tuple[float, int, float]:
    """The sigma and order of a scaled basis with the least predicted error of the final sample at given full steps.

    An estimate errs by `eps_s = F(s) - sum_j w_j F(s_j)`, and what counts is the sum that reaches the end: errors of
    neighbouring steps add up or cancel. With `C_ss' = E <eps_s, eps_s'>`, which follows from G and the weights,

        error^2 = mean over sites of sum_ss' carry_ss' c_s c_s' C_ss' sqrt(size_s size_s' / (G_ss G_s's')).

    Args:
        gram: inner products of the values over the steps, `[sites, T, T]` (or `[T, T]`), float64.
        cost: `c_s` of the sampler, `[T]`.
        full_steps: the steps that are computed.
        basis: a key of `hicache.forecast.BASES`, on the ladder of differences.
        orders: which to choose from.
        sigmas: which to choose from.
        warmup_steps: the ladder starts at the last of them; 1 = at the first step.
        size: mean square of the guided prediction per step; by default that of the first site.
        clock: time of every step, where it is not the index.
        carry: how errors of two steps add up at the end (`hicache.fitting.gaussian.carry`); by default as if
            independent.

    Returns:
        sigma, order, and the error divided by that of the same full steps with reuse.
    """
    gram = gram if gram.dim() == 3 else gram[None]
    size = gram[0].diagonal() if size is None else size
    known, times = [s for s in full_steps if s >= warmup_steps - 1], range(gram.shape[-1]) if clock is None else clock
    estimated = sorted(set(range(gram.shape[-1])) - set(full_steps))
    scale = cost * (size / gram.diagonal(dim1=-2, dim2=-1).clamp(min=torch.finfo(gram.dtype).tiny)).sqrt()
    joint = torch.eye(gram.shape[-1], dtype=gram.dtype) if carry is None else carry
    weighing = joint * scale[:, :, None] * scale[:, None, :]

    def error(name: str, order: int, sigma: float) -> float:
        residual = torch.zeros_like(gram[0])
        for step in estimated:
            before = [a for a in known if a < step] or [a for a in full_steps if a < step][-1:]
            anchors = before[-BASES[name].anchors(order) :]
            found = BASES[name].weights([times[a] for a in anchors], times[step], order, sigma)
            residual[step, step] = 1.0
            residual[step, anchors] = -torch.tensor([float(w) for w in found], dtype=gram.dtype)
        squared = (weighing * (residual @ gram @ residual.T)).sum((-2, -1)).mean()
        return math.sqrt(max(float(squared), 0.0))

    least, sigma, order = min((error(basis, m, s), s, m) for m in orders for s in sigmas)
    baseline = error("reuse", 0, 1.0)
    return sigma, order, least / baseline if baseline else 0.0


def formula_rows(
    clock: Sequence[float], full_steps: Sequence[int], basis: str, order: int, sigma: float = 1.0
) -> dict[int, StepWeights]:
    """The weights of a basis at given full steps, in any time variable.

    Args:
        clock: the growing time of every step, such as `hicache.sampler.clocks` gives.
        full_steps: the steps that are computed.
        basis: a key of `hicache.forecast.BASES` whose weights depend on times alone.
        order: highest derivative.
        sigma: contraction factor; its unit is that of the clock.
    """
    rule: Any = BASES[basis]
    if rule.uses_gram or isinstance(rule, ElementwiseBasis):
        raise ValueError(f"basis: must have weights from times alone, got {basis!r}")
    if any(b <= a for a, b in itertools.pairwise(clock)):
        raise ValueError(f"clock: must grow from step to step, got {[round(t, 3) for t in clock]}")
    rows: dict[int, StepWeights] = {}
    for step in sorted(set(range(len(clock))) - set(full_steps)):
        anchors = [a for a in full_steps if a < step][-rule.anchors(order) :]
        found = rule.weights([clock[a] for a in anchors], clock[step], order, sigma)
        rows[step] = StepWeights(anchors=tuple(anchors), weights=tuple((float(w),) for w in found))
    return rows
