"""Spectrum's schedule: the distance of full steps grows along the run (arXiv 2603.01623)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hicache.checks import check_integer
from hicache.policy.base import Clock, Policy
from hicache.tree import Action

__all__ = ["Growing"]


@dataclass(frozen=True, kw_only=True)
class Growing(Policy):
    """Full at steps 0..w-1, then after `floor(window + j alpha)` steps, j = 0, 1, 2, ...

    Published are w = 5, window = 2 and alpha = 0.75 (14 full steps of 50) or 3 (10 of 50). The last step is not forced.

    >>> Growing(alpha=3.0).plan(50)
    [0, 1, 2, 3, 4, 6, 11, 19, 30, 44]
    """

    warmup_steps: int = 5
    window: float = 2.0
    alpha: float = 0.75

    def __post_init__(self) -> None:
        check_integer("warmup_steps", self.warmup_steps, 1)
        if not (math.isfinite(self.window) and self.window >= 1):
            raise ValueError(f"window: must be a number >= 1, got {self.window}")
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise ValueError(f"alpha: must be a number >= 0, got {self.alpha}")

    def decide(self, clock: Clock) -> Action:
        full, grown = self.warmup_steps - 1, 0
        while full < clock.step:
            full += math.floor(self.window + grown * self.alpha)
            grown += 1
        return Action.COMPUTE if clock.step in (full, *range(self.warmup_steps)) else Action.ESTIMATE
