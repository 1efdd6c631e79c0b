r"""Learning-to-Cache (arXiv 2406.01733): a trained router says which modules a step may skip.

Steps are paired. The first of a pair is computed in full; in the second, module m of pair p is computed where

    sigmoid(logit[p, m]) >= threshold,

and otherwise gives its value of the step before. The published threshold is 0.1 (0.9 at 512 x 512). The logits belong
to one model, solver and number of steps. Without a router every step is computed.
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
    """Full and routed steps in turn.

    Attributes:
        sites: names of the routed modules, in the order of the logits.
        logits: of every pair of steps and module.
        threshold: smallest sigmoid that counts as kept.
    """

    mixes: ClassVar[bool] = True
    grouping: ClassVar[str] = "site"
    sites: Sequence[str] = ()
    logits: Sequence[Sequence[float]] = ()
    threshold: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold: must be between 0 and 1, got {self.threshold}")
        if any(len(row) != len(self.sites) for row in self.logits):
            raise ValueError(f"logits: must have {len(self.sites)} values per pair of steps, one per site")

    def kept(self, pair: int) -> set[str]:
        """The modules that the routed step of a pair computes."""
        chosen = zip(self.sites, self.logits[pair], strict=True)
        return {site for site, logit in chosen if 1 / (1 + math.exp(-logit)) >= self.threshold}

    def decide(self, clock: Clock) -> Action:
        routed = clock.step % 2 == 1 and clock.step // 2 < len(self.logits)
        return Action.MIXED if routed else Action.COMPUTE

    def covers(self, site: Site) -> bool:
        return str(site) in self.sites

    def site_action(self, clock: Clock, site: Site) -> Action:
        return Action.COMPUTE if str(site) in self.kept(clock.step // 2) else Action.ESTIMATE
