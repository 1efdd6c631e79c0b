"""How wrong a forecast would have been at a computed step: `|forecast - computed| / |computed|` per feature."""

from __future__ import annotations

import torch
from torch import Tensor

from hicache.generation import Branch
from hicache.proof import distance
from hicache.typed import tolist

__all__ = ["errors_of", "forecast"]

QUANTILES = (0.1, 0.5, 0.9)


@torch.no_grad()
def forecast(branch: Branch) -> list[Tensor]:
    """The forecast of a branch's features at a step that is going to be computed; empty before there is one."""
    known = branch.forecaster if branch.fused else branch.memory.frames
    return list(known.predict(branch.clock.step)) if known.ready else []


@torch.no_grad()
def errors_of(branch: Branch, before: list[Tensor]) -> dict[int, tuple[float, float, float]]:
    """Step -> quantiles (0.1, 0.5, 0.9) over the features; empty where their shapes have changed."""
    memory = branch.memory
    after = list(memory.forecaster.history.newest) if branch.fused else memory.frames.newest()
    if [each.shape for each in after] != [each.shape for each in before]:
        return {}
    found = [distance(a, b.to(a.device)) for a, b in zip(before, after, strict=True)]
    low, middle, high = tolist(torch.tensor(found).quantile(torch.tensor(QUANTILES)))
    return {branch.clock.step: (low, middle, high)}
