"""What a metric may look at, and its mean or statistic with an interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.statistics import bootstrap_mean
from experiments.backends.base import Backend, Item
from experiments.config.metrics import MetricsConfig
from experiments.config.run import Settings

__all__ = [
    "Evidence",
    "Summary",
    "finite_or_none",
    "mean_over_items",
    "over_set",
]


GROUPS = 10


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a metric may look at."""

    backend: type[Backend]
    settings: Settings
    items: list[Item]
    media: Path
    reference: Path | None

    @property
    def config(self) -> MetricsConfig:
        return self.settings.metrics

    def load(self, folder: Path, items: list[Item]) -> Tensor:
        """Media of the items, stacked."""
        return torch.stack([self.backend.load_media(folder, item) for item in items])

    def samples(self) -> Tensor:
        """All media of the run, stacked."""
        return self.load(self.media, self.items)


Summary = dict[str, Any]


def mean_over_items(values: list[float], config: MetricsConfig) -> Summary:
    """Mean with its bootstrap interval; infinite values (PSNR of equal images) are counted, not averaged."""
    finite = [value for value in values if math.isfinite(value)]
    summary: Summary = {"mean": None, "low": None, "high": None, "n": len(finite)}
    if len(finite) < len(values):
        summary["infinite"] = len(values) - len(finite)
    if finite:
        triple = bootstrap_mean(finite, config.level, config.resamples, config.bootstrap_seed)
        summary |= dict(zip(("mean", "low", "high"), (finite_or_none(value) for value in triple), strict=True))
    return summary


def over_set(statistic: Callable[[Tensor], float], samples: Tensor, config: MetricsConfig) -> Summary:
    """A statistic of the whole set with an interval from leaving out one of 10 groups of items at a time.

        SE^2 = (G-1)/G sum_g (theta_g - mean theta)^2,     interval = theta -+ z SE

    The bootstrap is not used here: resampling repeats items, which lowers the rank of the covariance and
    biases Frechet distances upwards by more than their uncertainty.
    """
    value, n = statistic(samples), len(samples)
    summary: Summary = {"mean": value, "low": None, "high": None, "n": n}
    if n >= 2 * GROUPS:
        group = torch.arange(n) % GROUPS
        left_out = torch.tensor([statistic(samples[group != g]) for g in range(GROUPS)], dtype=torch.float64)
        error = math.sqrt((GROUPS - 1) * float(left_out.var(correction=0)))
        reach = error * float(torch.special.ndtri(torch.tensor(0.5 + config.level / 2, dtype=torch.float64)))
        summary |= {"low": value - reach, "high": value + reach}
    return summary


def finite_or_none(value: float) -> float | None:
    """None for what JSON has no number for."""
    return value if math.isfinite(value) else None
