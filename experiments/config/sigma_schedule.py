"""Schemas of conf/sigma_schedule/: how sigma moves over a generation."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "AdaptiveScheduleConfig",
    "HorizonScheduleConfig",
    "LinearScheduleConfig",
    "SigmaScheduleConfig",
]


@dataclass(kw_only=True)
class SigmaScheduleConfig:
    """How sigma moves over a generation; `constant` keeps the base value."""

    name: str = "constant"


@dataclass(kw_only=True)
class AdaptiveScheduleConfig(SigmaScheduleConfig):
    """Sigma from the size of the first difference, per site."""

    alpha: float = 1.28
    beta: float = 0.01
    epsilon: float = 1e-6
    per: str = "sample"


@dataclass(kw_only=True)
class HorizonScheduleConfig(SigmaScheduleConfig):
    """min(sigma, c / (sqrt(2) k)) at horizon k."""

    c: float = 1.0


@dataclass(kw_only=True)
class LinearScheduleConfig(SigmaScheduleConfig):
    """From sigma at the first step to sigma_end at the last."""

    sigma_end: float = 0.5
