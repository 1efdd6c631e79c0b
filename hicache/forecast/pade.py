r"""Padé: a rational function per element, as in the micro-benchmark of HiCache++.

The backward differences of the equally spaced anchors, taken for derivatives, give Taylor coefficients in units of
the spacing, `c_i = nabla^i F / i!`, and these the approximant `[L/M]`: with `h = k / spacing`,

    sum_{j=1..M} c_{L+i-j} q_j = -c_{L+i}  (i = 1..M),      p_i = c_i + sum_{j=1..min(i,M)} c_{i-j} q_j,
    F^ = (p_0 + p_1 h + ... + p_L h^L) / (1 + q_1 h + ... + q_M h^M).

Published is [3/2], on six anchors. The last value is reused where the denominator is nearly zero (|Q| < 1e-3), the
forecast beyond twice the largest value of the window, or not finite (a singular system): spurious poles are the rule
rather than the exception. With fewer equally spaced anchors the approximant is the nearest to the diagonal that they
determine: [2/2], [2/1], [1/1], [1/0] (the line) and reuse.

This is the one forecaster that is no weighted sum; it is evaluated in float64, chunk by chunk. TC-Padé (arXiv
2603.02943) is not offered: only secondary notes of it were at hand, which leave its lambda and the roles of the three
residuals open, and whose formula does not return features that do not change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hicache.forecast.window import ElementwiseBasis, uniform_tail

__all__ = ["Pade"]

CHUNK = 1 << 22
"""Elements that are held in float64 at a time."""

NUMERATOR, DENOMINATOR = 3, 2


@dataclass(frozen=True, kw_only=True)
class Pade(ElementwiseBasis):
    """`[3/2]` Padé approximant of each element.

    Attributes:
        pole: smallest denominator that is trusted.
        bound: largest value that is trusted, as a multiple of the largest in the window.
    """

    pole: float = 1e-3
    bound: float = 2.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.pole) and self.pole >= 0):
            raise ValueError(f"pole: must be a number >= 0, got {self.pole}")
        if not self.bound > 0:
            raise ValueError(f"bound: must be > 0, got {self.bound}")

    def anchors(self, order: int) -> int:
        return NUMERATOR + DENOMINATOR + 1

    def evaluate(self, times: Sequence[float], anchors: Sequence[Tensor], target: float, out: Tensor) -> None:
        length = uniform_tail(times)
        spacing = times[-1] - times[-2] if length > 1 else 1
        flat, result = [frame.reshape(-1) for frame in anchors[-length:]], out.view(-1)
        for start in range(0, result.numel(), CHUNK):
            part = torch.stack([frame[start : start + CHUNK].double() for frame in flat])
            result[start : start + CHUNK] = self._forecast(part, (target - times[-1]) / spacing)

    def _forecast(self, window: Tensor, h: float) -> Tensor:
        """The forecast from `window`, `[n, elements]`, at `h` spacings past its last row."""
        n, last = window.shape[0], window[-1]
        m = min(DENOMINATOR, (n - 1) // 2)
        top = n - 1 - m
        current = window
        series: list[Tensor] = []
        for i in range(n):
            series.append(current[-1] / math.factorial(i))
            current = current[1:] - current[:-1]
        q = _denominator(series, top, m)
        below, above = torch.ones_like(last), torch.zeros_like(last)
        for j in range(1, m + 1):
            below = below + q[j - 1] * h**j
        for i in range(top + 1):
            p = series[i] + sum(series[i - j] * q[j - 1] for j in range(1, min(i, m) + 1))
            above = above + p * h**i
        value = above / below
        inside = value.abs() <= self.bound * window.abs().amax(0)
        return torch.where(torch.isfinite(value) & inside & (below.abs() > self.pole), value, last)


def _denominator(series: Sequence[Tensor], top: int, m: int) -> list[Tensor]:
    """`q_1..q_m`, by Cramer's rule; not finite where the system is singular."""
    if m == 0:
        return []
    if m == 1:
        return [-series[top + 1] / series[top]]
    a, b, c, d = series[top], series[top - 1], series[top + 1], series[top]
    right, lower = -series[top + 1], -series[top + 2]
    determinant = a * d - b * c
    return [(right * d - b * lower) / determinant, (a * lower - c * right) / determinant]
