r"""Forecasts from true anchors, without the errors that earlier forecasts leave behind.

Anchors stand every `interval` steps and hold the un-cached values. The error of a forecast `h` steps after an anchor
follows from the Gram matrix over the steps alone,

    MSE(h) = sum_a e(a + h | anchors up to a) / sum_a G[a + h, a + h],

summed over the anchors that have `order` predecessors, so over the steps from `order * interval + 1` on. Every basis
is judged at the same steps of an order, also one that looks at more anchors (it does what it does when they are not
there yet) or has no order. Bases whose weights follow the inner products of the anchors are fitted per item. The ratio
of a basis is `R = MSE / MSE_HiCache`, the paper's that of Taylor. The paper's truncation bound for Hermite order m
(Lemma 1, Equation 26) is

    B(h) = C (sigma sqrt2 h)^(m+1) / sqrt((m+1)!) exp((sigma h)^2 / 2),

stable for sigma sqrt2 h < 1; C is unknown, here the one with which the bound is met at h = 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from experiments.errors import check
from hicache.fitting.calibrated_plan import error_of
from hicache.forecast import BASES, ElementwiseBasis
from hicache.forecast.table import Table

__all__ = ["SIMULATED", "bound", "forecast_path", "horizons_of", "simulate"]

SIMULATED = tuple(name for name, rule in BASES.items() if not isinstance(rule, ElementwiseBasis | Table))
"""Bases whose weights follow times and inner products alone."""


def horizons_of(steps: int, order: int, interval: int) -> range:
    """Horizons at which an order can be judged at all in a run of so many steps."""
    return range(1, max(1, min(interval, steps - order * interval)))


def simulate(gram: Tensor, basis: str, order: int, sigma: float = 1.0, interval: int = 6) -> list[float]:
    """Relative mean square error at each of `horizons_of` (see the module docstring).

    Args:
        gram: `[T, T]`, or `[items, T, T]` for the bases that use inner products.
        basis: one of `SIMULATED`.
        order: highest derivative.
        sigma: contraction factor.
        interval: distance of the anchors.
    """
    gram, steps, rule = gram.double(), gram.shape[-1], BASES[basis]
    horizons, lead = horizons_of(steps, order, interval), gram.shape[:-2]
    rule_text = f"must leave a forecast after {order + 1} anchors in {steps} steps"
    check(len(horizons) > 0, "interval", rule_text, interval)
    found = []
    for h in horizons:
        error = total = 0.0
        for start in range(order * interval, steps - h, interval):
            times = list(range(0, start + 1, interval))[-rule.anchors(order) :]
            inner = gram[..., times, :][..., times] if rule.uses_gram else None
            weights = rule.weights(times, start + h, order, sigma, inner)
            columns = [torch.as_tensor(w, dtype=torch.float64).expand(lead) for w in weights]
            error += float(error_of(gram, times, start + h, torch.stack(columns, -1)).sum())
            total += float(gram[..., start + h, start + h].sum())
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
