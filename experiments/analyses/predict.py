r"""Forecasts from true anchors, without the errors that earlier forecasts leave behind.

Anchors stand every `interval` steps and hold the un-cached values. The error of a forecast `h` steps after an anchor
follows from the Gram matrix over the steps alone,

    MSE(h) = sum_a e(a + h | anchors up to a) / sum_a G[a + h, a + h],

summed over the anchors that have as many predecessors as the order wants: every order is judged at the same anchors.
The paper's ratio is `R = MSE_Taylor / MSE_HiCache`. Its truncation bound for Hermite order m (Lemma 1, Equation 26) is

    B(h) = C (sigma sqrt2 h)^(m+1) / sqrt((m+1)!) exp((sigma h)^2 / 2),

stable for sigma sqrt2 h < 1; C is unknown, here the one with which the bound is met at h = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from experiments.errors import check
from hicache.calibrate import error_of
from hicache.forecast import BASES

__all__ = ["bound", "forecast_path", "simulate"]


def simulate(
    gram: Tensor,
    basis: str,
    order: int,
    sigma: float = 1.0,
    interval: int = 6,
    horizons: Sequence[int] | None = None,
    history: int = 6,
) -> list[float]:
    """Relative mean square error at each horizon (see the module docstring).

    Args:
        gram: `[T, T]`.
        basis: a key of `hicache.forecast.BASES` whose weights do not depend on the values.
        order: highest derivative.
        sigma: contraction factor.
        interval: distance of the anchors.
        horizons: steps after the anchor; by default 1 to `interval - 1`.
        history: anchors that must have passed before a forecast counts.
    """
    steps, rule = gram.shape[-1], BASES[basis]
    starts = range((history - 1) * interval, steps, interval)
    found = []
    for h in horizons or range(1, interval):
        error = total = 0.0
        for start in starts:
            if start + h >= steps:
                continue
            times = list(range(0, start + 1, interval))[-rule.anchors(order) :]
            weights = torch.tensor([float(w) for w in rule.weights(times, start + h, order, sigma)]).double()
            error += float(error_of(gram, times, start + h, weights))
            total += float(gram[start + h, start + h])
        check(total > 0, "interval", f"must leave a forecast of horizon {h} after {history} anchors", interval)
        found.append(error / total)
    return found


def forecast_path(values: Tensor, basis: str, order: int, sigma: float, interval: int) -> Tensor:
    """The curve `[T, ...]` of forecasts from true anchors; at an anchor, its value."""
    path, rule = values.clone(), BASES[basis]
    for step in range(len(values)):
        times = list(range(0, step + 1, interval))[-rule.anchors(order) :]
        if times[-1] != step:
            weights = [float(w) for w in rule.weights(times, step, order, sigma)]
            path[step] = sum(w * values[t] for w, t in zip(weights, times, strict=True))
    return path


def bound(horizon: float, order: int, sigma: float) -> float:
    """`B(h) / C`, of the error (not of its square)."""
    x = sigma * math.sqrt(2) * horizon
    return x ** (order + 1) / math.sqrt(math.factorial(order + 1)) * math.exp((sigma * horizon) ** 2 / 2)
