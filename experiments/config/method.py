"""Schemas of conf/method/: a method's name, and the choices that it otherwise makes itself."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import MISSING

import hicache
from experiments.config.backend import SOLVERS
from experiments.errors import ConfigError, check, choose

__all__ = [
    "AdaptiveConfig",
    "CalibratedConfig",
    "L2cConfig",
    "LearnedConfig",
    "LesaConfig",
    "MethodConfig",
    "SmoothCacheConfig",
    "SpectrumConfig",
    "StepsConfig",
    "decibels_of",
    "with_group",
]


@dataclass(kw_only=True)
class MethodConfig:
    """A method, and the choices that it otherwise makes itself (null; see `hicache.methods.Knobs`)."""

    name: str = MISSING
    policy: str | None = None
    """A key of `hicache.policy.POLICIES`: interval, mask, growing, teacache, probe, ..."""
    policy_options: Any = None
    """Further parameters of the policy: window and alpha of growing, threshold of teacache and probe, ..."""
    mask: list[int] | None = None
    """The full steps of policy mask."""
    basis: str | None = None
    """A key of `hicache.forecast.BASES`: reuse, taylor, hermite, dmd, ..."""
    basis_options: Any = None
    """Parameters of the basis, such as variant of foca, degree of chebyshev, rank of dmd, holdout of auto."""
    history: str | None = None
    """snapshots, or differences in the feature dtype."""
    gate: bool | None = None
    """false builds differences from the first pair of anchors on."""
    numerics: str | None = None
    """clean, or reference: the in-dtype arithmetic of the published code."""
    history_dtype: str | None = None
    """feature, fp32, bf16."""
    front: int | None = None
    """Blocks before the span of scope `span`, always run."""
    back: int | None = None
    """Blocks after it, always run."""
    depth: int | None = None
    """Layers of a U-Net on the way up that run beside the last one, for scope `deep`."""
    history_place: str | None = None
    """device, or cpu for pinned host memory."""
    patch: str | None = None
    """none, tokens, clusters: which token rows are recomputed inside an estimate."""
    scope: str | None = None
    """Set by the top-level `scope` for methods that have one of their own."""
    patch_options: Any = None
    """Parameters of the patch, such as fraction and select of tokens, clusters and gamma of clusters."""

    def defaults(self) -> dict[str, Any]:
        """Values of top-level keys that the method prefers to the backend's."""
        return {}

    def reads(self) -> frozenset[str]:
        """The top-level keys that the method reads, with the parts that were exchanged."""
        try:
            return hicache.reads(self.name, self.policy, self.basis, self.patch)
        except ValueError as error:
            raise ConfigError(with_group(str(error))) from error


def with_group(said: str) -> str:
    """What the library said of a key, with the key as the command line writes it; some stand at the top."""
    inside = {f.name for f in fields(MethodConfig)} - {"name", "policy", "patch", "scope"}
    return f"method.{said}" if said.partition(":")[0] in inside else said


@dataclass(kw_only=True)
class AdaptiveConfig(MethodConfig):
    """HiCache-Adaptive: the parameters of its sigma (Equations 41-42)."""

    alpha: float = 1.28
    beta: float = 0.01
    epsilon: float = 1e-6
    per: str = "sample"


@dataclass(kw_only=True)
class StepsConfig(MethodConfig):
    """Fewer solver steps instead of a cache; `solver: null` keeps the backend's."""

    steps: int = 8
    solver: str | None = None

    def __post_init__(self) -> None:
        check(1 <= self.steps <= 1000, "method.steps", "must be an integer from 1 to 1000", self.steps)
        if self.solver is not None:
            choose("method.solver", self.solver, SOLVERS)


def decibels_of(key: str, text: str) -> float:
    """The number in `40dB`.

    Raises:
        ConfigError: if it is none, or not > 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *(?:dB)?", str(text))
    check(found is not None and float(found[1]) > 0, key, "must be a PSNR > 0, as in 40dB", text)
    assert found is not None
    return float(found[1])


@dataclass(kw_only=True)
class CalibratedConfig(MethodConfig):
    """A calibrated plan: how many steps are computed, or which plan file is used."""

    budget: int = 8
    """Number of full steps; the top-level `budget` overrides it."""
    speedup: float | None = None
    """Wanted ratio of steps to full steps; overrides the budget."""
    quality: str | None = None
    """Wanted PSNR on held-out calibration items, as in 40dB: the stored plan of fewest full steps that has it."""
    plan: str | None = None
    """A plan file; null = the shipped one for this backend, scope, solver, steps, guidance and budget."""

    def __post_init__(self) -> None:
        check(self.budget >= 1, "method.budget", "must be an integer >= 1", self.budget)
        valid = self.speedup is None or 1 <= self.speedup < float("inf")
        check(valid, "method.speedup", "must be a number >= 1", self.speedup)
        if self.quality is not None:
            decibels_of("method.quality", self.quality)
            others = {"method.speedup": self.speedup, "method.plan": self.plan}
            for key, value in others.items():
                check(value is None, key, "must be null beside method.quality, which chooses the plan", value)

    def defaults(self) -> dict[str, Any]:
        return {"scope": "output"}


@dataclass(kw_only=True)
class SmoothCacheConfig(MethodConfig):
    """SmoothCache: the largest relative error of a module's output that is accepted."""

    alpha: float = 0.22
    """0 computes everything."""

    def __post_init__(self) -> None:
        check(0 <= self.alpha < float("inf"), "method.alpha", "must be a finite number >= 0", self.alpha)


TRAINED_SCOPES = ("final_hidden", "stack", "output")
"""Those that a predictor can be trained for."""


@dataclass(kw_only=True)
class LearnedConfig(MethodConfig):
    """A method with a trained artefact."""

    artefact: str | None = None
    """A file that `experiments train predictor` wrote; null = the shipped one for this backend, solver and steps."""


@dataclass(kw_only=True)
class LesaConfig(LearnedConfig):
    """The learned predictor: at which site, and after how many full steps it begins."""

    def defaults(self) -> dict[str, Any]:
        return {"scope": "final_hidden", "warmup_steps": 4}


@dataclass(kw_only=True)
class SpectrumConfig(MethodConfig):
    """Spectrum: its site and warm-up."""

    def defaults(self) -> dict[str, Any]:
        return {"scope": "final_hidden", "warmup_steps": 5}


@dataclass(kw_only=True)
class L2cConfig(LearnedConfig):
    """The learned router: which modules count as kept."""

    threshold: float = 0.1
    """A module of a routed step is computed where the sigmoid of its logit is at least this."""

    def __post_init__(self) -> None:
        check(0 <= self.threshold <= 1, "method.threshold", "must be between 0 and 1", self.threshold)
