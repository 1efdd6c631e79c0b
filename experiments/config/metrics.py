"""Schema of conf/metrics/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from evaluation.statistics import Bootstrap
from experiments.errors import check

__all__ = [
    "MetricsConfig",
]


@dataclass(kw_only=True)
class MetricsConfig:
    """What is measured at the end of a run, and how its uncertainty is estimated."""

    names: list[str] = MISSING
    reference: str | None = None
    """Real images for fid, sfid, precision and recall: a folder, or their statistics as .npz."""
    objective: str | None = None
    """The metric whose mean run.py returns to a sweeper of Hydra (Optuna and its kin)."""
    level: float = 0.95
    resamples: int = 2000
    bootstrap_seed: int = 0
    timing: Any = "quick"
    """`quick`: rounds of one item that a tenth of the run has room for; `full`: all, as below; `false`: no times."""
    latency_batch: int = 8
    """Items that `full` generates at a time."""
    latency_repeats: int = 3
    """Rounds, of the method and its reference in turn, that are counted."""
    latency_warmup: int = 1
    """Rounds before them."""

    @property
    def bootstrap(self) -> Bootstrap:
        """What all metrics make their intervals with."""
        return Bootstrap(level=self.level, resamples=self.resamples, seed=self.bootstrap_seed)

    def __post_init__(self) -> None:
        if self.objective is not None:
            check(self.objective in self.names, "metrics.objective", "must be one of metrics.names", self.objective)
        valid = self.timing is False or self.timing in ("quick", "full")
        check(valid, "metrics.timing", "must be one of false, quick, full", self.timing)
        check(0 < self.level < 1, "metrics.level", "must be between 0 and 1", self.level)
        for name in ("resamples", "latency_batch", "latency_repeats"):
            check(getattr(self, name) >= 1, f"metrics.{name}", "must be an integer >= 1", getattr(self, name))
        valid = 0 <= self.bootstrap_seed < 1 << 63
        check(valid, "metrics.bootstrap_seed", "must be an integer from 0 to 2^63 - 1", self.bootstrap_seed)
        check(self.latency_warmup >= 0, "metrics.latency_warmup", "must be an integer >= 0", self.latency_warmup)
