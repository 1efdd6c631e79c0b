"""The settings of the learned methods, `lesa` and `l2c`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from experiments.config import MethodConfig
from experiments.errors import check

__all__ = ["L2cConfig", "LearnedConfig", "LesaConfig"]


@dataclass(kw_only=True)
class LearnedConfig(MethodConfig):
    """A method with a trained artefact."""

    artefact: str | None = None
    """A file that `experiments.train_predictor` wrote; null = the shipped one for this backend, solver and steps."""


@dataclass(kw_only=True)
class LesaConfig(LearnedConfig):
    """The learned predictor: at which site, and after how many full steps it begins."""

    def defaults(self) -> dict[str, Any]:
        return {"scope": "final_hidden", "warmup_steps": 4}


@dataclass(kw_only=True)
class L2cConfig(LearnedConfig):
    """The learned router: which modules count as kept."""

    threshold: float = 0.1
    """A module of a routed step is computed where the sigmoid of its logit is at least this."""

    def __post_init__(self) -> None:
        check(0 <= self.threshold <= 1, "method.threshold", "must be between 0 and 1", self.threshold)
