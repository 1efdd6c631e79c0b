"""Schedules that are known before the run: interval with warm-up, even, a mask, the paper's literal Algorithm 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from hicache.checks import check_integer
from hicache.policy.base import Clock, Policy
from hicache.tree import Action

__all__ = [
    "Algorithm1",
    "Eased",
    "Even",
    "Every",
    "Interval",
    "Late",
    "Mask",
    "Placed",
    "Power",
    "Stages",
    "Uniform",
    "full_steps",
]


def _choose(full: bool) -> Action:
    return Action.COMPUTE if full else Action.ESTIMATE


@dataclass(frozen=True, kw_only=True)
class Interval(Policy):
    """Full at steps 0..w-1, then every N-th: `{0..w-1} + {w-1+jN}`, `w + floor((T-w)/N)` in all.

    The schedule of the FORA, ToCa, TaylorSeer, ClusCa and HiCache code, where w is `first_enhance`; it reproduces the
    FLOPs columns of the paper. The last step is not forced.
    """

    interval: int
    warmup_steps: int = 1

    def __post_init__(self) -> None:
        check_integer("interval", self.interval, 1)
        check_integer("warmup_steps", self.warmup_steps, 1)

    def decide(self, clock: Clock) -> Action:
        past = clock.step - (self.warmup_steps - 1)
        return _choose(past <= 0 or past % self.interval == 0)


@dataclass(frozen=True, kw_only=True)
class Algorithm1(Policy):
    """HiCache's Algorithm 1 to the letter: with t = T..1, full where t mod N = 0.

    It has no warm-up, so the first step is computed too (nothing could be forecast there). For T = 50, N = 7 this gives
    8 full steps where the published FLOPs say 9: use `Interval` to reproduce the tables.
    """

    interval: int

    def __post_init__(self) -> None:
        check_integer("interval", self.interval, 1)

    def decide(self, clock: Clock) -> Action:
        if clock.num_steps is None:
            raise ValueError("num_steps: algorithm1 counts steps from the end; call begin(num_steps)")
        return _choose(clock.step == 0 or (clock.num_steps - clock.step) % self.interval == 0)


@dataclass(frozen=True, kw_only=True)
class Uniform(Policy):
    """Full at the first step and where T-1-s is a multiple of N: the original FORA and Delta-DiT code, without warm-up.

    >>> len(Uniform(interval=3).plan(50))
    18
    """

    interval: int

    def __post_init__(self) -> None:
        check_integer("interval", self.interval, 1)

    def decide(self, clock: Clock) -> Action:
        if clock.num_steps is None:
            raise ValueError("num_steps: uniform counts steps from the end; call begin(num_steps)")
        return _choose(clock.step == 0 or (clock.num_steps - 1 - clock.step) % self.interval == 0)


@dataclass(frozen=True, kw_only=True)
class Stages(Uniform):
    """Delta-DiT (arXiv 2406.01125): early steps, which draw the outline, replace the back blocks; late ones the front.

    Attributes:
        switch: share of the steps after which the front blocks are replaced. The paper searches it per model and does
            not give it for DDIM-50; half of the steps is our choice.
    """

    switch: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.switch <= 1:
            raise ValueError(f"switch: must be between 0 and 1, got {self.switch}")

    def stage(self, clock: Clock) -> int:
        return int(clock.step > self.switch * (clock.num_steps or 0))


@dataclass(frozen=True, kw_only=True)
class Power(Policy):
    """DeepCache's non-uniform steps (arXiv 2312.00858): as many as one in N, dense around a step c.

    With a = (-c)^(1/p), b = (T - c)^(1/p) and n = ceil(T / N), the steps are 0 and c + x for all but the least and the
    greatest of the distinct integers x among Re((a + j (b - a) / n)^p), j = 0..n, rounded towards zero. p is lowered by
    .02 until there are n of them. The root of -c is the principal one, as in the published code.

    Attributes:
        center: c, the step around which full steps lie closest.
        power: p > 1; the larger, the denser they lie there.

    >>> Power(interval=5, center=15, power=1.4).plan(50)
    [0, 5, 9, 13, 17, 21, 26, 31, 37, 43]
    """

    interval: int
    center: int = 15
    power: float = 1.4

    def __post_init__(self) -> None:
        check_integer("interval", self.interval, 1)
        check_integer("center", self.center, 0)
        if not 1 < self.power < float("inf"):
            raise ValueError(f"power: must be a number > 1, got {self.power}")

    def steps(self, num_steps: int) -> list[int]:
        """The full steps.

        Raises:
            ValueError: if no power > 1 gives as many as there must be.
        """
        if self.interval == 1:
            return list(range(num_steps))
        if self.center >= num_steps:
            raise ValueError(f"center: must be below the {num_steps} steps, got {self.center}")
        count, power = -(-num_steps // self.interval), self.power
        while power > 1:
            first = complex(-self.center) ** (1 / power)
            last = complex(num_steps - self.center) ** (1 / power)
            points = [(first + j * (last - first) / count) ** power for j in range(count + 1)]
            found = [0, *(x + self.center for x in sorted({int(round(p.real, 9)) for p in points})[1:-1])]
            if len(found) == count:
                return found
            power -= 0.02
        raise ValueError(f"center: must leave {count} distinct steps of {num_steps}, got {self.center}; lower it")

    def decide(self, clock: Clock) -> Action:
        if clock.num_steps is None:
            raise ValueError("num_steps: power places steps within a number of them; call begin(num_steps)")
        return _choose(clock.step in self.steps(clock.num_steps))


@dataclass(frozen=True, kw_only=True)
class Even(Policy):
    """A number of full steps, spread evenly from the first step to the last: `round(i (T-1-tail) / (K-1))`, i = 0..K-1.

    Halves are rounded up; K = 1 is step 0 alone. There is no warm-up, so differences are built from the first two full
    steps on. By default the last step, after which no error is mended, is computed. With `tail=1` it is estimated from
    the step before it, and gaps are shorter: at eight full steps better for every forecaster that
    extrapolates, on the models tried.

    Attributes:
        budget: K, from 1 to the T steps of the run.
        tail: steps after the last full one; fewer where K leaves fewer.

    >>> Even(budget=6).plan(50)
    [0, 10, 20, 29, 39, 49]
    >>> Even(budget=6, tail=1).plan(50)
    [0, 10, 19, 29, 38, 48]
    """

    gated: ClassVar[bool] = False
    budget: int
    tail: int = 0

    def __post_init__(self) -> None:
        check_integer("budget", self.budget, 1)
        check_integer("tail", self.tail, 0)

    def steps(self, num_steps: int) -> list[int]:
        """The full steps.

        Raises:
            ValueError: if there are fewer steps than are to be full.
        """
        last, gaps = self.last(num_steps), max(self.budget - 1, 1)
        return [(2 * i * last + gaps) // (2 * gaps) for i in range(self.budget)]

    def last(self, num_steps: int) -> int:
        """The last full step."""
        if self.budget > num_steps:
            raise ValueError(f"budget: must be at most the {num_steps} steps, got {self.budget}")
        return num_steps - 1 - min(self.tail, num_steps - self.budget)

    def decide(self, clock: Clock) -> Action:
        if clock.num_steps is None:
            raise ValueError("num_steps: full steps are spread over a number of them; call begin(num_steps)")
        return _choose(clock.step in self.steps(clock.num_steps))


@dataclass(frozen=True, kw_only=True)
class Late(Even):
    """As `even`, denser towards the end: `round((T-1-tail) (x + sin(pi x / 2)) / 2)`, x = i / (K-1), i = 0..K-1.

    Ours, and without data: half of the way even, half of it with gaps that shrink to nothing. A step that another one
    has taken already gives way to the next earlier one that is free.

    >>> Late(budget=8).plan(50)
    [0, 9, 18, 26, 33, 40, 45, 49]
    >>> Late(budget=8, tail=1).plan(50)
    [0, 9, 17, 25, 32, 39, 44, 48]
    """

    first: ClassVar[float] = 1.0
    """The first gap as a share of an even one."""
    bend: ClassVar[float] = 0.5
    """How much of the way has gaps that shrink."""

    def steps(self, num_steps: int) -> list[int]:
        last, found = self.last(num_steps), super().steps(num_steps)
        latest = last + 1
        for i in reversed(range(1, self.budget)):
            share = (self.first + i - 1) / (self.first + self.budget - 2)
            wanted = last * ((1 - self.bend) * share + self.bend * math.sin(math.pi * share / 2))
            latest = found[i] = min(math.floor(wanted + 0.5), latest - 1)
        return found


@dataclass(frozen=True, kw_only=True)
class Eased(Late):
    """Even full steps with a shorter first gap, shrinking last ones, and an estimated last step.

    `round((T-1-tail) (3 x + sin(pi x / 2)) / 4)` with x_0 = 0 and x_i = (i - .3) / (K - 1.3), i = 1..K-1: within the
    first gap one full step is known and can only be reused, so the gap is .7 of an even one; the last gaps are three
    quarters of one, and the step after the last full one is the easiest to forecast. Ours, and without data: its shares
    were chosen on two models that generate pictures; on one for super-resolution `late` with a tail is better.

    >>> Eased(budget=8).plan(50)
    [0, 6, 14, 22, 29, 36, 42, 48]
    """

    tail: int = 1
    first: ClassVar[float] = 0.7
    bend: ClassVar[float] = 0.25


@dataclass(frozen=True, kw_only=True)
class Placed(Even):
    """A number of full steps at places that were found for the method and the sampler.

    Found are the places whose final samples are nearest to the un-cached ones, on calibration items under the method
    itself: `experiments calibrate policy=placed`.

    Attributes:
        places: increasing steps, the first 0, as many as the budget.

    >>> Placed(budget=3, places=(0, 6, 9)).plan(10)
    [0, 6, 9]
    """

    places: Sequence[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tail:
            raise ValueError(f"tail: must be 0 for places, which say where the last one is, got {self.tail}")
        places = list(self.places)
        if not places or sorted(set(places)) != places or places[0] != 0 or len(places) != self.budget:
            rule = f"must be {self.budget} increasing steps (the budget) that start with 0"
            raise ValueError(f"places: {rule}, got {places}")

    def steps(self, num_steps: int) -> list[int]:
        if self.places[-1] >= num_steps:
            raise ValueError(f"places: must be steps of the run, below {num_steps}, got {self.places[-1]}")
        return list(self.places)


@dataclass(frozen=True, kw_only=True)
class Mask(Policy):
    """Full exactly at the given steps; step 0 must be among them."""

    steps: Sequence[int]

    def __post_init__(self) -> None:
        for step in self.steps:
            check_integer("mask", step, 0)
        if not self.steps or sorted(set(self.steps)) != list(self.steps) or self.steps[0] != 0:
            raise ValueError(f"mask: must be increasing steps that start with 0, got {list(self.steps)}")

    def decide(self, clock: Clock) -> Action:
        return _choose(clock.step in self.steps)


@dataclass(frozen=True, kw_only=True)
class Every(Policy):
    """Full at every step: the un-cached model."""

    def decide(self, clock: Clock) -> Action:
        return Action.COMPUTE


def full_steps(num_steps: int, interval: int, warmup_steps: int = 1) -> list[int]:
    """The full steps of the published schedule.

    Args:
        num_steps: model calls of one branch in a generation (T).
        interval: N; 1 computes every step.
        warmup_steps: w, the leading full steps (`first_enhance`): FLUX and Qwen-Image 3, DiT 2, HunyuanVideo 1.

    Raises:
        ValueError: for a value below 1.

    >>> full_steps(num_steps=50, interval=7, warmup_steps=3)
    [0, 1, 2, 9, 16, 23, 30, 37, 44]
    """
    check_integer("num_steps", num_steps, 1)
    return Interval(interval=interval, warmup_steps=warmup_steps).plan(num_steps) or []
