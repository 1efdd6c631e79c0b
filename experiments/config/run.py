"""Everything that a command line can say, and the settings that it resolves to.

`RunConfig` is conf/config.yaml: every key typed, every range checked in `__post_init__`. `Settings` has no open value
left. Fields marked `semantic=False` change how a run is executed, never what it computes; they are no part of its
identity (`experiments.settings.identity`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

import hicache
from experiments.config.backend import MAX_SIGMA, BackendConfig, Recommended
from experiments.config.cluster import ClusterConfig
from experiments.config.guidance import GuidanceConfig
from experiments.config.logger import LoggerConfig
from experiments.config.method import CalibratedConfig, MethodConfig
from experiments.config.metrics import MetricsConfig
from experiments.config.operators import OperatorsConfig
from experiments.config.preset import PresetConfig
from experiments.config.shard import Shard
from experiments.config.sigma_schedule import SigmaScheduleConfig
from experiments.errors import check, choose
from hicache.forecast import BASES
from hicache.methods import MAX_ORDER, TIMES
from hicache.patch import PATCHES
from hicache.policy import POLICIES

__all__ = [
    "RunConfig",
    "Settings",
    "Shard",
    "fill",
]


MOST_STEPS = 1000
"""Timesteps that the models were trained with; samplers cannot take more steps."""


@dataclass(kw_only=True)
class RunConfig:
    """Everything that the command line can say. Null top-level keys take the backend's recommended value."""

    backend: BackendConfig = MISSING
    method: MethodConfig = MISSING
    sigma_schedule: SigmaScheduleConfig = MISSING
    guidance: GuidanceConfig = MISSING
    operators: OperatorsConfig = MISSING
    metrics: MetricsConfig = MISSING
    cluster: ClusterConfig = MISSING
    logger: LoggerConfig = MISSING
    preset: PresetConfig | None = None
    interval: int | None = None
    budget: int | None = None
    """Full steps of policies even, late and placed; of a calibrated plan, where it overrides `method.budget`."""
    order: Any = None
    """An integer, or `auto`: from stored trajectories (`experiments.artefacts.moments`)."""
    sigma: Any = None
    """A number, or `auto`."""
    time: str = "index"
    """What the basis extrapolates in: index (of the step), sigma, log_snr."""
    warmup_steps: int | None = None
    num_steps: int | None = None
    scope: str | None = None
    policy: str | None = None
    """Overrides `method.policy`."""
    forecaster: str | None = None
    """Overrides `method.basis`."""
    patch: str | None = None
    """Overrides `method.patch`."""
    seed: int = 0
    num_items: int | None = None
    batch_size: int | None = None
    shard: str = "0/1"
    results: str = "results"
    progress_every: int = 50

    def __post_init__(self) -> None:
        for name in ("interval", "budget", "warmup_steps", "num_steps", "num_items", "batch_size", "progress_every"):
            value = getattr(self, name)
            check(value is None or value >= 1, name, "must be an integer >= 1", value)
        if self.order not in (None, "auto"):
            whole = isinstance(self.order, int) and not isinstance(self.order, bool)
            rule = f"must be auto or an integer from 0 to {MAX_ORDER}"
            check(whole and 0 <= self.order <= MAX_ORDER, "order", rule, self.order)
        if self.sigma not in (None, "auto"):
            real = isinstance(self.sigma, (int, float)) and not isinstance(self.sigma, bool)
            self.sigma = float(self.sigma) if real else self.sigma
            rule = f"must be auto or a number > 0, at most {MAX_SIGMA}"
            check(real and 0 < self.sigma <= MAX_SIGMA, "sigma", rule, self.sigma)
        for name, known in (("time", TIMES), ("policy", POLICIES), ("forecaster", BASES), ("patch", PATCHES)):
            if (value := getattr(self, name)) is not None:
                choose(name, value, known)
        check(self.seed >= 0, "seed", "must be an integer >= 0", self.seed)
        check(self.seed < 1 << 63, "seed", "must be less than 2^63", self.seed)
        check(bool(self.results.strip()), "results", "must be the name of a folder", self.results)
        check(
            self.num_steps is None or self.num_steps <= MOST_STEPS,
            "num_steps",
            f"must be an integer from 1 to {MOST_STEPS}",
            self.num_steps,
        )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A resolved run: no value is open any more."""

    backend: BackendConfig
    method: MethodConfig
    sigma_schedule: SigmaScheduleConfig
    metrics: MetricsConfig
    cluster: ClusterConfig
    logger: LoggerConfig
    interval: int
    order: int
    sigma: float
    warmup_steps: int
    num_steps: int
    scope: str
    seed: int
    num_items: int
    batch_size: int
    shard: Shard
    results: Path
    progress_every: int
    time: str = "index"
    budget: int = 8
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    operators: OperatorsConfig = field(default_factory=OperatorsConfig)
    chosen: dict[str, Any] = field(default_factory=dict)
    """What `auto` stood for in `sigma` and `order`, with the artefact that said so; no part of the identity."""

    def reference(self) -> Settings:
        """The un-cached run that this one is compared with."""
        plain: dict[str, Any] = {"guidance": GuidanceConfig(), "operators": OperatorsConfig(), "chosen": {}}
        return dataclasses.replace(self, method=MethodConfig(name="none"), **plain)

    @property
    def plain(self) -> bool:
        """Whether this is itself a run that others are compared with."""
        return (self.method.name, self.guidance.name, self.operators.name) == ("none", "plain", "none")


def fill(config: RunConfig) -> Settings:
    """Fill the open keys with the method's own defaults, else with the backend's recommended values (`auto` too)."""
    recommended, own = config.backend.recommended, config.method.defaults()
    filled: dict[str, Any] = {}
    for f in dataclasses.fields(Recommended):
        given = getattr(config, f.name)
        filled[f.name] = own.get(f.name, getattr(recommended, f.name)) if given in (None, "auto") else given
    rule = f"must be an integer from 1 to {MOST_STEPS}"
    check(filled["num_steps"] >= 1, "backend.recommended.num_steps", rule, filled["num_steps"])
    parts = {"policy": config.policy, "basis": config.forecaster, "patch": config.patch}
    given = {key: part for key, part in parts.items() if part is not None}
    method = dataclasses.replace(config.method, **given) if given else config.method
    if config.scope is not None and "scope" not in method.reads():
        method = dataclasses.replace(method, scope=config.scope)
    if config.budget is not None:
        method = with_budget(method, config.budget)
        filled["budget"] = config.budget
    return Settings(
        backend=config.backend,
        method=method,
        sigma_schedule=config.sigma_schedule,
        metrics=config.metrics,
        cluster=config.cluster,
        logger=config.logger,
        seed=config.seed,
        shard=Shard.parse(config.shard),
        results=Path(config.results),
        progress_every=config.progress_every,
        time=config.time,
        guidance=config.guidance,
        operators=config.operators,
        **filled,
    )


def with_budget(method: MethodConfig, budget: int) -> MethodConfig:
    """The method with so many full steps.

    Raises:
        ConfigError: if it is not a number of full steps that it is given: its run would have another one.
    """
    if isinstance(method, CalibratedConfig):
        return dataclasses.replace(method, budget=budget)
    policy = method.policy or hicache.METHODS[method.name].fixed.get("policy", "interval")
    rule = f"must be left open for policy {policy} (policy=even, late, eased or placed and method=calibrated read it)"
    check("budget" in method.reads(), "budget", rule, budget)
    return method
