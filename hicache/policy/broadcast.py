r"""Pyramid Attention Broadcast (arXiv 2408.12588): attention is computed every few steps, everything else always.

While the noise level is inside a window, a block's attention is computed at the steps that are multiples of `range`,
counted from the first step of the generation, and its last output is used in between; outside it is always computed.
So the first step inside the window is computed only if it is such a multiple. The paper has one range per kind of
attention (spatial 2, temporal 4, cross 6); the models here have one kind each. Window: training timesteps 100 to 800
of 1000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hicache.checks import check_integer
from hicache.policy.base import Clock, Policy
from hicache.tree import Action, Site

__all__ = ["Broadcast"]


@dataclass(kw_only=True)
class Broadcast(Policy):
    """Compute attention at every `range`-th step inside the window.

    Attributes:
        range: attention is computed where the step is a multiple of it; 1 computes all.
        low: lower end of the window, as a share of the training timesteps, exclusive.
        high: upper end, exclusive.
    """

    mixes: ClassVar[bool] = True
    grouping: ClassVar[str] = "kind"
    timed: ClassVar[bool] = True
    range: int = 2
    low: float = 0.1
    high: float = 0.8

    def __post_init__(self) -> None:
        check_integer("range", self.range, 1)
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"low: must be between 0 and high <= 1, got {self.low} and {self.high}")

    def covers(self, site: Site) -> bool:
        return site.module == "attn"

    def decide(self, clock: Clock) -> Action:
        if clock.step == 0 or clock.timestep is None or not self.low < clock.timestep < self.high:
            return Action.COMPUTE
        return Action.MIXED if clock.step % self.range else Action.COMPUTE

    def plan(self, num_steps: int) -> list[int] | None:
        """Known only where nothing is broadcast: the window is one of timesteps."""
        return list(range(num_steps)) if self.range == 1 else None
