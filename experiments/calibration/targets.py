"""What a calibration is to reach, and what it costs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from experiments.calibration.closed_loop import ClosedLoop
from experiments.calibration.newton_refinement import HELD_OUT, moves_of
from experiments.calibration.options import Options
from experiments.calibration.search import SCREEN_ITEMS, SEARCH_ITEMS, START_SHARE
from hicache.fitting.calibrated_plan import CalibratedPlan, place
from hicache.fitting.newton import TRIES

__all__ = ["cost_line", "find_fewest", "generations", "search_generations"]


def find_fewest(
    loop: ClosedLoop, gram: Tensor, cost: Tensor, wanted: float, memory: int, made: Callable[[int], CalibratedPlan]
) -> CalibratedPlan:
    """The plan of fewest full steps that has `wanted` dB on held-out items.

    A bisection over placed full steps with closed-loop weights finds where to look; from there plans are made with one
    full step less, and less, as long as they have it.

    Args:
        loop: the calibration items.
        gram: inner products of their predictions, `[1, T, T]`.
        cost: `c_s` of the sampler.
        wanted: in dB.
        memory: anchors per weight row.
        made: the finished plan for a budget.
    """
    low, high = 1, loop.sampling.num_steps
    while high - low > 1:
        middle = (low + high) // 2
        reached = loop.held_out(place(gram, cost, middle), memory)
        low, high = (low, middle) if reached is not None and reached >= wanted else (middle, high)
    best = made(high)
    while high > 2 and reaches(best, wanted):
        fewer = made(high - 1)
        if not reaches(fewer, wanted):
            break
        best, high = fewer, high - 1
    while not reaches(best, wanted) and high < loop.sampling.num_steps:
        high += 1
        best = made(high)
    return best


def reaches(plan: CalibratedPlan, wanted: float) -> bool:
    """Whether a plan has so many dB; all steps in full have any."""
    whole = len(plan.full_steps) == plan.num_steps
    return whole or (plan.closed_loop_psnr is not None and plan.closed_loop_psnr >= wanted)


def generations(options: Options, scope: str, num_steps: int, budget: int, memory: int) -> float:
    """Un-cached generations per item that a plan costs beside its trajectories and the search.

    Full steps are counted. Under `refine=newton` the full steps are taken to be even ones; their places change little.
    """
    run, rounds = budget / num_steps, 0.0 if scope == "output" else float(options.rounds)
    if options.refine in (None, "loop", "search"):
        return 2 * run if scope == "output" else rounds
    if options.refine == "none":
        return 0.0
    full = torch.linspace(0, num_steps - 1, budget).round().int().tolist()
    moves = moves_of(full, num_steps, memory)
    later = [sum(s >= move.steps[0] for s in full) if scope == "output" else budget for move in moves]
    share = (HELD_OUT - 1) / HELD_OUT
    return rounds + share * (run + sum(later) / num_steps) + (1 + TRIES) * run + run


def search_generations(options: Options, scope: str, num_steps: int, budget: int) -> float:
    """Un-cached generations per item that the search of a plan costs at most.

    A candidate with the i-th full step moved begins as the best one did: (K - i) of K calls are left, half on average.
    Starts are run whole, and as many as there are candidates are screened on a few items.
    """
    if scope != "output" or options.refine not in ("search", "newton") or not options.candidates:
        return 0.0
    scored, run = options.candidates, budget / num_steps
    items, screened = min(SEARCH_ITEMS, options.items), scored * min(SCREEN_ITEMS, options.items)
    return (items * (scored + scored // START_SHARE + 1) / 2 + screened) / options.items * run


def cost_line(options: Options, scope: str, num_steps: int, budgets: list[int], memory: int) -> str:
    """What a calibration will cost, in un-cached generations."""
    searched = sum(search_generations(options, scope, num_steps, budget) for budget in budgets)
    each = 1 + searched + sum(generations(options, scope, num_steps, budget, memory) for budget in budgets)
    more = f", up to {searched * options.items:.0f} of these for the search" if searched else ""
    more += "" if budgets else ", and those of the plans that are tried"
    total = f"{each * options.items:.0f} of {options.items} items in all"
    return f"cost: about {each:.1f} full generations per item, {total}{more}"
