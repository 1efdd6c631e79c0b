"""Steps of a model that has an adapter: estimated ones leave its own forward out."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hicache.adapters.base import Call
from hicache.generation import Branch
from hicache.policy import Clock, Policy
from hicache.steps.computed import ComputedStep
from hicache.steps.estimated import EstimatedStep
from hicache.steps.mixed import MixedStep
from hicache.steps.probed import ProbedStep
from hicache.steps.setup import Setup
from hicache.tree import Action

__all__ = ["FusedSteps"]


class FusedSteps:
    """One step of each kind."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.steps = {
            Action.COMPUTE: ComputedStep(setup),
            Action.ESTIMATE: EstimatedStep(setup),
            Action.MIXED: MixedStep(setup),
        }
        self.probed = ProbedStep(setup)
        kept = {module.site for module in setup.modules}
        every = all(m.site in kept for m in setup.adapter.modules() if not m.feeds)
        self.whole = setup.method.patch is None and every

    def run(self, action: Action, branch: Branch, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a step of one kind."""
        if action is not Action.ESTIMATE:
            self.setup.adapter.renew()
        return self.steps[action].run(branch, call, args, kwargs)

    def watched(self, call: Call) -> Tensor:
        """What an indicator looks at: the modulated input of the first block."""
        adapter = self.setup.adapter
        return adapter.indicator(call, adapter.embed(call))

    def settle(self, action: Action, policy: Policy, clock: Clock, fused: bool = True) -> Action:
        """A step decided module by module is mixed, unless nothing at all runs and the step may be fused."""
        setup = self.setup
        if not setup.by_module or action is Action.COMPUTE:
            return action
        sites = [module.site for module in setup.modules if not module.feeds]
        idle = (
            fused
            and self.whole
            and (action is Action.ESTIMATE or all(policy.site_action(clock, s) is Action.ESTIMATE for s in sites))
        )
        return Action.ESTIMATE if idle else Action.MIXED

    @property
    def stale(self) -> bool:
        """Whether modules of the model were exchanged since the observers were put onto them."""
        return self.setup.stale
