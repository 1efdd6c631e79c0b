"""One generation: its branches, each with a clock and histories of its own, and the report of what was done."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hicache.forecast import Forecaster
from hicache.forecast.forecaster import taken
from hicache.forecast.frames import FeatureForecaster
from hicache.forecast.module_histories import ModuleHistories
from hicache.generation_report import PlanError, Report, Stopwatch
from hicache.generic.layout import Layout
from hicache.patch import Patch
from hicache.policy import Clock, Policy
from hicache.storage import bytes_of
from hicache.tree import Action

__all__ = ["Branch", "Generation", "Memory", "relative_change"]


@dataclass
class Memory:
    """What a branch remembers, kept from one generation to the next for its buffers.

    `forecaster` remembers the scope as a whole, `histories` its modules one by one (both on the fused path), `frames`
    what a tap gives, `single` the modules of a tap one by one, with the `forms` of what they return.
    """

    forecaster: Forecaster
    histories: ModuleHistories
    frames: FeatureForecaster
    build: Callable[[], Forecaster]
    forms: dict[Any, Any] = field(default_factory=dict[Any, Any])
    single: dict[tuple[int, int, int], Forecaster] = field(default_factory=dict[tuple[int, int, int], Forecaster])
    num_steps: int | None = None
    offset: int = 0

    def module(self, place: tuple[int, int, int]) -> Forecaster:
        """The history of one tensor of one module."""
        if place not in self.single:
            self.single[place] = self.build()
            self.single[place].reset(self.num_steps, self.offset)
        return self.single[place]

    def instead(self) -> set[str]:
        """The bases that served in place of the method's since this was asked last."""
        shared = (self.forecaster, *self.histories.forecasters.values(), *self.frames.forecasters.values())
        return taken(*shared, *self.single.values())

    @property
    def fits(self) -> bool:
        """Whether the first forecast behind an anchor keeps what it has fitted."""
        return self.forecaster.history.basis.uses_gram

    @property
    def bytes(self) -> int:
        """Memory of all histories."""
        return sum(each.bytes for each in (self.forecaster, self.histories, self.frames, *self.single.values()))

    def reset(self, num_steps: int | None, offset: int) -> None:
        """Forget the last generation; the next one has `num_steps`, the first of them step `offset` of the sampler."""
        self.num_steps, self.offset, self.forms = num_steps, offset, {}
        for each in (self.forecaster, self.histories, self.frames, *self.single.values()):
            each.reset(num_steps, offset)


@dataclass
class Branch:
    """The state of one branch (conditional, unconditional): its clock, memory, policy and patch.

    Attributes:
        first: the sampler's step at its first call, where its own clock begins.
        first_timestep: that at its first call, where the policy asks how much is noise.
        fused: whether estimated steps leave out the model's own forward.
        proven: whether that was settled.
        why: why they are not fused.
        late: whether it was not called at the step before this one.
        layout: of the features in `memory.frames`.
        signature: of the last computed call.
        steps: those at which it was called.
        forced: full steps that the plan did not ask for: after a gap, and where the call's form has changed.
        watched: what the policy compares with, as of the last step at which it did.
    """

    clock: Clock
    memory: Memory
    policy: Policy
    patch: Patch | None
    first: int = 0
    first_timestep: float | None = None
    fused: bool = True
    proven: bool = False
    why: str = ""
    late: bool = False
    layout: Layout | None = None
    signature: Any = None
    steps: list[int] = field(default_factory=list[int])
    forced: list[int] = field(default_factory=list[int])
    watched: Tensor | None = None

    @property
    def forecaster(self) -> Forecaster:
        """Of the scope as a whole."""
        return self.memory.forecaster

    @property
    def histories(self) -> ModuleHistories:
        """Of the modules one by one."""
        return self.memory.histories

    @property
    def bytes(self) -> int:
        """Memory of all that is kept between calls."""
        return self.memory.bytes + bytes_of((self.watched, self.patch))

    def noise_at(self, timestep: float) -> float:
        """The share of noise at a timestep, 1 for pure noise.

        Timesteps fall from 1 or from 1000, or grow to it, which shows from the first one.

        Raises:
            ValueError: for a timestep that says no share, such as the logarithm of a noise level.
        """
        first = self.first_timestep = timestep if self.first_timestep is None else self.first_timestep
        share = timestep if (timestep <= 1.001 if timestep > first else first < 2) else timestep / 1000
        if not 0 <= share < 1.001:
            rule = "must be from 0 to 1, or to 1000, for a policy that asks how much is noise"
            raise ValueError(f"timestep: {rule}, got {timestep:.4g}")
        return share if timestep <= first else 1 - share

    def forget(self) -> None:
        """Drop what was kept of calls of another form."""
        self.memory.reset(self.memory.num_steps, self.memory.offset)
        self.watched = None

    @torch.no_grad()
    def watch(self, value: Tensor) -> None:
        """Tell the clock how much `value` changed; reading it waits for the GPU."""
        if self.watched is None:
            self.clock.change = None
        else:
            self.clock.change = float(relative_change(self.watched, value))


def relative_change(before: Tensor, value: Tensor) -> Tensor:
    """`mean |value - before| / mean |before|`, in float32 over the batch."""
    before = before.float()
    return (value.float() - before).abs().mean() / before.abs().mean()


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

    @property
    def bytes(self) -> int:
        """Memory of all branches."""
        return sum(branch.bytes for branch in self.branches.values())

    def account(self, branch: Branch, action: Action, watch: Stopwatch) -> None:
        """A step of a branch is done."""
        clock, report = branch.clock, self.report
        if action is not Action.MIXED:
            clock.error = None
        if branch.why:
            report.path, report.reason = "tapped", branch.why
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
                if branch.memory.fits:
                    report.fell_back(clock.step, branch.memory.instead())
        report.kernel = branch.forecaster.kernel or branch.memory.frames.kernel
        if action is not Action.ESTIMATE or (branch.memory.fits and clock.step == clock.anchors[-1] + 1):
            report.cache_bytes = self.bytes

    def check(self, branch: Branch, planned: Iterable[int] | None) -> None:
        """Compare the executed full steps of a branch with the planned ones that it has reached.

        Raises:
            PlanError: if they differ.
        """
        if planned is None:
            return
        clock, planned = branch.clock, set(planned)
        missing = sorted((planned & set(branch.steps)) - set(clock.anchors))
        extra = sorted(set(clock.anchors) - planned - set(branch.forced))
        if missing or extra:
            raise PlanError(f"branch {clock.branch!r}: planned full steps not executed {missing}, not planned {extra}")
