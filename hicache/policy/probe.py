r"""The policy of DBCache and First-Block Cache: run a few blocks, and look how far they moved.

The first `front` blocks always run. With `p_s` what they add to the hidden state and `p` what they added at the last
computed step, the span behind them is estimated while

    mean|p_s - p| / mean|p| < threshold,

unless the step is one of the `warmup_steps` first, or more than `max_continuous` steps in a row or `max_cached` in
all would be estimated. Published: DBCache (vipshop/cache-dit) front 8, back 0, warm-up 8, threshold 0.08; First-Block
Cache (diffusers, ParaAttention) front 1, back 0, no warm-up, threshold 0.05. Here `front` is 1 unless told otherwise,
which fits a model of any depth.

The decision is one for the whole batch of a call. A threshold means more the more blocks are probed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hicache.checks import check_integer
from hicache.policy.base import Clock, Policy
from hicache.tree import Action

__all__ = ["Probe"]


@dataclass(kw_only=True)
class Probe(Policy):
    """Estimate the span while the blocks before it barely moved.

    Attributes:
        threshold: relative change of the probe above which the span is computed; infinity leaves it to the limits.
        warmup_steps: leading full steps.
        max_continuous: estimated steps in a row at most, -1 for no limit (MC).
        max_cached: estimated steps of a run at most, -1 for no limit (M).
    """

    probe = True
    batched = True
    threshold: float = 0.08
    warmup_steps: int = 1
    max_continuous: int = -1
    max_cached: int = -1
    streak: int = field(default=0, init=False, repr=False)
    cached: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if math.isnan(self.threshold) or self.threshold < 0:
            raise ValueError(f"threshold: must be a number >= 0, got {self.threshold}")
        for key in ("max_continuous", "max_cached"):
            check_integer(key, getattr(self, key), -1)

    def decide(self, clock: Clock) -> Action:
        near = clock.change is not None and clock.change < self.threshold
        allowed = (self.max_continuous < 0 or self.streak < self.max_continuous) and (
            self.max_cached < 0 or self.cached < self.max_cached
        )
        if clock.step >= self.warmup_steps and near and allowed:
            self.streak += 1
            self.cached += 1
            return Action.ESTIMATE
        self.streak = 0
        return Action.COMPUTE

    def plan(self, num_steps: int) -> list[int] | None:
        """Known only where the threshold never decides."""
        if math.isfinite(self.threshold):
            return None
        twin = Probe(
            threshold=self.threshold,
            warmup_steps=max(self.warmup_steps, 1),
            max_continuous=self.max_continuous,
            max_cached=self.max_cached,
        )
        clock = Clock(num_steps=num_steps, change=0.0)
        full: list[int] = []
        for clock.step in range(num_steps):
            if twin.decide(clock) is Action.COMPUTE:
                full.append(clock.step)
        return full
