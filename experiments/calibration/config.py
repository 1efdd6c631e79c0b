"""The settings of the methods that need a calibration: `calibrated`, `smoothcache`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from experiments.config import MethodConfig
from experiments.errors import check

__all__ = ["CalibratedConfig", "SmoothCacheConfig"]


@dataclass(kw_only=True)
class CalibratedConfig(MethodConfig):
    """A calibrated plan: how many steps are computed, or which plan file is used."""

    budget: int = 8
    """Number of full steps."""
    speedup: float | None = None
    """Wanted ratio of steps to full steps; overrides the budget."""
    plan: str | None = None
    """A plan file; null = the shipped one for this backend, scope, solver, steps, guidance and budget."""

    def __post_init__(self) -> None:
        check(self.budget >= 1, "method.budget", "must be an integer >= 1", self.budget)
        valid = self.speedup is None or 1 <= self.speedup < float("inf")
        check(valid, "method.speedup", "must be a number >= 1", self.speedup)

    def defaults(self) -> dict[str, Any]:
        return {"scope": "output"}


@dataclass(kw_only=True)
class SmoothCacheConfig(MethodConfig):
    """SmoothCache: the largest relative error of a module's output that is accepted."""

    alpha: float = 0.22
    """0 computes everything."""

    def __post_init__(self) -> None:
        check(0 <= self.alpha < float("inf"), "method.alpha", "must be a finite number >= 0", self.alpha)
