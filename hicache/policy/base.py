"""The policy interface: one decision per model call, from the clock of its branch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from hicache.tree import Action

__all__ = ["Clock", "Policy"]


@dataclass
class Clock:
    """Where a branch is within its generation.

    `step` counts the calls of one branch, 0..T-1, growing while noise falls (a second-order solver calls
    twice per solver step: both are steps). `timestep` is what the model was given, where it is known.
    """

    branch: str = ""
    step: int = -1
    num_steps: int | None = None
    timestep: float | None = None
    anchors: list[int] = field(default_factory=list)


class Policy(ABC):
    """Decides the action of every step."""

    @abstractmethod
    def decide(self, clock: Clock) -> Action:
        """COMPUTE or ESTIMATE for the step that `clock` points at."""

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
