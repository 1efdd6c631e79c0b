"""Uncertainty of a mean over items, and tests between methods that share their items.

Interval: the percentile bootstrap over items (Efron & Tibshirani, "An Introduction to the Bootstrap", ch.
13) with Hesterberg's expansion (The American Statistician 69(4), 2015, sec. 4.1): the tail probability
``alpha/2`` becomes ``alpha' = Phi(-sqrt(n / (n - 1)) t_{1 - alpha/2, n - 1})``, which removes the
narrowness of the plain percentile interval at small n. Test: Wilcoxon's signed-rank test on paired items,
with Holm's step-down correction over methods (Scandinavian J. of Statistics 6, 1979): ``p_(i)`` is adjusted
to ``max_{j <= i} min(1, (m - j + 1) p_(j))``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Difference", "PairedTest", "bootstrap_mean", "holm", "paired_difference", "wilcoxon_holm"]

_DRAWS_IN_MEMORY = 4_000_000  # resampled values held at once, about 32 MB


class Difference(NamedTuple):
    """Mean of ``a - b`` over shared items with its bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int


class PairedTest(NamedTuple):
    """One method against the baseline: signed-rank statistic, raw and Holm-adjusted p, and the verdict."""

    statistic: float
    p: float
    p_holm: float
    significant: bool
    n: int


def _finite(values: Sequence[float] | npt.ArrayLike, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name}: expected a non-empty list of numbers, got shape {array.shape}")
    if not np.isfinite(array).all():
        at = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"{name}: every value must be finite, got {array[at]} at index {at}")
    return array


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level: must lie strictly between 0 and 1, got {level}")


def bootstrap_mean(
    values: Sequence[float] | npt.ArrayLike,
    level: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean with its per-item bootstrap interval; one value alone has no interval, so low and high are NaN."""
    from scipy import stats

    array = _finite(values, "values")
    _check_level(level)
    if resamples < 1:
        raise ValueError(f"resamples: must be at least 1, got {resamples}")
    n = array.size
    mean = float(array.mean())
    if n == 1:
        return mean, math.nan, math.nan
    t = stats.t.ppf(0.5 + level / 2, n - 1)
    tail = float(stats.norm.cdf(-math.sqrt(n / (n - 1)) * t))
    interval = stats.bootstrap(
        (array,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, _DRAWS_IN_MEMORY // n),
        confidence_level=1 - 2 * tail,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return mean, float(interval.low), float(interval.high)


def paired_difference(
    a: Sequence[float] | npt.ArrayLike,
    b: Sequence[float] | npt.ArrayLike,
    level: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> Difference:
    """Bootstrap of the mean of ``a - b``; the i-th entries of both belong to the same item."""
    left, right = _finite(a, "a"), _finite(b, "b")
    if left.size != right.size:
        raise ValueError(f"paired_difference: a and b must pair item by item, got {left.size} and {right.size}")
    return Difference(*bootstrap_mean(left - right, level, resamples, seed), n=left.size)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the order given."""
    m = len(p_values)
    adjusted = [0.0] * m
    running = 0.0
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (m - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def wilcoxon_holm(
    methods: Mapping[str, Sequence[float] | npt.ArrayLike],
    baseline: str,
    level: float = 0.95,
) -> dict[str, PairedTest]:
    """Two-sided signed-rank test of every other method against ``baseline``; ties at zero are dropped.

    A method whose every value equals the baseline's has p = 1 by definition (scipy has no statistic for it).
    """
    from scipy import stats

    if baseline not in methods:
        raise ValueError(f"baseline: must be one of {sorted(methods)}, got {baseline!r}")
    _check_level(level)
    base = _finite(methods[baseline], baseline)
    raw: dict[str, tuple[float, float]] = {}
    for name, values in methods.items():
        if name == baseline:
            continue
        array = _finite(values, name)
        if array.size != base.size:
            raise ValueError(f"{name}: must pair with {baseline} item by item, got {array.size} and {base.size}")
        if np.array_equal(array, base):
            raw[name] = (0.0, 1.0)
        else:
            test: Any = stats.wilcoxon(array, base, zero_method="wilcox", alternative="two-sided")
            raw[name] = (float(test.statistic), float(test.pvalue))
    adjusted = holm([p for _, p in raw.values()])
    return {
        name: PairedTest(statistic, p, p_holm, p_holm < 1 - level, base.size)
        for (name, (statistic, p)), p_holm in zip(raw.items(), adjusted, strict=True)
    }
