r"""Sigma schedules: the contraction factor of the Hermite and scaled Taylor bases at each forecast.

    constant   sigma
    horizon    min(sigma, c / (sqrt(2) k))              the paper's stability condition sigma sqrt(2) k < 1
    linear     sigma + (sigma_end - sigma) s / (T - 1)  over the run
    adaptive   min(sigma, alpha / (sqrt(2) q + eps))    HiCache-Adaptive, Eq. 41-42

`sigma` is the base value of each: the constant, the start, or the upper bound.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hicache.checks import check_positive
from hicache.forecast.basis import Scalar
from hicache.forecast.history import History
from hicache.forecast.pieces import pieces
from hicache.typed import vector_norm

__all__ = ["SIGMA_SCHEDULES", "Adaptive", "Constant", "Horizon", "Linear", "SigmaSchedule"]


@dataclass(kw_only=True)
class SigmaSchedule(ABC):
    """Gives sigma for a forecast. Stateful ones learn from the anchors and forget them at `reset`."""

    sigma: float

    def __post_init__(self) -> None:
        check_positive("sigma", self.sigma)

    @abstractmethod
    def at(self, step: int, k: float, num_steps: int | None) -> Scalar:
        """Sigma for step `step`, a time of `k` after the last anchor, in a run of `num_steps`."""

    def observe(self, history: History, lead: int, channel: int) -> None:
        """Learn from the newest anchor; `lead` leading dimensions are kept apart, `channel` is the feature axis."""
        del history, lead, channel

    def reset(self) -> None:  # noqa: B027
        """Forget everything learnt; the stateless schedules have nothing to forget."""


@dataclass(kw_only=True)
class Constant(SigmaSchedule):
    """The same sigma throughout."""

    def at(self, step: int, k: float, num_steps: int | None) -> Scalar:
        return self.sigma


@dataclass(kw_only=True)
class Horizon(SigmaSchedule):
    """`sigma_k = min(sigma, c / (sqrt(2) k))`: the longer the horizon, the stronger the contraction."""

    c: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.c > 0:
            raise ValueError(f"c: must be > 0, got {self.c}")

    def at(self, step: int, k: float, num_steps: int | None) -> Scalar:
        return min(self.sigma, self.c / (math.sqrt(2) * k))


@dataclass(kw_only=True)
class Linear(SigmaSchedule):
    """From `sigma` at the first step to `sigma_end` at the last."""

    sigma_end: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("sigma_end", self.sigma_end)

    def at(self, step: int, k: float, num_steps: int | None) -> Scalar:
        if num_steps is None:
            raise ValueError("num_steps: the linear sigma schedule needs the number of steps; call begin(num_steps)")
        return self.sigma + (self.sigma_end - self.sigma) * step / max(num_steps - 1, 1)


@dataclass(kw_only=True)
class Adaptive(SigmaSchedule):
    r"""Sigma from the size of the first difference (HiCache-Adaptive, Eq. 41-42).

        D   = mean over tokens of || D_1 ||_2 over channels
        q  <- sqrt((1 - beta) q^2 + beta D^2),      q_0 = 1
        sigma_l = min(sigma, alpha / (sqrt(2) q + epsilon))

    updated at every anchor that has a difference. Each site has its own value, as published. The paper averages D
    over the batch too; here each sample has its own (`per="sample"`), so that an image does not depend on the
    batch it was made in; `per="batch"` is the published average. At batch 1 both agree.
    """

    alpha: float = 1.28
    beta: float = 0.01
    epsilon: float = 1e-6
    per: str = "sample"
    q: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha > 0:
            raise ValueError(f"alpha: must be > 0, got {self.alpha}")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta: must be between 0 and 1, got {self.beta}")
        if not self.epsilon > 0:
            raise ValueError(f"epsilon: must be > 0, got {self.epsilon}")
        if self.per not in ("sample", "batch"):
            raise ValueError(f"per: must be sample or batch, got {self.per!r}")

    def observe(self, history: History, lead: int, channel: int) -> None:
        difference = history.slope()
        if difference is None:
            return
        newer, older, gap = difference
        size = mean_length(newer, older, lead, channel) / gap
        if self.per == "batch":
            size = size.mean(-1, keepdim=True).expand_as(size)
        previous = torch.ones_like(size) if self.q is None else self.q
        self.q = ((1 - self.beta) * previous**2 + self.beta * size**2).sqrt()

    def at(self, step: int, k: float, num_steps: int | None) -> Scalar:
        if self.q is None:
            return min(self.sigma, self.alpha / (math.sqrt(2) + self.epsilon))
        return (self.alpha / (math.sqrt(2) * self.q + self.epsilon)).clamp(max=self.sigma)

    def reset(self) -> None:
        self.q = None


SIGMA_SCHEDULES: dict[str, type[SigmaSchedule]] = {
    "constant": Constant,
    "adaptive": Adaptive,
    "horizon": Horizon,
    "linear": Linear,
}


def mean_length(newer: Tensor, older: Tensor | None, lead: int, channel: int) -> Tensor:
    """Mean over tokens of `|newer - older|` over channels, `[*leading]`, a part at a time."""
    both = [each.movedim(channel, -1) for each in (newer, older) if each is not None]
    lead = min(lead, both[0].dim() - 1)
    shape, size = both[0].shape[:lead], both[0].shape[-1]
    flat = [each.flatten(0, lead - 1) if lead else each[None] for each in both]
    flat = [each[:, None] if each.dim() == 2 else each for each in flat]
    total = torch.zeros(len(flat[0]), device=newer.device)
    for rows, (first, *rest) in pieces(flat):
        difference = first.float() - rest[0].float() if rest else first.float()
        total[rows] += vector_norm(difference, dim=-1).flatten(1).sum(1)
    return (total * size / max(1, flat[0][0].numel())).reshape(shape)
