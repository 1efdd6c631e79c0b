r"""Bases: the scalar weights with which past anchors forecast a later step.

Almost every forecaster is a linear combination of its last anchors, `F^(s) = sum_j w_j F(s_j)`, so a basis is a
rule for a few scalars. Those of this file expand around the last anchor `a` on the *ladder* of one-sided difference
quotients (TaylorSeer Eq. 1-2, HiCache Definition 1): with `g_n = s_n - s_{n-1}` the actual gap,

    D_0(n) = F(s_n),        D_{i+1}(n) = (D_i(n) - D_i(n-1)) / g_n,
    F^(a + k) = F + sum_{i=1..m} D_i / i! * phi_i(k).

They differ in `phi_i` only:

    reuse          phi_i = 0                             FORA
    taylor         phi_i = k^i                           TaylorSeer
    scaled_taylor  phi_i = sigma^i (sigma k)^i           Hi-Taylor (dual scaling on monomials)
    hermite        phi_i = sigma^i H_i(sigma k)          HiCache Eq. 5, physicists' Hermite polynomials

Steps grow while noise falls and differences are taken along growing steps, hence the argument is `+k`. (The
paper counts steps downwards, where the same formula reads `-k`; by parity both are equal.)

The ladder is not a divided difference: it divides by the last gap at every order, so order 2 is biased on
quadratics and anchors after a warm-up of unit gaps are weighted as published. `newton` is the unbiased form and
is not part of any paper compared here.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

__all__ = ["Basis", "Hermite", "LadderBasis", "Newton", "Reuse", "ScaledTaylor", "Taylor", "ladder"]

Scalar = float | Tensor
"""A Python float, or a tensor of per-site, per-sample values (the adaptive sigma); formulas accept both."""


class Basis(ABC):
    """A rule for the weights of past anchors."""

    uses_order: bool = False
    uses_sigma: bool = False
    uses_gram: bool = False
    gated: bool = False
    """Whether the published code starts the ladder at the last step of the warm-up (`Knobs.gate` decides otherwise)."""

    @abstractmethod
    def weights(
        self, times: Sequence[float], target: float, order: int, sigma: Scalar = 1.0, gram: Tensor | None = None
    ) -> list[Scalar]:
        """Weights of the anchors at `times` (oldest first) for the value at step `target`.

        Args:
            times: steps of the available anchors (in the time variable that is used), strictly increasing, at
                least one.
            target: the step to forecast, later than every anchor.
            order: highest derivative; fewer anchors than `order + 1` lower it, one anchor means reuse.
            sigma: contraction factor, for bases that have one.
            gram: inner products of the anchors, for bases whose weights depend on the values.
        """

    def anchors(self, order: int) -> int:
        """How many past anchors the basis looks at."""
        return order + 1

    def counts_steps(self) -> bool:
        """Whether times must be step indices."""
        return False

    def check_run(self, num_steps: int) -> None:  # noqa: B027
        """Raise a `ValueError` if the weights are not for a run of so many steps."""


@functools.lru_cache(maxsize=256)
def ladder(times: tuple[float, ...], order: int) -> list[list[float]]:
    """Rows `D_0..D_i` of the ladder at the newest anchor, as coefficients over `times` (oldest first).

    `D_i` exists only if `D_{i-1}` existed at the previous anchor, so `len(times)` anchors give at most
    `len(times) - 1` differences.
    """
    rows: list[list[float]] = []
    for n in range(len(times)):
        new = [[float(j == n) for j in range(len(times))]]
        for old in rows[: min(order, n)]:
            gap = times[n] - times[n - 1]
            new.append([(a - b) / gap for a, b in zip(new[-1], old, strict=True)])
        rows = new
    return rows


class LadderBasis(Basis):
    """A polynomial in the horizon `k`, given by its factors `phi_i(k)` on the ladder."""

    uses_order = True
    gated = True

    @abstractmethod
    def phi(self, i: int, k: float, sigma: Scalar) -> Scalar:
        """The factor of `D_i / i!` at horizon `k`."""

    def coefficients(self, k: float, order: int, sigma: Scalar = 1.0) -> list[Scalar]:
        """`[1, phi_1(k)/1!, ..., phi_m(k)/m!]`, the weights of `D_0..D_m`."""
        return [1.0, *(self.phi(i, k, sigma) / math.factorial(i) for i in range(1, order + 1))]

    def weights(
        self, times: Sequence[float], target: float, order: int, sigma: Scalar = 1.0, gram: Tensor | None = None
    ) -> list[Scalar]:
        del gram
        if isinstance(sigma, Tensor) or type(self).__hash__ is None:  # as that of a dataclass which is not frozen
            return expanded(self, tuple(times), target, order, sigma)
        return list(remembered(self, tuple(times), target, order, sigma))


def expanded(basis: LadderBasis, times: tuple[float, ...], target: float, order: int, sigma: Scalar) -> list[Scalar]:
    """The weights of the anchors: factors of the differences, by what these are made of."""
    rows = ladder(times, order)
    factors = basis.coefficients(target - times[-1], len(rows) - 1, sigma)
    return [
        sum((c * row[j] for c, row in zip(factors, rows, strict=True) if row[j] != 0.0), 0.0) for j in range(len(times))
    ]


remembered = functools.lru_cache(maxsize=4096)(expanded)
"""Every generation asks for the same weights; what a basis is made of does not change."""


class Reuse(LadderBasis):
    """The last anchor itself (FORA, arXiv 2407.01425)."""

    uses_order = False

    def phi(self, i: int, k: float, sigma: Scalar) -> Scalar:
        return 0.0

    def anchors(self, order: int) -> int:
        return 1


class Taylor(LadderBasis):
    """`phi_i = k^i` (TaylorSeer, arXiv 2503.06923, Eq. 2)."""

    def phi(self, i: int, k: float, sigma: Scalar) -> Scalar:
        return float(k) ** i


class ScaledTaylor(LadderBasis):
    """`phi_i = sigma^i (sigma k)^i`: dual scaling on monomials (Hi-Taylor, HiCache Table 2)."""

    uses_sigma = True

    def phi(self, i: int, k: float, sigma: Scalar) -> Scalar:
        return sigma ** (2 * i) * float(k) ** i


class Hermite(LadderBasis):
    """`phi_i = sigma^i H_i(sigma k)`, `H_{n+1} = 2x H_n - 2n H_{n-1}` (HiCache, arXiv 2508.16984, Eq. 5).

    `phi_2(0) = -2 sigma^2`: the forecast does not interpolate the anchor. At `sigma = sqrt(1/2)` the first order is
    Taylor's. Below it the forecast shrinks towards reuse, above it overshoots.
    """

    uses_sigma = True

    def phi(self, i: int, k: float, sigma: Scalar) -> Scalar:
        x = sigma * k
        previous, current = 1.0, 2 * x
        for n in range(1, i):
            previous, current = current, 2 * x * current - 2 * n * previous
        return sigma**i * current


class Newton(Basis):
    """The interpolating polynomial through the last `order + 1` anchors, in Lagrange form.

    Exact on polynomials of degree `order` for any spacing. Not used by any of the papers: it shows what the
    published ladder would be without its bias.
    """

    uses_order = True
    gated = True

    def weights(
        self, times: Sequence[float], target: float, order: int, sigma: Scalar = 1.0, gram: Tensor | None = None
    ) -> list[Scalar]:
        del sigma, gram
        nodes = times[-(order + 1) :]
        found: list[Scalar] = [
            math.prod((target - other) / (node - other) for other in nodes if other != node) for node in nodes
        ]
        return [0.0] * (len(times) - len(nodes)) + found
