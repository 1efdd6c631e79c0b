"""Steps on demand: the executor does at the next call what it is told, with histories that are full."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hicache.cost.shapes import RememberedShapes
from hicache.executor import Executor
from hicache.forecast import Forecaster, History
from hicache.generation import Branch
from hicache.methods import Knobs
from hicache.policy import Clock, Policy
from hicache.tree import Action, Site

__all__ = ["Scripted", "any_step", "count", "fill_history", "flops_of", "rehearse"]


class Scripted(Policy):
    """Does at the next step what it is told."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.mixes, self.grouping = policy.mixes, policy.grouping  # type: ignore[misc]
        self.action = Action.COMPUTE
        self.actions: dict[Site, Action] = {}

    @property
    def whole_block(self) -> bool:  # type: ignore[override]
        """As the policy has it."""
        return self.policy.whole_block

    def prepare(self, family: str, blocks: int) -> None:
        self.policy.prepare(family, blocks)

    def covers(self, site: Site) -> bool:
        return self.policy.covers(site)

    def decide(self, clock: Clock) -> Action:
        return self.action

    def site_action(self, clock: Clock, site: Site) -> Action:
        return self.actions[site]

    def stage(self, clock: Clock) -> int:
        return self.policy.stage(clock)

    def plan(self, num_steps: int) -> None:
        """Nothing is planned."""


def forecasters(branch: Branch) -> list[Forecaster]:
    """Those of a branch that have an anchor."""
    memory = branch.memory
    fused = (memory.forecaster, *memory.histories.forecasters.values())
    return [f for f in (*fused, *memory.frames.forecasters.values(), *memory.single.values()) if f.ready]


def fill_history(branch: Branch, anchors: int) -> list[History]:
    """Repeat the only anchor of a branch until its histories are full or hold `anchors`."""
    found = forecasters(branch)
    for forecaster in found:
        history = forecaster.history
        start, frame = max(branch.clock.step + 1, history.warmup_steps or 0), history.frames[0]
        wanted = min(anchors, history.basis.anchors(history.order))
        for extra in range(wanted):
            if len(history.frames) >= wanted:
                break
            forecaster.commit(start + extra, forecaster.slot(frame.shape, frame.dtype, frame.device))
    return [forecaster.history for forecaster in found]


def rehearse(branch: Branch, step: int, num_steps: int | None) -> Branch:
    """Make the next call of a branch that of `step`."""
    for forecaster in forecasters(branch):
        times = forecaster.history.times
        times[:] = range(-len(times), 0)
    branch.clock.step, branch.clock.num_steps = step - 1, num_steps
    return branch


def any_step(knobs: Knobs) -> Knobs:
    """The same knobs, with a table of weights without its rows, which know the steps of their plan only."""
    if knobs.basis != "table":
        return knobs
    return replace(knobs, basis_options={k: v for k, v in knobs.basis_options.items() if k == "memory"})


def count(executor: Executor, example: dict[str, Any]) -> float:
    """FLOPs of the next call."""
    with RememberedShapes():
        return flops_of(lambda: executor(**example))


def flops_of(run: Callable[[], object]) -> float:
    """FLOPs of what is called."""
    from torch.utils.flop_counter import FlopCounterMode  # late: it loads Triton, 75 MB that only a count needs

    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())
