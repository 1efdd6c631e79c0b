"""Schemas of conf/guidance/: how classifier-free guidance is done."""

from __future__ import annotations

import math
from dataclasses import dataclass

from experiments.errors import check
from hicache.methods import MAX_ORDER

__all__ = [
    "AdaptiveGuidanceConfig",
    "GuidanceConfig",
]


@dataclass(kw_only=True)
class GuidanceConfig:
    """How classifier-free guidance is done; `plain` makes both predictions at every step."""

    name: str = "plain"


@dataclass(kw_only=True)
class AdaptiveGuidanceConfig(GuidanceConfig):
    """Only the conditional prediction once the two agree; see `hicache.AdaptiveGuidance`."""

    threshold: float = 0.94
    warmup_steps: int = 2
    order: int | None = 1
    """0 reuses the last difference, null leaves guidance out of a step with one prediction."""
    last: bool = True

    def __post_init__(self) -> None:
        check(math.isfinite(self.threshold), "guidance.threshold", "must be a finite number", self.threshold)
        check(self.warmup_steps >= 1, "guidance.warmup_steps", "must be an integer >= 1", self.warmup_steps)
        rule = f"must be null or an integer from 0 to {MAX_ORDER}"
        check(self.order is None or 0 <= self.order <= MAX_ORDER, "guidance.order", rule, self.order)
