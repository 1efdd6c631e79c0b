r"""HiCache++ `auto`: a held-out anchor decides between DMD and Hermite (github.com/Archerkattri/hicache-plus-plus).

Once per window both forecast an anchor that they were not given, and the better one serves until the next anchor:

    DMD if |F^_dmd - F_held| <= |F^_arm - F_held| else Hermite.

    1step     fitted on all but the newest equally spaced anchor, held is the newest (h = 1). The arm is the
              published yardstick: a parabola in Newton's form, whose quadratic term vanishes at h = 1, so it is
              the line through the last two anchors.
    horizon   at the distance of the skip, h = ceil((N - 1) / spacing) anchors, against the Hermite forecast that
              would serve. From h = 4 on, fitted on the newest h anchors, held is the one h before the newest
              (backwards, -h); below, fitted on all but the newest h, held is the newest.

It needs five equally spaced anchors; below that Hermite serves. Both errors are `v^T G v` with the weights `v` of the
forecast and -1 for the held anchor, so no pass over the features is made, and each site and sample decides on its own
(the published code decides for the batch; at batch 1 both agree).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hicache.checks import check_integer
from hicache.forecast.basis import Scalar
from hicache.forecast.dmd import FLOOR, HERMITE, Dmd, Window, on_cpu, stacked
from hicache.forecast.window import uniform_tail

__all__ = ["Auto"]

HOLDOUTS = ("1step", "horizon")


@dataclass(frozen=True, kw_only=True)
class Auto(Dmd):
    """DMD or Hermite, by holdout.

    Attributes:
        holdout: `1step` or `horizon`.
        interval: distance of full steps that `horizon` prepares for; None takes that of the first forecast.
    """

    holdout: str = "1step"
    interval: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.holdout not in HOLDOUTS:
            raise ValueError(f"holdout: must be one of {', '.join(HOLDOUTS)}, got {self.holdout!r}")
        if self.interval is not None:
            check_integer("interval", self.interval, 1)

    def fit(self, times: Sequence[float], target: float, order: int, sigma: Scalar, gram: Tensor) -> Window:
        length = uniform_tail(times)
        if length < FLOOR + 1:
            return Window(tuple(times), order, gram.shape[:-2])
        window = super().fit(times, target, order, sigma, gram)
        tail = on_cpu(gram)[:, -length:, -length:]
        if self.holdout == "1step":
            chosen = self._better(tail[:, :-1, :-1], tail, length - 1, 1, [-1.0, 2.0])
        else:
            chosen = self._at_horizon(tail, self._reach(times, target, length), order, sigma)
        return replace(window, chosen=chosen)

    def _reach(self, times: Sequence[float], target: float, length: int) -> int:
        """h, the distance of the holdout in anchors."""
        spacing = times[-1] - times[-2]
        skipped = self.interval - 1 if self.interval is not None and self.interval > 1 else target - times[-1]
        h = max(1, min(math.ceil(skipped / spacing), length - 1))
        return max(1, length - FLOOR) if h < FLOOR and length - h < FLOOR else h

    def _at_horizon(self, tail: Tensor, h: int, order: int, sigma: Scalar) -> Tensor:
        """The decision of mode `horizon`."""
        length = tail.shape[-1]
        seen, held = (range(length - h, length), length - 1 - h) if h >= FLOOR else (range(length - h), length - 1)
        reach = -h if h >= FLOOR else h
        if isinstance(sigma, Tensor):
            sigma = sigma.to("cpu", torch.float64)
        arm = HERMITE.weights(range(len(seen)), len(seen) - 1 + reach, max(1, order), sigma)
        part = tail[:, seen.start : seen.stop]
        return self._better(part[:, :, seen.start : seen.stop], tail, held, reach, arm, seen.start)

    def _better(self, seen: Tensor, tail: Tensor, held: int, h: int, arm: Sequence[Scalar], start: int = 0) -> Tensor:
        """Where DMD, fitted to the anchors from `start` on with Gram matrix `seen`, is nearer to anchor `held`."""
        rows, size = seen.shape[0], seen.shape[-1]
        errors: list[Tensor] = []
        for weights in (self.identify(seen).at(h), stacked(arm, rows)):
            v = torch.zeros(rows, tail.shape[-1], dtype=torch.float64)
            v[:, start + size - weights.shape[1] : start + size] = weights
            v[:, held] = -1.0
            errors.append((v[:, None] @ tail @ v[..., None]).reshape(rows).clamp(min=0.0))
        return errors[0] <= errors[1]
