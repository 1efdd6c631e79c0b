"""One generation: its branches, each with a clock and histories of its own, and the report of what was done."""

from __future__ import annotations

import torch
from torch import Tensor

from hicache.forecast import Forecaster
from hicache.forecast.modules import ModuleHistories
from hicache.patch import Patch
from hicache.policy import Clock, Policy
from hicache.report import PlanError, Report, Stopwatch
from hicache.tree import Action

__all__ = ["Branch", "Generation"]


class Branch:
    """The state of one branch (conditional, unconditional): its clock, histories, policy and patch.

    `forecaster` remembers the scope as a whole, `histories` its modules one by one. `watched` is what the policy
    compares with, as of the last step at which it did.
    """

    def __init__(
        self, clock: Clock, forecaster: Forecaster, histories: ModuleHistories, policy: Policy, patch: Patch | None
    ) -> None:
        self.clock = clock
        self.forecaster = forecaster
        self.histories = histories
        self.policy = policy
        self.patch = patch
        self.watched: Tensor | None = None

    @property
    def bytes(self) -> int:
        """Memory of all histories."""
        return self.forecaster.bytes + self.histories.bytes

    @torch.no_grad()
    def watch(self, value: Tensor) -> None:
        """Tell the clock how much `value` changed: mean |v - before| / mean |before|, in float32 over the batch."""
        if self.watched is None:
            self.clock.change = None
        else:
            before = self.watched.float()
            self.clock.change = float((value.float() - before).abs().mean() / before.abs().mean())


class Generation:
    """The branches of a generation by name, and its report.

    Args:
        method: name of the method.
        num_steps: model calls of a branch; None where nobody announced it.
    """

    def __init__(self, method: str, num_steps: int | None) -> None:
        self.num_steps = num_steps
        self.branches: dict[str, Branch] = {}
        self.report = Report(method=method, num_steps=num_steps)

    def account(self, branch: Branch, action: Action, watch: Stopwatch) -> None:
        """A step of a branch is done."""
        clock, report = branch.clock, self.report
        if action is not Action.MIXED:
            clock.error = None
        first = clock.branch == next(iter(self.branches))
        full = report.branches.setdefault(clock.branch, [])
        if action is Action.COMPUTE:
            clock.anchors.append(clock.step)
            full.append(clock.step)
            report.full_times.append(watch)
            if first:
                report.full_steps.append(clock.step)
        else:
            mixed = action is Action.MIXED
            (report.mixed_times if mixed else report.estimated_times).append(watch)
            if first:
                (report.mixed_steps if mixed else report.estimated_steps).append(clock.step)
        report.kernel = branch.forecaster.kernel
        report.cache_bytes = sum(b.bytes for b in self.branches.values())

    def finish(self) -> None:
        """The generation is over: every branch must have run all its steps.

        Raises:
            PlanError: if a branch stopped early.
        """
        for branch in self.branches.values():
            clock = branch.clock
            if clock.num_steps is not None and clock.step != clock.num_steps - 1:
                raise PlanError(f"branch {clock.branch!r}: {clock.step + 1} of {clock.num_steps} steps were executed")
