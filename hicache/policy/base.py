"""The policy interface: one decision per model call, from the clock of its branch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from hicache.tree import Action

__all__ = ["Clock", "Policy"]


@dataclass
class Clock:
    """Where a branch is within its generation.

    `step` counts the calls of one branch, 0..T-1, growing while noise falls (a second-order solver calls
    twice per solver step: both are steps). `timestep` is what the model was given, where it is known. `change` is the
    relative change of what a policy watches, None while there is nothing to compare with.
    """

    branch: str = ""
    step: int = -1
    num_steps: int | None = None
    timestep: float | None = None
    change: float | None = None
    anchors: list[int] = field(default_factory=list)


class Policy(ABC):
    """Decides the action of every step.

    A policy with an `indicator` is told how much the modulated input of the first block changed since the last call;
    one that is a `probe` is asked only when the blocks before the span have run, and told how much they moved since
    the last computed step. Both arrive as `clock.change`. Every branch has its own copy of a policy.
    """

    indicator: ClassVar[bool] = False
    probe: ClassVar[bool] = False

    def prepare(self, family: str) -> None:  # noqa: B027
        """The method is enabled on a model of `family` (an adapter's name for it)."""

    @abstractmethod
    def decide(self, clock: Clock) -> Action:
        """COMPUTE or ESTIMATE for the step that `clock` points at."""

    def stage(self, clock: Clock) -> int:
        """Which span of scope `front_back` an estimated step replaces: 0 the back half, 1 the front half."""
        del clock
        return 0

    def plan(self, num_steps: int) -> list[int] | None:
        """The full steps of a run of `num_steps`, or None where they depend on the data."""
        clock, full = Clock(num_steps=num_steps), []
        for clock.step in range(num_steps):
            if self.decide(clock) is Action.COMPUTE:
                full.append(clock.step)
                clock.anchors.append(clock.step)
        return full

    def reset(self) -> None:  # noqa: B027
        """Forget the last generation (nothing to forget unless a policy has state)."""
