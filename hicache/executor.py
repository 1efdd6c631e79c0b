"""The one loop that runs a transformer under a method.

Three things happen at a call: the clock of its branch ticks, the policy decides, and a step of that kind is made:

    COMPUTE    the model's own forward, untouched; observers copy the values of the sites (`hicache.steps.computed`)
    ESTIMATE   no block runs (`hicache.steps.estimated`)
    MIXED      the model's own forward, in which every module has an action of its own (`hicache.steps.mixed`)

A policy that probes decides within the forward (`hicache.steps.probed`). A generation begins with
`begin(num_steps)`, or when the timestep goes up; state left by an aborted one is dropped there. When its last step is
done, the executed full steps are compared with the planned ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hicache.adapters.base import Adapter, Call
from hicache.forecast import Forecaster
from hicache.forecast.modules import ModuleHistories
from hicache.generation import Branch, Generation
from hicache.methods import CacheMethod
from hicache.policy import Clock, Policy
from hicache.report import PlanError, Report, Stopwatch
from hicache.steps.computed import ComputedStep
from hicache.steps.estimated import EstimatedStep
from hicache.steps.mixed import MixedStep
from hicache.steps.probed import ProbedStep
from hicache.steps.setup import Setup
from hicache.tree import Action

__all__ = ["Executor"]


class Executor:
    """Runs the calls of one transformer under one method; see the module docstring.

    Attributes:
        branch: name of the branch to which calls belong at the moment.
        generation: the one under way, or the last.
        setup: the method on the model.
    """

    def __init__(self, adapter: Adapter, method: CacheMethod, forward: Callable[..., Any]) -> None:
        self.setup = Setup(adapter, method, forward)
        self.adapter = adapter
        self.method = method
        self.forward = forward
        self.branch = ""
        self.generation = Generation(method.name, None)
        self.computed = ComputedStep(self.setup)
        self.steps = {
            Action.COMPUTE: self.computed,
            Action.ESTIMATE: EstimatedStep(self.setup),
            Action.MIXED: MixedStep(self.setup),
        }
        self.probed = ProbedStep(self.setup)
        kept = {module.site for module in self.setup.modules}
        self.whole = method.patch is None and all(m.site in kept for m in adapter.modules() if not m.feeds)
        self._idle: dict[str, tuple[Forecaster, ModuleHistories]] = {}

    @property
    def report(self) -> Report:
        """Of the generation under way, or the last."""
        return self.generation.report

    def detach(self) -> None:
        """Remove every observer from the model and drop the histories."""
        self.setup.observers.detach()
        self.generation.branches, self._idle = {}, {}

    def begin(self, num_steps: int | None) -> None:
        """Start a generation: all branches forget the last one."""
        self._idle.update((name, (b.forecaster, b.histories)) for name, b in self.generation.branches.items())
        self.generation = Generation(self.method.name, num_steps)

    def finish(self) -> None:
        """The generation is over.

        Raises:
            PlanError: if a branch stopped early.
        """
        self.generation.finish()

    @contextmanager
    def named(self, branch: str) -> Iterator[None]:
        """Calls inside belong to `branch`."""
        previous, self.branch = self.branch, branch
        try:
            yield
        finally:
            self.branch = previous

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.adapter.bind(args, kwargs)
        branch = self.tick(call)
        watch = Stopwatch(device_of(call))
        action, result = self.step(branch, call, args, kwargs)
        watch.stop()
        self.generation.account(branch, action, watch)
        if branch.clock.step + 1 == branch.clock.num_steps:
            self.check(branch)
        return result

    # -- the clock ---------------------------------------------------------------------------------------------

    def tick(self, call: Call) -> Branch:
        """The branch of this call, its clock moved to this step."""
        timestep = self._read_timestep(call)
        last = self.generation.branches.get(self.branch)
        if last and timestep is not None and last.clock.timestep is not None and timestep > last.clock.timestep:
            self.begin(self.generation.num_steps)
        branch = self.generation.branches.get(self.branch)
        if branch is None:
            branch = self.generation.branches[self.branch] = self._new_branch()
        clock = branch.clock
        clock.step, clock.timestep = clock.step + 1, timestep
        if clock.num_steps is not None and clock.step >= clock.num_steps:
            raise PlanError(
                f"branch {clock.branch!r}: call {clock.step + 1} in a generation of {clock.num_steps} steps; "
                "name the branches of two-call guidance with `with handle.branch(name)`, or call begin(num_steps)"
            )
        return branch

    def _read_timestep(self, call: Call) -> float | None:
        """The timestep as a number, unless reading it would make the GPU wait for no need."""
        timestep = self.adapter.timestep(call)
        wait = self.method.policy.timed or self.generation.num_steps is None
        if timestep is None or timestep.is_meta or (timestep.is_cuda and not wait):
            return None
        return float(timestep.flatten()[0]) / self.adapter.timestep_range

    def _new_branch(self) -> Branch:
        method, adapter, num_steps = self.method, self.adapter, self.generation.num_steps
        forecaster, histories = self._idle.pop(self.branch, (None, None))
        if forecaster is None or histories is None:
            forecaster = method.build_forecaster(lead=2, channel=adapter.channel(method.scope))
            sites = [module.site for module in self.setup.modules]
            histories = ModuleHistories(sites, method.policy.grouping, lambda: method.build_forecaster(lead=2))
        forecaster.reset(num_steps)
        histories.reset(num_steps)
        policy, patch = copy.deepcopy(method.policy), copy.deepcopy(method.patch)
        policy.prepare(adapter.family, len(adapter.blocks()))
        if patch is not None:
            patch.prepare(adapter.family, len(adapter.blocks()), adapter.featured_block + 1)
        return Branch(Clock(branch=self.branch, num_steps=num_steps), forecaster, histories, policy, patch)

    # -- the step ----------------------------------------------------------------------------------------------

    def step(self, branch: Branch, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Action, Any]:
        """What the policy decides, done."""
        if branch.policy.probe:
            return self.probed.run(branch, args, kwargs)
        action = self._decide(branch, call)
        return action, self.steps[action].run(branch, call, args, kwargs)

    def _decide(self, branch: Branch, call: Call) -> Action:
        """Ask the policy, after the look at the first block's input that it may need."""
        if branch.policy.indicator:
            with torch.no_grad():
                value = self.adapter.indicator(call, self.adapter.embed(call))
            branch.watch(value)
            branch.watched = value
        return self.settled(branch.policy.decide(branch.clock), branch.policy, branch.clock)

    def settled(self, action: Action, policy: Policy, clock: Clock) -> Action:
        """A step decided module by module is mixed, unless nothing at all runs."""
        if not self.setup.by_module or action is Action.COMPUTE:
            return action
        sites = [module.site for module in self.setup.modules if not module.feeds]
        idle = self.whole and (
            action is Action.ESTIMATE or all(policy.site_action(clock, site) is Action.ESTIMATE for site in sites)
        )
        return Action.ESTIMATE if idle else Action.MIXED

    # -- the check ---------------------------------------------------------------------------------------------

    def check(self, branch: Branch) -> None:
        """Compare the executed full steps of a branch that is done with the planned ones.

        Raises:
            PlanError: if they differ.
        """
        clock = branch.clock
        planned = self.planned(branch)
        if planned is not None and planned != clock.anchors:
            missing = sorted(set(planned) - set(clock.anchors))
            extra = sorted(set(clock.anchors) - set(planned))
            raise PlanError(f"branch {clock.branch!r}: planned full steps not executed {missing}, not planned {extra}")

    def planned(self, branch: Branch) -> list[int] | None:
        """The full steps that a branch must have executed; None where they depend on the data."""
        return branch.policy.plan(branch.clock.num_steps or 0)


def device_of(call: Call) -> torch.device:
    """Where the call's tensors are."""
    return next((value.device for value in call.values() if isinstance(value, Tensor)), torch.device("cpu"))
