r"""Spectrum: ridge regression of the whole history on Chebyshev polynomials (arXiv 2603.01623).

With time mapped to `tau(s) = (2 s - span) / span`, the basis `phi(s) = [T_0(tau), ..., T_M(tau)]` and the rows
`phi(s_j)` of the anchors stacked to `Phi`,

    C = (Phi^T Phi + lambda R)^-1 Phi^T Y,      F^_cheb(s) = phi(s) C,      F^ = (1 - mix) F^_linear + mix F^_cheb,

`F^_linear` being the line through the last two anchors. `Y` need not be touched: the weights of the anchors are
`phi(s) (Phi^T Phi + lambda R)^-1 Phi^T`, from the times alone.

Published are M = 4, lambda = 0.1, `span` = 50 for every number of steps, mix = 1 in the paper and 0.5 to 1 in the later
advice of its code. Two things differ here. The code rounds tau, phi and C to bfloat16, which is
not done. And it penalises the constant too (`R = I`), which shrinks all forecasts towards zero, features that do not
change included; the basis leaves it free (`R = diag(0, 1, ..., 1)`), method `spectrum` sets `penalise_constant=True`.

All anchors since the first step are kept, up to `history`: at module scope that is the memory of that many frames. The
code stops at 100; the default of 16 is more than its schedules compute (14 of 50).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hicache.checks import check_integer
from hicache.forecast.basis import Basis, Scalar
from hicache.typed import solve, tolist

__all__ = ["Chebyshev"]


@dataclass(frozen=True, kw_only=True)
class Chebyshev(Basis):
    """Spectrum's forecaster.

    Attributes:
        degree: M, highest Chebyshev polynomial.
        ridge: lambda, > 0.
        mix: share of the polynomial; the rest is linear extrapolation.
        span: number of steps that are mapped to [-1, 1].
        history: most anchors that are kept.
        penalise_constant: whether the ridge acts on the constant too, as published.
    """

    degree: int = 4
    ridge: float = 0.1
    mix: float = 1.0
    span: int = 50
    history: int = 16
    penalise_constant: bool = False

    def __post_init__(self) -> None:
        for key, low in (("degree", 0), ("span", 1), ("history", 1)):
            value = getattr(self, key)
            check_integer(key, value, low)
        if not (math.isfinite(self.ridge) and self.ridge > 0):
            raise ValueError(f"ridge: must be a number > 0, got {self.ridge}")
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix: must be between 0 and 1, got {self.mix}")

    def anchors(self, order: int) -> int:
        return self.history

    def polynomials(self, step: float) -> list[float]:
        """`[T_0, ..., T_M]` at the mapped time of `step`."""
        tau = (2 * step - self.span) / self.span
        row = [1.0, tau]
        for _ in range(self.degree - 1):
            row.append(2 * tau * row[-1] - row[-2])
        return row[: self.degree + 1]

    def weights(
        self, times: Sequence[float], target: float, order: int, sigma: Scalar = 1.0, gram: Tensor | None = None
    ) -> list[Scalar]:
        del order, sigma, gram
        rows = torch.tensor([self.polynomials(step) for step in times], dtype=torch.float64)
        penalty = torch.full((self.degree + 1,), self.ridge, dtype=torch.float64)
        penalty[0] *= self.penalise_constant
        at = torch.tensor(self.polynomials(target), dtype=torch.float64)
        found = self.mix * (rows @ solve(rows.T @ rows + penalty.diag(), at))
        reach = (target - times[-1]) / (times[-1] - times[-2]) if len(times) > 1 else 0.0
        found[-1] += (1 - self.mix) * (1 + reach)
        if len(times) > 1:
            found[-2] -= (1 - self.mix) * reach
        return tolist(found)
