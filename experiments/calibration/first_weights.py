"""Where the refinement inside the model starts: the places and weights that do best as they are.

Least squares on a model's inner values minimise the error of these values, not that of the sample: at the scopes
`stack` and `modules` plain polynomials on the same full steps may be better. So least squares and the formulas of
`FORMULAS`, at the plan's own full steps, at even and at late ones, all run some items, and the best begins. As the
refinement keeps its start where nothing is better on held-out items, a refined plan is no worse than these forecasters
but for the choice of items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from experiments.calibration.newton_refinement import Inside, split
from hicache.fitting.calibrated_plan import CalibratedPlan, formula_rows
from hicache.fitting.newton import decibels
from hicache.forecast.table import StepWeights
from hicache.policy import Even, Late

__all__ = ["FORMULAS", "find_best_start", "by_site"]

FORMULAS = {"taylor": (1, 2, 4), "newton": (2, 3), "foca": (2,)}
"""Bases whose weights follow from times alone, and their orders."""
ITEMS = 16
"""So many of the fitted items are run."""


def find_best_start(
    chain: Inside,
    plan: CalibratedPlan,
    weighed: Callable[[Sequence[int]], CalibratedPlan],
    sites: int,
    report: Callable[[str], None],
    others: Sequence[type[Even]] = (Even, Late),
) -> CalibratedPlan:
    """The plan of the best final samples among those of the module docstring.

    Args:
        chain: the items.
        plan: places and weights that were found already.
        weighed: the least-squares plan at other full steps.
        sites: how many of them have weights.
        report: is told what was chosen.
        others: full steps that are tried beside the plan's own.
    """
    fitted = split(len(chain.items))
    few = chain.part(fitted & (fitted.cumsum(0) <= ITEMS))
    budget, steps = len(plan.full_steps), range(plan.num_steps)
    tried = {("least squares", plan.full_steps): plan}
    for policy in (None, *others):
        full = plan.full_steps if policy is None else tuple(policy(budget=budget).steps(plan.num_steps))
        least = tried.setdefault(("least squares", full), weighed(full))
        for basis, orders in FORMULAS.items():
            for order in orders:
                rows = by_site(formula_rows(list(steps), full, basis, order), sites)
                tried[f"{basis}, order {order}", full] = dataclasses.replace(least, rows=rows)
    scores = {
        key: decibels(dataclasses.replace(few, plan=candidate).residuals(candidate.rows))
        for key, candidate in tried.items()
    }
    kind, full = max(scores, key=lambda key: scores[key])
    own = scores["least squares", plan.full_steps]
    report(f"start: {kind} at {list(full)}: {scores[kind, full]:.2f} dB, least squares at its own {own:.2f} dB")
    return tried[kind, full]


def by_site(rows: dict[int, StepWeights], sites: int) -> dict[int, StepWeights]:
    """Rows of one weight per anchor as rows with a weight per site."""
    return {
        step: StepWeights(anchors=row.anchors, weights=tuple(tuple(w) * sites for w in row.weights))
        for step, row in rows.items()
    }
