"""FLOPs of a run, counted from shapes: on the loaded model, or on one without weights.

Counts on models without weights are kept per (model, size, method without its plan): rows that differ only in when they
compute share one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.backends import backend_of
from experiments.backends.base import Backend, sampling_of
from experiments.config.imports import load
from experiments.config.run import Settings
from experiments.settings.library_method import method_of, operators_of
from experiments.settings.prepare import Run, prepare
from hicache import CacheMethod
from hicache.adapters import adapter_for
from hicache.cost import Cost, measure, prepared

__all__ = [
    "cost_of",
    "count_flops",
]


def count_flops(
    backend: Backend,
    given: Settings | Run,
    full_steps: list[int] | None = None,
    batch: int | None = None,
    mlp_share: float | None = None,
) -> Cost:
    """FLOPs of one item, from shapes; `full_steps` are those executed, by default those planned.

    `batch` is that of the model, by default all that guidance needs; `mlp_share` that of the hidden units which sparse
    operators recomputed, by default the expected one.
    """
    run = prepare(given)
    if (found := backend.traced(run.items[:1], run.sampling)) is not None:
        calls, items = found
        return calls.cost(run.method, full_steps, 1 / items)
    options: dict[str, Any] = {"batch": batch or backend.model_batch(1), **backend.shape()}
    options |= {"full_steps": full_steps, "operators": run.operators, "mlp_share": mlp_share}
    return measure(backend.transformer, run.method, num_steps=run.sampling.num_steps, **options)


_costs: dict[str, Cost] = {}


def cost_of(
    settings: Settings, convention: str = "executed", full_steps: int | None = None, flops_only: bool = False
) -> Cost | None:
    """Cost of one item; None where that is not known before a generation.

    So it is where the plan depends on the data and `full_steps` does not say how many there are, and where only a
    generation tells what the model is called with.

    With `flops_only`, methods that differ in what they forecast with, not in what they compute, share a count; the
    bytes of the cache and the element-wise overhead are then those of any of them.
    """
    load("experiments.backends.meta_backend")  # late: who reads finished runs needs no diffusers
    from experiments.backends.diffusers_backend import DiffusersBackend
    from experiments.backends.meta_backend import blueprint_of

    if issubclass(backend_of(settings.backend), DiffusersBackend):
        return None
    method, steps = method_of(settings), sampling_of(settings).num_steps
    adapter = adapter_for(blueprint_of(settings.backend).transformer)
    plan = prepared(method.policy, adapter.family, len(adapter.blocks())).plan(steps)
    if full_steps is None and (plan is None or settings.guidance.name != "plain"):
        return None
    full = plan if plan is not None else list(range(int(full_steps or 0)))
    if method.mixes or settings.operators.name != "none":
        return count_once(settings, method, convention, flops_only, full)
    one = count_once(settings, method, convention, flops_only, list(range(max(steps - 1, 1))))
    return dataclasses.replace(one, full_steps=len(full), num_steps=steps)


FORECASTS = ("order", "sigma", "sigma_schedule", "sigma_options", "basis", "basis_options", "history", "gate")
"""Knobs of the element-wise arithmetic, which FLOPs do not count."""

PLAN = ("interval", "budget", "warmup_steps", "policy", "policy_options", "mask")
"""Knobs that say which steps are computed, and no more than that where no step is mixed."""


def count_once(settings: Settings, method: CacheMethod, convention: str, flops_only: bool, full: list[int]) -> Cost:
    """Cost of a run with these full steps; counts that must be equal are made once."""
    from experiments.backends.meta_backend import blueprint_of, quiet

    steps = sampling_of(settings).num_steps
    operators = operators_of(settings)
    whole = method.mixes or operators is not None
    left_out = {*(() if whole else PLAN), *(FORECASTS if flops_only else ("sigma",))}
    knobs = {name: value for name, value in vars(method.knobs).items() if name not in left_out}
    own = () if flops_only else (method.name, steps)
    key = repr(
        (settings.backend, convention, method.caches, method.scope, knobs, own, operators, (steps, full) * whole)
    )
    if key not in _costs:
        backend = blueprint_of(settings.backend)
        shape: dict[str, Any] = {"batch": backend.model_batch(1), **backend.shape()}
        with quiet():
            _costs[key] = measure(
                backend.transformer, method, steps, full_steps=full, convention=convention, operators=operators, **shape
            )
    return _costs[key]
