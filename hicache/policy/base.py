"""The policy interface: one decision per model call, from the clock of its branch."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from hicache.tree import Action, Site

__all__ = ["Clock", "Policy"]


@dataclass
class Clock:
    """Where a branch is within its generation.

    `step` counts the calls of one branch, 0..T-1, growing while noise falls (a second-order solver calls
    twice per solver step: both are steps). `timestep` is the share of noise that the timestep says which the
    model was given, 1 for pure noise, where it is known. `change` is the
    relative change of what a policy watches, None while there is nothing to compare with. `error` is how
    wrong the forecasts verified at the last step were, None if there were none.
    """

    branch: str = ""
    step: int = -1
    num_steps: int | None = None
    timestep: float | None = None
    change: float | None = None
    error: float | None = None
    anchors: list[int] = field(default_factory=list[int])


class Policy(ABC):
    """Decides the action of every step.

    A policy with an `indicator` is told how much the modulated input of the first block changed since the last call;
    one that is a `probe` is asked only when the blocks before the span have run, and told how much they moved since
    the last computed step. Both arrive as `clock.change`. Every branch has its own copy of a policy.

    A policy that `mixes` also decides MIXED, and then is asked for the action of each module that it `covers`;
    the others run. Modules that it always computes at the same steps share a history: `grouping` says which (`all`
    of them, those of a `kind`, or each `site` alone).
    """

    indicator: ClassVar[bool] = False
    probe: ClassVar[bool] = False
    batched: ClassVar[bool] = False
    """Whether it decides from the values of a whole batch, so that an image depends on what it is generated with."""
    mixes: ClassVar[bool] = False
    grouping: ClassVar[str] = "all"
    gated: ClassVar[bool] = True
    """Whether differences may wait for the end of a warm-up (`Basis.gated`)."""
    whole_block: ClassVar[bool] = False
    """Whether VERIFY is about the hidden state after the block, and not about the values of its modules."""
    timed: ClassVar[bool] = False
    """Whether it reads `clock.timestep`, for which a GPU must be waited for."""

    def prepare(self, family: str, blocks: int) -> None:  # noqa: B027
        """The method is enabled on a model of `family` (an adapter's name for it) with so many blocks."""

    @abstractmethod
    def decide(self, clock: Clock) -> Action:
        """COMPUTE, ESTIMATE or MIXED for the step that `clock` points at."""

    def covers(self, site: Site) -> bool:
        """Whether the policy has a say in what happens to a module."""
        del site
        return True

    def named(self) -> Sequence[str]:
        """The modules that it was told of, or their kinds; the model must have them."""
        return ()

    def site_action(self, clock: Clock, site: Site) -> Action:
        """What a module that is covered does at a MIXED step: COMPUTE, ESTIMATE, VERIFY or SKIP."""
        del clock, site
        return Action.ESTIMATE

    def stage(self, clock: Clock) -> int:
        """Which span of scope `front_back` an estimated step replaces: 0 the back half, 1 the front half."""
        del clock
        return 0

    def plan(self, num_steps: int) -> list[int] | None:
        """The full steps of a run of `num_steps`, or None where they depend on the data."""
        policy, clock = copy.deepcopy(self), Clock(num_steps=num_steps)
        full: list[int] = []
        for clock.step in range(num_steps):
            if policy.decide(clock) is Action.COMPUTE:
                full.append(clock.step)
                clock.anchors.append(clock.step)
        return full
