r"""Policies that skip while an indicator or a measured curve says that the output barely moves: TeaCache and MagCache.

TeaCache (arXiv 2411.19108) watches `u_s`, the modulated input of the first block, and accumulates

    acc += P( mean|u_s - u_{s-1}| / mean|u_{s-1}| ),      P a polynomial fitted per model;

a step is computed, and `acc` set to zero, once `acc` reaches the threshold. First and last steps are always computed,
and so is a step whose change is not a finite number, and every step if the threshold is 0. The published P are used as
they are, also where they are negative and make `acc` fall; coefficients that are given (a calibration's) count as
max(0, P).

MagCache (Zehong-Ma/MagCache) needs no indicator but the curve `gamma_s = ||r_s|| / ||r_{s-1}||` of residual norms,
measured once: after step `int(retention T)` (FLUX: `int(retention T + 0.5)`) it accumulates `A *= gamma_s`,
`E += |1 - A|` over skipped steps and computes once `E > threshold` (Qwen-Image: `>=`) or more than `max_skips` steps
in a row were skipped. On FLUX every step whose nearest index among 28 steps is 11 is computed too (one of 28 or of
50), unless `forced=False`. Curves and limits per model: `hicache.policy.magnitudes`.

TeaCache decides for the whole batch of a call: which steps are computed depends on what is generated together. Those of
MagCache follow from its curve and the number of steps alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hicache.checks import check_integer
from hicache.policy.base import Clock, Policy
from hicache.policy.magnitudes import LIMITS, MAGNITUDES, Limits
from hicache.tree import Action

__all__ = ["POLYNOMIALS", "MagCache", "TeaCache"]

POLYNOMIALS: dict[str, tuple[float, ...]] = {  # published TeaCache fits, highest degree first
    "identity": (1.0, 0.0),
    "flux": (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861),
    "hunyuan_video": (733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896),
    "cogvideox_5b": (-1538.80483, 843.202495, -134.363087, 7.97131516, -0.0523162339),
    "cogvideox_2b": (-31.0658903, 25.4732368, -5.92380459, 1.75769064, -0.00361568434),
    "cogvideox1.5_5b": (250.210439, -165.061612, 35.7804877, -0.781551492, 0.0358559703),
    "cogvideox1.5_5b_i2v": (122.842302, -104.088754, 26.2981677, -0.306009921, 0.037121322),
    "cosmos": (271.156237, -91.9775607, 2.2443725, 2.08355751, 0.14177633),
    "ltx": (21.4700694, -12.8016453, 2.31279151, 0.792487521, 0.00969274326),
    "lumina2": (393.76566581, -603.50993606, 209.10239044, -23.00726601, 0.86377344),
    "mochi": (-3512.41319, 811.675948, -60.9400215, 2.42429681, 0.00305291719),
    "hidream_i1": (-31360.5009, -712.425503, 49.1363285, 8.2651549, 0.108053901),
    "wan2.1_1.3b": (2396.76752, -1311.10545, 201.331979, -8.29855975, 0.137887774),
    "wan2.1_1.3b_retention": (-52186.2437, 9230.41404, -528.275948, 13.6987616, -0.0499875664),
    "wan2.1_14b": (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
    "wan2.1_14b_retention": (-303318.725, 49053.7029, -2655.30556, 58.7365115, -0.315583525),
}


@dataclass(kw_only=True)
class TeaCache(Policy):
    """Compute when the accumulated change of the input reaches `threshold`.

    Attributes:
        threshold: published for FLUX are 0.25, 0.4, 0.6 and 0.8 at 28 steps, 1.0 and 1.2 at 50; 0 computes every step.
        polynomial: coefficients, highest degree first, of a P that counts as 0 where it is negative; or a key of
            `POLYNOMIALS`, or `auto` for that of the model the method is enabled on; models without a published fit have
            `identity`, for which the threshold is the accumulated relative change itself.
    """

    indicator = True
    batched = True
    threshold: float = 0.25
    polynomial: str | Sequence[float] = "auto"
    coefficients: tuple[float, ...] = field(default=(), init=False, repr=False)
    total: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"threshold: must be a number >= 0, got {self.threshold}")
        check_numbers("polynomial", self.polynomial, POLYNOMIALS)
        self.prepare("identity")

    def prepare(self, family: str, blocks: int = 0) -> None:
        del blocks
        self.coefficients = numbers(self.polynomial, family, POLYNOMIALS, "identity")

    def decide(self, clock: Clock) -> Action:
        last = clock.num_steps is not None and clock.step == clock.num_steps - 1
        forced = last or self.threshold == 0 or clock.change is None or not math.isfinite(clock.change)
        self.total += 0.0 if clock.change is None or forced else self.rescaled(clock.change)
        if forced or self.total >= self.threshold:
            self.total = 0.0
            return Action.COMPUTE
        return Action.ESTIMATE

    def rescaled(self, change: float) -> float:
        """P of a change."""
        value = 0.0
        for coefficient in self.coefficients:
            value = value * change + coefficient
        return value if isinstance(self.polynomial, str) else max(0.0, value)

    def plan(self, num_steps: int) -> None:
        """The plan depends on the data."""


@dataclass(kw_only=True)
class MagCache(Policy):
    """Compute when the accumulated error of the magnitude curve exceeds `threshold`.

    Attributes:
        threshold: delta; null, here and below: as published for the curve (`LIMITS`). FLUX 0.24, Kontext 0.05,
            HunyuanVideo 0.24 (for quality 0.12), Qwen-Image 0.06.
        max_skips: K, steps skipped in a row at most; 5, 4, 6 (4) and 2 for these.
        retention: rho, leading share of the steps that is always computed; 0.1, 0.2, 0.2 and 0.2.
        curve: a ratio per step, or a key of `MAGNITUDES`, or `auto` for that of the model the method is enabled on;
            models without a published curve have `flat`. Resampled to the number of steps by nearest neighbour.
        forced: whether the step of FLUX's script that is always computed is (diffusers' version has none).
    """

    threshold: float | None = None
    max_skips: int | None = None
    retention: float | None = None
    curve: str | Sequence[float] = "auto"
    forced: bool = True
    ratios: tuple[float, ...] = field(default=(), init=False, repr=False)
    limits: Limits = field(default=Limits(), init=False, repr=False)
    ratio: float = field(default=1.0, init=False, repr=False)
    error: float = field(default=0.0, init=False, repr=False)
    skipped: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.threshold is not None and not self.threshold >= 0:
            raise ValueError(f"threshold: must be a number >= 0, got {self.threshold}")
        if self.max_skips is not None:
            check_integer("max_skips", self.max_skips, 0)
        if self.retention is not None and not 0 <= self.retention <= 1:
            raise ValueError(f"retention: must be between 0 and 1, got {self.retention}")
        check_numbers("curve", self.curve, MAGNITUDES)
        self.prepare("flat")

    def prepare(self, family: str, blocks: int = 0) -> None:
        del blocks
        self.ratios = numbers(self.curve, family, MAGNITUDES, "flat")
        model = self.curve if isinstance(self.curve, str) and self.curve in LIMITS else family
        given = {key: getattr(self, key) for key in ("threshold", "max_skips", "retention")}
        known = {key: value for key, value in given.items() if value is not None}
        self.limits = replace(LIMITS.get(model, Limits()), **known)

    def decide(self, clock: Clock) -> Action:
        if clock.num_steps is None:
            raise ValueError("num_steps: magcache needs the number of steps; call begin(num_steps)")
        if clock.step == 0:
            self.reset()
        limits = self.limits
        if clock.step == 0 or clock.step < int(limits.retention * clock.num_steps + limits.rounding):
            return Action.COMPUTE
        self.ratio *= resampled(self.ratios, clock.step, clock.num_steps)
        self.error += abs(1 - self.ratio)
        self.skipped += 1
        small = self.error <= limits.threshold if limits.inclusive else self.error < limits.threshold
        if small and self.skipped <= limits.max_skips and not self.is_forced(clock.step, clock.num_steps):
            return Action.ESTIMATE
        self.reset()
        return Action.COMPUTE

    def is_forced(self, step: int, num_steps: int) -> bool:
        """Whether a step is computed whatever the error."""
        if not self.forced or self.limits.forced is None:
            return False
        index, length = self.limits.forced
        return nearest(step, num_steps, length) == index

    def reset(self) -> None:
        """Begin to accumulate again, after a computed step."""
        self.ratio, self.error, self.skipped = 1.0, 0.0, 0


def resampled(curve: Sequence[float], step: int, num_steps: int) -> float:
    """The curve's value at a step of a run of another length, by nearest neighbour."""
    return curve[nearest(step, num_steps, len(curve))]


def nearest(step: int, num_steps: int, length: int) -> int:
    """The index among `length` that corresponds to a step among `num_steps`."""
    return round(step * (length - 1) / max(num_steps - 1, 1))


def check_numbers(key: str, given: str | Sequence[object], known: Mapping[str, Sequence[float]]) -> None:
    """Raise a `ValueError` unless `given` is `auto`, a known name or a list of numbers."""
    if isinstance(given, str):
        if given not in ("auto", *known):
            raise ValueError(f"{key}: must be one of {', '.join(('auto', *known))}, got {given!r}")
    elif not given or not all(isinstance(x, (int, float)) and math.isfinite(x) for x in given):
        raise ValueError(f"{key}: must be a name or a list of finite numbers, got {given!r}")


def numbers(
    given: str | Sequence[float], family: str, known: Mapping[str, tuple[float, ...]], default: str
) -> tuple[float, ...]:
    """The numbers that are given, named, or (`auto`) known of a family."""
    if not isinstance(given, str):
        return tuple(float(x) for x in given)
    return known.get(family if given == "auto" else given, known[default])
