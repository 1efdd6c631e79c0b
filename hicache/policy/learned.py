r"""Learning-to-Cache (arXiv 2406.01733): a trained router says which modules a step may skip.

Steps are paired. The first of a pair is computed in full; in the second, module m of pair p is computed where

    beta = sigmoid(logit[p, m]) >= threshold,

and otherwise gives its value of the step before. The published threshold is 0.1 (0.9 at 512 x 512). The logits belong
to one model, solver and number of steps. Without a router beta is 0: every second step skips all modules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from hicache.policy.base import Clock, Policy
from hicache.tree import Action, Site

__all__ = ["LayerMask"]


@dataclass(kw_only=True)
class LayerMask(Policy):
    """Full and routed steps in turn; every module has a history of its own.

    Attributes:
        sites: names of the routed modules, in the order of the logits; other modules always run.
        logits: of every pair of steps and module; steps beyond them are full.
        threshold: smallest beta that counts as kept.
    """

    mixes: ClassVar[bool] = True
    grouping: ClassVar[str] = "site"
    sites: Sequence[str] | None = None
    logits: Sequence[Sequence[float]] | None = None
    threshold: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold: must be between 0 and 1, got {self.threshold}")
        if (self.sites is None) != (self.logits is None):
            raise ValueError("logits: must be given exactly when sites are")
        if any(len(row) != len(self.sites or ()) for row in self.logits or ()):
            raise ValueError(f"logits: must be {len(self.sites or ())} per pair of steps, one per site")
        if not all(math.isfinite(logit) for row in self.logits or () for logit in row):
            raise ValueError("logits: must be finite numbers")

    def keeps(self, pair: int, site: str) -> bool:
        """Whether the routed step of a pair computes a module."""
        if self.sites is None or self.logits is None:
            return self.threshold == 0
        logit = self.logits[pair][self.sites.index(site)]
        return (1 + math.tanh(logit / 2)) / 2 >= self.threshold

    def decide(self, clock: Clock) -> Action:
        pair = clock.step // 2
        if clock.step % 2 == 0 or (self.logits is not None and pair >= len(self.logits)):
            return Action.COMPUTE
        return Action.COMPUTE if all(self.keeps(pair, site) for site in self.sites or ("",)) else Action.MIXED

    def named(self) -> Sequence[str]:
        return self.sites or ()

    def covers(self, site: Site) -> bool:
        return self.sites is None or str(site) in self.sites

    def site_action(self, clock: Clock, site: Site) -> Action:
        return Action.COMPUTE if self.keeps(clock.step // 2, str(site)) else Action.ESTIMATE
