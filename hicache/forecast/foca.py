r"""FoCa: the history as the solution of an ODE, continued with BDF2 and Heun (arXiv 2508.16211).

A feature solves `dF/dt = f` with an `f` that only the anchors know. Let the last anchors be `F_n, F_{n-1}, ...` with
gaps `g = t_n - t_{n-1}`, `g' = t_{n-1} - t_{n-2}`, the target `t_n + k`, and `w = k / g`.

*Predictor.* BDF2 asks that the slope of the parabola through `F_{n-1}, F_n, F_p` at the target be `f_p`. For
unequal steps the derivative of the Lagrange form gives

    k f_p = (1+2w)/(1+w) F_p - (1+w) F_n + w^2/(1+w) F_{n-1},                                           (1)
    F_p   = (1+w)^2/(1+2w) F_n - w^2/(1+2w) F_{n-1} + (1+w)/(1+2w) k f,                                 (2)

(2) being (1) solved for `F_p` with the unknown `f_p` lagged, `f = f_n`. At `w = 1` these are the textbook 4/3, -1/3
and 2/3.

*Corrector.* Heun: `F^ = F_n + k/2 (f_n + f_p)` with `f_p` from (1).

(1) and (2) are inverse to each other, so the corrector gets back the slope that the predictor was given, `f_p = f_n`,
and the pair is the tangent

    F^ = F_n + k f_n,

whatever the gaps: FoCa is decided by its slope `f_n` alone. The variants:

    variable   f_n from (1) one step earlier, on the last three anchors: with r = g / g',
               g f_n = (1+2r)/(1+r) F_n - (1+r) F_{n-1} + r^2/(1+r) F_{n-2}.
               Lines are exact, and the slope of parabolas, at any spacing. Two anchors: the secant. The default.
    paper      f_n = (F_n - F_{n-1}) / g and equal steps in both formulas, h = k: by the above this is the
               secant continued, TaylorSeer at order 1 without its warm-up gate.
    util       F_p = (4 F_n - F_{n-1}) / 3, F^ = (F_n + F_p) / 2: free of k (the utility of the HiCache code).
    anchored   cache-dit's calibrator: F^ = F_n + min(k, 3)/2 (d_full + d_last), shrunk by 3/k beyond three steps;
               d_full = F_n - F_{n-1} (not divided by the gap) and d_last the difference of the last two values,
               forecasts among them. Each forecast is linear in the anchors, so the recursion is unrolled on the
               weights, from the oldest anchor kept (`history`: fewer than all of them truncates the
               recursion, by 6e-3 of the value with 6); it is right for gaps of one only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hicache.checks import check_integer
from hicache.forecast.basis import Basis, Scalar

__all__ = ["Foca"]

VARIANTS = ("variable", "paper", "util", "anchored")
CLAMP = 3
"""Steps after which the anchored variant stops to extrapolate."""


@dataclass(frozen=True, kw_only=True)
class Foca(Basis):
    """FoCa; `variant` as in the module docstring, at most `history` anchors for the anchored one."""

    variant: str = "variable"
    history: int = 100

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant: must be one of {', '.join(VARIANTS)}, got {self.variant!r}")
        check_integer("history", self.history, 2)

    def anchors(self, order: int) -> int:
        return {"variable": 3, "paper": 2, "util": 2, "anchored": self.history}[self.variant]

    def counts_steps(self) -> bool:
        return self.variant == "anchored"

    def weights(
        self, times: Sequence[float], target: float, order: int, sigma: Scalar = 1.0, gram: Tensor | None = None
    ) -> list[Scalar]:
        del order, sigma, gram
        if len(times) == 1:
            return [1.0]
        if self.variant == "anchored":
            return [*_anchored([int(t) for t in times], int(target))]
        if self.variant == "util":
            found = [-1 / 6, 7 / 6]
        else:
            k, slope = target - times[-1], _slope(times[-3:] if self.variant == "variable" else times[-2:])
            found = [k * s for s in slope]
            found[-1] += 1.0
        return [*(0.0 for _ in times[len(found) :]), *found]


def _slope(times: Sequence[float]) -> list[float]:
    """Weights of the slope at the newest of two or three anchors."""
    g = times[-1] - times[-2]
    if len(times) == 2:
        return [-1 / g, 1 / g]
    r = g / (times[-2] - times[-3])
    return [r**2 / (1 + r) / g, -(1 + r) / g, (1 + 2 * r) / (1 + r) / g]


def _anchored(times: Sequence[int], target: int) -> list[float]:
    """Weights of cache-dit's recursion, run on unit vectors from the oldest anchor to `target`."""
    unit = [[float(i == j) for j in range(len(times))] for i in range(len(times))]
    rolling = [unit[0]]
    for i in range(1, len(times) + 1):
        newest, end = i - 1, times[i] if i < len(times) else target + 1
        for step in range(times[newest] + 1, end):
            if newest == 0:
                continue
            k = step - times[newest]
            reach = min(k, CLAMP) / 2 * min(1.0, CLAMP / k)
            full, older, (last, before) = unit[newest], unit[newest - 1], (rolling[-1], rolling[-2])
            rolling.append(
                [a + reach * (a - b + c - d) for a, b, c, d in zip(full, older, last, before, strict=True)],
            )
        if i < len(times):
            rolling.append(unit[i])
    return rolling[-1]
