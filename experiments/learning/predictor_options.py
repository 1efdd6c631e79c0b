"""What can be said on the command line of `experiments train predictor`."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from experiments.artefacts.artefact import check_output
from experiments.errors import ConfigError, check, choose
from hicache.forecast.lesa import MIXINGS, TEMPORALS

__all__ = ["L2cOptions", "LesaOptions", "TrainOptions", "parse"]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The choices of every training."""

    items: int = 64
    """Training items, with seeds of their own."""
    held_out: int = 32
    """Further items, for the held-out loss."""
    training_seed: int = 1000
    updates: tuple[int, ...] = (100,)
    """Updates of each phase."""
    rate: float = 1e-3
    """Learning rate of AdamW at the start of a phase."""
    every: int = 100
    """Updates between two points of the loss curve, which are the checkpoints too."""
    output: str | None = None
    """The artefact; null = the shipped place for the backend."""

    def __post_init__(self) -> None:
        for key in ("items", "held_out", "every"):
            check(getattr(self, key) >= 1, key, "must be an integer >= 1", getattr(self, key))
        valid = 0 <= self.training_seed < 1 << 63
        check(valid, "training_seed", "must be an integer from 0 to 2^63 - 1", self.training_seed)
        if self.output is not None:
            check_output(self.output)
        check(0 < self.rate < math.inf, "rate", "must be a number > 0", self.rate)
        phases = len(type(self).updates)
        valid = len(self.updates) == phases and min(self.updates) >= 0 and max(self.updates) > 0
        check(valid, "updates", f"must be {phases} integers >= 0, not all 0", self.updates)


@dataclass(frozen=True, kw_only=True)
class LesaOptions(TrainOptions):
    """The choices of LESA; `memories=6` is one expert for all stages."""

    updates: tuple[int, ...] = (200, 1400)
    rate: float = 1e-2
    intervals: tuple[int, ...] = (5, 6, 7, 8, 9, 10)
    """Schedules to train for."""
    memories: tuple[int, ...] = (4, 6, 8)
    """K of each noise stage, from high to low noise."""
    cuts: tuple[int, ...] | None = None
    """First steps of the second and later stages; null = equal parts."""
    temporal: str = "kan"
    """kan, or mlp."""
    mixing: str = "channel"
    """A weight per slot and channel, or scalar: per slot."""
    width: int = 16
    """Functions phi_m."""
    splines: int = 8
    """B-splines per function."""
    rows: int = 128
    """Trajectories of feature vectors per update."""
    tokens: int = 16
    """Token rows that are recorded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("temporal", self.temporal, TEMPORALS)
        choose("mixing", self.mixing, MIXINGS)
        check(min(self.intervals) >= 2, "intervals", "must be integers >= 2", self.intervals)
        check(self.cuts is None or min(self.cuts) >= 1, "cuts", "must be integers >= 1", self.cuts)
        check(min(self.memories) >= 1, "memories", "must be integers >= 1", self.memories)
        check(self.splines >= 4, "splines", "must be an integer >= 4", self.splines)
        for key in ("width", "rows", "tokens"):
            check(getattr(self, key) >= 1, key, "must be an integer >= 1", getattr(self, key))


@dataclass(frozen=True, kw_only=True)
class L2cOptions(TrainOptions):
    """The choices of Learning-to-Cache."""

    items: int = 1600
    """Training images."""
    held_out: int = 2
    """Held-out images per pair of steps."""
    updates: tuple[int, ...] = (300,)
    rate: float = 3e-2
    every: int = 50
    penalty: float = 1e-5
    """lambda, the price of a computed module."""
    images: int = 1
    """Images per routed step and update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.penalty < math.inf, "penalty", "must be a number >= 0", self.penalty)
        check(self.images >= 1, "images", "must be an integer >= 1", self.images)


def parse(kind: type[TrainOptions], given: dict[str, str]) -> Any:
    """Options from the strings of the command line."""
    typed: dict[str, Any] = {}
    for f in dataclasses.fields(kind):
        if f.name in given:
            typed[f.name] = convert(f.name, str(f.type), given[f.name])
    return kind(**typed)


def within(value: int) -> int:
    """An integer that counts something.

    Raises:
        ValueError: for one that no computer can count to.
    """
    if abs(value) >= 1 << 63:
        raise ValueError("too large")
    return value


def convert(key: str, kind: str, text: str) -> Any:
    """One value; the annotation says what it is."""
    if text == "null" and "None" in kind:
        return None
    try:
        if kind.startswith("tuple"):
            return tuple(within(int(part)) for part in text.split(","))
        return {"int": lambda text: within(int(text)), "float": float}.get(kind, str)(text)
    except ValueError:
        rule = "must be integers, as in 4,6,8" if kind.startswith("tuple") else f"must be of type {kind}"
        raise ConfigError(f"{key}: {rule}, got {text!r}") from None
